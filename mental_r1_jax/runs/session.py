"""What the loops of `train` and `sft` share: resuming, validation, checkpoints, a clean stop.

The device runs ahead of the host: the metrics of a step are read when the next step's work has been
asked for (see `step_log`). Before a validation, a checkpoint or the end the deferred step is
flushed, so that files and checkpoints tell the same story.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optax
from jax.sharding import Mesh

from mental_r1_jax import hosts
from mental_r1_jax.bucket import Copies, checkpoints_of
from mental_r1_jax.config import CrpoConfig, ExperimentConfig
from mental_r1_jax.console.progress import Progress
from mental_r1_jax.opening.model_source import (
    ModelSource,
    check_base_model,
    load_frozen,
    save_base_model,
)
from mental_r1_jax.prediction.validation import Validator
from mental_r1_jax.private_files import check_writable
from mental_r1_jax.programs.step_programs import abstract_state
from mental_r1_jax.runs.early_ends import OUT_OF_TIME_STATUS, EarlyEnds, scores_before
from mental_r1_jax.runs.run_folder import (
    StopSignal,
    check_run_folder,
    exit_if_stopped,
    open_run_folder,
)
from mental_r1_jax.runs.step_log import StepLog
from mental_r1_jax.runs.training_run import fresh_state
from mental_r1_jax.training import checkpoint
from mental_r1_jax.training.damage import sound_steps
from mental_r1_jax.training.metrics import METRICS_FILE, Writers, open_writers, truncate_after
from mental_r1_jax.training.profiling import Profiler
from mental_r1_jax.training.train_step import TrainState


@dataclass
class Session:
    """A run between its start, or its newest checkpoint, and its end; see `open_session`.

    Attributes:
        step: steps done so far.
        state: at the start of the session; the first update donates it.
        position: in the data at that time, None at the start of a run.
        log: the metrics of each step, written one step late.
        progress: the display; the rest are the parts that its methods use.
    """

    step: int
    state: TrainState
    position: dict[str, Any] | None
    config: ExperimentConfig
    num_steps: int
    log: StepLog
    progress: Progress
    checkpoints: checkpoint.CheckpointManager
    stop: StopSignal
    profiler: Profiler
    validator: Validator
    ends: EarlyEnds
    stopping: bool = False
    out_of_time: bool = False
    _step_started: float = 0.0

    def steps(self) -> Iterator[int]:
        """The numbers of the steps to do, until the last one, a signal, or an early end."""
        self.stopping = self.stop.reached(self.step) or self.ends.stopped_rising()
        for step in range(self.step + 1, self.num_steps + 1):
            if self.stopping:
                return
            self._step_started = time.monotonic()
            yield step

    def traced(self, step: int) -> contextlib.AbstractContextManager[None]:
        """Profile what is done inside, if `step` is one of `run.profile_steps`."""
        return self.profiler.around(step, self.log.flush)

    def validate(self, step: int, params: Any) -> float | None:
        """Mean weighted F1 (0 to 1) of `params` where `step` is due for a validation, else None.

        Due are step 0, every `run.eval_every` steps, and the last one; where the time is up, the
        step just done is validated as well.
        """
        every, ends, started = self.config.run.eval_every, self.ends, time.monotonic()
        if step > self.step:
            ends.step_seconds = max(ends.step_seconds, started - self._step_started)
            self.out_of_time = ends.time_is_up() and step < self.num_steps
        due = step == self.num_steps > 0 or bool(every and step % every == 0)
        if not due and not self.out_of_time:
            return None
        self.log.flush()
        score = self.validator.validate(step, params)
        ends.validation_seconds = max(ends.validation_seconds, time.monotonic() - started)
        if due:
            ends.scores[step] = score
        return score

    def save(
        self, step: int, state: TrainState, position: Mapping[str, Any], score: float | None
    ) -> None:
        """Write a checkpoint where one is due: after a validation, every so often, at a stop.

        Args:
            step: the step just done.
            state: after it.
            position: JSON-able position in the data.
            score: of the validation after this step, None where there was none.
        """
        # Read once: a later signal is served after the next step, and that one is saved.
        asked = self.stop.reached(step)
        self.stopping = asked or self.out_of_time or self.ends.stopped_rising()
        self.step = step
        if score is not None or self.stopping or step % self.config.run.save_every == 0:
            self.log.flush()
            started = time.monotonic()
            checkpoint.save(self.checkpoints, step, state, position, score)
            if self.config.run.max_hours is not None and self.ends.saving_seconds is None:
                self.checkpoints.wait_until_finished()
                self.ends.saving_seconds = time.monotonic() - started


def check_output(config: ExperimentConfig) -> None:
    """Refuse an impossible run folder before minutes are spent on data and model.

    Raises:
        UserError, OSError: it cannot be made or written to, or is not this run's.
    """
    check_run_folder(config.run.output_dir, config)
    if hosts.is_first():
        check_writable(config.run.output_dir)


@contextlib.contextmanager
def open_session(
    config: ExperimentConfig,
    model: ModelSource,
    mesh: Mesh,
    optimizer: optax.GradientTransformation,
    num_steps: int,
    crpo: CrpoConfig | None = None,
) -> Iterator[Session]:
    """Open the run folder and everything in it; go on from its newest checkpoint if it has one.

    Ends the process with the status of one that a signal ended where one asked the run to stop.
    `crpo` is None in supervised runs, whose state has no entropy coefficients.

    Raises:
        UserError: the folder holds something else, or a run of another configuration, or it has
            checkpoints and none of them is sound.
    """
    with (
        open_run_folder(config.run.output_dir, config) as copies,
        _resumed(config, copies, model, mesh, optimizer, num_steps, crpo) as session,
    ):
        yield session


@contextlib.contextmanager
def _resumed(
    config: ExperimentConfig,
    copies: Copies,
    model: ModelSource,
    mesh: Mesh,
    optimizer: optax.GradientTransformation,
    num_steps: int,
    crpo: CrpoConfig | None,
) -> Iterator[Session]:
    """`open_session` in a run folder that is open."""
    folder, began = config.run.output_dir, time.monotonic()
    stages = config.text.stage_names
    check_base_model(model, folder)
    if hosts.is_first():
        save_base_model(model, folder)
    hosts.wait_for_all("made the run folder")
    place = checkpoints_of(folder)
    sound_steps(place)
    manager = checkpoint.open_checkpoints(
        place, keep=config.run.keep_checkpoints, before_commit=copies.push
    )
    with manager as checkpoints, StopSignal() as stop:
        abstract = abstract_state(model.decoder, optimizer, mesh, crpo, stages)
        restored = checkpoint.restore(checkpoints, abstract)
        if restored is not None:
            print(f"resuming after step {restored[0]}")
            if model.base is not None:
                whole = dataclasses.replace(restored[1], frozen=load_frozen(model, mesh))
                restored = (restored[0], whole, restored[2])
        start: tuple[int, TrainState, dict[str, Any] | None]
        seed = config.run.seed
        start = restored or (0, fresh_state(model, optimizer, mesh, crpo, seed, stages), None)
        # A run that died before its first checkpoint starts anew, its step-0 line included.
        with (
            _open_writers(folder, config, -1 if restored is None else start[0]) as writers,
            Progress(num_steps, start=start[0], stages=stages) as progress,
            contextlib.closing(StepLog(config.run, mesh, writers, progress)) as log,
            Profiler(folder, config.run.profile_steps) as profiler,
        ):
            validator = Validator(config, model, mesh, writers, progress)
            ends = EarlyEnds(config.run, scores_before(folder, config.run, start[0]), began)
            run = (config, num_steps, log, progress, checkpoints, stop, profiler, validator, ends)
            session = Session(start[0], start[1], start[2], *run)
            yield session
        checkpoints.wait_until_finished()
    _end(session)


def _end(session: Session) -> None:
    """Say why a session has ended early, and end with the status that says so."""
    stop, after = session.stop, f"after step {session.step}"
    if stop.requested:
        print(f"stopped by {stop.number.name} {after}; run the same command to resume")
        exit_if_stopped(stop)
    if session.ends.stopped_rising() and session.step < session.num_steps:
        validations = f"{session.config.run.patience} validations"
        print(f"ended {after}: weighted F1 has not risen for {validations}")
    elif session.out_of_time:
        print(f"stopped by run.max_hours {after}; run the same command to resume")
        sys.exit(OUT_OF_TIME_STATUS)


def _open_writers(folder: Path, config: ExperimentConfig, step: int) -> Writers:
    """The files and trackers of the run, truncated after `step`; none but on the first process."""
    if not hosts.is_first():
        return Writers([])
    truncate_after(folder / METRICS_FILE, step)
    return open_writers(
        folder,
        tensorboard=config.run.tensorboard,
        wandb_project=config.run.wandb_project,
        trackio_project=config.run.trackio_project,
        config=config.model_dump(mode="json"),
    )
