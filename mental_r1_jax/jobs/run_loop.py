"""What `train` and `sft` share: resume, steps, validation, metrics, checkpoints, a clean stop.

The loop runs ahead of the device: the metrics of a step are read when the work of the next one has
been asked for, so that the device never waits for a file. Before a validation, a checkpoint or the
end everything owed is settled, so files and checkpoints tell the same story.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import optax
from jax.sharding import Mesh

from mental_r1_jax import hosts
from mental_r1_jax.config import ExperimentConfig
from mental_r1_jax.jobs.compiled import abstract_state
from mental_r1_jax.jobs.policy import Policy, save_base_model
from mental_r1_jax.jobs.run_folder import StopSignal, exit_if_stopped, open_run_folder
from mental_r1_jax.jobs.trainer import fresh_state
from mental_r1_jax.jobs.validation import Validator
from mental_r1_jax.training import checkpoint
from mental_r1_jax.training.metrics import METRICS_FILE, Writers, open_writers, truncate_after
from mental_r1_jax.training.profiling import Profiler
from mental_r1_jax.training.progress import Progress
from mental_r1_jax.training.train_step import TrainState

# Waits for the device, if need be, and gives the metrics of a step.
Metrics = Callable[[], dict[str, float]]


class Work(Protocol):
    """What a run does: its steps, and where it stands in its data."""

    def step(
        self, step: int, state: TrainState, progress: Progress, meanwhile: Callable[[], None]
    ) -> tuple[TrainState, Metrics]:
        """Ask for step number `step` (from 1): the next state, and how to get its metrics.

        Args:
            step: from 1.
            state: donated.
            progress: where to say what is happening.
            meanwhile: to be called once when the device has enough to do; it deals with the step
                before this one.
        """
        ...

    def position(self) -> dict[str, Any]:
        """JSON-able position after the steps done so far."""
        ...

    def seek(self, position: dict[str, Any]) -> None:
        """Go on from a saved position."""
        ...


class Books:
    """Writes the metrics of each step, one step late, when asked to `settle`."""

    def __init__(self, writers: Writers, progress: Progress) -> None:
        """Nothing is owed at first."""
        self._writers, self._progress = writers, progress
        self._owed: tuple[int, Metrics] | None = None

    def owe(self, step: int, metrics: Metrics) -> None:
        """Remember to write the metrics of `step`."""
        self._owed = step, metrics

    def settle(self) -> None:
        """Write what is owed, if anything is; waits for the device."""
        if self._owed is None:
            return
        (step, metrics), self._owed = self._owed, None
        numbers = metrics()
        self._writers.write(step, numbers)
        self._progress.update(step, numbers)

    def __enter__(self) -> Books:
        """Nothing to open."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Write what is owed also where the next step failed."""
        self.settle()


def _begin(work: Work, restored: tuple[int, Any, dict[str, Any]] | None) -> Any:
    """Go on where a checkpoint was made: (step, state), or None where there is none."""
    if restored is None:
        return None
    step, state, position = restored
    work.seek(position)
    print(f"resuming after step {step}")
    return step, state


def _open_writers(folder: Path, config: ExperimentConfig, step: int) -> Writers:
    """The files and trackers of the run, cut back to `step`; none but on the first process."""
    if not hosts.is_first():
        return Writers([])
    truncate_after(folder / METRICS_FILE, step)
    return open_writers(
        folder,
        tensorboard=config.run.tensorboard,
        wandb_project=config.run.wandb_project,
        config=config.model_dump(mode="json"),
    )


def run_loop(
    work: Work,
    config: ExperimentConfig,
    policy: Policy,
    mesh: Mesh,
    optimizer: optax.GradientTransformation,
    num_steps: int,
) -> None:
    """Run `work` to `num_steps`, from the newest checkpoint of the run folder if it has one."""
    folder = config.run.output_dir
    open_run_folder(folder, config)
    if hosts.is_first():
        save_base_model(policy, folder)
    hosts.wait_for_all("made the run folder")
    with (
        checkpoint.open_checkpoints(
            folder / "checkpoints", keep=config.run.keep_checkpoints
        ) as checkpoints,
        StopSignal() as stop,
    ):
        restored = checkpoint.restore(checkpoints, abstract_state(policy.config, optimizer, mesh))
        step, state = _begin(work, restored) or (0, fresh_state(policy, optimizer, mesh))
        # A run that died before its first checkpoint starts anew, its step-0 line included.
        with (
            _open_writers(folder, config, -1 if restored is None else step) as writers,
            Progress(num_steps, start=step) as progress,
            Books(writers, progress) as books,
            Profiler(folder, config.run.profile_steps) as profiler,
        ):
            validator = Validator(config, policy, mesh, writers, progress)
            if step == 0 and config.run.eval_every:
                validator.validate(0, state.params)
            stopping = stop.reached(step)
            while step < num_steps and not stopping:
                step += 1
                with profiler.around(step, books.settle):
                    state, metrics = work.step(step, state, progress, books.settle)
                    books.owe(step, metrics)
                score = None
                if validator.due(step, num_steps):
                    books.settle()
                    score = validator.validate(step, state.params)
                # Read once: a later signal is served after the next step, and that one is saved.
                stopping = stop.reached(step)
                if score is not None or stopping or step % config.run.save_every == 0:
                    books.settle()
                    checkpoint.save(checkpoints, step, state, work.position(), score)
        checkpoints.wait_until_finished()
    if stop.requested:
        print(f"stopped by a signal after step {step}; run the same command to resume")
    exit_if_stopped(stop)
