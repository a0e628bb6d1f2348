"""Raw rows: what every reader of a file yields, and the one way from them to checked posts.

A reader (CSV, JSON, Parquet) goes through its file in order and yields, for each row, a `RawRow`,
or the problems that keep the row from being one. `check_rows` makes `Example`s of them. What
depends on the format of a file stays in its reader; what a post must be is decided here, once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mental_r1_jax.config import ColumnMap
from mental_r1_jax.data.benchmarks import BenchmarkSpec, Split
from mental_r1_jax.data.label_hint import label_hint
from mental_r1_jax.data.labels import expected_label, known_label, spellings
from mental_r1_jax.data.reasoning import staged_answer, staged_fault, without_tags
from mental_r1_jax.data.records import Example, Problem, shown
from mental_r1_jax.data.repeats import LocatedExample
from mental_r1_jax.data.topics import answers, topics_in

_SURROGATE = re.compile("[\ud800-\udfff]")  # JSON can write half a character


@dataclass(frozen=True)
class FileRow:
    """One row of a file as its container has it, before its layout is understood.

    Attributes:
        line: physical line, from 1, on which the row starts; in Parquet the row, from 1.
        values: column, or key, to value: cells are text, JSON and Parquet have other values, too.
    """

    line: int
    values: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True)
class RawRow:
    """One row as its file has it, before any check of its contents.

    Attributes:
        file: path of the file.
        line: physical line, from 1, on which the row starts; in Parquet the row, from 1.
        text: the post.
        label: the label as text; a tuple where the file has a list of labels there.
        question: the user turn before the post; None where the row brings none.
        group: whom or what the post belongs to, where the file says so.
        reasoning: reasoning that came with the row.
    """

    file: str
    line: int
    text: str = field(repr=False)
    label: str | tuple[str, ...] = field(repr=False)
    question: str | None = field(repr=False)
    group: str | None = None
    reasoning: str | None = field(repr=False, default=None)


@dataclass(frozen=True)
class Oddity:
    """A problem that does not forbid building: a warning."""

    problem: Problem


# What a reader yields.
Event = RawRow | Problem | Oddity


@dataclass(frozen=True)
class CheckedRows:
    """The rows of one file after the check.

    Attributes:
        found: the posts that are right, in file order.
        errors: problems that forbid building.
        warnings: problems that a person should look at.
    """

    found: tuple[LocatedExample, ...]
    errors: tuple[Problem, ...]
    warnings: tuple[Problem, ...]


def check_rows(
    events: Iterable[Event], spec: BenchmarkSpec, split: Split, names: ColumnMap
) -> CheckedRows:
    """Check the rows of one file.

    Args:
        events: what the file's reader yields.
        spec: labels and question of the set.
        split: the split that the file is; of one file without splits "train" stands for all, and
            `dataclasses.replace` gives each post its own afterwards.
        names: what the file calls its columns, for complaints.
    """
    found: list[LocatedExample] = []
    errors: list[Problem] = []
    warnings: list[Problem] = []
    row = 0
    for event in events:
        if isinstance(event, Oddity):
            warnings.append(event.problem)
            continue
        several = _one_label_each(event, spec, names) if isinstance(event, RawRow) else [event]
        for one in several:
            checked = _checked(one, row, spec, split, names) if isinstance(one, RawRow) else [one]
            if not isinstance(checked, LocatedExample):
                errors += checked
                break  # what is wrong with a row is the same for all of its topics
            found.append(checked)
        row += 1
    unasked = [problem for problem in errors if problem.kind == "empty question"]
    if spec.source is not None and len(unasked) == row > 1:
        # The recipe lacks a question, not each of the rows.
        value = f"{unasked[0].value} in all {row} rows"
        kept = replace(unasked[0], value=value)
        errors = [kept, *(problem for problem in errors if problem not in unasked)]
    return CheckedRows(tuple(found), tuple(errors), tuple(warnings))


def _one_label_each(
    raw: RawRow, spec: BenchmarkSpec, names: ColumnMap
) -> Sequence[RawRow | Problem]:
    """The row, or one for each topic of its set; a label that is no topic is a problem."""
    if spec.source is None or not spec.source.topics:
        return [raw]
    topics = topics_in(raw.label, spec)
    known = (*spec.source.label_map, *spec.source.topics)
    for topic in topics:
        if topic not in spec.source.topics:
            expected = "topics of the set, " + ", ".join(map(repr, known))
            expected += label_hint(topic, known)
            value = shown(topic, known)
            return [Problem(raw.file, raw.line, names.label, value, expected, "unknown label")]
    return [
        replace(raw, question=question, label=label) for question, label in answers(topics, spec)
    ]


def _checked(
    raw: RawRow, row: int, spec: BenchmarkSpec, split: Split, names: ColumnMap
) -> LocatedExample | list[Problem]:
    """The post of one row, or everything that is wrong with it."""
    problems: list[Problem] = []

    def wrong(column: str, value: str, expected: str, kind: str) -> None:
        problems.append(Problem(raw.file, raw.line, column, value, expected, kind))

    question = raw.question if raw.question is not None else spec.question or ""
    label = known_label(raw.label, spec) if isinstance(raw.label, str) else None
    if not raw.text.strip():
        wrong(names.text, shown(raw.text), "a post", "empty text")
    if not isinstance(raw.label, str):
        value = f"a list of {len(raw.label)} labels"
        wrong(names.label, value, "one label", "several labels")
    elif label is None:
        value, expected = shown(raw.label, spellings(spec)), expected_label(raw.label, spec)
        wrong(names.label, value, expected, "unknown label")
    if not question.strip():
        expected = "the question asked about the post"
        if spec.source is not None:
            expected += ", here or as the set's `question` in the recipe"
        wrong(names.question or "", shown(question), expected, "empty question")
    reasoning = raw.reasoning if raw.reasoning and without_tags(raw.reasoning) else None
    if reasoning is not None and (fault := staged_fault(reasoning)) is not None:
        expected = "all stages once, in order, and an answer; or no tag of them"
        wrong(names.reasoning or "", f"a text where {fault}", expected, "malformed stages")
    elif reasoning is not None and (answer := staged_answer(reasoning)) is not None:
        if label is not None and known_label(answer, spec) != label:
            value = f"the answer {shown(answer, spec.labels)}"
            wrong(names.reasoning or "", value, f"the label of the row, {label!r}", "other answer")
    for column, text in (
        (names.text, raw.text),
        (names.question or "", question),
        (names.group or "", raw.group or ""),
        (names.reasoning or "", reasoning or ""),
    ):
        if _SURROGATE.search(text):
            wrong(column, "half a surrogate pair", "characters of Unicode", "not Unicode")
    if problems or label is None:
        return problems
    example = Example(spec.name, split, row, raw.text, label, question, raw.group, reasoning)
    return LocatedExample(raw.file, raw.line, example)
