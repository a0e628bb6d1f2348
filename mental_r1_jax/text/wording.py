"""The wording of a recipe: grammar and questions in its language, from ours and the user's own.

Of three wordings the first that has a text gives it: `text.wording` of the recipe, the one of
`text.language`, and English. A grammar of the user's own brings its descriptions, so that only
`text.wording` comes before them. Labels are never worded: they are what the data say.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.resources
from dataclasses import dataclass
from typing import TypeVar

import yaml

from mental_r1_jax.text.stages import (
    GRAMMAR,
    INSTRUCTION_WITHOUT_STAGES,
    STAGES,
    Grammar,
    Stage,
)
from mental_r1_jax.text_section import TextConfig, WordingSection

CHOOSE = "Reply with one of these labels, spelled exactly so:"
STATEMENT = "Statement: "

Value = TypeVar("Value")


@dataclass(frozen=True)
class QuestionWords:
    """What stands around the question of a set.

    Attributes:
        choose: the line between the question and the labels.
        statement: the beginning of the line with the post.
    """

    choose: str = CHOOSE
    statement: str = STATEMENT

    @property
    def end(self) -> str:
        """What every question of ours ends with."""
        return f"\n{self.statement}"


def grammar_of(text: TextConfig) -> Grammar:
    """Return the grammar of a recipe, in its wording."""
    words, grammar = _wordings(text), text.grammar
    key, ours = "instruction", GRAMMAR.instruction
    if not text.stages_in_prompt:
        key, ours = "instruction_without_stages", INSTRUCTION_WITHOUT_STAGES
    worded = Grammar(
        stages=tuple(_worded(stage, words) for stage in STAGES),
        instruction=_first(words, key, ours),
        label=_first(words, "label", GRAMMAR.label),
        nothing=_first(words, "nothing", GRAMMAR.nothing),
        spaced=_first(words, "spaced", GRAMMAR.spaced),
    )
    if grammar is None:
        return worded
    own = [] if text.wording is None else [text.wording]
    given = (Stage(one.name, one.description, one.traces) for one in grammar.stages)
    return dataclasses.replace(
        worded,
        stages=tuple(_worded(stage, own) for stage in given),
        instruction=_first(own, key, getattr(grammar, key) or worded.instruction),
        think_tag=grammar.think_tag,
        answer_tag=grammar.answer_tag,
    )


def question_words(text: TextConfig) -> QuestionWords:
    """Return what stands around the questions of a recipe."""
    words = _wordings(text)
    return QuestionWords(
        choose=_first(words, "choose", CHOOSE),
        statement=_first(words, "statement", STATEMENT),
    )


def own_questions(text: TextConfig) -> dict[str, str]:
    """Return the questions of the recipe's own wording, by set."""
    return {} if text.wording is None else text.wording.questions


def built_in_questions(text: TextConfig) -> dict[str, str]:
    """Return our questions in the language of the recipe, by set; none in English.

    The English ones are in `data/benchmarks.py`.
    """
    return {} if text.language == "english" else built_in(text.language).questions


def language_code(text: TextConfig) -> str | None:
    """Return the BCP 47 code of the recipe's wording; None where its own does not say."""
    unknown = text.wording is not None and text.language == "english"
    return _first(_wordings(text), "code", None if unknown else "en")


@functools.cache
def built_in(language: str) -> WordingSection:
    """Return our wording in a language other than English."""
    file = importlib.resources.files(__package__) / "wordings" / f"{language}.yaml"
    return WordingSection.model_validate(yaml.safe_load(file.read_text(encoding="utf-8")))


def _wordings(text: TextConfig) -> list[WordingSection]:
    """Those that count, the first first."""
    own = [] if text.wording is None else [text.wording]
    return own if text.language == "english" else [*own, built_in(text.language)]


def _first(words: list[WordingSection], key: str, ours: Value) -> Value:
    """The value of `key` in the first wording that has one, else the English one."""
    found: list[Value] = [value for one in words if (value := getattr(one, key)) is not None]
    return found[0] if found else ours


def _worded(stage: Stage, words: list[WordingSection]) -> Stage:
    """A stage in the first wording that has its description, and its traces."""
    name = stage.name
    descriptions = [one.stages[name] for one in words if name in one.stages]
    traces = [one.traces[name] for one in words if name in one.traces]
    return Stage(name, [*descriptions, stage.description][0], [*traces, stage.traces][0])
