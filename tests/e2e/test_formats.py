"""Sets that nobody has converted, with their reasoning, from the file to the report."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from mental_r1_jax.data.benchmarks import SPLITS
from mental_r1_jax.jobs import data as data_job
from mental_r1_jax.jobs import evaluate, sft, train
from mental_r1_jax.training.metrics import read_metrics
from tests.data.documented import documented_formats

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


@pytest.mark.slow
def test_every_format_of_the_page_goes_from_the_file_to_the_report(
    recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One set a format, each as docs/data.md shows it: two rows, labelled Yes and No."""
    sets = {}
    for number, one in enumerate(documented_formats()):
        files = {}
        for split in SPLITS:
            files[split] = tmp_path / f"{number}_{split}{Path(one.file).suffix}"
            files[split].write_bytes(one.sound)
        # The same file is all splits, so whoever wrote its posts is in all of them.
        sets[f"Set{number}"] = {**one.keys, "files": files, "whole_groups": False}
    described = {
        "sets": list(sets),
        "custom_sets": sets,
        "tfds_dir": tmp_path / "data",
        "limit_per_set": None,
    }
    lengths = {"max_prompt_length": 400, "max_completion_length": 260}
    rows = {"traces": "rows", "free_reasoning": "last_stage", "num_steps": 2}
    cold = recipe(tmp_path / "cold", data=described, rollout=lengths, sft=rows)
    assert data_job.run(cold) == 0
    assert f"Built {len(sets)} sets" in capsys.readouterr().out
    sft.run(cold)
    model = {"path": str(tmp_path / "cold")}
    # 22 training posts: after 3 steps of 8 each of them has had its turn.
    steps = {"num_steps": 3}
    config = recipe(tmp_path / "run", data=described, rollout=lengths, model=model, run=steps)
    train.run(config)
    metrics = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert len(sets) == 11 and len([line for line in metrics if "reward" in line]) == 3
    report = evaluate.run(config)
    document = json.loads((report / "metrics.json").read_text())
    assert set(document["sets"]) == set(sets)
    page = (report / "report.html").read_text(encoding="utf-8")
    assert all(name in page for name in sets)
    with (report / "predictions.csv").open(encoding="utf-8") as file:
        predictions = list(csv.DictReader(file))
    assert [(row["set_name"], row["label"]) for row in predictions] == [
        (name, label) for name in sets for label in ("Yes", "No")
    ]
