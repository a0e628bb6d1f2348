"""Labelled posts from CSV folders, every row checked.

1. Find the three files of a set and read their bytes.
2. Decode and scan each; collect every problem with file, line, column, value and expectation.
3. Look for repeated texts, inside and across splits, and for absurd lengths.
4. Drop repeats if asked to.

The posts are by people in distress. A report never shows a post, only its length and the first
digits of its SHA-256, which find it again in the file without repeating it on a screen or in a log.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from mental_r1_jax.data.benchmarks import SPLITS, BenchmarkSpec, Split
from mental_r1_jax.data.csv_scanner import Cells, LineIndex, QuoteFault, Record, scan_records
from mental_r1_jax.data.file_kinds import foreign_kind
from mental_r1_jax.data.label_hint import label_hint
from mental_r1_jax.data.oddities import control_warnings, single_label_warnings
from mental_r1_jax.data.records import CheckedSet, Example, Problem, redacted
from mental_r1_jax.data.repeats import LocatedExample, drop_repeats, repeat_warnings

TEXT_COLUMN = "text"
LABEL_COLUMN = "label"
QUESTION_COLUMN = "mental_prompt"
_COLUMNS = (TEXT_COLUMN, LABEL_COLUMN, QUESTION_COLUMN)

MIN_POST_CHARS = 3
_SHOWN_CHARS = 40
_ESCAPED_BYTE = re.compile("[\udc80-\udcff]")
# Changes whenever the records made from the same files would differ.
_READER_VERSION = "1"

OnDuplicate = Literal["keep", "drop"]


def check_set(
    root: Path,
    spec: BenchmarkSpec,
    on_duplicate: OnDuplicate = "keep",
    absurd_post_chars: int = 20_000,
) -> CheckedSet:
    """Read and check the set in `root / spec.name`; never raises for what is in the files.

    Args:
        root: folder with one sub-folder a set.
        spec: labels and question of the set.
        on_duplicate: "drop" removes later repeats of a text inside a split, and a text that is in
            several splits from all but the most held-out one (test, then validation).
        absurd_post_chars: longer posts (in characters) get a warning.
    """
    files, errors = _read_files(root, spec)
    warnings: list[Problem] = []
    found: list[LocatedExample] = []
    for split, (path, payload) in files.items():
        reading = _FileReading(spec, split, path)
        reading.read(payload)
        errors += reading.errors
        warnings += reading.warnings
        found += reading.found
    warnings += repeat_warnings(found)
    warnings += _length_warnings(found, absurd_post_chars)
    warnings += control_warnings(found)
    if on_duplicate == "drop":
        found = drop_repeats(found)
    examples = {
        split: tuple(item.example for item in found if item.example.split == split)
        for split in SPLITS
    }
    for split, (path, _) in files.items():
        if not errors and not examples[split]:
            value = "only texts that are dropped, for other splits have them too"
            errors.append(Problem(str(path), None, "", value, "a post of its own", "no rows"))
    if not errors:
        warnings += _absent_labels(root, spec, examples["train"])
        warnings += single_label_warnings({s: str(p) for s, (p, _) in files.items()}, examples)
    return CheckedSet(
        spec=spec,
        examples=examples,
        errors=tuple(errors),
        warnings=tuple(warnings),
        content_hash=_hash_of(spec, on_duplicate, {s: b for s, (_, b) in files.items()}),
    )


def content_hash(root: Path, spec: BenchmarkSpec, on_duplicate: OnDuplicate = "keep") -> str:
    """Return the hash that `check_set` would give, without scanning the files."""
    files, _ = _read_files(root, spec)
    return _hash_of(spec, on_duplicate, {split: payload for split, (_, payload) in files.items()})


def _show(value: str, like: Sequence[str] = ()) -> str:
    """A value no longer than those it should be `like`; others may be a post in a wrong column."""
    words = max((len(word.split()) for word in like), default=0) + 1
    fits = len(value) <= _SHOWN_CHARS and len(value.split()) <= words
    return repr(value) if fits else redacted(value)


def _read_files(
    root: Path, spec: BenchmarkSpec
) -> tuple[dict[Split, tuple[Path, bytes]], list[Problem]]:
    """Path and bytes of each split's file, and a problem for each that cannot be had."""
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
    files: dict[Split, tuple[Path, bytes]] = {}
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
        try:
            files[split] = (path, path.read_bytes())
        except OSError as error:
            reason = error.strerror or type(error).__name__
            problems.append(Problem(str(path), None, "", reason, "a readable file", "unreadable"))
    return files, problems


