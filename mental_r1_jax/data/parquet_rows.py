"""Rows of Parquet files, by pyarrow."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Iterator

import pyarrow
import pyarrow.parquet

from mental_r1_jax.data.records import Problem, shown_names
from mental_r1_jax.data.rows import FileRow

# What pyarrow raises on files that are torn or were never Parquet; those are no subclasses of
# its own exception: a text that is not UTF-8 and a size that nobody has.
_TORN = (pyarrow.ArrowException, OSError, ValueError, MemoryError, OverflowError)


def parquet_columns(payload: bytes) -> tuple[str, ...]:
    """Return the names of the columns; none where the file cannot be read."""
    try:
        return tuple(_opened(payload).schema_arrow.names)
    except _TORN:
        return ()


def read_parquet(
    file: str, payload: bytes, columns: tuple[str, ...] | None = None
) -> Iterator[FileRow | Problem]:
    """Yield the rows of a file, with some of its columns (all if None).

    A file that is torn, or holds text that is not UTF-8, is one problem.
    """
    try:
        opened = _opened(payload)
        names = opened.schema_arrow.names
        wanted = [name for name in names if columns is None or name in columns]
        twice = [name for name, count in Counter(wanted).items() if count > 1]
        if twice:
            found = f"columns {shown_names(names)}"
            yield Problem(file, None, shown_names(twice), found, "it once", "repeated column")
            return
        rows = opened.read(columns=wanted, use_threads=False).to_pylist() if wanted else []
        rows = rows or [{} for _ in range(opened.metadata.num_rows if not wanted else 0)]
    except _TORN as error:
        value = f"{type(error).__name__}: {(str(error) or 'no more is known').splitlines()[0]:.200}"
        yield Problem(
            file, None, "", value, "a whole Parquet file with text in UTF-8", "not Parquet"
        )
        return
    for number, row in enumerate(rows, start=1):
        yield FileRow(number, row)


def class_names(payload: bytes, column: str) -> tuple[str, ...]:
    """Return the names that a file of the library `datasets` keeps for the numbers of a column."""
    try:
        kept = (_opened(payload).schema_arrow.metadata or {}).get(b"huggingface", b"{}")
        names = json.loads(kept)["info"]["features"][column]["names"]
    except (*_TORN, KeyError, TypeError, RecursionError):
        return ()  # a guess can do without them
    named = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return tuple(names) if named else ()


def _opened(payload: bytes) -> pyarrow.parquet.ParquetFile:
    return pyarrow.parquet.ParquetFile(io.BytesIO(payload), pre_buffer=False)
