"""One file of a set to raw rows: container, layout, rows.

1. Tell the container (CSV, TSV, JSON lines, JSON, Parquet) by recipe, content or ending.
2. Tell the layout by the recipe or by the names of the columns.
3. Read row by row; a problem that every row has is reported once.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mental_r1_jax.config import ColumnMap, FileFormat
from mental_r1_jax.data.benchmarks import BenchmarkSpec
from mental_r1_jax.data.csv_reader import KeyColumns, header_of, read_delimited
from mental_r1_jax.data.csv_scanner import Record, scan_records
from mental_r1_jax.data.file_kinds import foreign_bytes, foreign_kind
from mental_r1_jax.data.json_rows import read_json_lines, read_json_list
from mental_r1_jax.data.labels import known_label
from mental_r1_jax.data.layouts import LaidOut, layout_of, raw_rows
from mental_r1_jax.data.parquet_rows import parquet_columns, read_parquet
from mental_r1_jax.data.reasoning import label_and_reasoning
from mental_r1_jax.data.records import Problem, shown_names
from mental_r1_jax.data.rows import Event, FileRow
from mental_r1_jax.data.text_files import decode_lines
from mental_r1_jax.data.topics import are_topics

PAPER_COLUMNS = ColumnMap(text="text", label="label", question="mental_prompt")
_DELIMITERS = {"csv": ",", "tsv": "\t"}
_ENDINGS: dict[str, FileFormat] = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".parquet": "parquet",
    ".pq": "parquet",
}
_SHOWN_COLUMNS = 20
# Problems of single rows that are the file's where every row has them.
_OF_ALL_ROWS = ("missing column", "wrong type", "missing label")


@dataclass(frozen=True)
class ReadFile:
    """What reading a file gave.

    Attributes:
        events: its rows and problems, in file order.
        names: what it calls its columns, for complaints.
    """

    events: Sequence[Event]
    names: ColumnMap


def read_file(path: Path, payload: bytes, spec: BenchmarkSpec) -> ReadFile:
    """Read the rows of one file of a set; never raises for what is in it."""
    if spec.source is None:
        return _read_paper(str(path), payload, spec)
    kind = container_of(path, payload, spec.source.format)
    if not payload.strip():
        problem = Problem(str(path), None, "", "an empty file", "labelled posts", "no rows")
        return ReadFile([problem], PAPER_COLUMNS)
    foreign = None if kind == "parquet" else foreign_bytes(payload)
    if foreign is not None:
        expected = f"text in UTF-8: {foreign[1]}"
        problem = Problem(str(path), 1, "", foreign[0], expected, f"not {kind.upper()}")
        return ReadFile([problem], PAPER_COLUMNS)
    if kind in _DELIMITERS:
        return _read_table(str(path), payload, spec, _DELIMITERS[kind])
    return _read_objects(str(path), payload, spec, kind)


def container_of(path: Path, payload: bytes, given: FileFormat) -> FileFormat:
    """Return how a file is written: as the recipe says, or as content and ending tell."""
    if given != "auto":
        return given
    if payload.startswith(b"PAR1"):
        return "parquet"
    ending = _ENDINGS.get(path.suffix.lower())
    if ending == "parquet":
        return ending
    head = payload[:4096].removeprefix(b"\xef\xbb\xbf").lstrip()
    if head.startswith(b"["):
        return "json"
    if head.startswith(b"{"):
        return "jsonl"
    if ending is not None:
        return ending
    first = head.split(b"\n", 1)[0]
    return "tsv" if first.count(b"\t") > first.count(b",") else "csv"


def plain_rows(path: Path, payload: bytes, kind: FileFormat) -> Iterator[FileRow | Problem]:
    """Yield the rows of a file with all of its columns, whatever they are called."""
    if kind == "parquet":
        yield from read_parquet(str(path), payload)
        return
    text, problems = decode_lines(str(path), payload)
    yield from problems
    if text is None:
        return
    if kind not in _DELIMITERS:
        yield from (read_json_lines if kind == "jsonl" else read_json_list)(str(path), text)
        return
    header = header_of(text, _DELIMITERS[kind])
    records = scan_records(text, lambda cells: len(cells) == len(header), _DELIMITERS[kind])
    for record in itertools.islice(records, 1, None):
        if isinstance(record, Record) and len(record.cells) == len(header):
            yield FileRow(record.line, dict(zip(header, record.cells, strict=True)))


def _read_paper(file: str, payload: bytes, spec: BenchmarkSpec) -> ReadFile:
    """A file of the paper's layout."""
    foreign = foreign_kind(payload)
    if foreign is not None:
        expected = f"comma-separated text in UTF-8: {foreign[1]}"
        return ReadFile([Problem(file, 1, "", foreign[0], expected, "not CSV")], PAPER_COLUMNS)
    names = PAPER_COLUMNS
    keys = KeyColumns(
        texts=(names.text,),
        label=names.label,
        question=names.question,
        question_needed=spec.question is None,
        others=(),
        is_label=lambda cell: known_label(cell, spec) is not None,
    )
    layout = LaidOut("paper", names, ())
    text, problems = decode_lines(file, payload)
    rows = () if text is None else read_delimited(file, text, keys)
    return ReadFile([*problems, *raw_rows(rows, file, spec, layout)], names)


