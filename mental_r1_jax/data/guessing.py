"""The lines of a recipe that would read a file, guessed from its columns and tried on it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mental_r1_jax.config import ColumnMap, CustomSet, FileFormat, label_text
from mental_r1_jax.data.benchmarks import spec_for
from mental_r1_jax.data.layouts import layout_of, raw_rows
from mental_r1_jax.data.parquet_rows import class_names
from mental_r1_jax.data.reading import container_of, plain_rows, read_file
from mental_r1_jax.data.records import Problem
from mental_r1_jax.data.rows import FileRow, RawRow, check_rows
from mental_r1_jax.errors import UserError

# What columns are called, the likelier names first.
_NAMES = {
    "text": ("text", "post", "body", "selftext", "content", "tweet", "message", "statement"),
    "label": ("label", "class", "category", "sentiment", "target", "severity", "status", "answer"),
    "question": ("mental_prompt", "question"),
    "group": ("group", "user", "users", "user_id", "author", "username", "subject"),
    "reasoning": ("reasoning", "rationale", "explanation"),
}
_JOINED = (("title", "selftext"), ("title", "body"), ("title", "text"))
# More, or longer, values than these are no labels, and may be posts: they are never shown.
_MAX_LABELS, _MAX_LABEL_CHARS, _MAX_LABEL_WORDS = 20, 40, 6
_QUESTION = "Which of these labels fits the writer of these words?"
_STAND_IN = ("one", "two")  # labels while the real ones are not known


@dataclass(frozen=True)
class Guess:
    """Lines of a recipe, and what reading the file with them gave.

    Attributes:
        lines: the section `data` of a recipe.
        rows: posts that were read with them.
        problems: what is wrong with the other rows.
    """

    lines: str
    rows: int
    problems: tuple[Problem, ...]


def guess_lines(path: Path) -> Guess:
    """Guess how a file is read, and read it so.

    Raises:
        UserError: there is no such file, it holds no rows, or its posts or labels cannot be told.
    """
    if not path.is_file():
        raise UserError("the file is not there", "a file of posts", str(path), "Correct the path.")
    payload = path.read_bytes()
    kind = container_of(path, payload, "auto")
    rows = [row for row in plain_rows(path, payload, kind) if isinstance(row, FileRow)]
    if not rows:
        raise UserError(
            f"{path} has no row that can be read",
            "CSV, TSV, JSON, JSON lines or Parquet with labelled posts",
            f"read as {kind}: {_first_problem(path, payload, kind)}",
            "docs/data.md shows a row of each format.",
        )
    keys = {"files": str(path), **_described(path, rows)}
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", path.stem).lstrip("_.-") or "MySet"
    tree = {"data": {"sets": [name], "custom_sets": {name: keys}}}
    lines = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, default_flow_style=None)
    # What is printed is what is tried.
    read = yaml.safe_load(lines)["data"]["custom_sets"][name]
    spec = spec_for(name, {name: CustomSet.model_validate(read)})
    events = read_file(path, payload, spec)
    checked = check_rows(events.events, spec, "train", events.names)
    return Guess(lines, len(checked.found), checked.errors)


def _described(path: Path, rows: Sequence[FileRow]) -> dict[str, Any]:
    """The keys of the set but its files, labels first."""
    columns = list(dict.fromkeys(key for row in rows for key in row.values))
    blank = _stand_in({})
    if layout_of(columns, blank).name == "columns":
        mapped = _column_keys(path, rows, columns)
    else:
        group = _named("group", columns)
        mapped = {} if group is None else {"columns": {"group": group}}
    raws = _raws(path, rows, columns, mapped)
    asked = all(row.question is not None and row.question.strip() for row in raws)
    if not asked and "question" not in mapped.get("columns", {}):
        mapped = {"question": _QUESTION, **mapped}
    labels = _labels([row.label for row in raws])
    if labels is None:
        raise UserError(
            f"the labels of {path} cannot be told",
            f"2 to {_MAX_LABELS} different ones of at most {_MAX_LABEL_CHARS} characters",
            f"{len({row.label for row in raws})} different values in {len(raws)} rows",
            "Write the lines yourself; docs/data.md shows those of each format.",
        )
    label = mapped.get("columns", {}).get("label", "label")
    names = class_names(path.read_bytes(), label) if label in columns else ()
    if {*labels} <= {str(number) for number in range(len(names))} and _labels(names) is not None:
        mapped["label_map"] = {number: name for number, name in enumerate(names)}
        labels = list(names)
    return {"labels": labels, **mapped}


def _raws(
    path: Path, rows: Sequence[FileRow], columns: Sequence[str], keys: Mapping[str, Any]
) -> list[RawRow]:
    """The rows as these keys read them."""
    spec = _stand_in(keys)
    found = raw_rows(rows, str(path), spec, layout_of(columns, spec))
    return [one for one in found if isinstance(one, RawRow)]


def _column_keys(path: Path, rows: Sequence[FileRow], columns: Sequence[str]) -> dict[str, Any]:
    """Keys for a file with a column each: which is the post, which the label, and so on."""
    joined = next((pair for pair in _JOINED if set(pair) <= set(columns)), None)
    texts = [x for x in columns if _are_texts(rows, x)]
    label = _label_column(rows, columns)
    others = [x for x in texts if x != label]
    text = _named("text", others) or max(others, key=lambda x: _length(rows, x), default=None)
    if label is None or text is None:
        missing = "labels" if label is None else "posts"
        raise UserError(
            f"the column of the {missing} of {path} cannot be told",
            "a column of texts, and one of a few short values that occur again and again",
            f"{len(columns)} columns",
            "Name them in `columns`; docs/data.md shows how.",
        )
    found = {} if joined else {"text": text}
    found["label"] = label
    used = {text, label, *(joined or ())}
    for part in ("question", "group", "reasoning"):
        name = _named(part, [x for x in columns if x not in used])
        if name is not None and (part == "group" or _are_texts(rows, name)):
            found[part] = name
    usual = ColumnMap()
    found = {part: name for part, name in found.items() if name != getattr(usual, part)}
    keys: dict[str, Any] = {"text_columns": list(joined)} if joined else {}
    return keys | ({"columns": found} if found else {})


def _label_column(rows: Sequence[FileRow], columns: Sequence[str]) -> str | None:
    """The column by its name, or the first whose few values occur again and again."""
    able = [x for x in columns if _labels([row.values.get(x) for row in rows]) is not None]
    again = [x for x in able if len({str(row.values.get(x)) for row in rows}) * 2 <= len(rows)]
    used = {*_NAMES["group"], *_NAMES["question"]}
    return _named("label", able) or next((x for x in again if x.lower() not in used), None)


def _labels(values: Sequence[Any]) -> list[str] | None:
    """The different labels among values, as they occur; None if they are none."""
    texts = [label_text(value) for value in values]
    counts = Counter(text for text in texts if text is not None and text.strip())
    short = all(len(x) <= _MAX_LABEL_CHARS and len(x.split()) <= _MAX_LABEL_WORDS for x in counts)
    return [*counts] if 2 <= len(counts) <= _MAX_LABELS and short else None


def _stand_in(keys: Mapping[str, Any]) -> Any:
    """A spec of a set whose labels are not known yet."""
    description = CustomSet.model_validate({"labels": _STAND_IN, "files": "file", **keys})
    return spec_for("guess", {"guess": description})


def _named(part: str, columns: Sequence[str]) -> str | None:
    """The column that is called as such columns are."""
    for name in _NAMES[part]:
        for column in columns:
            if column.lower() == name:
                return column
    return None


def _are_texts(rows: Sequence[FileRow], column: str) -> bool:
    """Whether a column holds texts, and not only blank ones."""
    values = [row.values.get(column) for row in rows]
    there = [value for value in values if value is not None]
    return all(isinstance(value, str) for value in there) and any(x.strip() for x in there)


def _length(rows: Sequence[FileRow], column: str) -> int:
    return sum(len(row.values.get(column) or "") for row in rows)


def _first_problem(path: Path, payload: bytes, kind: FileFormat) -> str:
    problems = [p for p in plain_rows(path, payload, kind) if isinstance(p, Problem)]
    return str(problems[0]) if problems else "nothing"
