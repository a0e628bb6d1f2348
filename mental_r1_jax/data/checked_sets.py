"""A whole set, read and checked: its files, every row, and what only shows in all of them.

1. Find the files of a set and read their bytes.
2. Read and check each; collect every problem with file, line, column, value and expectation.
3. Look for repeated texts, inside and across splits, and for absurd lengths.
4. Drop repeats if asked to.
5. Split the posts of one file; in given splits, look for groups that are in several.

The posts are by people in distress. A report never shows a post, only its length and the first
digits of its SHA-256, which find it again in the file without repeating it on a screen or in a log.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from mental_r1_jax.data.benchmarks import SPLITS, BenchmarkSpec, Split
from mental_r1_jax.data.oddities import control_warnings, single_label_warnings
from mental_r1_jax.data.reading import read_file
from mental_r1_jax.data.records import CheckedSet, Example, Problem, redacted
from mental_r1_jax.data.repeats import LocatedExample, drop_repeats, repeat_warnings
from mental_r1_jax.data.rows import check_rows
from mental_r1_jax.data.set_files import read_set_files
from mental_r1_jax.data.splitting import shared_groups, split_posts

MIN_POST_CHARS = 3
# Changes whenever the records made from the same files would differ.
_READER_VERSION = "1"
# What a set's description says that is in no record.
_NOT_READ = {"files", "asks_for", "ordered", "positive_labels", "labels", "question"}

OnDuplicate = Literal["keep", "drop"]


def check_set(
    root: Path,
    spec: BenchmarkSpec,
    on_duplicate: OnDuplicate = "keep",
    absurd_post_chars: int = 20_000,
) -> CheckedSet:
    """Read and check one set; never raises for what is in the files.

    Args:
        root: folder with one sub-folder a set, for those in the paper's layout.
        spec: labels, question and files of the set.
        on_duplicate: "drop" removes later repeats of a text inside a split, and a text that is in
            several splits from all but the most held-out one (test, then validation).
        absurd_post_chars: longer posts (in characters) get a warning.
    """
    files, errors = read_set_files(root, spec)
    warnings: list[Problem] = []
    found: list[LocatedExample] = []
    columns: dict[str, str] = {}
    for split, (path, payload) in files.items():
        read = read_file(path, payload, spec)
        checked = check_rows(read.events, spec, split, read.names)
        errors += checked.errors
        warnings += checked.warnings
        found += checked.found
        columns[str(path)] = read.names.text
    warnings += repeat_warnings(found)
    warnings += _length_warnings(found, absurd_post_chars, columns)
    warnings += control_warnings(found)
    if on_duplicate == "drop":
        found = drop_repeats(found)
    if spec.source is not None and _is_one_file(spec) and not errors:
        placed = split_posts(
            found,
            spec.source.split,
            whole_groups=spec.source.whole_groups,
            by_question=bool(spec.source.topics),
        )
        found, errors = list(placed.found), list(placed.errors)
    elif spec.source is not None and spec.source.whole_groups:
        errors += shared_groups(found, spec.source.columns.group or "")
    examples = {
        split: tuple(item.example for item in found if item.example.split == split)
        for split in SPLITS
    }
    for split, (path, _) in files.items():
        if not errors and not examples[split]:
            value = "only texts that are dropped, for other splits have them too"
            errors.append(Problem(str(path), None, "", value, "a post of its own", "no rows"))
    if not errors:
        warnings += _label_warnings(spec, {s: str(p) for s, (p, _) in files.items()}, examples)
    return CheckedSet(
        spec=spec,
        examples=examples,
        errors=tuple(errors),
        warnings=tuple(warnings),
        content_hash=_hash_of(spec, on_duplicate, files),
    )


def content_hash(root: Path, spec: BenchmarkSpec, on_duplicate: OnDuplicate = "keep") -> str:
    """Return the hash that `check_set` would give, without scanning the files."""
    files, _ = read_set_files(root, spec)
    return _hash_of(spec, on_duplicate, files)


def _length_warnings(
    found: Sequence[LocatedExample], absurd_post_chars: int, columns: Mapping[str, str]
) -> list[Problem]:
    """A warning for each post that is too long or too short to be one."""
    expected = f"{MIN_POST_CHARS} to {absurd_post_chars} characters"
    return [
        Problem(
            item.file,
            item.line,
            columns[item.file],
            redacted(item.example.text),
            expected,
            "absurd length",
        )
        for item in found
        if not MIN_POST_CHARS <= len(item.example.text.strip()) <= absurd_post_chars
    ]


def _label_warnings(
    spec: BenchmarkSpec, files: Mapping[Split, str], examples: Mapping[Split, Sequence[Example]]
) -> list[Problem]:
    """What a person should know about the labels of each split.

    The splits of one file are ours, so it is said of each of them which labels it lacks.
    """
    if not _is_one_file(spec):
        absent = _absent_labels(files["train"], spec, examples["train"])
        return absent + single_label_warnings(files, examples)
    return [
        problem
        for split in SPLITS
        for problem in _absent_labels(files["train"], spec, examples[split], f" in {split}")
    ]


def _is_one_file(spec: BenchmarkSpec) -> bool:
    """Whether the set is one file that is to be split."""
    files = None if spec.source is None else spec.source.files
    return files is not None and files.all is not None


def _absent_labels(
    file: str, spec: BenchmarkSpec, posts: Sequence[Example], where: str = ""
) -> list[Problem]:
    """A warning for each label that no post has: it cannot be learned, weighted or scored."""
    present = {example.label for example in posts}
    return [
        Problem(file, None, "label", f"no row labelled {label!r}{where}", "some", "absent label")
        for label in spec.labels
        if label not in present
    ]


def _hash_of(
    spec: BenchmarkSpec, on_duplicate: OnDuplicate, files: Mapping[Split, tuple[Path, bytes]]
) -> str:
    """SHA-256 over everything that the records are made from."""
    digest = hashlib.sha256()
    parts = [_READER_VERSION, spec.name, *spec.labels, spec.question or "", on_duplicate]
    for split, (_, payload) in files.items():
        parts += [split, hashlib.sha256(payload).hexdigest()]
    if spec.source is not None:  # every key that says how files are read, those to come included
        parts.append(spec.source.model_dump_json(exclude=_NOT_READ))
        parts += [path.suffix for path, _ in files.values()]
        parts += [spec.source.yes] if spec.source.topics else []
    for part in parts:
        digest.update(part.encode("utf-8") + b"\0")
    return digest.hexdigest()
