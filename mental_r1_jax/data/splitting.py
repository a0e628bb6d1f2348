"""One file without splits to three: stratified by label, whole groups on one side, by a seed.

1. Posts of one group, and posts with the same text, are one unit, and so is what that links.
2. A unit belongs to the stratum of its rarest label.
3. In a stratum the units are drawn in an order that the seed gives; each goes to the split that
   lacks the most posts: target minus posts so far, summed over this stratum and those before.

What a split lacks at the end of a stratum lies between -m and 2 m, where m is the number of posts
of the largest unit. For a unit goes where most is lacking; while units are left that is more than
nothing, since what the splits lack adds up to the posts that are left. So no split gets m posts too
many. At the end it adds up to nothing, so none lacks 2 m, the two others having less than m too
many. In the whole a split is off by less than 2 m posts, therefore, and in a stratum, where it may
begin with what it lacked before, by less than 3 m. Without groups m is 1.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

from mental_r1_jax.config import SplitShares
from mental_r1_jax.data.benchmarks import SPLITS, Split
from mental_r1_jax.data.records import Problem, redacted
from mental_r1_jax.data.repeats import LocatedExample, same_text_key


@dataclass(frozen=True)
class SplitPosts:
    """The posts of one file, each with its split; unusable where there are errors."""

    found: tuple[LocatedExample, ...]
    errors: tuple[Problem, ...] = ()


def split_posts(
    found: Sequence[LocatedExample],
    shares: SplitShares,
    *,
    whole_groups: bool,
    by_question: bool = False,
) -> SplitPosts:
    """Give each post of one file a split; what it is depends on no order of the rows.

    Args:
        found: the posts, in file order.
        shares: of validation and test, and the seed.
        whole_groups: whether the posts of a group stay together, as equal texts always do.
        by_question: whether a label counts for each question by itself, as those of topics do.
    """
    if not found:
        return SplitPosts(())

    def kind(item: LocatedExample) -> tuple[str, str]:
        return item.example.label, item.example.question if by_question else ""

    units = _units(found, whole_groups)
    rarity = {one: (count, one) for one, count in Counter(map(kind, found)).items()}
    strata: dict[tuple[str, str], list[tuple[LocatedExample, ...]]] = defaultdict(list)
    for unit in units:
        strata[min(set(map(kind, unit)), key=rarity.__getitem__)].append(unit)
    most = max(map(len, strata.values()))
    if most < len(SPLITS):
        grouped = whole_groups and any(item.example.group is not None for item in found)
        return SplitPosts((), (_too_few(found[0].file, most, grouped),))
    split_of = _assigned([strata[one] for one in sorted(strata)], shares)
    placed = tuple(
        replace(item, example=replace(item.example, split=split_of[id(item)])) for item in found
    )
    absent = [split for split in SPLITS if split not in set(split_of.values())]
    return SplitPosts(placed, tuple(_empty(found[0].file, split, len(units)) for split in absent))


def shared_groups(found: Sequence[LocatedExample], column: str) -> list[Problem]:
    """Return an error for each group, of this column, that has posts in several given splits.

    A group may be a person, so it is shown by length and hash like a post.
    """
    first: dict[str, dict[Split, LocatedExample]] = defaultdict(dict)
    for item in found:
        if item.example.group is not None:
            first[item.example.group].setdefault(item.example.split, item)
    problems = []
    for group, places in first.items():
        kept, *others = places.values()
        expected = f"a group in one split; it is at {kept.file}:{kept.line} too"
        expected += ", or whole_groups: false for what many writers share"
        problems += [
            Problem(x.file, x.line, column, redacted(group), expected, "group in several splits")
            for x in others
        ]
    return problems


def _units(found: Sequence[LocatedExample], whole_groups: bool) -> list[tuple[LocatedExample, ...]]:
    """Posts that must lie in one split: linked by a group or by the same text."""
    parent: dict[Hashable, Hashable] = {}

    def root(node: Hashable) -> Hashable:
        parent.setdefault(node, node)
        while parent[node] != node:
            parent[node] = node = parent[parent[node]]
        return node

    texts = [("text", same_text_key(item.example.text)) for item in found]
    for item, text in zip(found, texts, strict=True):
        if whole_groups and item.example.group is not None:
            parent[root(text)] = root(("group", item.example.group))
    units: dict[Hashable, list[LocatedExample]] = defaultdict(list)
    for item, text in zip(found, texts, strict=True):
        units[root(text)].append(item)
    return [tuple(unit) for unit in units.values()]


def _assigned(
    strata: Sequence[Sequence[Sequence[LocatedExample]]], shares: SplitShares
) -> Mapping[int, Split]:
    """The split of each post, by the identity of the post."""
    wanted: dict[Split, float] = {
        "train": 1.0 - shares.validation - shares.test,
        "validation": shares.validation,
        "test": shares.test,
    }
    lacking = dict.fromkeys(SPLITS, 0.0)
    split_of: dict[int, Split] = {}
    for stratum in strata:
        size = sum(map(len, stratum))
        for split in SPLITS:
            lacking[split] += wanted[split] * size
        for unit in sorted(stratum, key=lambda unit: _draw(unit, shares.seed)):
            poorest = max(SPLITS, key=lambda split: lacking[split])
            lacking[poorest] -= len(unit)
            split_of |= {id(item): poorest for item in unit}
    return split_of


def _draw(unit: Sequence[LocatedExample], seed: int) -> str:
    """A number for a unit that no other has: the digest of its first text in the alphabet."""
    text = min(same_text_key(item.example.text) for item in unit)
    return hashlib.sha256(f"{seed}\0{text}".encode("utf-8", "surrogatepass")).hexdigest()


def _too_few(file: str, most: int, grouped: bool) -> Problem:
    """The error of posts of which no label has enough for every split."""
    what = "groups" if grouped else "posts"
    value = f"at most {most} {what} with one label"
    expected = f"{len(SPLITS)} {what} or more with one label, one for each split"
    if grouped:
        expected += "; whole_groups: false if many writers share a group"
    return Problem(file, None, "label", value, expected, "too few to split")


def _empty(file: str, split: Split, units: int) -> Problem:
    """The error of a split that got no post."""
    value = f"none of {units} groups or texts left for {split}"
    expected = f"more posts, smaller groups or a larger split.{split}"
    return Problem(file, None, "", value, expected, "too few to split")
