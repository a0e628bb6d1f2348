"""The finished file of answers: JSON lines or Parquet, by its suffix."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

SUFFIXES = (".jsonl", ".parquet")
_ROW_GROUP = 4096

# Characters that JSON leaves bare and that end a line, or command a terminal, elsewhere.
_ESCAPES = {code: f"\\u{code:04x}" for code in (*range(0x7F, 0xA0), 0x2028, 0x2029)}

Record = dict[str, Any]


def write_answers(
    path: Path, suffix: str, records: Iterable[Record], columns: Iterable[str], *, numbered: bool
) -> None:
    """Write `records` to a new file that only its owner can read, in bounded memory.

    Args:
        path: the file, which is replaced.
        suffix: ".jsonl" or ".parquet".
        records: one a post.
        columns: their keys.
        numbered: whether ids are whole numbers; else they are written as text.
    """
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        checked = (_with_id(record, numbered) for record in records)
        if suffix == ".jsonl":
            _write_json_lines(file, checked)
        else:
            _write_parquet(file, checked, list(columns), numbered)
        file.flush()
        os.fsync(file.fileno())


def _with_id(record: Record, numbered: bool) -> Record:
    """The record with an id of the type that all have."""
    if record.get("id") is None or numbered:
        return record
    return record | {"id": str(record["id"])}


def _write_json_lines(file: BinaryIO, records: Iterator[Record]) -> None:
    for record in records:
        text = json.dumps(record, ensure_ascii=False, allow_nan=False).translate(_ESCAPES)
        file.write(text.encode("utf-8") + b"\n")


def _write_parquet(
    file: BinaryIO, records: Iterator[Record], columns: list[str], numbered: bool
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {
        "row": pa.int64(),
        "id": pa.int64() if numbered else pa.string(),
        "confidence": pa.float64(),
        "abstained": pa.bool_(),
        "well_formed": pa.bool_(),
        "flags": pa.list_(pa.string()),
        "num_tokens": pa.int64(),
    }
    schema = pa.schema([(name, types.get(name, pa.string())) for name in columns])
    with pq.ParquetWriter(file, schema) as writer:
        while group := list(islice(records, _ROW_GROUP)):
            writer.write_table(pa.Table.from_pylist(group, schema=schema))
