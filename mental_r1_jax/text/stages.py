"""The grammar of a completion: reasoning stages, then an answer; five cognitive ones by default.

A `Grammar` is the only thing that knows the tags. The instruction, the form shown in it, the
prefill of the assistant turn, the renderer, the parser, the stage spans behind the entropy term and
the verdict behind the format reward are all derived from it, so they cannot disagree. `GRAMMAR` is
the paper's, in English; `wording.grammar_of` makes that of a recipe.

Source: the CRPO paper (arXiv 2606.13176); the stages follow cognitive appraisal theory
(Lazarus & Folkman 1984).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mental_r1_jax.config import STAGE_NAMES
from mental_r1_jax.text_section import ANSWER_TAG as ANSWER_TAG  # for those that read it from here
from mental_r1_jax.text_section import THINK_TAG as THINK_TAG  # for those that read it from here

INSTRUCTION = (
    "You assess mental health from what people write. Think through the post in {stages} stages, "
    "then answer with one of the labels given in the question. Write each stage briefly, in this "
    "order, and use exactly this form:\n{form}"
)
INSTRUCTION_WITHOUT_STAGES = (
    "You assess mental health from what people write. Think through the post, then answer with one "
    "of the labels given in the question."
)


@dataclass(frozen=True)
class Stage:
    """One reasoning stage.

    Attributes:
        name: the tag, without angle brackets.
        description: what the model writes there; shown in the prompt.
        traces: its wordings in template traces, see `data/traces.py`.
    """

    name: str
    description: str
    traces: tuple[str, ...] = ()


_DESCRIPTIONS = (
    "the event, situation or object described, without interpretation",
    "how relevant it is to the person and what it may do to them",
    "which resources and options they have to cope",
    "the likely feelings and behaviour",
    "the probable mental-health condition or state",
)
# For each stage two wordings; the last stage names the label, the first quotes the post. Few words
# and few wordings on purpose: what a trace leaves open is noise for the label that CRPO learns.
_TRACES = (
    ("The writer says: {quote}.", "It is about this: {quote}."),
    ("This matters to the writer.", "It bears on daily life."),
    ("Some support may be there.", "The means to cope are unclear."),
    ("Strong feelings are likely.", "The writer may look for help."),
    ("This points to {label}.", "Taken together: {label}."),
)
STAGES = tuple(Stage(*one) for one in zip(STAGE_NAMES, _DESCRIPTIONS, _TRACES, strict=True))


@dataclass(frozen=True)
class ParsedCompletion:
    """What a completion says, read by `Grammar.parse`.

    Attributes:
        stage_spans: for each stage the character offsets (start, end) of its content in the
            completion, tags excluded; None where the stage does not count. Spans of malformed text
            may overlap.
        answer: stripped text of the first answer, or None where there is none.
        well_formed: whether the whole grammar holds, with the prefill put back.
        reason: the first reason why not; None exactly when `well_formed`.
    """

    stage_spans: tuple[tuple[int, int] | None, ...]
    answer: str | None
    well_formed: bool
    reason: str | None


@dataclass(frozen=True)
class Grammar:
    """The form of a completion: its tags, and everything derived from them.

    Attributes:
        stages: the stages, in order.
        instruction: the system turn; `{stages}` stands for their number, `{form}` for the skeleton.
        label: stands in the skeleton where the answer goes.
        nothing: what a template trace quotes of a post without a word.
        spaced: whether words of posts are parted by spaces.
        think_tag: the tag around all stages.
        answer_tag: the tag around the answer.
    """

    stages: tuple[Stage, ...] = STAGES
    instruction: str = INSTRUCTION
    label: str = "LABEL"
    nothing: str = "nothing"
    spaced: bool = True
    think_tag: str = THINK_TAG
    answer_tag: str = ANSWER_TAG

    @property
    def names(self) -> tuple[str, ...]:
        """Tags of the stages, in order."""
        return tuple(stage.name for stage in self.stages)

    @property
    def prefill(self) -> str:
        """The start of the assistant turn; a completion begins inside the first stage."""
        return f"{_opening(self.think_tag)}\n{_opening(self.stages[0].name)}"

    def skeleton(self) -> str:
        """Return the form shown in the prompt: every stage holds its description."""
        return self.prefill + self._after_prefill([s.description for s in self.stages], self.label)

    def render(self, contents: Sequence[str], answer: str) -> str:
        """Return the well-formed completion, without the prefill.

        Args:
            contents: text of each stage, in order.
            answer: the label.

        Raises:
            ValueError: the number of contents is wrong, one is blank, or one holds a tag.
        """
        if len(contents) != len(self.stages):
            raise ValueError(f"{len(contents)=} differs from the {len(self.stages)} stages")
        completion = self._after_prefill(contents, answer)
        parsed = self.parse(completion)
        if not parsed.well_formed:
            raise ValueError(
                f"these contents do not make a well-formed completion: {parsed.reason}; give every "
                "stage and the answer some text, and no tag of the grammar"
            )
        return completion

    def parse(self, completion: str) -> ParsedCompletion:
        """Read a completion (without the prefill); total: any string gives a result.

        A stage counts when its first opening and its first closing tag stand in that order. The
        first stage, opened by the prefill, starts at character 0 where the completion has no
        opening tag of it.
        """
        reason = self._first_fault(self.prefill + completion)
        return ParsedCompletion(
            stage_spans=tuple(
                _span(completion, stage.name, opened_before=index == 0)
                for index, stage in enumerate(self.stages)
            ),
            answer=_first_answer(completion, self.answer_tag),
            well_formed=reason is None,
            reason=reason,
        )

    def _after_prefill(self, contents: Sequence[str], answer: str) -> str:
        """The one layout of a completion; begins inside the first stage."""
        first, *others = zip(self.stages, contents, strict=True)
        lines = [first[1] + _closing(first[0].name)]
        lines += [f"{_opening(stage.name)}{text}{_closing(stage.name)}" for stage, text in others]
        answer_line = f"{_opening(self.answer_tag)}{answer}{_closing(self.answer_tag)}"
        return "\n".join([*lines, _closing(self.think_tag), answer_line])

    def _first_fault(self, text: str) -> str | None:
        """The first reason why `text` (prefill included) is not well formed.

        Well formed: every tag exactly once, in the grammar's order, and neither a stage nor the
        answer blank. Text between the elements is allowed.
        """
        inner, think = (*self.names, self.answer_tag), self.think_tag
        tags = [tag for name in inner for tag in (_opening(name), _closing(name))]
        tags = [_opening(think), *tags[:-2], _closing(think), *tags[-2:]]
        for tag in tags:
            count = text.count(tag)
            if count != 1:
                return f"{tag} is missing" if count == 0 else f"{tag} stands {count} times"
        places = [text.index(tag) for tag in tags]
        for i in range(len(tags) - 1):
            if places[i] > places[i + 1]:
                return f"{tags[i + 1]} stands before {tags[i]}"
        for name in inner:
            start = text.index(_opening(name)) + len(_opening(name))
            if not text[start : text.index(_closing(name))].strip():
                return f"{_opening(name)} is empty"
        return None


def _opening(name: str) -> str:
    """The opening tag."""
    return f"<{name}>"


def _closing(name: str) -> str:
    """The closing tag."""
    return f"</{name}>"


def _span(text: str, name: str, *, opened_before: bool) -> tuple[int, int] | None:
    """Character offsets between the first opening and the first closing tag, in that order."""
    opening, closing = text.find(_opening(name)), text.find(_closing(name))
    if opening >= 0:
        start = opening + len(_opening(name))
    elif opened_before:
        start = 0
    else:
        return None
    return (start, closing) if closing >= start else None


def _first_answer(text: str, tag: str) -> str | None:
    """Stripped text from the first opening answer tag to the closing tag that follows it."""
    _, opening, rest = text.partition(_opening(tag))
    answer, closing, _ = rest.partition(_closing(tag))
    return answer.strip() if opening and closing else None


GRAMMAR = Grammar()
