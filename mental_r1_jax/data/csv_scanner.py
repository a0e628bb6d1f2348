"""CSV text to records, with the physical line of each and of every quote that does not pair up.

Why not the `csv` module: it does not say where a record or a quote opened, whether a cell was
quoted, or how to go on after a lost quote, which makes it swallow the following rows in silence.
On well-formed text both read the same cells (a test compares them).
"""

from __future__ import annotations

import bisect
import functools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate

Cells = tuple[str, ...]

_BARE_CELL = {",": re.compile(r"[^,\r\n]*"), "\t": re.compile(r"[^\t\r\n]*")}
_LINE_END = re.compile(r"\r\n|\r|\n")


@dataclass(frozen=True)
class Record:
    """Cells of one record; `line` is the physical line, from 1, on which it starts."""

    line: int
    cells: Cells


@dataclass(frozen=True)
class QuoteFault:
    """A quote that does not pair up.

    Attributes:
        line: physical line of the quote that opens the cell, or of the stray quote.
        cell: position of the cell in its record, from 0.
        resume_line: first physical line read again; the lines before it could not be checked.
            One past the last line when nothing after the fault looks like a record.
    """

    line: int
    cell: int
    resume_line: int


@dataclass(frozen=True)
class _Parse:
    """One record as read at some offset: cells, offset behind it, and a fault if there is one.

    `fault` is (offset of the quote, cell). `lost` says that the end of the record is unknown.
    """

    cells: Cells
    end: int
    fault: tuple[int, int] | None = None
    lost: bool = False


class LineIndex:
    """Offsets of a text to physical line numbers, from 1; lines end at LF, CR or CR LF."""

    def __init__(self, text: str) -> None:
        """Nothing is searched before a line is asked for."""
        self._text = text

    @functools.cached_property
    def starts(self) -> list[int]:
        """The offset at which each line starts, ascending."""
        text = self._text
        if "\r" in text:
            starts = [0, *(match.end() for match in _LINE_END.finditer(text))]
        else:  # in a tenth of the time
            starts = list(accumulate((len(line) + 1 for line in text.split("\n")), initial=0))
            del starts[-1]
        if len(starts) > 1 and starts[-1] == len(text):
            del starts[-1]  # a final line end begins no further line
        return starts

    def line_of(self, offset: int) -> int:
        """Return the number of the line that holds `offset`."""
        return bisect.bisect_right(self.starts, offset)


def scan_records(
    text: str, looks_like_record: Callable[[Cells], bool], delimiter: str = ","
) -> Iterator[Record | QuoteFault]:
    """Yield the records and quote faults of `text` in order; blank lines are skipped.

    After a lost quote the end of the record is unknown, so reading goes on at the next line from
    which a record can be read that `looks_like_record` accepts. One with more cells than the first
    record, the header, is not tried to its end: such a record could reach to the end of the text
    from every line, and reading would take time with the square of its length.
    """
    lines = LineIndex(text)
    offset = 0
    width: int | None = None
    while offset < len(text):
        parse = _parse_record(text, offset, width, delimiter=delimiter)
        line = lines.line_of(offset)
        if parse.fault is None:
            if parse.cells != ("",):
                width = len(parse.cells) if width is None else width
                yield Record(line, parse.cells)
            offset = parse.end
            continue
        quote_offset, cell = parse.fault
        quote_line = lines.line_of(quote_offset)
        if parse.lost or not looks_like_record(parse.cells):
            offset = _resume_offset(text, lines, quote_line, looks_like_record, width, delimiter)
        else:
            offset = parse.end
        resume = lines.line_of(offset) if offset < len(text) else len(lines.starts) + 1
        yield QuoteFault(quote_line, cell, resume)


def _resume_offset(
    text: str,
    lines: LineIndex,
    fault_line: int,
    looks_like_record: Callable[[Cells], bool],
    width: int | None,
    delimiter: str,
) -> int:
    """Offset of the first line after `fault_line` that starts a plausible record, or the end."""
    # By number, not by a slice: there may be as many faults as lines.
    for number in range(fault_line, len(lines.starts)):
        start = lines.starts[number]
        parse = _parse_record(text, start, width, trial=True, delimiter=delimiter)
        if parse.fault is None and looks_like_record(parse.cells):
            return start
    return len(text)


def _parse_record(
    text: str,
    offset: int,
    width: int | None = None,
    trial: bool = False,
    *,
    delimiter: str = ",",
) -> _Parse:
    """Read one record at `offset`.

    A record with a fault, or a trial, is lost as soon as it has more than `width` cells.
    """
    cells: list[str] = []
    fault: tuple[int, int] | None = None
    while True:
        if text.startswith('"', offset):
            close = _closing_quote(text, offset + 1)
            if close is None or text[close + 1 : close + 2] not in ("", delimiter, "\r", "\n"):
                return _Parse(tuple(cells), len(text), fault or (offset, len(cells)), lost=True)
            cells.append(text[offset + 1 : close].replace('""', '"'))
            offset = close + 1
        else:
            bare = _BARE_CELL[delimiter].match(text, offset)
            assert bare is not None  # the pattern matches the empty string
            # An even number of quotes inside a bare cell reads as meant; an odd one is a lost mate.
            if fault is None and bare.group().count('"') % 2:
                fault = (offset + bare.group().index('"'), len(cells))
            cells.append(bare.group())
            offset = bare.end()
        if not text.startswith(delimiter, offset):
            break
        if width is not None and len(cells) > width and (trial or fault is not None):
            return _Parse(tuple(cells), len(text), fault or (offset, len(cells)), lost=True)
        offset += 1
    line_end = _LINE_END.match(text, offset)
    return _Parse(tuple(cells), line_end.end() if line_end else offset, fault)


def _closing_quote(text: str, offset: int) -> int | None:
    """Offset of the quote that closes a cell whose content begins at `offset`."""
    while True:
        quote = text.find('"', offset)
        if quote < 0:
            return None
        if not text.startswith('"', quote + 1):
            return quote
        offset = quote + 2  # a doubled quote stands for one
