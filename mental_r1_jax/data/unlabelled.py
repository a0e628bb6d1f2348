"""Posts without labels, read from CSV, JSON lines or Parquet one after the other.

A file may be larger than the memory, so it is read twice: once to count the posts and to find all
that is wrong with it, before a model is opened, and once for the work. Rows count from 0 in the
order of the file; blank lines are none.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mental_r1_jax.data.file_kinds import foreign_kind
from mental_r1_jax.data.records import redacted
from mental_r1_jax.errors import UserError

SUFFIXES = (".csv", ".jsonl", ".parquet")

PostId = str | int | None

_SHOWN_FAULTS = 10
_SHOWN_NAMES = 10
# Of one cell. A quote that was lost makes the rest of a file one cell, which must have a bound.
_MAX_CELL_CHARS = 2**26
_PARQUET_ROWS = 1024
_ESCAPED_BYTE = re.compile("[\udc80-\udcff]")
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class UnlabelledPost:
    """One post.

    Attributes:
        row: position in its file, from 0.
        text: the post, "" where the file has null; left out of `repr`, so that no traceback repeats
            it.
        post_id: what the column of ids holds, if one was named.
    """

    row: int
    text: str = field(repr=False)
    post_id: PostId = None


@dataclass(frozen=True)
class Fault:
    """Why a row cannot be read; without a word of the post.

    Attributes:
        place: line or row.
        what: what is wrong there.
    """

    place: str
    what: str


@dataclass(frozen=True)
class PostsFile:
    """A file of posts, and which of its columns count.

    Attributes:
        path: the file; its suffix, one of `SUFFIXES`, says what it is.
        column: the column of posts.
        id_column: the column of ids, or None.
    """

    path: Path
    column: str
    id_column: str | None = None

    def posts(self) -> Iterator[UnlabelledPost]:
        """Yield the posts in the order of the file.

        Raises:
            UserError: a row cannot be read, or the file has no such column.
        """
        for event in self._events():
            if isinstance(event, Fault):
                raise self._refusal([event], 1)
            yield event

    def _events(self) -> Iterator[UnlabelledPost | Fault]:
        read = {".csv": _csv_rows, ".jsonl": _json_rows, ".parquet": _parquet_rows}
        row = 0
        for event in read[self.path.suffix.lower()](self):
            yield event if isinstance(event, Fault) else dataclasses.replace(event, row=row)
            row += 1

    def _refusal(self, faults: Sequence[Fault], count: int) -> UserError:
        lines = "".join(f"\n  - {one.place}: {one.what}" for one in faults)
        more = f"\n  - and {count - len(faults)} more" if count > len(faults) else ""
        ids = f" and ids in {self.id_column!r}" if self.id_column is not None else ""
        return UserError(
            what=f"{self.path} cannot be read to its end",
            expected=f"text in UTF-8, posts in the column {self.column!r}{ids}",
            got=f"{lines}{more}\n",
            remedy="mend or remove these rows; no post was answered",
        )


@dataclass(frozen=True)
class Survey:
    """What is known of a file after it was read once.

    Attributes:
        rows: its posts.
        sha256: of its bytes, in hexadecimal.
        numbered: whether all ids are whole numbers; then they stay numbers, else all become text.
    """

    rows: int
    sha256: str
    numbered: bool


def survey(file: PostsFile) -> Survey:
    """Read the whole file once and count its posts.

    Raises:
        UserError: it is missing, of another kind, holds no post, has no such column, or has rows
            that cannot be read, of which the first ones are listed.
    """
    _check_file(file.path)
    sha256 = sha256_of(file.path)
    rows, count, faults, numbered = 0, 0, list[Fault](), file.id_column is not None
    for event in file._events():
        rows += 1
        if isinstance(event, Fault):
            count += 1
            faults += [event] if count <= _SHOWN_FAULTS else []
        else:
            numbered = numbered and not isinstance(event.post_id, str)
    if count:
        raise file._refusal(faults, count)
    if not rows:
        raise UserError(
            what=f"{file.path} holds no post",
            expected="at least one row",
            got="none",
            remedy="give another file",
        )
    return Survey(rows, sha256, numbered)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _check_file(path: Path) -> None:
    """Refuse what is no file, or of a kind that its name does not tell."""
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(
            what=f"cannot tell what kind of file {path} is",
            expected=f"a name that ends in {', '.join(SUFFIXES)}",
            got=path.suffix or "a name without a suffix",
            remedy="rename or convert the file",
        )
    if not path.is_file():
        raise UserError(
            what=f"there is no file {path}",
            expected="a file of posts",
            got="a folder" if path.is_dir() else "nothing",
            remedy="correct the path",
        )


def _csv_rows(file: PostsFile) -> Iterator[UnlabelledPost | Fault]:
    """Rows of comma-separated text, quoted as usual; after a lost quote the rest is unreadable."""
    with file.path.open("rb") as raw:
        if (foreign := foreign_kind(raw.read(4096))) is not None:
            raise UserError(
                what=f"{file.path} is no CSV",
                expected="comma-separated text in UTF-8",
                got=foreign[0],
                remedy="convert the file, or give it the suffix of what it is",
            )
    # Process-wide, and for the better: the default ends at 131,072 characters.
    csv.field_size_limit(_MAX_CELL_CHARS)
    with file.path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
        reader = csv.reader(stream, strict=True)
        header: list[str] = []
        while True:
            place = f"line {reader.line_num + 1}"
            try:
                cells = next(reader, None)
            except csv.Error as error:
                yield Fault(place, f"quotes or cells that do not pair up ({error})")
                return
            if cells is None:
                return
            if cells and not header:
                header = cells
                places = [_place_of(file, name, header) for name in _wanted(file)]
            elif cells:
                yield _csv_row(file, place, cells, header, places)


def _csv_row(
    file: PostsFile, place: str, cells: list[str], header: list[str], places: list[int]
) -> UnlabelledPost | Fault:
    if len(cells) != len(header):
        what = f"{len(cells)} cells under {len(header)} names; text with commas needs quotes"
        return Fault(place, what)
    for cell in cells:
        if (byte := _ESCAPED_BYTE.search(cell)) is not None:
            return Fault(place, f"the byte 0x{ord(byte[0]) - 0xDC00:02x} is not UTF-8")
    return UnlabelledPost(0, *(cells[i] for i in places))


def _json_rows(file: PostsFile) -> Iterator[UnlabelledPost | Fault]:
    """One JSON object a line."""
    with file.path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            line = line.removeprefix(_BOM) if number == 1 else line
            if line.strip():
                yield _json_row(file, f"line {number}", line)


def _json_row(file: PostsFile, place: str, line: bytes) -> UnlabelledPost | Fault:
    try:
        record = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return Fault(place, f"the byte 0x{line[error.start]:02x} is not UTF-8")
    except json.JSONDecodeError as error:
        return Fault(place, f"not JSON ({error.msg}, character {error.pos})")
    except (ValueError, RecursionError) as error:  # a number of too many digits; too deep
        return Fault(place, f"not usable JSON ({type(error).__name__})")
    if not isinstance(record, dict):
        return Fault(place, f"a {type(record).__name__}, not an object")
    if missing := [name for name in _wanted(file) if name not in record]:
        return Fault(place, f"no {missing[0]!r} among {_shown(list(record))}")
    return _typed(file, place, *(record[name] for name in _wanted(file)))


def _parquet_rows(file: PostsFile) -> Iterator[UnlabelledPost | Fault]:
    """Rows of a Parquet file, some at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file.path) as table:
            header = table.schema_arrow.names
            places = [_place_of(file, name, header) for name in _wanted(file)]
            first = 0
            for batch in table.iter_batches(_PARQUET_ROWS, columns=_wanted(file)):
                names = batch.schema.names
                columns = [batch.column(names.index(header[i])) for i in places]
                yield from _parquet_batch(file, first, columns)
                first += batch.num_rows
    except pa.ArrowException as error:
        raise UserError(
            what=f"{file.path} cannot be read as Parquet",
            expected="a whole Parquet file with columns of text",
            got=str(error).splitlines()[0][:200],
            remedy="write the file again",
        ) from None


