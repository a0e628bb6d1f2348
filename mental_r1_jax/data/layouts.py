"""How a row is laid out: which of its values are post, label, question, group and reasoning.

    columns      a column each, named in the recipe
    imhi         `query,gpt-3.5-turbo` or `post,question,response`, as the IMHI sets have them
    instruction  `instruction,input,output` or `query,response`, with or without `label`
    chat         `messages`: turns with `role` and `content`
    sharegpt     `conversations`: turns with `from` and `value`

A user's turn may hold the question, too: as IMHI writes it (`Post: "..." Question: ...`) or as our
own prompts do (`...Statement: ...`); otherwise all of it is the post.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from mental_r1_jax.config import ColumnMap, label_text
from mental_r1_jax.data.benchmarks import QUESTION_END, BenchmarkSpec, asked
from mental_r1_jax.data.labels import known_label
from mental_r1_jax.data.reasoning import is_staged, label_and_reasoning, staged_fault
from mental_r1_jax.data.records import Problem, redacted, shown
from mental_r1_jax.data.rows import Event, FileRow, Oddity, RawRow

_IMHI_START = re.compile(r'(?:Consider this post|Post): "')
_IMHI_END = '" Question:'
_BETWEEN_TEXTS = "\n\n"
_ROLES = {
    "chat": {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"},
    "sharegpt": {"system": "system", "human": "user", "user": "user"}
    | dict.fromkeys(("gpt", "assistant", "model"), "assistant"),
}


class _Unreadable(Exception):
    """A value that keeps a row from being read: column, value, expectation and kind."""


@dataclass(frozen=True)
class LaidOut:
    """A layout, with the columns of one file.

    Attributes:
        name: one of those above.
        names: what the file calls its columns, for complaints.
        needed: columns without which no row can be read.
    """

    name: str
    names: ColumnMap
    needed: tuple[str, ...]


def layout_of(columns: Collection[str], spec: BenchmarkSpec) -> LaidOut:
    """Return the layout of a file with these columns: the recipe's, or what its columns tell."""
    source = spec.source
    assert source is not None  # the paper's layout is read by its own names
    mapped = source.columns
    name: str = source.layout
    if name == "auto":
        told = source.maps_columns or bool(source.topics)
        name = "columns" if told else _told_by(columns)
    group = () if mapped.group is None else (mapped.group,)
    if name == "columns":
        texts = source.text_columns or (mapped.text,)
        others = [x for x in (mapped.question, mapped.reasoning) if x]
        names = mapped.model_copy(update={"text": " + ".join(texts)})
        return LaidOut(name, names, (*texts, mapped.label, *others, *group))
    if name in ("chat", "sharegpt"):
        turns = "messages" if name == "chat" else "conversations"
        asked_in = text = response = turns
        needed: tuple[str, ...] = (turns,)
    else:
        text, asked_in, response = _columns_of(name, columns)
        needed = tuple(dict.fromkeys((text, asked_in, response)))
    names = ColumnMap(
        text="input" if text == "instruction" and "input" in columns else text,
        label="label" if "label" in columns else response,
        question=asked_in,
        group=mapped.group,
        reasoning=response,
    )
    return LaidOut(name, names, (*needed, *group))


def raw_rows(
    rows: Iterable[FileRow | Problem | Oddity], file: str, spec: BenchmarkSpec, layout: LaidOut
) -> Iterator[Event]:
    """Yield the `RawRow` of each row, or the problem that it has; problems pass through."""
    read = _READERS[layout.name]
    for row in rows:
        if not isinstance(row, FileRow):
            yield row
            continue
        try:
            text, label, question, reasoning = read(row.values, spec, layout)
            group = _group_of(row.values, layout.names)
        except _Unreadable as error:
            yield Problem(file, row.line, *error.args)
            continue
        if layout.name != "paper":  # there a question is a whole user turn, and wins over the set's
            topics = spec.source is not None and bool(spec.source.topics)
            if spec.question is not None or topics:
                question = None  # the recipe's is asked of every post
            elif question is not None and question.strip():
                question = asked(question, spec.labels)
        yield RawRow(file, row.line, text, label, question, group, reasoning)


_Parts = tuple[str, str | tuple[str, ...], str | None, str | None]


def _from_paper(values: Mapping[str, Any], spec: BenchmarkSpec, layout: LaidOut) -> _Parts:
    names = layout.names
    question = values.get(names.question or "")
    return values[names.text], values[names.label], question, None


