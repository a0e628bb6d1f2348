"""From a recipe to posts: the one way in for training, cold start and evaluation."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from mental_r1_jax.config import DataConfig, ExperimentConfig
from mental_r1_jax.data.benchmarks import SYNTHETIC_SPECS, BenchmarkSpec, Split, spec_for
from mental_r1_jax.data.checked_sets import check_set, content_hash
from mental_r1_jax.data.label_noise import noisy_labels
from mental_r1_jax.data.questions import in_words, worded_question
from mental_r1_jax.data.records import CheckedSet, Example
from mental_r1_jax.data.synthetic import GENERATOR_VERSION, write_synthetic_sets
from mental_r1_jax.data.tfds_builder import build_set, built_folder, open_set
from mental_r1_jax.errors import UserError

_SHOWN_ERRORS = 10

Post = TypeVar("Post")


def load_examples(config: ExperimentConfig, split: Split) -> dict[str, Sequence[Example]]:
    """Return the posts of `split` for each set of the recipe, in the recipe's order.

    A set whose files have not changed since it was built is opened; any other is checked and built
    first. `data.limit_per_set` shortens the training split, `data.label_noise` makes some of its
    labels wrong.

    Raises:
        UserError: no such set, or errors in the files.
    """
    data = config.data
    root, tfds_dir = csv_root(data), tfds_folder(data)
    limit = data.limit_per_set if split == "train" else None
    folders = {}
    for name in data.sets:  # all of them, before any is opened
        spec = set_spec(data, name)
        folder = built_folder(tfds_dir, name, content_hash(root, spec, data.on_duplicate))
        folders[name] = folder if folder.is_dir() else _check_and_build(data, root, spec, tfds_dir)
    posts = {
        name: in_words(config, set_spec(data, name), spread(open_set(folder, split), limit))
        for name, folder in folders.items()
    }
    if data.label_noise == 0 or split != "train":
        return posts
    return {
        name: noisy_labels(of_set, set_spec(data, name).labels, data.label_noise, config.run.seed)
        for name, of_set in posts.items()
    }


def spread(source: Sequence[Post], limit: int | None) -> Sequence[Post]:
    """Return `limit` posts, evenly spaced, in their order; all of them if None or too few.

    Files are often sorted by label, so the first posts would not stand for the rest.
    """
    if limit is None or limit >= len(source):
        return source
    return [source[i * len(source) // limit] for i in range(limit)]


def check_sets(data: DataConfig) -> dict[str, CheckedSet]:
    """Check every set of the recipe without building any.

    Raises:
        UserError: a set that is neither known nor described, or a root that is not there.
    """
    root = csv_root(data)
    return {
        name: check_set(root, set_spec(data, name), data.on_duplicate, data.absurd_post_chars)
        for name in data.sets
    }


def set_spec(data: DataConfig, name: str) -> BenchmarkSpec:
    """Return the spec of a set of the recipe.

    Raises:
        UserError: no such set, or a real set although the recipe has no `data.root`.
    """
    spec = spec_for(name, data.custom_sets)
    if data.root is None and spec.source is None and name not in SYNTHETIC_SPECS:
        raise UserError(
            f"The recipe names the set {name!r} but no folder to read it from",
            f"data.root, or only the embedded sets {', '.join(SYNTHETIC_SPECS)}",
            "data.root=null",
            f"Set data.root to the folder that holds {name}/train_clean.csv, or name its files in "
            f"data.custom_sets.{name}.files.",
        )
    return spec


def worded_spec(config: ExperimentConfig, name: str) -> BenchmarkSpec:
    """Return the spec of a set with its question in the words of the recipe; see `set_spec`."""
    spec = set_spec(config.data, name)
    return dataclasses.replace(spec, question=worded_question(config, spec))


def csv_root(data: DataConfig) -> Path:
    """Return the folder with the CSV files; the synthetic ones are written on first use.

    Raises:
        UserError: `data.root` is not a folder.
    """
    if data.root is not None:
        if not data.root.is_dir():
            raise UserError(
                "data.root is not a folder",
                "a folder with one sub-folder a data set",
                str(data.root),
                "Correct the path; a relative one counts from where the command is started.",
            )
        return data.root
    root = tfds_folder(data) / f"synthetic-csv-{GENERATOR_VERSION}"
    if not root.is_dir():
        try:
            write_synthetic_sets(root)
        except (UserError, OSError):
            if not root.is_dir():  # else another process was quicker, with the same posts
                raise
    return root


def tfds_folder(data: DataConfig) -> Path:
    """Return where built sets live: `data.tfds_dir`, or a folder in the user's cache."""
    if data.tfds_dir is not None:
        return data.tfds_dir
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "mental_r1_jax" / "tfds"


def label_counts(sources: Mapping[str, Sequence[Example]]) -> dict[str, dict[str, int]]:
    """Return how many posts have each label, for each set; labels without posts are left out."""
    counts: dict[str, dict[str, int]] = {}
    for name, source in sources.items():
        of_set = counts.setdefault(name, {})
        for example in source:
            of_set[example.label] = of_set.get(example.label, 0) + 1
    return counts


def _check_and_build(data: DataConfig, root: Path, spec: BenchmarkSpec, tfds_dir: Path) -> Path:
    """Build one set; return its folder."""
    checked = check_set(root, spec, data.on_duplicate, data.absurd_post_chars)
    if checked.errors:
        shown = "\n".join(f"  {problem}" for problem in checked.errors[:_SHOWN_ERRORS])
        raise UserError(
            f"The data set {spec.name!r} has {len(checked.errors)} errors",
            "no errors",
            f"these, to begin with:\n{shown}\n",
            "Mend the files; `mental-r1 data` lists every error of every set",
        )
    return build_set(checked, tfds_dir)
