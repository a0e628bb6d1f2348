"""The formats of docs/data.md as the page shows them: a file, its recipe lines, a wrong row."""

from __future__ import annotations

import dataclasses
import io
import json
import re
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import yaml

PAGE = Path(__file__).resolve().parents[2] / "docs/data.md"
_FENCE = re.compile(r"^```(\w+)( \S+)?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Format:
    """One format of the page.

    Attributes:
        name: its heading.
        file: the name of its file.
        sound: the file.
        keys: what the recipe says of the set.
        wrong: the file with a row that is wrong.
        message: what is said about it.
    """

    name: str
    file: str
    sound: bytes
    keys: dict[str, Any]
    wrong: bytes
    message: str


def documented_formats() -> list[Format]:
    """All of them, in the page's order."""
    text = PAGE.read_text(encoding="utf-8").split("\n## Formats\n")[1]
    return [_format(section) for section in text.split("\n### ")[1:]]


def _format(section: str) -> Format:
    """One section of the page; a list of JSON is wrong as a whole, other files in one more row."""
    (_, file, rows), (_, _, lines), (_, mark, wrong), (_, _, message) = _FENCE.findall(section)
    assert mark == " wrong"
    file = file.strip()
    both = wrong if file.endswith(".json") else rows + wrong
    return Format(
        name=section.split("\n")[0],
        file=file,
        sound=_as_file(file, rows),
        keys=yaml.safe_load(lines),
        wrong=_as_file(file, both),
        message=message.strip(),
    )


def _as_file(file: str, shown: str) -> bytes:
    """What the page shows, as the file holds it."""
    if not file.endswith(".parquet"):
        return shown.encode()
    buffer = io.BytesIO()
    rows = [json.loads(line) for line in shown.splitlines()]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), buffer)
    return buffer.getvalue()