def _from_columns(values: Mapping[str, Any], spec: BenchmarkSpec, layout: LaidOut) -> _Parts:
    source, names = spec.source, layout.names
    assert source is not None
    if source.text_columns:
        parts = [_text(values, name, optional=True) for name in source.text_columns]
        text = _BETWEEN_TEXTS.join(part for part in parts if part and part.strip())
    else:
        text = _text(values, names.text) or ""
    question = _text(values, names.question) if names.question else None
    reasoning = _text(values, names.reasoning, optional=True) if names.reasoning else None
    return text, _label(values, names.label), question, reasoning


def _from_imhi(values: Mapping[str, Any], spec: BenchmarkSpec, layout: LaidOut) -> _Parts:
    names = layout.names
    text, question = _text(values, names.text) or "", None
    if "post" in layout.needed:
        question = _text(values, "question")
    else:
        text, question = _post_of_imhi(text) or _refuse(
            names.text,
            redacted(text),
            f"""'Post: "' or 'Consider this post: "', the post, and '{_IMHI_END}'""",
            "no post",
        )
    return text, *_answer(values, spec, layout, question)


def _from_instruction(values: Mapping[str, Any], spec: BenchmarkSpec, layout: LaidOut) -> _Parts:
    first = layout.needed[0]
    asks = _text(values, first) or ""
    post = _text(values, "input", optional=True) if first == "instruction" else None
    text, question = (post, asks) if post and post.strip() else _post_of_turn(asks)
    return text, *_answer(values, spec, layout, question)


def _from_turns(values: Mapping[str, Any], spec: BenchmarkSpec, layout: LaidOut) -> _Parts:
    column = layout.needed[0]
    given = values.get(column)
    if not isinstance(given, list):
        _refuse(column, _kind_of(given), "a list of turns", "wrong type")
    turns = [_turn(turn, column, layout.name) for turn in given]
    roles = [role for role, _ in turns]
    if roles not in (["user", "assistant"], ["system", "user", "assistant"]):
        counts = ", ".join(f"{roles.count(r)} of {r}" for r in ("system", "user", "assistant"))
        several = max(roles.count("user"), roles.count("assistant")) > 1
        expected = "one turn of the user and one answer, behind at most one of the system"
        kind = "several turns" if several else "order of turns"
        _refuse(column, f"turns: {counts}", expected, kind)
    text, question = _post_of_turn(turns[-2][1])
    return text, *_answer({**values, column: turns[-1][1]}, spec, layout, question)


def _turn(turn: Any, column: str, layout: str) -> tuple[str, str]:
    """Role and text of one turn."""
    role_key, text_key = ("role", "content") if layout == "chat" else ("from", "value")
    if not isinstance(turn, Mapping):
        _refuse(column, _kind_of(turn), f"turns with {role_key!r} and {text_key!r}", "wrong type")
    roles, role = _ROLES[layout], turn.get(role_key)
    if not isinstance(role, str) or role not in roles:
        value = shown(role) if isinstance(role, str) else _kind_of(role)
        _refuse(column, f"{role_key} {value}", f"one of {', '.join(roles)}", "unknown role")
    content = turn.get(text_key)
    if isinstance(content, list):  # parts, as some write them
        parts = [part.get("text") if isinstance(part, Mapping) else None for part in content]
        if parts and all(isinstance(part, str) for part in parts):
            content = "".join(part for part in parts if isinstance(part, str))
    if not isinstance(content, str):
        _refuse(column, f"{text_key}: {_kind_of(content)}", "a text", "wrong type")
    return roles[role], content


def _answer(
    values: Mapping[str, Any], spec: BenchmarkSpec, layout: LaidOut, question: str | None
) -> tuple[str | tuple[str, ...], str | None, str | None]:
    """Label, question and reasoning of a row whose response answers; its own `label` wins."""
    column = layout.names.reasoning or ""
    response = _text(values, column) or ""
    if (fault := staged_fault(response)) is not None:
        expected = "all stages once, in order, and an answer; or no tag of them"
        _refuse(column, f"a text where {fault}", expected, "malformed stages")

    def is_label(text: str) -> bool:
        return known_label(text, spec) is not None

    label, reasoning = label_and_reasoning(response, is_label)
    if values.get("label") is None:
        return label, question, reasoning
    own = _label(values, "label")
    if label and not is_label(label) and not is_staged(response):
        reasoning = response  # no label in front: all of it is reasoning
    elif label and isinstance(own, str) and known_label(label, spec) != known_label(own, spec):
        value = f"the answer {shown(label, spec.labels)}"
        _refuse(column, value, f"the label of the row, {shown(own, spec.labels)}", "other answer")
    return own, question, reasoning


