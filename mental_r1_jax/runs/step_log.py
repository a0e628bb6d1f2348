"""What is said about a step, written one step late so that the device never waits for a file."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from mental_r1_jax import hosts
from mental_r1_jax.config import RunConfig
from mental_r1_jax.console.progress import Progress
from mental_r1_jax.errors import UserError
from mental_r1_jax.rewards import Reward
from mental_r1_jax.rollout.collect import completion_rows, reward_metrics
from mental_r1_jax.rollout.rounds import Rollout, rollout_metrics, trained_advantages
from mental_r1_jax.training.completions_log import console_table, write_completions
from mental_r1_jax.training.metrics import Writers, scalars

# So many steps in a row without a single group to learn from are worth a word.
SILENT_STEPS = 5
# So many steps in a row all of whose updates were skipped end the run. One may be an unlucky batch;
# a skipped update changes no weight, so after five other batches nothing is going to get better.
SKIPPED_STEPS = 5


@dataclass(frozen=True)
class RolloutRecord:
    """The part of a step's record that only a step with a rollout has.

    Attributes:
        drawn: its rounds, whose batch is left out: it has been trained on.
        functions: reward functions, in the order of the table's columns.
        advantages: that the update used, one a completion [B, G], on the device.
        compiled: programs and shapes compiled so far.
        sampled: when the rollout was scored and placed, seconds of `time.perf_counter`.
    """

    drawn: Rollout
    functions: Sequence[Reward]
    advantages: jax.Array
    compiled: int
    sampled: float


@dataclass(frozen=True)
class StepRecord:
    """Everything there is to say about a step; the device may still be at work on parts of it.

    Attributes:
        step: number of the step, from 1.
        updates: metrics of each of its updates, on the device.
        learning_rate: rate of the first of these updates.
        started: when the device was free for the step, seconds of `time.perf_counter`.
        rollout: where the batch came from, None in supervised steps.
    """

    step: int
    updates: Sequence[Mapping[str, Any]]
    learning_rate: float
    started: float
    rollout: RolloutRecord | None = None


def read_record(record: StepRecord) -> tuple[dict[str, float], float]:
    """Wait for the device and return a step's metrics, and when the device had finished it.

    The metrics are those of the step's last update, with the skipped updates of all.
    """
    updates = [scalars(update) for update in record.updates]
    numbers = updates[-1] | {"updates/skipped": sum(one["updates/skipped"] for one in updates)}
    rollout = record.rollout
    tables = [] if rollout is None else [np.asarray(one.table) for one in rollout.drawn.rounds]
    finished = time.perf_counter()
    seconds = finished - record.started
    numbers |= {"learning_rate": record.learning_rate, "time/step": seconds}
    if rollout is not None:
        numbers |= reward_metrics(np.concatenate(tables), rollout.functions)
        numbers |= rollout_metrics(rollout.drawn)
        rendered = [prompt for one in rollout.drawn.rounds for prompt in one.prompts.rendered]
        numbers |= {
            "prompts/truncated": float(np.mean([prompt.truncated for prompt in rendered])),
            "time/rollout": rollout.sampled - record.started,
            "time/train": finished - rollout.sampled,
            "tokens_per_second": numbers["tokens/completion"] / seconds,
            "compiled_programs": float(rollout.compiled),
        }
    return numbers, finished


class StepLog:
    """Writes the record of each step when it is flushed, which the next step does.

    Closing it flushes, so that a deferred record is written also where the next step fails.
    """

    def __init__(self, run: RunConfig, mesh: Mesh, writers: Writers, progress: Progress) -> None:
        """Nothing is deferred at first.

        Args:
            run: where completions are written, how often, and whether prompts are redacted.
            mesh: over which the rows of a step are sharded.
            writers: files and trackers of metrics.
            progress: the display.
        """
        self._run, self._mesh, self._writers, self._progress = run, mesh, writers, progress
        self._deferred: StepRecord | None = None
        self._silent_steps = self._skipped_steps = 0

    def defer(self, record: StepRecord) -> None:
        """Keep the record of a step until it is flushed."""
        self._deferred = record
        self._progress.phase("training")

    def flush(self) -> float:
        """Write the deferred record, if there is one, waiting for the device.

        Returns:
            When the device had finished that step, seconds of `time.perf_counter`; -inf if there
            was none.

        Raises:
            UserError: no update of the last `SKIPPED_STEPS` steps had a finite gradient.
        """
        if self._deferred is None:
            return -math.inf
        record, self._deferred = self._deferred, None
        numbers, finished = read_record(record)
        self._writers.write(record.step, numbers)
        self._progress.update(record.step, numbers)
        self._stop_if_all_skipped(record.step, numbers["updates/skipped"] == len(record.updates))
        if record.rollout is not None:
            self._warn_if_silent(numbers["frac_reward_zero_std"])
            every = self._run.log_completions_every
            if every and record.step % every == 0:
                self._write_completions(record.step, record.rollout)
        return finished

    close = flush

    def _stop_if_all_skipped(self, step: int, skipped: bool) -> None:
        """End a run that does not learn any more, before it saves this as its newest state."""
        self._skipped_steps = self._skipped_steps + 1 if skipped else 0
        if self._skipped_steps == SKIPPED_STEPS:
            raise UserError(
                what=f"no update of the last {SKIPPED_STEPS} steps had a finite gradient",
                expected="finite gradients: a skipped update leaves the weights as they are",
                got=f"NaN or infinity in all of them, up to step {step}",
                remedy="the checkpoints so far are kept; start again from one of them or from the "
                "start model, in another run.output_dir, with a smaller learning rate",
            )

    def _warn_if_silent(self, share: float) -> None:
        """Say why nothing is learned when all groups have had equal rewards for a while."""
        self._silent_steps = self._silent_steps + 1 if share == 1.0 else 0
        if self._silent_steps == SILENT_STEPS:
            self._progress.print(
                f"for {SILENT_STEPS} steps all completions of a prompt earned the same, so every "
                "advantage is 0: look at well_formed and at the completions; a model that cannot "
                "write the grammar needs a cold start (mental-r1 sft)"
            )

    def _write_completions(self, step: int, rollout: RolloutRecord) -> None:
        """Write all completions of a step, and show the best and the worst one."""
        total, group = rollout.advantages.shape
        rows = hosts.local_rows(self._mesh, total)
        values = hosts.all_items(
            zip(rows.tolist(), hosts.fetch_rows(rollout.advantages), strict=True)
        )
        advantages = trained_advantages(rollout.drawn, values)
        own: list[tuple[int, Any]] = []
        for index, one in enumerate(rollout.drawn.rounds):
            numbers = index * total + rows
            places = (numbers[:, None] * group + np.arange(group)[None]).ravel().tolist()
            lines = completion_rows(one.prompts, one.groups, rollout.functions, advantages[numbers])
            own += zip(places, lines, strict=True)
        everything = hosts.all_items(own)
        if hosts.is_first():
            redact = self._run.redact_completions
            write_completions(self._run.output_dir, step, everything, redact=redact)
            self._progress.print(console_table(everything))
