"""What each data set is: its name, its labels and the question that precedes a post.

A set is a folder in the paper's CSV layout plus one `BenchmarkSpec`. The paper's eight are in
`BENCHMARKS`; a user's own come from `data.custom_sets` in the recipe; the made-up ones of the
quickstart are in `SYNTHETIC_SPECS`. `spec_for` looks a name up in all three.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from mental_r1_jax.config import CustomSet
from mental_r1_jax.errors import UserError
from mental_r1_jax.text.wording import QuestionWords

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")

ENGLISH = QuestionWords()
QUESTION_END = ENGLISH.end

# Also the name of a folder and of a TFDS config, so nothing that a path would interpret.
_SET_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class BenchmarkSpec:
    """One labelled data set.

    Attributes:
        name: the name of the set, which is also that of its folder.
        asks_for: what the labels say about the writer, in a few words.
        labels: every label, spelled as in the `label` column, mildest first where they are ordered.
        question: the user turn before the post, for files without a `mental_prompt` column; None
            means that the files must have one.
        validation_file: the validation split is `{validation_file}_clean.csv`.
        ordered: the labels are degrees of one thing, mildest first.
        positive_labels: the labels of a writer whom a clinical reader would want to find; empty
            where none are named.
        source: where the files of the set are and how they are read; None: a folder in the paper's
            layout.

    Raises:
        UserError: the name cannot be a folder, the labels cannot be told apart, or the positive
            ones are not some, but not all, of them.
    """

    name: str
    asks_for: str
    labels: tuple[str, ...]
    question: str | None
    validation_file: Literal["val", "dev"] = "val"
    ordered: bool = False
    positive_labels: tuple[str, ...] = ()
    source: CustomSet | None = None

    def __post_init__(self) -> None:
        """Check name and labels."""
        if not _SET_NAME.fullmatch(self.name):
            raise UserError(
                f"The data set name {self.name!r} cannot be used as a folder name",
                "letters, digits, '_', '-' and '.', beginning with a letter or digit",
                repr(self.name),
                "Rename the set and its folder.",
            )
        _check_labels(self.name, self.labels)
        _check_positive(self.name, self.labels, self.positive_labels)


def any_risk(labels: Sequence[str]) -> tuple[str, ...]:
    """Return the positive labels of an ordered set that names none: all but the mildest.

    This is the "any risk" of the CLPsych 2019 shared task, which puts no risk against the rest.
    """
    return tuple(labels[1:])


def question_text(asks: str, labels: Sequence[str], words: QuestionWords = ENGLISH) -> str:
    """Return the user turn before a post: `asks`, the labels to choose from, "Statement: "."""
    options = "\n".join(f"* {label}" for label in labels)
    return f"{asks}\n{words.choose}\n{options}{words.end}"


def asked(question: str, labels: Sequence[str]) -> str:
    """Return the user turn before a post for a question that may be bare."""
    if question.rstrip().endswith(QUESTION_END.strip()):
        return question
    return question_text(question.strip(), labels)


def spec_for(name: str, custom_sets: Mapping[str, CustomSet] | None = None) -> BenchmarkSpec:
    """Return the spec of the set called `name`.

    A custom set wins over a built-in one of the same name, so that a user can correct a spec. Its
    question may be a bare question: the list of labels and "Statement: " are then added.

    Raises:
        UserError: no set has this name, or its description is unusable.
    """
    custom_sets = custom_sets or {}
    if name in custom_sets:
        description = custom_sets[name]
        question = description.question
        if question is not None:
            question = asked(question, description.labels)
        return BenchmarkSpec(
            name=name,
            asks_for=description.asks_for,
            labels=tuple(description.labels),
            question=question,
            validation_file=description.validation_file,
            ordered=description.ordered,
            positive_labels=description.positive_labels or _positive(description),
            source=None if description.files is None else description,
        )
    for specs in (BENCHMARKS, SYNTHETIC_SPECS):
        if name in specs:
            return specs[name]
    known = [*custom_sets, *BENCHMARKS, *SYNTHETIC_SPECS]
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"Did you mean {near[0]!r}? " if near else ""
    raise UserError(
        f"There is no data set called {name!r}",
        f"one of {', '.join(known)}",
        repr(name),
        f"{hint}A set of your own needs an entry in data.custom_sets with its labels.",
    )


def _positive(description: CustomSet) -> tuple[str, ...]:
    """The positive labels of a custom set that names none."""
    if description.topics:
        return (description.yes,)
    return any_risk(description.labels) if description.ordered else ()


def _check_labels(name: str, labels: Sequence[str]) -> None:
    """Raise unless there are two or more labels that differ in more than case.

    One label may begin another: of those that an answer names, the longest is read.
    """
    blank = [label for label in labels if label != label.strip() or not label]
    folded = [label.casefold() for label in labels]
    clashing = [
        (labels[folded.index(one)], labels[i])
        for i, one in enumerate(folded)
        if folded.index(one) < i
    ]
    if len(labels) < 2 or blank or clashing:
        raise UserError(
            f"The labels of the data set {name!r} cannot be told apart",
            "two or more labels without outer spaces that differ in more than case",
            f"{list(labels)}" + (f", where {clashing[0]} clash" if clashing else ""),
            "Rename the labels in the recipe and in the label column of the CSV files.",
        )


def _check_positive(name: str, labels: Sequence[str], positive: Sequence[str]) -> None:
    """Raise unless the positive labels are some of the labels, each once, and not all."""
    known = set(positive) <= set(labels) and len(set(positive)) == len(positive)
    if not known or len(positive) == len(labels):
        raise UserError(
            f"The positive labels of the data set {name!r} do not part its labels",
            f"some of {list(labels)}, each once, and not all of them",
            f"{list(positive)}",
            "Correct positive_labels, or leave it out.",
        )


def _spec(
    name: str,
    asks_for: str,
    labels: tuple[str, ...],
    asks: str,
    validation_file: Literal["val", "dev"] = "val",
    ordered: bool = False,
) -> BenchmarkSpec:
    """A spec whose question is `asks` with the labels listed; positive: "Yes", or any risk."""
    question = question_text(asks, labels)
    positive = any_risk(labels) if ordered else tuple(x for x in labels if x == "Yes")
    return BenchmarkSpec(name, asks_for, labels, question, validation_file, ordered, positive)


def _by_name(*specs: BenchmarkSpec) -> Mapping[str, BenchmarkSpec]:
    """The specs under their names, read-only."""
    return MappingProxyType({spec.name: spec for spec in specs})


_YES_NO = ("Yes", "No")
_RISK = ("Indicator", "Ideation", "Behavior", "Attempt")
_DEPRESSION = ("Not depressed", "Moderately depressed", "Severely depressed")

BENCHMARKS: Mapping[str, BenchmarkSpec] = _by_name(
    _spec(
        "DATD",
        "risk of anxiety or depression",
        _YES_NO,
        "Do these words suggest that their writer may be living with anxiety or depression?",
    ),
    _spec(
        "RSD",
        "level of suicide-related content",
        _RISK,
        "How far does the suicide-related content of these words go?",
        ordered=True,
    ),
    _spec(
        "DepSeverity",
        "depression severity",
        ("Minimum", "Mild", "Moderate", "Severe"),
        "How severe does the depression of the writer of these words seem?",
        ordered=True,
    ),
    _spec(
        "LT-EDI",
        "depression level",
        _DEPRESSION,
        "Which level of depression do these words show in their writer?",
        "dev",
        ordered=True,
    ),
    _spec(
        "SDCNL",
        "risk of suicide",
        _YES_NO,
        "Do these words suggest that their writer is at risk of suicide?",
    ),
    _spec(
        "Dreaddit",
        "psychological stress",
        _YES_NO,
        "Do these words show that their writer is under psychological stress?",
    ),
    _spec(
        "FIG",
        "loneliness",
        _YES_NO,
        "Do these words suggest that their writer feels lonely?",
        "dev",
    ),
    _spec(
        "LID",
        "intensity of loneliness (1 = not lonely)",
        ("[1-2]", "[2-3]", "[3-4]", "[4-5]"),
        "How lonely does the writer of these words feel, from 1 (not lonely) to 5 (very lonely)?",
        "dev",
        ordered=True,
    ),
)

SYNTHETIC_SPECS: Mapping[str, BenchmarkSpec] = _by_name(
    _spec(
        "Stress-Synthetic",
        "stress, in made-up posts",
        _YES_NO,
        "Is the writer of this made-up post under stress?",
    ),
    _spec(
        "Depression-Synthetic",
        "depression level, in made-up posts",
        _DEPRESSION,
        "Which level of depression does this made-up post show?",
        ordered=True,
    ),
    _spec(
        "Risk-Synthetic",
        "level of suicide-related content, in made-up posts",
        _RISK,
        "How far does the suicide-related content of this made-up post go?",
        ordered=True,
    ),
    _spec(
        "Stressor-Synthetic",
        "main source of stress, in made-up posts",
        (
            "Work",
            "Health",
            "School",
            "Family",
            "Financial",
            "Social",
            "Emotional Turmoil",
            "Everyday Decision",
            "Other",
        ),
        "What is the main source of stress in this made-up post?",
    ),
)