class _FileReading:
    """The reading of one file: its rows, and every problem met on the way."""

    def __init__(self, spec: BenchmarkSpec, split: Split, path: Path) -> None:
        self.spec = spec
        self.split = split
        self.file = str(path)
        self.errors: list[Problem] = []
        self.warnings: list[Problem] = []
        self.found: list[LocatedExample] = []
        self._header: Cells = ()
        self._questions: set[str] = set()

    def read(self, payload: bytes) -> None:
        """Decode, scan and check the file."""
        foreign = foreign_kind(payload)
        if foreign is not None:
            kind, remedy = foreign
            self._error(1, "", kind, f"comma-separated text in UTF-8: {remedy}", "not CSV")
            return
        text = self._decode(payload)
        rows = 0
        for event in scan_records(text, self._looks_like_row) if text is not None else ():
            if not self._header:
                if not self._take_header(event):
                    return
            elif isinstance(event, QuoteFault):
                self._quote_error(event)
                rows += 1
            else:
                self._take_row(event, rows)
                rows += 1
        if text is not None and not self._header:
            self._error(None, "", "an empty file", f"columns {', '.join(_COLUMNS)}", "no rows")
        elif text is not None and rows == 0:
            self._error(None, "", "a header without rows", "at least one labelled post", "no rows")

    def _decode(self, payload: bytes) -> str | None:
        """The text of the file, with an error for every line that is not UTF-8."""
        if payload[:2] in (b"\xff\xfe", b"\xfe\xff"):
            self._error(1, "", "a UTF-16 byte order mark", "UTF-8; convert the file", "not UTF-8")
            return None
        text = payload.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")
        lines = LineIndex(text)
        reported = 0
        for match in _ESCAPED_BYTE.finditer(text):
            line = lines.line_of(match.start())
            if line != reported:
                value = f"byte 0x{ord(match.group()) - 0xDC00:02x}"
                self._error(line, "", value, "UTF-8; convert the file", "not UTF-8")
                reported = line
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")

    def _take_header(self, event: Record | QuoteFault) -> bool:
        """Read the column names; False when the rows cannot be understood with them."""
        if isinstance(event, QuoteFault):
            self._error(event.line, "", "a quote without its mate", "column names", "quotes")
            return False
        self._header = event.cells
        counts = Counter(event.cells)
        shown = ", ".join(
            repr(c) if c.isidentifier() and len(c) <= _SHOWN_CHARS else redacted(c)
            for c in event.cells
        )
        required = [TEXT_COLUMN, LABEL_COLUMN]
        if self.spec.question is None:
            required.append(QUESTION_COLUMN)
        for column in required:
            if counts[column] == 0:
                near = difflib.get_close_matches(column, event.cells, n=1)
                hint = f" (is {near[0]!r} meant?)" if near else ""
                expected = f"a column {column!r}{hint}"
                self._error(event.line, column, f"columns {shown}", expected, "missing column")
        for column in _COLUMNS:
            if counts[column] > 1:
                self._error(event.line, column, f"columns {shown}", "it once", "repeated column")
        if not self.errors or all(p.kind == "not UTF-8" for p in self.errors):
            if counts[QUESTION_COLUMN] == 0:
                expected = f"a column {QUESTION_COLUMN!r}; the set's own question is used instead"
                self.warnings.append(
                    Problem(self.file, event.line, QUESTION_COLUMN, "none", expected, "no question")
                )
            return True
        return False

    def _take_row(self, record: Record, row: int) -> None:
        """Check one row and keep it if it is right."""
        if len(record.cells) != len(self._header):
            value = f"{len(record.cells)} cells"
            expected = f"{len(self._header)} cells; quote a text with commas or line breaks"
            self._error(record.line, "", value, expected, "wrong number of cells")
            return
        text = self._cell(record.cells, TEXT_COLUMN)
        label = self._cell(record.cells, LABEL_COLUMN)
        question = self._question(record.cells)
        before = len(self.errors)
        if not text.strip():
            self._error(record.line, TEXT_COLUMN, _show(text), "a post", "empty text")
        if label not in self.spec.labels:
            expected = "one of " + ", ".join(map(repr, self.spec.labels))
            shown = _show(label, self.spec.labels)
            expected += label_hint(label, self.spec.labels)
            self._error(record.line, LABEL_COLUMN, shown, expected, "unknown label")
        if not question.strip():
            expected = "the question asked about the post"
            self._error(record.line, QUESTION_COLUMN, _show(question), expected, "empty question")
        if len(self.errors) == before:
            self._questions.add(question)
            self._check_for_swallowed_row(record.line, text)
            example = Example(self.spec.name, self.split, row, text, label, question)
            self.found.append(LocatedExample(self.file, record.line, example))

    def _check_for_swallowed_row(self, line: int, text: str) -> None:
        """Report a text with a whole row inside.

        Two lost quotes, one that closes a cell and one that opens a later cell, leave well-formed
        CSV with everything between them in one cell. Without a question column the sign is weak,
        for a post may have a line that ends in ",No", so it is a warning there.
        """
        inside = (tuple(part.split(",")) for part in text.splitlines()) if "\n" in text else ()
        if not any(
            self._looks_like_row(cells) and self._question(cells) in self._questions
            for cells in inside
        ):
            return
        certain = QUESTION_COLUMN in self._header
        problem = Problem(
            self.file,
            line,
            TEXT_COLUMN,
            "a text with a whole row inside",
            "a pair of quotes around each cell; two of them seem to be lost",
            "unbalanced quotes" if certain else "row inside a text",
        )
        (self.errors if certain else self.warnings).append(problem)

    def _looks_like_row(self, cells: Cells) -> bool:
        """Whether a record read after a lost quote is a row rather than the inside of a post."""
        if not self._header:
            return True
        if len(cells) != len(self._header):
            return False
        known_label = self._cell(cells, LABEL_COLUMN) in self.spec.labels
        has_question = QUESTION_COLUMN in self._header
        return known_label or (has_question and self._question(cells) in self._questions)

    def _cell(self, cells: Cells, column: str) -> str:
        return cells[self._header.index(column)]

    def _question(self, cells: Cells) -> str:
        if QUESTION_COLUMN in self._header:
            return self._cell(cells, QUESTION_COLUMN)
        return self.spec.question or ""

    def _quote_error(self, fault: QuoteFault) -> None:
        column = self._header[fault.cell] if fault.cell < len(self._header) else ""
        last = fault.resume_line - 1
        unread = f"lines {fault.line} to {last}" if last > fault.line else f"line {fault.line}"
        self._error(
            fault.line,
            column,
            f"a quote without its mate, {unread} could not be checked",
            'a pair of quotes around the cell, with "" for a quote inside it',
            "unbalanced quotes",
        )

    def _error(self, line: int | None, column: str, value: str, expected: str, kind: str) -> None:
        self.errors.append(Problem(self.file, line, column, value, expected, kind))