def _post_of_turn(turn: str) -> tuple[str, str | None]:
    """Post and question of a user's turn; without a mark between them all of it is the post."""
    if (found := _post_of_imhi(turn)) is not None:
        return found
    question, mark, post = turn.partition(QUESTION_END)
    return (post, question + mark) if mark else (turn, None)


def _post_of_imhi(query: str) -> tuple[str, str] | None:
    """Post and question of `Post: "..." Question: ...`; the post may hold quotes of its own."""
    start, end = _IMHI_START.search(query), query.rfind(_IMHI_END)
    if start is None or end < start.end():
        return None
    return query[start.end() : end], query[end + len(_IMHI_END) :].strip()


def _text(values: Mapping[str, Any], column: str, *, optional: bool = False) -> str | None:
    """A value that must be text; one that is not there may be None."""
    value = values.get(column)
    if isinstance(value, str) or (value is None and optional):
        return value
    if column not in values:
        _refuse(column, "no such key", f"a key {column!r}", "missing column")
    return _refuse(column, _kind_of(value), "a text", "wrong type")


def _label(values: Mapping[str, Any], column: str) -> str | tuple[str, ...]:
    """A label as text, or a list of them."""
    value = values.get(column)
    if isinstance(value, list | tuple):
        texts = tuple(label_text(one) for one in value)
        if None not in texts:
            return tuple(text for text in texts if text is not None)
    text = label_text(value)
    if text is not None:
        return text
    if column not in values:
        _refuse(column, "no such key", f"a key {column!r}", "missing column")
    kind = "missing label" if value is None or value != value else "wrong type"
    return _refuse(column, _kind_of(value), "a label: text, a number or a boolean", kind)


def _group_of(values: Mapping[str, Any], names: ColumnMap) -> str | None:
    """The group of a row; blank and null mean none."""
    if names.group is None:
        return None
    value = values.get(names.group)
    text = label_text(value)
    if text is None and value is not None and value == value:
        _refuse(names.group, _kind_of(value), "text or a number", "wrong type")
    return text if text and text.strip() else None


def _kind_of(value: Any) -> str:
    """What a value is, without showing it."""
    if value is None:
        return "null"
    if isinstance(value, str):
        return "text"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, list | tuple):
        return "a list"
    if value != value:
        return "NaN"
    return {int: "a number", float: "a number", bytes: "bytes"}.get(
        type(value), type(value).__name__
    )


def _refuse(column: str, value: str, expected: str, kind: str) -> NoReturn:
    """End the reading of a row."""
    raise _Unreadable(column, value, expected, kind)


def _told_by(columns: Collection[str]) -> str:
    """The layout that these columns tell."""
    there = set(columns)
    if {ColumnMap().text, ColumnMap().label} <= there:
        return "columns"
    for name, needed in _TELLING:
        if needed <= there:
            return name
    return "columns"


def _columns_of(name: str, columns: Collection[str]) -> tuple[str, str, str]:
    """Columns of the post, of the question and of the response; the first two may be one."""
    there = set(columns)
    if name == "imhi" and "post" in there:
        return "post", "question", "response"
    if name == "imhi":
        return "query", "query", "gpt-3.5-turbo" if "gpt-3.5-turbo" in there else "response"
    if "query" in there and "instruction" not in there:
        return "query", "query", "response"
    return "instruction", "instruction", "output"


_TELLING: tuple[tuple[str, set[str]], ...] = (
    ("chat", {"messages"}),
    ("sharegpt", {"conversations"}),
    ("imhi", {"query", "gpt-3.5-turbo"}),
    ("imhi", {"post", "question", "response"}),
    ("instruction", {"instruction", "output"}),
    ("instruction", {"query", "response"}),
)
_READERS: Mapping[str, Callable[[Mapping[str, Any], BenchmarkSpec, LaidOut], _Parts]] = {
    "paper": _from_paper,
    "columns": _from_columns,
    "imhi": _from_imhi,
    "instruction": _from_instruction,
    "chat": _from_turns,
    "sharegpt": _from_turns,
}
