"""Reasoning that comes with rows: staged text is checked, free text told apart from its label."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mental_r1_jax.config import CustomSet
from mental_r1_jax.data.benchmarks import spec_for
from mental_r1_jax.data.label_noise import noisy_labels
from mental_r1_jax.data.reading import read_file
from mental_r1_jax.data.reasoning import label_and_reasoning
from mental_r1_jax.data.records import Example
from mental_r1_jax.data.rows import CheckedRows, check_rows
from mental_r1_jax.data.traces import row_traces
from mental_r1_jax.errors import UserError
from mental_r1_jax.text.stages import GRAMMAR

COMPLETION = GRAMMAR.render(["rain", "it matters", "a walk", "calm", "fine"], "Yes")
STAGED = GRAMMAR.prefill + COMPLETION


def read(reasoning: object, label: str = "Yes") -> CheckedRows:
    """A post with a label, and reasoning in a column beside it."""
    keys = {"labels": ["Yes", "No"], "question": "Calm?", "files": "x"}
    described = CustomSet.model_validate({**keys, "columns": {"reasoning": "why"}})
    spec = spec_for("Tea", {"Tea": described})
    row = json.dumps({"text": "tea", "label": label, "why": reasoning})
    found = read_file(Path("a.jsonl"), row.encode(), spec)
    return check_rows(found.events, spec, "train", found.names)


def completions(*reasoning: str | None, **options: Any) -> list[str]:
    """The completions of traces of posts with this reasoning."""
    posts = [
        Example("Tea", "train", i, "tea with milk", "Yes", "Q", reasoning=one)
        for i, one in enumerate(reasoning)
    ]
    given = {"per_set": None, "free_reasoning": "last_stage", "seed": 3, **options}
    return [trace.completion for trace in row_traces({"Tea": posts}, **given)]


@pytest.mark.parametrize(
    "text",
    [
        STAGED,
        COMPLETION,
        f"\n {STAGED}",
        STAGED.replace(">\n<", "><", 1),
        STAGED.removeprefix("<think>\n"),
    ],
)
def test_staged_reasoning_is_its_own_completion_however_it_begins(text: str) -> None:
    (found,) = read(text).found
    assert found.example.reasoning == text
    assert completions(text) == [COMPLETION]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (STAGED.replace("</stimulus>", ""), "</stimulus> is missing"),
        (STAGED.replace("<answer>Yes</answer>", "Yes"), "<answer> is missing"),
        (STAGED + "<answer>Yes</answer>", "stands 2 times"),
        (STAGED.replace(">rain<", "> <"), "<stimulus> is empty"),
        ("It is the <stimulus>", "<stimulus> stands 2 times"),
        ("<answer>Yes</answer>", "is missing"),
    ],
)
def test_a_near_miss_of_the_stages_is_an_error(text: str, words: str) -> None:
    (problem,) = read(text).errors
    assert (problem.line, problem.column, problem.kind) == (1, "why", "malformed stages")
    assert words in problem.value


def test_a_staged_answer_must_be_the_label() -> None:
    (problem,) = read(STAGED, label="No").errors
    assert problem.kind == "other answer" and "'Yes'" in problem.value


@pytest.mark.parametrize("blank", [None, "", "  ", "<think> </think>"])
def test_blank_reasoning_is_none(blank: str | None) -> None:
    assert read(blank).found[0].example.reasoning is None


def test_a_number_is_no_reasoning() -> None:
    assert [problem.kind for problem in read(3).errors] == ["wrong type"]


@pytest.mark.parametrize(
    ("response", "label", "reasoning"),
    [
        ("Yes", "Yes", None),
        ("Yes. Reasoning: tea. Reasoning: milk", "Yes", "tea. Reasoning: milk"),
        ("Reasoning: tea", "", "tea"),
        ("<think>a</think>b</think> No", "No", "a</think>b"),
        ("  <think>\nwhy\n</think>\n\nNo.\n", "No", "why"),
        (STAGED, "Yes", STAGED),
    ],
)
def test_label_and_reasoning_of_a_response(response: str, label: str, reasoning: str | None):
    assert label_and_reasoning(response, {"Yes", "No"}.__contains__) == (label, reasoning)


def test_free_reasoning_is_refused_or_all_of_the_last_stage() -> None:
    free = "It {rains} <b>. 3 < 4"
    with pytest.raises(UserError, match="1 of 2 posts of 'Tea'.*in row 2.*=last_stage"):
        completions(STAGED, free, free_reasoning="refuse")
    (completion,) = completions(f"<think>{free}</think>")
    parsed = GRAMMAR.parse(completion)
    assert parsed.well_formed and parsed.answer == "Yes"
    start, end = parsed.stage_spans[-1]
    assert completion[start:end] == free
    with pytest.raises(UserError, match="no training post came with reasoning"):
        completions(None)
    assert len(completions(*[free] * 9, None, per_set=3)) == 3


def test_a_label_that_noise_has_changed_loses_its_reasoning() -> None:
    posts = [Example("Tea", "train", i, "tea", "Yes", "Q", reasoning="why") for i in range(60)]
    noisy = list(noisy_labels(posts, ("Yes", "No"), 1.0, seed=0))
    assert {(post.label, post.reasoning) for post in noisy} == {("Yes", "why"), ("No", None)}
