"""Reasoning that comes with a post: in the five stages, or in any other form."""

from __future__ import annotations

import re
from collections.abc import Callable

from mental_r1_jax.text.stages import ANSWER_TAG, GRAMMAR, THINK_TAG

# IMHI and its kin write "Label. Reasoning: why".
_REASONING = "Reasoning:"
# Models that think in one piece write "<think>why</think>label".
_THOUGHT = re.compile(rf"\s*<{THINK_TAG}>(.*)</{THINK_TAG}>(.*)", re.DOTALL)
_END_MARKS = ".;:,\u3002"


def is_staged(text: str) -> bool:
    """Whether a text has any tag of a stage or of the answer, so that it claims to be staged."""
    names = (*(stage.name for stage in GRAMMAR.stages), ANSWER_TAG)
    return any(f"<{name}>" in text or f"</{name}>" in text for name in names)


def staged_completion(text: str) -> str:
    """Return a staged text without the prefill, however its lines are broken."""
    rest = text.strip().removeprefix(f"<{THINK_TAG}>").lstrip()
    return rest.removeprefix(f"<{GRAMMAR.stages[0].name}>")


def staged_fault(text: str) -> str | None:
    """Return why a text that claims to be staged is not; None for all others."""
    return GRAMMAR.parse(staged_completion(text)).reason if is_staged(text) else None


def staged_answer(text: str) -> str | None:
    """Return the answer of a staged text; None where there is none, or the text is not staged."""
    return GRAMMAR.parse(staged_completion(text)).answer if is_staged(text) else None


def without_tags(text: str) -> str:
    """Return free reasoning without the tags around it."""
    return text.replace(f"<{THINK_TAG}>", "").replace(f"</{THINK_TAG}>", "").strip()


def label_and_reasoning(response: str, is_label: Callable[[str], bool]) -> tuple[str, str | None]:
    """Return what a response answers, and why.

    A staged response is its own reasoning; its answer is the label. Of "Label. Reasoning: why" and
    "<think>why</think>label" the two parts are told apart. Anything else is a label alone. A full
    stop behind a label goes, unless the label ends in it.
    """
    if is_staged(response):
        return staged_answer(response) or "", response
    if (thought := _THOUGHT.fullmatch(response)) is not None:
        why, label = thought.groups()
    else:
        label, _, why = response.partition(_REASONING)
    return _bare_label(label, is_label), why.strip() or None


def _bare_label(text: str, is_label: Callable[[str], bool]) -> str:
    """A label without blanks around it and without an end mark."""
    text = text.strip()
    return text if is_label(text) else text.rstrip(_END_MARKS).rstrip()
