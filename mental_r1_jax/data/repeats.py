"""Posts that occur more than once: leaks between splits, and double weight inside one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePath

from mental_r1_jax.data.records import Example, Problem, redacted

# The later in this order, the more a split is held out: a leak is mended on the earlier side.
_HELD_OUT_ORDER = ("train", "validation", "test")


@dataclass(frozen=True)
class LocatedExample:
    """A post and where its row starts."""

    file: str
    line: int
    example: Example


def repeat_warnings(found: Sequence[LocatedExample]) -> list[Problem]:
    """Return one warning for each post that `drop_repeats` would remove.

    Two texts are the same when they differ only in white space or letter case. Inside a split a
    text with another question is another post; across splits it is a leak, whatever is asked.
    """
    return [_warning(item, kept) for item, kept in _repeats(found)]


def drop_repeats(found: Sequence[LocatedExample]) -> list[LocatedExample]:
    """Return `found` with every text in one split, the most held-out one, once a question."""
    dropped = {id(item) for item, _ in _repeats(found)}
    return [item for item in found if id(item) not in dropped]


def same_text_key(text: str) -> str:
    """Return what two texts share that differ only in white space or letter case."""
    return " ".join(text.split()).casefold()


def _repeats(
    found: Iterable[LocatedExample],
) -> list[tuple[LocatedExample, LocatedExample]]:
    """Pairs (repeat, the occurrence that stays), in the order of `found`."""
    occurrences: dict[str, list[LocatedExample]] = defaultdict(list)
    for item in found:
        occurrences[same_text_key(item.example.text)].append(item)
    pairs = []
    for items in occurrences.values():
        held_out = max((item.example.split for item in items), key=_HELD_OUT_ORDER.index)
        # In that split a text stays once for each question: questions about it are no repeats.
        kept: dict[str, LocatedExample] = {}
        for item in items:
            if item.example.split == held_out:
                kept.setdefault(item.example.question, item)
        first = next(iter(kept.values()))
        for item in items:
            stays = kept.get(item.example.question, first)
            if item is not stays:
                pairs.append((item, stays))
    order = {split: position for position, split in enumerate(_HELD_OUT_ORDER)}
    return sorted(pairs, key=lambda p: (order[p[0].example.split], p[0].line))


def _warning(item: LocatedExample, kept: LocatedExample) -> Problem:
    """The warning about one repeat."""
    inside = item.example.split == kept.example.split
    differs = "" if item.example.label == kept.example.label else ", labelled differently there"
    return Problem(
        file=item.file,
        line=item.line,
        column="text",
        value=redacted(item.example.text),
        expected=f"a text that is not also at {PurePath(kept.file).name}:{kept.line}{differs}",
        kind="repeated in split" if inside else "repeated across splits",
    )
