"""Bytes of a text file to text; every line that is not UTF-8 is a problem."""

from __future__ import annotations

import re

from mental_r1_jax.data.csv_scanner import LineIndex
from mental_r1_jax.data.records import Problem

_ESCAPED_BYTE = re.compile("[\udc80-\udcff]")


def decode_lines(file: str, payload: bytes) -> tuple[str | None, list[Problem]]:
    """Return the text of a file, None where it is UTF-16, with a problem for each wrong line."""
    if payload[:2] in (b"\xff\xfe", b"\xfe\xff"):
        value, expected = "a UTF-16 byte order mark", "UTF-8; convert the file"
        return None, [Problem(file, 1, "", value, expected, "not UTF-8")]
    text = payload.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")
    problems: list[Problem] = []
    lines = None
    for match in _ESCAPED_BYTE.finditer(text):
        lines = lines or LineIndex(text)
        line = lines.line_of(match.start())
        if not problems or problems[-1].line != line:
            value = f"byte 0x{ord(match.group()) - 0xDC00:02x}"
            problems.append(Problem(file, line, "", value, "UTF-8; convert the file", "not UTF-8"))
    if problems:
        text = text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return text, problems
