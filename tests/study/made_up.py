"""Finished cells of a study, written with the program's own writers of evaluations and metrics."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from mental_r1_jax.config import STAGE_NAMES
from mental_r1_jax.evaluation.metrics import Prediction, set_metrics
from mental_r1_jax.evaluation.report import write_evaluation
from mental_r1_jax.study.cells import Cell

LABELS = ("Yes", "No")
# Set -> true labels of its posts.
Truth = Mapping[str, Sequence[str]]


def answer(set_name: str, row: int, label: str, prediction: str | None) -> Prediction:
    return Prediction(
        set_name=set_name,
        row=row,
        label=label,
        prediction=prediction,
        well_formed=prediction is not None,
        truncated=False,
        num_tokens=10 + row,
        answer=prediction,
        stage_entropies=(1.0, 0.5, None, 0.25, 0.125),
        completion="made up",
        text="made up",
    )


def write_answers(folder: Path, truth: Truth, guesses: Mapping[str, Sequence[str | None]]) -> None:
    """An evaluation of these answers."""
    predictions = [
        answer(name, row, label, guess)
        for name in truth
        for row, (label, guess) in enumerate(zip(truth[name], guesses[name], strict=True))
    ]
    metrics = {
        name: set_metrics(
            [p for p in predictions if p.set_name == name], LABELS, bootstrap_samples=0, seed=0
        )
        for name in truth
    }
    write_evaluation(folder, metrics, predictions, include_text=False, title="made up", context={})


def write_steps(
    run: Path, rewards: Sequence[float], *, seconds: float = 2.0, entropy: float = 1.0
) -> None:
    """The `metrics.jsonl` of a training with these rewards, a validation before and after it."""
    run.mkdir(parents=True, exist_ok=True)
    lines: list[dict[str, float | str]] = [{"step": 0, **_validation(0.4)}]
    for step, reward in enumerate(rewards, start=1):
        stages = {
            f"entropy/stage/{stage}": entropy * (1 + i) * (1 + 0.01 * step)
            for i, stage in enumerate(STAGE_NAMES)
        }
        lines.append({"step": step, "loss": 0.0, "reward": reward, "time/step": seconds, **stages})
    lines.append({"step": len(rewards), **_validation(0.5 + rewards[-1] / 10)})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (run / "metrics.jsonl").write_text(text, encoding="utf-8")


def _validation(score: float) -> dict[str, float]:
    return {"eval/average/weighted_f1": score, "eval/average/macro_f1": score / 2}


def write_cell(
    cell: Cell,
    truth: Truth,
    guesses: Mapping[str, Sequence[str | None]],
    rewards: Sequence[float],
    **how: float,
) -> None:
    """Everything that results are read from, for one cell."""
    write_answers(cell.evaluation, truth, guesses)
    write_steps(cell.run, rewards, **how)
