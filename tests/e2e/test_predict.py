"""Bulk prediction with a real network: as `evaluate` answers, and through kills as without them."""

from __future__ import annotations

import csv
import functools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from mental_r1_jax.data.loading import load_examples
from mental_r1_jax.evaluation.report import PREDICTIONS_FILE
from mental_r1_jax.jobs import evaluate, predict
from mental_r1_jax.recipe import dump_config
from mental_r1_jax.text.stages import Grammar

ROOT = Path(__file__).resolve().parents[2]
SET = "Stress-Synthetic"
WORDS = "tired calm week sleep work tea friend glad morning never again".split()


def options(posts: Path, output: Path) -> dict:
    named = {"column": "text", "id_column": None, "set_name": SET, "min_confidence": None}
    return named | {"posts": posts, "output": output, "include_text": False}


def test_answers_are_those_of_an_evaluation(recipe, tmp_path: Path, monkeypatch) -> None:
    """The same posts, model and votes: text, label, form and length of every answer."""
    section = {"num_votes": 2, "limit_per_set": 11, "include_text": True}
    config = recipe(tmp_path / "run", evaluate=section, data={"sets": [SET]})
    tiny = config.model.path
    report = config.evaluate.model_copy(update={"model": tiny, "output_dir": tmp_path / "report"})
    make, made = predict.make_predictor, []

    @functools.wraps(make)
    def make_once(*arguments):
        made.append(make(*arguments) if not made else made[0])
        return made[-1]

    for job in (predict, evaluate):
        monkeypatch.setattr(job, "make_predictor", make_once)
    evaluate.run(config.model_copy(update={"evaluate": report}))
    with (tmp_path / "report" / PREDICTIONS_FILE).open(newline="", encoding="utf-8") as file:
        expected = list(csv.DictReader(file))

    texts = {post.row: post.text for post in load_examples(config, "test")[SET]}
    posts = tmp_path / "posts.jsonl"
    lines = [json.dumps({"text": texts[int(one["row"])]}) + "\n" for one in expected]
    posts.write_text("".join(lines), encoding="utf-8")
    texts_of_votes: list[str] = []
    read = Grammar.parse

    def parse(grammar: Grammar, text: str):
        texts_of_votes.append(text)
        return read(grammar, text)

    monkeypatch.setattr(Grammar, "parse", parse)
    predict.run(config, model=tiny, **options(posts, tmp_path / "out.jsonl"))
    # No label can be read, so that the first vote is told; the CSV guards against formulas.
    # Before that the grammar itself was tried, when the model was opened.
    answers = texts_of_votes[-2 * len(expected) :]
    first = [text.encode("utf-8", "replace").decode() for text in answers[::2]]
    told = Counter(one["completion"].lstrip("'") for one in expected)
    assert Counter(text.lstrip("'") for text in first) == told and len(told) > 5
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_bytes().splitlines()]
    assert len(found) == len(expected) == 11
    for one, other in zip(found, expected, strict=True):
        assert (one["label"] or "") == other["prediction"]
        assert str(one["well_formed"]) == other["well_formed"]
        assert str("answer_truncated" in one["flags"]) == other["truncated"]
        assert one["num_tokens"] == int(other["num_tokens"])


@pytest.mark.slow
def test_killed_twice_it_ends_as_if_undisturbed(recipe, tmp_path: Path) -> None:
    draw = random.Random(0)
    posts = tmp_path / "posts.csv"
    with posts.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["n", "text"])
        for n in range(1500):
            writer.writerow([n, " ".join(draw.choices(WORDS, k=draw.randrange(30)))])
    config = recipe(tmp_path / "run", evaluate={"batch_size": 4})
    (tmp_path / "recipe.yaml").write_text(dump_config(config), encoding="utf-8")

    def start(output: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "mental_r1_jax", "predict", config.model.path, str(posts)]
        command += [str(tmp_path / output), "--recipe", str(tmp_path / "recipe.yaml")]
        command += ["--set", SET, "--id", "n", "--include-text", "evaluate.num_votes=2"]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
        return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)

    assert start("whole.jsonl").wait(timeout=600) == 0
    kept = tmp_path / "out.jsonl.unfinished" / "answers.jsonl"
    for batches in (3, 200):
        process = start("out.jsonl")
        while not kept.exists() or kept.read_bytes().count(b"\n") < batches:
            assert process.poll() is None, "it was done before it was killed"
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        assert process.wait(timeout=60) == -signal.SIGKILL
        assert not (tmp_path / "out.jsonl").exists()
    before = kept.read_bytes()
    assert start("out.jsonl").wait(timeout=600) == 0
    whole = (tmp_path / "whole.jsonl").read_bytes()
    assert (tmp_path / "out.jsonl").read_bytes() == whole
    assert before.count(b"\n") < 375 and whole.count(b"\n") == 1500
    rows = [json.loads(line)["row"] for line in whole.splitlines()]
    assert rows == list(range(1500))
