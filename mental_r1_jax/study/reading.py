"""What the cells of a study left behind: scores, curves over steps, and answers to posts."""

from __future__ import annotations

import csv
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mental_r1_jax.errors import UserError
from mental_r1_jax.evaluation.run_metrics import (
    MetricLine,
    final_reward,
    training_seconds,
    training_steps,
)
from mental_r1_jax.study.cells import Cell
from mental_r1_jax.study.statistics import Answers, SetAnswers

# Scores of the evaluation, and what they are called in its `metrics.json`.
EVALUATED = {
    "weighted_f1": "weighted_f1",
    "macro_f1": "macro_f1",
    "balanced_accuracy": "balanced_accuracy",
    "accuracy": "accuracy",
    "well_formed": "well_formed",
    "completion_tokens": "mean_tokens",
}
# Scores of the training: reward over its last steps, and its time.
TRAINED = ("reward", "seconds")
SCORES = (*EVALUATED, *TRAINED)

# What is kept of every training step, where it is there.
CURVES = (
    "reward",
    "accuracy",
    "well_formed",
    "loss",
    "entropy",
    "completions/mean_length",
    "learning_rate",
)
# The same of every stage; the last two where a method steers them.
STAGE_CURVES = ("entropy/stage", "beta/stage", "entropy_target/stage")
_VALIDATION = "eval/average/"

# Data set -> row and label of each of its posts.
Posts = Mapping[str, Sequence[tuple[int, str]]]


@dataclass(frozen=True)
class Resampled:
    """What stands for the answers of a cell where these are not to be passed on.

    Attributes:
        posts_sha256: of rows and labels of the posts that it answered, see `posts_digest`.
        scores: score -> its value in each resample of the posts, fractions.
        hard_rows_sha256: of the hard subset that its scores on one are of; None without one.
    """

    posts_sha256: str
    scores: dict[str, tuple[float, ...]]
    hard_rows_sha256: str | None = None


@dataclass(frozen=True)
class CellResult:
    """Numbers of one finished cell; fractions from 0 to 1, nats, seconds, tokens.

    Attributes:
        cell: whose they are.
        scores: each of `SCORES` that the cell has.
        sets: data set -> its scores.
        stage_entropies: mean entropy by stage on the evaluated posts, None where a stage is absent.
        curves: metric -> values by training step, beside `step`; None where not finite.
        validation: the same for the validations during training.
        answers: data set -> (row, label, answer) of each post; an unreadable answer is "".
        resampled: given instead of the answers.
    """

    cell: Cell
    scores: dict[str, float]
    sets: dict[str, dict[str, float]]
    stage_entropies: dict[str, float | None]
    curves: dict[str, list[float | None]]
    validation: dict[str, list[float | None]]
    answers: dict[str, tuple[tuple[int, str, str], ...]]
    resampled: Resampled | None = None


def read_cell(cell: Cell) -> CellResult:
    """Read an evaluation and, where something was trained, the metrics of its steps."""
    document = json.loads((cell.evaluation / "metrics.json").read_text(encoding="utf-8"))
    average, sets = document["average"], document["sets"]
    scores = {name: float(average[theirs]) for name, theirs in EVALUATED.items()}
    trained = cell.evaluation.is_relative_to(cell.run)
    lines = _read_lines(cell.run / "metrics.jsonl") if trained else []
    steps = training_steps(lines)
    for name, number in (("seconds", training_seconds(steps)), ("reward", final_reward(steps))):
        if number is not None:
            scores[name] = number
    validated = [line for line in lines if f"{_VALIDATION}weighted_f1" in line]
    return CellResult(
        cell=cell,
        scores={name: value for name, value in scores.items() if math.isfinite(value)},
        sets={
            name: {"n": one["n"], **{n: one[theirs] for n, theirs in EVALUATED.items()}}
            for name, one in sets.items()
        },
        stage_entropies=_mean_over_sets([one["stage_entropies"] for one in sets.values()]),
        curves=_columns(steps, [*CURVES, *_stage_curves(sets)]),
        validation=_columns(validated, [f"{_VALIDATION}{n}" for n in ("weighted_f1", "macro_f1")]),
        answers=_read_predictions(cell.evaluation / "predictions.csv"),
    )


