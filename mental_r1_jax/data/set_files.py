"""Where the files of a set are, and their bytes."""

from __future__ import annotations

from pathlib import Path

from mental_r1_jax.data.benchmarks import SPLITS, BenchmarkSpec, Split
from mental_r1_jax.data.records import Problem

Files = dict[Split, tuple[Path, bytes]]


def read_set_files(root: Path, spec: BenchmarkSpec) -> tuple[Files, list[Problem]]:
    """Return path and bytes of each split's file, and a problem for each that cannot be had.

    One file that is to be split is that of "train".

    Args:
        root: folder of the sets in the paper's layout.
        spec: the set, with its files where it is in another.
    """
    paths, problems = _find(root, spec)
    files: Files = {}
    for split, path in paths.items():
        try:
            files[split] = (path, path.read_bytes())
        except OSError as error:
            reason = error.strerror or type(error).__name__
            problems.append(Problem(str(path), None, "", reason, "a readable file", "unreadable"))
    return files, problems


def set_files(root: Path, spec: BenchmarkSpec) -> list[Path]:
    """Return the paths of a set's files, those that are there; see `read_set_files`."""
    return [*_find(root, spec)[0].values()]


def _find(root: Path, spec: BenchmarkSpec) -> tuple[dict[Split, Path], list[Problem]]:
    """The file of each split, and a problem for each that is not there."""
    return _named_files(spec) if spec.source else _paper_files(root, spec)


def _named_files(spec: BenchmarkSpec) -> tuple[dict[Split, Path], list[Problem]]:
    """The files that the recipe names."""
    given = spec.source.files if spec.source is not None else None
    assert given is not None  # the caller asked
    named: dict[Split, tuple[str, Path]] = (
        {"train": ("all", given.all)}
        if given.all is not None
        else {split: (split, getattr(given, split)) for split in SPLITS}
    )
    paths: dict[Split, Path] = {}
    problems = []
    for split, (key, path) in named.items():
        if path.is_file():
            paths[split] = path
            continue
        value = "no plain file" if path.exists() else "no such file"
        expected = f"the file of `files.{key}`; a relative path counts from the working directory"
        problems.append(Problem(str(path), None, "", value, expected, "missing file"))
    return paths, problems


def _paper_files(root: Path, spec: BenchmarkSpec) -> tuple[dict[Split, Path], list[Problem]]:
    """The three CSV files of a folder in the paper's layout."""
    folder = root / spec.name
    if not folder.is_dir():
        expected = "a folder with train_clean.csv, val_clean.csv or dev_clean.csv, test_clean.csv"
        return {}, [Problem(str(folder), None, "", "no such folder", expected, "missing file")]
    other = {"val": "dev", "dev": "val"}[spec.validation_file]
    stems: dict[Split, tuple[str, ...]] = {
        "train": ("train",),
        "validation": (spec.validation_file, other),
        "test": ("test",),
    }
    paths: dict[Split, Path] = {}
    problems: list[Problem] = []
    for split in SPLITS:
        candidates = [folder / f"{stem}_clean.csv" for stem in stems[split]]
        path = next((p for p in candidates if p.exists()), None)
        if path is None:
            expected = " or ".join(p.name for p in candidates)
            problems.append(
                Problem(str(folder), None, "", "no such file", expected, "missing file")
            )
            continue
        paths[split] = path
    return paths, problems