def _parquet_batch(
    file: PostsFile, first: int, columns: Sequence[Any]
) -> Iterator[UnlabelledPost | Fault]:
    for offset in range(len(columns[0])):
        place = f"row {first + offset}"
        try:
            values = [column[offset].as_py() for column in columns]
        except UnicodeDecodeError:
            yield Fault(place, "text that is not UTF-8")
            continue
        yield _typed(file, place, *values)


def _typed(file: PostsFile, place: str, text: Any, post_id: Any = None) -> UnlabelledPost | Fault:
    """A post of values that may be of any type."""
    if not isinstance(text, str | None):
        return Fault(place, f"{file.column!r} is a {type(text).__name__}, not text")
    if not isinstance(post_id, str | int | None) or isinstance(post_id, bool):
        what = f"{file.id_column!r} is a {type(post_id).__name__}, not text or a whole number"
        return Fault(place, what)
    if isinstance(post_id, int) and not -(2**63) <= post_id < 2**63:
        return Fault(place, f"{file.id_column!r} is a number of more than 64 bits")
    return UnlabelledPost(0, text or "", post_id)


def _wanted(file: PostsFile) -> list[str]:
    return [file.column] if file.id_column is None else [file.column, file.id_column]


def _place_of(file: PostsFile, name: str, header: Sequence[str]) -> int:
    """Where `name` stands in the header.

    Raises:
        UserError: nowhere, or twice.
    """
    count = list(header).count(name)
    if count == 1:
        return header.index(name)
    option = "--column" if name == file.column else "--id"
    raise UserError(
        what=f"{file.path} has {'no column' if count == 0 else f'{count} columns'} {name!r}",
        expected=f"the column that {option} names, once",
        got=f"the columns {_shown(header)}",
        remedy=f"name another one with {option}, or correct the first line of the file",
    )


def _shown(names: Sequence[str]) -> str:
    """Names of columns; what may be a post, where the first line is no header, by its length."""
    shown = [repr(n) if n.isidentifier() and len(n) <= 40 else f"({redacted(n)})" for n in names]
    more = [f"and {len(names) - _SHOWN_NAMES} more"] if len(names) > _SHOWN_NAMES else []
    return ", ".join([*shown[:_SHOWN_NAMES], *more]) or "none"
