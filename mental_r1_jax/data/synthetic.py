"""Made-up posts for the quickstart and the tests; a program wrote them, no person did.

A post is two cue phrases of its label, joined, with neutral phrases around them. The phrases of one
set share most of their words across labels ("I can rest", "I cannot rest"), and
neutral phrases name the topics of other labels, so a label follows from several words together and
never from one. The language is gentle and indirect throughout. Nothing here says anything about how
well a model reads real posts.
"""

from __future__ import annotations

import csv
import functools
import importlib.resources
import random
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mental_r1_jax.data.benchmarks import SPLITS, SYNTHETIC_SPECS, BenchmarkSpec
from mental_r1_jax.errors import UserError

# Changes whenever the same seed would give other posts; names the cached folder.
GENERATOR_VERSION = 1

_MAX_WORDS = 25
_MIN_WORDS = 8

# The label of rank r = 0, 1, .. has RARITY ** -min(r, 4) times as many posts as the first.
_RARITY = 1.25

_NOTE = """These posts are SYNTHETIC.

A program (mental_r1_jax/data/synthetic.py) put them together from invented phrases. No person wrote
them and they describe no person. They exist to try the software out. Do not train a model for real
use on them, and do not quote a score on them as a result.
"""


@dataclass(frozen=True)
class SplitSizes:
    """Posts in each split of every set."""

    train: int = 400
    validation: int = 60
    test: int = 100


def write_synthetic_sets(root: Path, seed: int = 0, sizes: SplitSizes | None = None) -> Path:
    """Write every set of `SYNTHETIC_SPECS` under `root`, in the paper's CSV layout.

    The same arguments write the same bytes. No text occurs twice in a set, inside or across splits.
    `root` appears complete or not at all.

    Args:
        root: the folder to make.
        seed: seed of the random choices; the same seed gives the same posts.
        sizes: posts in each split; the sizes of `SplitSizes` when None.

    Returns:
        `root`.

    Raises:
        UserError: `root` exists, or a set cannot hold so many different posts.
    """
    if root.exists():
        raise UserError(
            f"The folder {root} for the synthetic posts exists already",
            "a path where nothing is yet",
            "an existing folder or file",
            "Choose another path, or remove it if it is not needed.",
        )
    root.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=root.parent))
    try:
        (unfinished / "README.txt").write_text(_NOTE, encoding="utf-8")
        for spec in SYNTHETIC_SPECS.values():
            _write_set(unfinished / spec.name, spec, seed, sizes or SplitSizes())
        unfinished.rename(root)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return root


@functools.cache
def read_phrases() -> dict[str, Any]:
    """The invented phrases: `openings`, `neutral`, and `cues` by set and label."""
    file = importlib.resources.files(__package__) / "synthetic_phrases.yaml"
    phrases: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
    return phrases


def _write_set(folder: Path, spec: BenchmarkSpec, seed: int, sizes: SplitSizes) -> None:
    """Write the three files of one set."""
    folder.mkdir()
    rng = random.Random(f"{spec.name}/{seed}/{GENERATOR_VERSION}")
    posts = _distinct_posts(rng, read_phrases()["cues"][spec.name])
    stems = {"train": "train", "validation": spec.validation_file, "test": "test"}
    for split in SPLITS:
        labels = _labels_of_split(rng, spec.labels, getattr(sizes, split))
        path = folder / f"{stems[split]}_clean.csv"
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["text", "label", "mental_prompt"])
            writer.writerows([next(posts[label]), label, spec.question] for label in labels)


def _labels_of_split(rng: random.Random, labels: Sequence[str], count: int) -> list[str]:
    """`count` labels in random order, shares falling mildly from the first label to the last."""
    shares = [_RARITY ** -min(rank, 4) for rank in range(len(labels))]
    drawn = [
        label
        for label, share in zip(labels, shares, strict=True)
        for _ in range(round(count * share / sum(shares)))
    ]
    drawn = (drawn + [labels[0]] * count)[:count]
    rng.shuffle(drawn)
    return drawn


def _distinct_posts(
    rng: random.Random, cues: Mapping[str, Sequence[str]]
) -> dict[str, Iterator[str]]:
    """For each label an iterator of posts; no text comes twice, whatever the label."""
    seen: set[str] = set()

    def posts_of(label: str) -> Iterator[str]:
        attempts = 0
        while attempts < 1000:
            text = _compose(rng, cues[label])
            attempts += 1
            if text not in seen and _MIN_WORDS <= len(text.split()) <= _MAX_WORDS:
                seen.add(text)
                attempts = 0
                yield text
        raise UserError(
            f"The phrases for {label!r} are used up after {len(seen)} different posts",
            "sizes that the synthetic sets can fill",
            "more posts than there are combinations",
            "Ask for fewer posts in SplitSizes.",
        )

    return {label: posts_of(label) for label in cues}


def _compose(rng: random.Random, cues: Sequence[str]) -> str:
    """One post: an opening or none, two cues, a neutral phrase or two, in a random arrangement."""
    first, second = rng.sample(cues, 2)
    neutral, other = rng.sample(read_phrases()["neutral"], 2)
    opening = rng.choice(read_phrases()["openings"])
    arrangement = rng.choice(
        (
            "{opening} {first} and {second}.",
            "{opening} {first} and {second}. {neutral}.",
            "{opening} {first}. {neutral}. also {second}.",
            "{neutral}. {opening} {first}, and {second}.",
            "{neutral} and {first}. {opening} {second}.",
            "{first}. {opening} {second}. {neutral} and {other}.",
        )
    )
    text = arrangement.format(
        opening=opening, first=first, second=second, neutral=neutral, other=other
    )
    return " ".join(text.split())
