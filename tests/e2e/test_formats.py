"""A set that nobody has converted: chat lines with reasoning, from the file to the report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mental_r1_jax.jobs import evaluate, sft, train
from mental_r1_jax.training.metrics import read_metrics

POSTS = [
    ("Tea in the morning, and a walk by the river", "No"),
    ("Too much to do, and no hour to sleep", "Yes"),
    ("The garden is green again", "No"),
    ("My hands shake before every exam", "Yes"),
]


def write_chat(file: Path, prefix: str) -> Path:
    """Posts as conversations; the reasoning of some is free, that of the others is missing."""
    lines = []
    for number in range(16):
        text, label = POSTS[number % 4]
        answer = f"{label}. Reasoning: they write of {text.split()[-1]}." if number % 3 else label
        user = f"Is the writer under stress?\nStatement: {prefix} {number}: {text}"
        turns = [{"role": "user", "content": user}, {"role": "assistant", "content": answer}]
        lines.append(json.dumps({"messages": turns}) + "\n")
    file.write_text("".join(lines), encoding="utf-8")
    return file


@pytest.mark.slow
def test_chat_lines_go_from_the_file_to_the_report(recipe, tmp_path: Path) -> None:
    files = {
        split: write_chat(tmp_path / f"{split}.jsonl", split)
        for split in ("train", "validation", "test")
    }
    data = {
        "sets": ["Chat"],
        "custom_sets": {"Chat": {"labels": ["Yes", "No"], "files": files}},
        "tfds_dir": tmp_path / "data",
        "limit_per_set": None,
    }
    lengths = {"max_prompt_length": 400, "max_completion_length": 260}
    rows = {"traces": "rows", "free_reasoning": "last_stage", "num_steps": 2}
    cold = recipe(tmp_path / "cold", data=data, rollout=lengths, sft=rows)
    assert len(sft.collect_traces(cold)) == 10
    sft.run(cold)
    model = {"path": str(tmp_path / "cold")}
    config = recipe(tmp_path / "run", data=data, rollout=lengths, model=model, run={"num_steps": 1})
    train.run(config)
    metrics = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [line["step"] for line in metrics if "reward" in line] == [1]
    report = evaluate.run(config)
    document = json.loads((report / "metrics.json").read_text())
    assert set(document["sets"]) == {"Chat"}