def code_answers(results: Sequence[CellResult]) -> dict[str, Answers]:
    """Answers of every cell that has them, its labels coded alike; by the name of the cell.

    Raises:
        UserError: two cells did not answer the same posts, so that they cannot be paired.
    """
    digests = {one.cell.name: posts_of(one) for one in results}
    first = next(iter(digests), "")
    for cell, digest in digests.items():
        if digest != digests[first]:
            raise UserError(
                what=f"the cells {first} and {cell} answered different posts",
                expected="one split of the same data sets for every cell of a study",
                got="other rows or labels in their predictions.csv",
                remedy="evaluate the cells again: remove records/evaluate-*.json and run the study",
            )
    results = [one for one in results if one.resampled is None]
    labels: dict[str, list[str]] = {}
    for result in results:
        for name, lines in result.answers.items():
            named = {label for _, *both in lines for label in both}
            labels[name] = sorted(named.union(labels.get(name, [])) - {""})
    return {
        result.cell.name: {
            name: _coded(sorted(lines), labels[name])
            for name, lines in sorted(result.answers.items())
        }
        for result in results
    }


def posts_digest(posts: Posts) -> str:
    """SHA-256 (hex) over the rows and labels of the posts of every set, in any order."""
    return digest_of({name: sorted(of_set) for name, of_set in posts.items()})


def digest_of(value: Any) -> str:
    """SHA-256 (hex) of a value of JSON types, mappings in the order of their keys."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def posts_of(result: CellResult) -> str:
    """Which posts a cell answered, see `posts_digest`."""
    if result.resampled is not None:
        return result.resampled.posts_sha256
    return posts_digest(
        {name: [(row, label) for row, label, _ in one] for name, one in result.answers.items()}
    )


def _coded(lines: Sequence[tuple[int, str, str]], labels: Sequence[str]) -> SetAnswers:
    """Labels as codes; an empty answer is an unreadable one."""
    code = {label: i for i, label in enumerate(labels)} | {"": len(labels)}
    return SetAnswers(
        posts=tuple((row, label) for row, label, _ in lines),
        truth=np.array([code[label] for _, label, _ in lines]),
        guess=np.array([code[answer] for _, _, answer in lines]),
        num_labels=len(labels),
    )


def _read_predictions(file: Path) -> dict[str, tuple[tuple[int, str, str], ...]]:
    """Row, label and answer of the lines of a `predictions.csv`, by set."""
    by_set: dict[str, list[tuple[int, str, str]]] = {}
    with file.open(encoding="utf-8", newline="") as lines:
        for line in csv.DictReader(lines):
            answer = int(line["row"]), line["label"], line["prediction"]
            by_set.setdefault(line["set_name"], []).append(answer)
    return {name: tuple(answers) for name, answers in by_set.items()}


def _read_lines(file: Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`; numbers that are not finite stand in it as words."""
    lines = []
    for line in file.read_text(encoding="utf-8").splitlines():
        lines.append({key: float(value) for key, value in json.loads(line).items()})
    return lines


def _columns(lines: Sequence[MetricLine], names: Sequence[str]) -> dict[str, list[float | None]]:
    """The named metrics as lists beside `step`; those that no line has are left out."""
    there = [name for name in names if any(name in line for line in lines)]
    columns: dict[str, list[float | None]] = {}
    for name in ["step", *there] if lines else []:
        values = [line.get(name, math.nan) for line in lines]
        columns[name] = [value if math.isfinite(value) else None for value in values]
    return columns


def _stage_curves(sets: Mapping[str, Any]) -> list[str]:
    """Names of the curves of every stage that the evaluation of a cell names."""
    stages = next(iter(sets.values()))["stage_entropies"]
    return [f"{curve}/{stage}" for curve in STAGE_CURVES for stage in stages]


def _mean_over_sets(by_set: Sequence[dict[str, float | None]]) -> dict[str, float | None]:
    means: dict[str, float | None] = {}
    for stage in by_set[0]:
        found = [value for one in by_set if (value := one[stage]) is not None]
        means[stage] = float(np.mean(found)) if found else None
    return means
