"""Small made-up sets in the paper's CSV layout, for the tests of the data package."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from mental_r1_jax.data.benchmarks import BenchmarkSpec

MOOD = BenchmarkSpec(
    name="Mood",
    asks_for="mood",
    labels=("Calm", "Upset", "[3-4]"),
    question="How is the writer?\nStatement: ",
)

QUESTION = 'Which mood?\n- Answer with one of:\n  - "Calm"\n  - "Upset"\nStatement: '

SPLIT_FILES = {"train": "train", "validation": "val", "test": "test"}


def made_up_text(split: str, row: int) -> str:
    """A harmless text; some need quoting, some run over two lines, some are not ASCII."""
    core = f"{split} post number {row}"
    return (
        f"{core} about tea",
        f"{core}, with milk, please",
        f'{core} and then she said "hello" to me',
        f"{core}\nends on a second line",
        f"{core} in the café ☕",
    )[row % 5]


def made_up_rows(split: str, count: int) -> list[tuple[str, str, str]]:
    """`count` rows (text, label, question), labels in turn."""
    return [(made_up_text(split, i), MOOD.labels[i % 3], QUESTION) for i in range(count)]


def csv_text(
    rows: Iterable[Sequence[str]], header: Sequence[str] = ("text", "label", "mental_prompt")
) -> str:
    """The rows as the standard library writes them."""
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return buffer.getvalue()


def write_set(
    root: Path, files: Mapping[str, str | bytes] | None = None, name: str = "Mood", count: int = 6
) -> Path:
    """Write a set of valid files, some replaced by `files` (split -> content)."""
    folder = root / name
    folder.mkdir(parents=True, exist_ok=True)
    for split, stem in SPLIT_FILES.items():
        content = (files or {}).get(split, csv_text(made_up_rows(split, count)))
        payload = content.encode("utf-8") if isinstance(content, str) else content
        (folder / f"{stem}_clean.csv").write_bytes(payload)
    return folder
