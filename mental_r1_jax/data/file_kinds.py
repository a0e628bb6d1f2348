"""What a file is that is not comma-separated text, told from its beginning, and the way out."""

from __future__ import annotations

import csv
import io

_HEAD = 4096  # bytes that are looked at
_COLUMNS = {"text", "label"}

# First bytes -> what begins so, and what to do.
_SIGNATURES = (
    (b"PK\x03\x04", "an Excel workbook or another zip archive", "saved as CSV in UTF-8"),
    (b"\xd0\xcf\x11\xe0", "an old Excel workbook", "saved as CSV in UTF-8"),
    (b"\x1f\x8b", "a gzip archive", "unpacked, with gunzip"),
    (b"BZh", "a bzip2 archive", "unpacked, with bunzip2"),
    (b"\xfd7zXZ\x00", "an xz archive", "unpacked, with unxz"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive", "unpacked, with unzstd"),
    (b"PAR1", "a parquet file", "written as CSV, with pyarrow or pandas"),
    (b"SQLite format 3\x00", "an SQLite database", "its table exported as CSV"),
    (b"%PDF", "a PDF", "the table itself, as CSV"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself", "git lfs pull first"),
)
_DELIMITERS = {";": "semicolons", "\t": "tabs", "|": "vertical bars"}


def foreign_bytes(payload: bytes) -> tuple[str, str] | None:
    """Return what a file is and what to do about it, or None where it may well be text in UTF-8."""
    head = payload[:_HEAD]
    for signature, kind, remedy in _SIGNATURES:
        if head.startswith(signature):
            return kind, remedy
    wide = _wide_encoding(head)
    return None if wide is None else (wide, "saved as UTF-8")


def foreign_kind(payload: bytes) -> tuple[str, str] | None:
    """Return what a file is and what to do about it, or None where it may well be CSV."""
    if (foreign := foreign_bytes(payload)) is not None:
        return foreign
    head = payload[:_HEAD]
    text = head.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "replace").lstrip()
    first = text.splitlines()[0] if text else ""
    if _COLUMNS <= _columns(first, ","):
        return None
    if text[:15].lower().startswith(("<!doctype html", "<html", "<?xml", "<head")):
        return "a web page or XML", "the raw file, not the page that shows it"
    if first.lower().startswith("sep="):
        return (
            "a 'sep=' line, which only spreadsheets know",
            "no such line, and commas between cells",
        )
    if first.startswith("{") and first.rstrip().endswith("}"):
        return "JSON lines", "written as CSV with the columns text and label"
    if first.startswith(("{", "[")):
        return "JSON", "written as CSV with the columns text and label"
    for delimiter, name in _DELIMITERS.items():
        if _COLUMNS <= _columns(first, delimiter):
            return f"cells separated by {name}", "commas between cells"
    return None


def _columns(line: str, delimiter: str) -> set[str]:
    """Names in a header with this delimiter, however they are quoted."""
    try:
        cells = next(csv.reader(io.StringIO(line), delimiter=delimiter), [])
    except csv.Error:
        return set()
    return {cell.strip().strip('"').lower() for cell in cells}


def _wide_encoding(head: bytes) -> str | None:
    """UTF-32, or UTF-16 without its mark: every second byte of plain text is then NUL.

    A UTF-16 mark is left to the reader, which names the line.
    """
    if head.startswith((b"\xff\xfe\x00\x00", b"\x00\x00\xfe\xff")):
        return "UTF-32"
    if head.startswith((b"\xff\xfe", b"\xfe\xff")) or len(head) < 4:
        return None
    pairs = len(head) // 2
    nul_even, nul_odd = head[0::2].count(0), head[1::2].count(0)
    if max(nul_even, nul_odd) > 0.4 * pairs and min(nul_even, nul_odd) < 0.1 * pairs:
        return "UTF-16 without a byte order mark"
    return None