def _read_table(file: str, payload: bytes, spec: BenchmarkSpec, delimiter: str) -> ReadFile:
    """A comma- or tab-separated file in any layout."""
    text, problems = decode_lines(file, payload)
    if text is None:
        return ReadFile(problems, PAPER_COLUMNS)
    layout = layout_of(header_of(text, delimiter), spec)
    assert spec.source is not None  # read_file asked

    def is_label(cell: str) -> bool:
        if spec.source is not None and spec.source.topics:
            return are_topics(cell, spec)
        if layout.name != "columns":
            cell, _ = label_and_reasoning(cell, lambda one: known_label(one, spec) is not None)
        return known_label(cell, spec) is not None

    names = layout.names
    of_columns = layout.name == "columns"
    texts = (spec.source.text_columns or (names.text,)) if of_columns else (layout.needed[0],)
    question = names.question if of_columns else None
    keys = KeyColumns(
        texts=texts,
        label=names.label,
        question=question,
        question_needed=True,
        others=tuple(x for x in layout.needed if x not in (*texts, names.label, question)),
        is_label=is_label,
    )
    rows = list(read_delimited(file, text, keys, delimiter))
    events = _as_one(raw_rows(rows, file, spec, layout), len(rows))
    return ReadFile([*problems, *events], names)


def _read_objects(file: str, payload: bytes, spec: BenchmarkSpec, kind: str) -> ReadFile:
    """JSON lines, a JSON list or Parquet, in any layout."""
    problems: list[Problem] = []
    rows: list[FileRow | Problem] = []
    if kind == "parquet":
        columns: Collection[str] = parquet_columns(payload)
        layout = layout_of(columns, spec)
        wanted = {*layout.needed, layout.names.label, "input"}
        rows = list(read_parquet(file, payload, tuple(wanted)))
    else:
        text, problems = decode_lines(file, payload)
        read = read_json_lines if kind == "jsonl" else read_json_list
        rows = [] if text is None else list(read(file, text))
        columns = dict.fromkeys(key for r in rows if isinstance(r, FileRow) for key in r.values)
        layout = layout_of(columns, spec)
    if not rows and not problems:
        problems = [Problem(file, None, "", "no rows", "at least one labelled post", "no rows")]
    absent = [name for name in layout.needed if name not in columns]
    if absent and any(isinstance(row, FileRow) for row in rows):
        expected = f"columns {', '.join(layout.needed)}"
        found = f"columns {shown_names(list(columns)[:_SHOWN_COLUMNS])}"
        problems += [Problem(file, None, x, found, expected, "missing column") for x in absent]
        return ReadFile([*problems, *(r for r in rows if isinstance(r, Problem))], layout.names)
    events = _as_one(raw_rows(rows, file, spec, layout), len(rows))
    return ReadFile([*problems, *events], layout.names)


def _as_one(events: Iterable[Event], rows: int) -> list[Event]:
    """Report once what is wrong with every row: a column of another type, a map that is wrong.

    A row has one such problem at most, so what all rows have is all that there is.
    """
    events = list(events)
    found = [e for e in events if isinstance(e, Problem) and e.kind in _OF_ALL_ROWS]
    alike = {(e.column, e.value, e.kind) for e in found}
    if len(alike) != 1 or not len(found) == rows > 1:
        return events
    first = dataclasses.replace(found[0], value=f"{found[0].value} in all {rows} rows")
    return [first, *(event for event in events if event not in found)]