def _length_warnings(found: Sequence[LocatedExample], absurd_post_chars: int) -> list[Problem]:
    """A warning for each post that is too long or too short to be one."""
    expected = f"{MIN_POST_CHARS} to {absurd_post_chars} characters"
    return [
        Problem(
            item.file,
            item.line,
            TEXT_COLUMN,
            redacted(item.example.text),
            expected,
            "absurd length",
        )
        for item in found
        if not MIN_POST_CHARS <= len(item.example.text.strip()) <= absurd_post_chars
    ]


def _absent_labels(root: Path, spec: BenchmarkSpec, train: Sequence[Example]) -> list[Problem]:
    """A warning for each label that no training post has: it cannot be learned or weighted."""
    present = {example.label for example in train}
    file = str(root / spec.name / "train_clean.csv")
    return [
        Problem(file, None, LABEL_COLUMN, f"no row labelled {label!r}", "some", "absent label")
        for label in spec.labels
        if label not in present
    ]


def _hash_of(
    spec: BenchmarkSpec, on_duplicate: OnDuplicate, payloads: Mapping[Split, bytes]
) -> str:
    """SHA-256 over everything that the records are made from."""
    digest = hashlib.sha256()
    parts = [_READER_VERSION, spec.name, *spec.labels, spec.question or "", on_duplicate]
    for split, payload in payloads.items():
        parts += [split, hashlib.sha256(payload).hexdigest()]
    for part in parts:
        digest.update(part.encode("utf-8") + b"\0")
    return digest.hexdigest()
