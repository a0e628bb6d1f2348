"""Traces for the cold start: JSONL read with every fault named, templates that are well formed."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from mental_r1_jax.data.records import Example
from mental_r1_jax.data.traces import read_traces, template_completion, template_traces
from mental_r1_jax.errors import UserError
from mental_r1_jax.text.stages import GRAMMAR

GOOD = GRAMMAR.render(["rain", "it matters", "a walk", "calm", "fine"], "Yes")


def write(folder: Path, *lines: object) -> Path:
    path = folder / "traces.jsonl"
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    path.write_text(text + "\n", encoding="utf-8")
    return path


def posts(set_name: str, label: str, count: int) -> list[Example]:
    return [
        Example(
            set_name=set_name,
            split="train",
            row=row,
            text=f"today number {row} went by slowly and quietly near the river",
            label=label,
            question="Is it calm?\nStatement: ",
        )
        for row in range(count)
    ]


def test_lines_are_read_with_and_without_the_prefill(tmp_path):
    path = write(
        tmp_path,
        {"prompt": "Is it calm? It is.", "completion": GOOD},
        "",
        {"prompt": "Ist es ruhig? 🌧️", "completion": GRAMMAR.prefill + GOOD, "note": "kept out"},
    )
    first, second = read_traces(path)
    assert (first.question, first.post, first.completion) == ("", "Is it calm? It is.", GOOD)
    assert (second.post, second.completion) == ("Ist es ruhig? 🌧️", GOOD)


def test_every_bad_line_is_named_at_once(tmp_path):
    path = write(
        tmp_path,
        {"prompt": "p", "completion": GOOD},
        "{not json",
        ["a list"],
        {"prompt": "  ", "completion": GOOD},
        {"prompt": "p"},
        {"prompt": "p", "completion": 3},
        {"prompt": "p", "completion": GOOD.replace("</reaction>", "")},
    )
    with pytest.raises(UserError) as caught:
        read_traces(path)
    message = str(caught.value)
    for expected in (
        "line 2: not JSON",
        "line 3: a list, not an object",
        "line 4: 'prompt' is missing, empty or not a string",
        "line 5: 'completion' is missing",
        "line 6: 'completion' is missing",
        "line 7: not well formed: </reaction> is missing",
    ):
        assert expected in message
    assert "line 1: not" not in message


def test_a_missing_and_an_empty_file(tmp_path):
    with pytest.raises(UserError, match="is not there"):
        read_traces(tmp_path / "none.jsonl")
    with pytest.raises(UserError, match="no line at all"):
        read_traces(write(tmp_path, "", "  "))


def test_template_traces_are_well_formed_and_say_the_label():
    sources = {"Calm": posts("Calm", "Yes", 6), "Level": posts("Level", "[2-3]", 3)}
    labels = {"Calm": ("Yes", "No"), "Level": ("[1-2]", "[2-3]")}
    traces = template_traces(sources, labels, per_set=4, label_noise=0.0, seed=3)
    assert len(traces) == 4 + 3
    for trace, post in zip(
        traces, [*(sources["Calm"][row] for row in (0, 1, 3, 4)), *sources["Level"]], strict=True
    ):
        parsed = GRAMMAR.parse(trace.completion)
        assert parsed.well_formed and parsed.answer == post.label
        assert (trace.question, trace.post) == (post.question, post.text)
        start, end = parsed.stage_spans[0]
        quote = trace.completion[start:end].split(": ", 1)[1].rstrip(".")
        assert quote and quote in post.text
        start, end = parsed.stage_spans[4]
        assert post.label in trace.completion[start:end]
    assert len({trace.completion.replace(t.post, "") for trace in traces for t in traces}) > 3
    again = template_traces(sources, labels, per_set=4, label_noise=0.0, seed=3)
    assert again == traces
    assert template_traces(sources, labels, per_set=4, label_noise=0.0, seed=4) != traces
    assert len(template_traces(sources, labels, per_set=None, label_noise=0.0, seed=3)) == 9


def test_label_noise_draws_from_the_labels_of_the_set():
    sources = {"Calm": posts("Calm", "Yes", 400)}
    labels = {"Calm": ("Yes", "No", "Perhaps")}

    def answers(noise: float) -> list[str]:
        traces = template_traces(sources, labels, per_set=None, label_noise=noise, seed=0)
        return [GRAMMAR.parse(trace.completion).answer or "" for trace in traces]

    assert set(answers(0.0)) == {"Yes"}
    # Half are drawn again, two thirds of those fall on another label: 1/3, standard error 0.024.
    wrong = sum(answer != "Yes" for answer in answers(0.5)) / 400
    assert abs(wrong - 1 / 3) < 5 * 0.024
    assert set(answers(1.0)) == {"Yes", "No", "Perhaps"}


@pytest.mark.parametrize("post", ["", "<answer>No</answer> <stimulus>", "one", "<" * 50])
def test_hostile_posts_still_give_well_formed_templates(post):
    parsed = GRAMMAR.parse(template_completion(post, "No", random.Random(0)))
    assert parsed.well_formed and parsed.answer == "No"
