"""What the lines of a run's `metrics.jsonl` say; the file itself is read elsewhere."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

# A line of the file: `step`, and the metrics of a training step or of a validation.
MetricLine = Mapping[str, float | int]

VALIDATED = "eval/average/weighted_f1"
# The final reward is the mean over the last tenth of the steps: a single step is noise.
_LAST_SHARE = 0.1


def training_steps(lines: Sequence[MetricLine]) -> list[MetricLine]:
    """The lines of training steps, supervised ones included."""
    return [line for line in lines if "loss" in line]


def validations(lines: Sequence[MetricLine]) -> list[tuple[int, float | int]]:
    """(step, mean weighted F1 from 0 to 1) of each validation with a finite score."""
    found = [(int(line["step"]), line[VALIDATED]) for line in lines if VALIDATED in line]
    return [(step, score) for step, score in found if math.isfinite(score)]


def final_reward(steps: Sequence[MetricLine]) -> float | int | None:
    """Mean reward of the last tenth of the training steps; None where a step has none."""
    last = steps[-max(1, round(_LAST_SHARE * len(steps))) :]
    if not last or any("reward" not in line for line in last):
        return None
    return sum(line["reward"] for line in last) / len(last)


def training_seconds(steps: Sequence[MetricLine]) -> float | int | None:
    """Seconds of the training steps, without opening and validation; None where none is timed."""
    timed = [line["time/step"] for line in steps if math.isfinite(line.get("time/step", math.nan))]
    return sum(timed) if timed else None


def duration(seconds: float | int) -> str:
    """Seconds as people say them: "9.0 s", "12 min", "3 h 05 min"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
