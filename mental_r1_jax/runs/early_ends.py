"""Ends of a session before its last step: its time is up, or validation has stopped rising."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path

from mental_r1_jax import hosts
from mental_r1_jax.config import RunConfig
from mental_r1_jax.training.metrics import METRICS_FILE, read_metrics

# Of `sysexits.h`: try again later. Schedulers and shells see that the run is not done.
OUT_OF_TIME_STATUS = 75
SCORE = "eval/average/weighted_f1"  # as validation logs it


@dataclasses.dataclass
class EarlyEnds:
    """What a session knows about its time and its validations.

    Attributes:
        run: the recipe's section, with `max_hours` and `patience`.
        scores: weighted F1 by step of the validations that were due, earlier sessions included.
        started: when the session began, seconds of the monotonic clock.
        step_seconds: the longest step so far. The first one compiles, so a session may stop earlier
            than it had to.
        validation_seconds: the longest validation so far.
        saving_seconds: of the first checkpoint, which is waited for where there is a limit.
    """

    run: RunConfig
    scores: dict[int, float]
    started: float
    step_seconds: float = 0.0
    validation_seconds: float = 0.0
    saving_seconds: float | None = None

    def time_is_up(self) -> bool:
        """Whether no further step fits into `run.max_hours`, the same on every process.

        After that step come a validation, a checkpoint, and the export, which writes the weights
        once more.
        """
        if self.run.max_hours is None:
            return False
        rest = self.step_seconds + self.validation_seconds + 2 * (self.saving_seconds or 0.0)
        ends = self.started + 3600 * self.run.max_hours
        return bool(hosts.largest(int(time.monotonic() + rest > ends)))

    def stopped_rising(self) -> bool:
        """Whether the last `run.patience` validations have brought no new best."""
        return stopped_rising(self.scores, self.run.patience)


def stopped_rising(scores: Mapping[int, float], patience: int | None) -> bool:
    """Whether the best of `scores` (by step) is followed by `patience` others or more.

    Of equal scores the first counts as best. Never where `patience` is None.
    """
    if patience is None or not scores:
        return False
    values = [scores[step] for step in sorted(scores)]
    return len(values) - 1 - values.index(max(values)) >= patience


def scores_before(folder: Path, run: RunConfig, step: int) -> dict[int, float]:
    """Weighted F1 by step, up to `step`, that a run has logged where validations were due.

    The first process reads; all get the same.
    """
    scores = {}
    if run.patience is not None and hosts.is_first() and (folder / METRICS_FILE).exists():
        scores = {
            int(line["step"]): float(line[SCORE])
            for line in read_metrics(folder / METRICS_FILE)
            if SCORE in line and line["step"] <= step and line["step"] % run.eval_every == 0
        }
    return hosts.all_items([(0, scores)] if hosts.is_first() else [])[0]
