"""The grammar of a completion: five cognitive stages, then an answer.

`GRAMMAR` is the only place that knows the tags. The form shown in the prompt, the prefill of the
assistant turn, the renderer, the parser, the stage spans behind the entropy term and the verdict
behind the format reward are all derived from it, so they cannot disagree.

Source: the CRPO paper (arXiv 2606.13176); the stages follow cognitive appraisal theory
(Lazarus & Folkman 1984).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mental_r1_jax.config import STAGE_NAMES


@dataclass(frozen=True)
class Stage:
    """One reasoning stage.

    Attributes:
        name: the tag, without angle brackets.
        description: what the model writes there; shown in the prompt.
    """

    name: str
    description: str


_DESCRIPTIONS = (
    "the event, situation or object described, without interpretation",
    "how relevant it is to the person and what it may do to them",
    "which resources and options they have to cope",
    "the likely feelings and behaviour",
    "the probable mental-health condition or state",
)
STAGES = tuple(Stage(*both) for both in zip(STAGE_NAMES, _DESCRIPTIONS, strict=True))

THINK_TAG, ANSWER_TAG = "think", "answer"  # around all stages, and around the answer


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
    """

    stages: tuple[Stage, ...] = STAGES

    @property
    def prefill(self) -> str:
        """The start of the assistant turn; a completion begins inside the first stage."""
        return f"{_opening(THINK_TAG)}\n{_opening(self.stages[0].name)}"

    def skeleton(self) -> str:
        """Return the form shown in the prompt: every stage holds its description."""
        return self.prefill + self._after_prefill([s.description for s in self.stages], "LABEL")

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
            answer=_first_answer(completion),
            well_formed=reason is None,
            reason=reason,
        )

    def _after_prefill(self, contents: Sequence[str], answer: str) -> str:
        """The one layout of a completion; begins inside the first stage."""
        first, *others = zip(self.stages, contents, strict=True)
        lines = [first[1] + _closing(first[0].name)]
        lines += [f"{_opening(stage.name)}{text}{_closing(stage.name)}" for stage, text in others]
        answer_line = f"{_opening(ANSWER_TAG)}{answer}{_closing(ANSWER_TAG)}"
        return "\n".join([*lines, _closing(THINK_TAG), answer_line])

    def _first_fault(self, text: str) -> str | None:
        """The first reason why `text` (prefill included) is not well formed.

        Well formed: every tag exactly once, in the grammar's order, and neither a stage nor the
        answer blank. Text between the elements is allowed.
        """
        inner = (*(stage.name for stage in self.stages), ANSWER_TAG)
        tags = [tag for name in inner for tag in (_opening(name), _closing(name))]
        tags = [_opening(THINK_TAG), *tags[:-2], _closing(THINK_TAG), *tags[-2:]]
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


def _first_answer(text: str) -> str | None:
    """Stripped text from the first opening answer tag to the closing tag that follows it."""
    _, opening, rest = text.partition(_opening(ANSWER_TAG))
    answer, closing, _ = rest.partition(_closing(ANSWER_TAG))
    return answer.strip() if opening and closing else None


GRAMMAR = Grammar()
