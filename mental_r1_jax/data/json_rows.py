"""Objects of JSON files: one a line (JSON lines), or a list of them.

Every problem has the line on which its object begins. Of a line that is no object the next lines
are still read; a list cannot be read beyond its first fault.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from mental_r1_jax.data.csv_scanner import LineIndex
from mental_r1_jax.data.records import Problem, shown_names
from mental_r1_jax.data.rows import FileRow

_MAX_DIGITS = 400
_BLANKS = re.compile(r"[ \t\r\n]*")
_AS_OBJECTS = "one object for each post (pandas: orient='records')"


class _Refused(ValueError):
    """JSON that is not taken: a key that occurs twice, or a number of far too many digits."""


def read_json_lines(file: str, text: str) -> Iterator[FileRow | Problem]:
    """Yield the object of each line; blank lines are skipped."""
    rows = list(_of_lines(file, text))
    if len(rows) > 1 and all(isinstance(r, Problem) and r.kind == "not JSON" for r in rows):
        # Something else than JSON lines: its first line says as much as all of them.
        rows = rows[:1]
    yield from rows


def read_json_list(file: str, text: str) -> Iterator[FileRow | Problem]:
    """Yield the objects of the one list that a file is."""
    lines = LineIndex(text)
    place = _after_blanks(text, 0)
    if not text.startswith("[", place):
        expected = f"a list of objects, {_AS_OBJECTS}"
        yield Problem(file, 1, "", "no list", expected, "not a list")
        return
    place = _after_blanks(text, place + 1)
    if text.startswith("]", place):
        yield from _rest(file, text, lines, place + 1)
        return
    while True:
        line = lines.line_of(place)
        value, end = _value(file, text, place, lines)
        if end is None:
            yield value
            return
        yield _row(file, line, value)
        place = _after_blanks(text, end)
        if text.startswith("]", place):
            yield from _rest(file, text, lines, place + 1)
            return
        if not text.startswith(",", place):
            got = "the end of the file" if place == len(text) else "something else"
            line = lines.line_of(min(place, max(len(text) - 1, 0)))
            yield Problem(file, line, "", got, "a comma, or the end of the list", "not JSON")
            return
        place = _after_blanks(text, place + 1)


def _of_lines(file: str, text: str) -> Iterator[FileRow | Problem]:
    # Not splitlines: JSON may hold U+2028 and its kin as they are.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip(" \t\r"):
            continue
        start = _after_blanks(line, 0)
        value, end = _value(file, line, start, None, number)
        if end is None:
            yield value
        elif _after_blanks(line, end) < len(line):
            expected = "one object a line, and nothing behind it"
            yield Problem(file, number, "", "more behind an object", expected, "not JSON")
        else:
            yield _row(file, number, value)


def _value(
    file: str, text: str, start: int, lines: LineIndex | None, number: int = 1
) -> tuple[Any, int | None]:
    """A JSON value and where it ends; or a problem and None."""

    def line_of(offset: int) -> int:
        return number if lines is None else lines.line_of(max(0, min(offset, len(text) - 1)))

    try:
        return _DECODER.raw_decode(text, start)
    except json.JSONDecodeError as error:
        last = len(text.rstrip())
        where = "at the end" if error.pos >= last else f"column {error.colno}"
        value, line = f"{error.msg} ({where})", line_of(min(error.pos, last))
    except RecursionError:
        value, line = "brackets in brackets, too deep", line_of(start)
    except _Refused as error:
        value, line = str(error), line_of(start)
    return Problem(file, line, "", value, "an object of JSON", "not JSON"), None


def _row(file: str, line: int, value: Any) -> FileRow | Problem:
    """The row that a value is, if it is an object."""
    if isinstance(value, dict):
        return FileRow(line, value)
    kind = {list: "a list", str: "a text", type(None): "null"}.get(type(value), "a number")
    return Problem(file, line, "", kind, _AS_OBJECTS, "not an object")


def _rest(file: str, text: str, lines: LineIndex, place: int) -> Iterator[Problem]:
    """A problem where anything stands behind the list."""
    place = _after_blanks(text, place)
    if place < len(text):
        line = lines.line_of(place)
        yield Problem(file, line, "", "more behind the list", "one list", "not JSON")


def _after_blanks(text: str, place: int) -> int:
    found = _BLANKS.match(text, place)
    assert found is not None  # the pattern matches the empty string
    return found.end()


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; a key that occurs twice would hide one of two values."""
    found = dict(pairs)
    if len(found) < len(pairs):
        again = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise _Refused(f"the key {shown_names([again])} twice")
    return found


def _integer(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise _Refused(f"a number of {len(digits)} digits")
    return int(digits)


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_int=_integer)
