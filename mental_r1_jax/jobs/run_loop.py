"""What `train` and `sft` share: resume, steps, validation, metrics, checkpoints, a clean stop."""

from __future__ import annotations

from typing import Any, Protocol

import optax
from jax.sharding import Mesh

from mental_r1_jax.config import ExperimentConfig
from mental_r1_jax.jobs.policy import Policy, save_base_model
from mental_r1_jax.jobs.run_folder import StopSignal, exit_if_stopped, open_run_folder
from mental_r1_jax.jobs.trainer import abstract_state, fresh_state
from mental_r1_jax.jobs.validation import Validator
from mental_r1_jax.training import checkpoint
from mental_r1_jax.training.metrics import METRICS_FILE, open_writers, truncate_after
from mental_r1_jax.training.progress import Progress
from mental_r1_jax.training.train_step import TrainState


class Work(Protocol):
    """What a run does: its steps, and where it stands in its data."""

    def step(
        self, step: int, state: TrainState, progress: Progress
    ) -> tuple[TrainState, dict[str, float]]:
        """Do step number `step` (from 1): the next state, and the metrics to log."""
        ...

    def position(self) -> dict[str, Any]:
        """JSON-able position after the steps done so far."""
        ...

    def seek(self, position: dict[str, Any]) -> None:
        """Go on from a saved position."""
        ...


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
    save_base_model(policy, folder)
    with (
        checkpoint.open_checkpoints(
            folder / "checkpoints", keep=config.run.keep_checkpoints
        ) as checkpoints,
        StopSignal() as stop,
    ):
        restored = checkpoint.restore(checkpoints, abstract_state(policy, optimizer, mesh))
        if restored is None:
            step, state = 0, fresh_state(policy, optimizer, mesh)
        else:
            step, state, position = restored
            work.seek(position)
            print(f"resuming after step {step}")
        # A run that died before its first checkpoint starts anew, its step-0 line included.
        truncate_after(folder / METRICS_FILE, -1 if restored is None else step)
        with (
            open_writers(
                folder,
                tensorboard=config.run.tensorboard,
                wandb_project=config.run.wandb_project,
                config=config.model_dump(mode="json"),
            ) as writers,
            Progress(num_steps, start=step) as progress,
        ):
            validator = Validator(config, policy, mesh, writers, progress)
            if step == 0 and config.run.eval_every:
                validator.validate(0, state.params)
            stopping = stop.requested
            while step < num_steps and not stopping:
                step += 1
                state, metrics = work.step(step, state, progress)
                writers.write(step, metrics)
                progress.update(step, metrics)
                score = None
                if validator.due(step, num_steps):
                    score = validator.validate(step, state.params)
                # Read once: a later signal is served after the next step, and that one is saved.
                stopping = stop.requested
                if score is not None or stopping or step % config.run.save_every == 0:
                    checkpoint.save(checkpoints, step, state, work.position(), score)
        checkpoints.wait_until_finished()
    if stop.requested:
        print(f"stopped by a signal after step {step}; run the same command to resume")
    exit_if_stopped(stop)
