"""The recipe's section `text`: the language of prompts, and the stages of a completion.

The keys `wording` and `grammar` are files in a recipe. They are read with it, so that a resolved
recipe holds what stands in them and a run folder needs no other file.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from typing import Annotated, Literal

import pydantic
from pydantic import AfterValidator, Field

from mental_r1_jax.objective import STAGE_NAMES
from mental_r1_jax.section import Section

Language = Literal["english", "chinese", "arabic", "hindi", "spanish"]

MOST_STAGES = 20
THINK_TAG, ANSWER_TAG = "think", "answer"  # around all stages, and around the answer

_LONGEST_TAG = 40
# Places in instructions and traces where the program puts something in.
_PLACE = re.compile(r"\{(\w+)\}")


def fill(text: str, **values: str) -> str:
    """Return `text` with `{name}` replaced by each of the values, which are not searched again."""
    return _PLACE.sub(lambda found: values.get(found[1], found[0]), text)


def _plain(text: str) -> str:
    """A text that is not blank and cannot be taken for a tag."""
    if not text.strip():
        raise ValueError("expected some text")
    if "<" in text or ">" in text:
        raise ValueError("expected no '<' and no '>', which belong to tags")
    return text


def _tag(text: str) -> str:
    """The name of a tag: letters with their marks, digits, "_" and "-", of any script."""
    kinds = [unicodedata.category(char)[0] for char in text]
    known = all(kind in "LMN" or char in "_-" for kind, char in zip(kinds, text, strict=True))
    if not known or not text or kinds[0] != "L" or len(text) > _LONGEST_TAG:
        raise ValueError(
            f"expected letters, digits, '_' and '-', {_LONGEST_TAG} at most and a letter first, "
            f"got {text!r:.80}"
        )
    return text


def _only_places(allowed: tuple[str, ...]) -> Callable[[str], str]:
    """A check that only `allowed` names stand in braces."""

    def check(text: str) -> str:
        unknown = sorted(set(_PLACE.findall(text)) - set(allowed))
        if unknown:
            known = " and ".join(f"{{{name}}}" for name in allowed)
            filled = f"only {known} can be filled in" if allowed else "nothing is filled in here"
            raise ValueError(f"{filled}, got {{{unknown[0]}}}")
        return text

    return check


def _has_form(text: str) -> str:
    """An instruction in which the form of the completion is shown, once."""
    if text.count("{form}") != 1:
        raise ValueError(f"expected {{form}} once, got it {text.count('{form}')} times")
    return text


Tag = Annotated[str, AfterValidator(_tag)]
Words = Annotated[str, AfterValidator(_plain)]
Trace = Annotated[str, AfterValidator(_plain), AfterValidator(_only_places(("quote", "label")))]
Instruction = Annotated[
    str, AfterValidator(_has_form), AfterValidator(_only_places(("stages", "form")))
]
# Words alone: tags in it would show the form after all.
BareInstruction = Annotated[str, AfterValidator(_plain), AfterValidator(_only_places(()))]


class WordingSection(Section):
    """What the program says in prompts and template traces; a key without a value keeps ours.

    Attributes:
        code: BCP 47 code of the language, for the model card.
        instruction: the system turn; `{stages}` becomes the number of stages, `{form}` the form of
            the completion.
        instruction_without_stages: the system turn where `stages_in_prompt` is false.
        label: stands in the form where the answer goes.
        choose: the line between a question and its labels.
        statement: the line between the labels and the post, and what stands before the post in it.
        nothing: what a template trace quotes of a post without a word.
        spaced: whether words are parted by spaces; a template trace quotes characters otherwise.
        stages: stage -> what the model writes there.
        traces: stage -> its wordings in template traces, with `{quote}` for words of the post and
            `{label}` for the label.
        questions: set -> its question, without labels; one that ends as `statement` does is asked
            as it is.
    """

    code: str | None = None
    instruction: Instruction | None = None
    instruction_without_stages: BareInstruction | None = None
    label: Words | None = None
    choose: Words | None = None
    statement: Words | None = None
    nothing: Words | None = None
    spaced: bool | None = None
    stages: dict[str, Words] = {}
    traces: dict[str, tuple[Trace, ...]] = {}
    questions: dict[str, Words] = {}


class StageSection(Section):
    """One stage of a grammar.

    Attributes:
        name: its tag, without angle brackets.
        description: what the model writes there.
        traces: its wordings in template traces, with `{quote}` and `{label}`.
    """

    name: Tag
    description: Words
    traces: tuple[Trace, ...] = ()


class GrammarSection(Section):
    """Another form of a completion than the paper's five stages.

    Attributes:
        stages: the stages, in order.
        instruction: the system turn, as in a wording; null: that of the language.
        instruction_without_stages: the same where `stages_in_prompt` is false.
        think_tag: the tag around all stages.
        answer_tag: the tag around the answer.
    """

    stages: Annotated[tuple[StageSection, ...], Field(min_length=1, max_length=MOST_STAGES)]
    instruction: Instruction | None = None
    instruction_without_stages: BareInstruction | None = None
    think_tag: Tag = THINK_TAG
    answer_tag: Tag = ANSWER_TAG

    @pydantic.model_validator(mode="after")
    def _distinct_tags(self) -> GrammarSection:
        tags = [*(stage.name for stage in self.stages), self.think_tag, self.answer_tag]
        twice = [tag for tag in tags if tags.count(tag) > 1]
        if twice:
            raise ValueError(
                f"every tag may be used once, got {twice[0]!r} {tags.count(twice[0])} times"
            )
        return self


class TextConfig(Section):
    """The language of prompts, and the stages of a completion.

    Attributes:
        language: of the instruction, the stages' descriptions, template traces and questions of
            ours; labels stay labels, and a question in the files of a set stays as it is.
        wording: a YAML file with wordings of your own, which win over ours; see
            [docs/languages.md](../docs/languages.md).
        grammar: a YAML file with other stages than the paper's five, 1 to 20 of them, for another
            task; see [docs/languages.md](../docs/languages.md).
        stages_in_prompt: whether the instruction names the stages and shows the form. False leaves
            the task alone there, for an ablation; completions, their prefill, traces and rewards
            keep the form, which a model then learns from its cold start.
    """

    language: Language = "english"
    wording: WordingSection | None = None
    grammar: GrammarSection | None = None
    stages_in_prompt: bool = True

    @property
    def stage_names(self) -> tuple[str, ...]:
        """Tags of the reasoning stages, in order."""
        if self.grammar is None:
            return STAGE_NAMES
        return tuple(stage.name for stage in self.grammar.stages)

    @pydantic.model_validator(mode="after")
    def _an_own_instruction_has_its_bare_form(self) -> TextConfig:
        """Otherwise the ablation would ask for our task, in our words, in place of the user's."""
        own = [one for one in (self.wording, self.grammar) if one is not None]
        bare = any(one.instruction_without_stages for one in own)
        if not self.stages_in_prompt and not bare and any(one.instruction for one in own):
            raise ValueError(
                "text.stages_in_prompt=false leaves out the instruction of your wording or "
                "grammar; give instruction_without_stages beside it"
            )
        return self

    @pydantic.model_validator(mode="after")
    def _wording_is_of_these_stages(self) -> TextConfig:
        if self.wording is None:
            return self
        named = {*self.wording.stages, *self.wording.traces}
        unknown = sorted(named - set(self.stage_names))
        if unknown:
            raise ValueError(
                f"text.wording speaks of the stage {unknown[0]!r}, and the stages are "
                f"{list(self.stage_names)}; correct the name"
            )
        return self
