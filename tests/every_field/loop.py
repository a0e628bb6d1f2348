"""The real loop of `train` with a toy policy: real posts, prompts, rewards, files; no network."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from jax.sharding import Mesh
from rich.console import Console

from mental_r1_jax.config import ExperimentConfig
from mental_r1_jax.console.progress import Progress
from mental_r1_jax.jobs import train
from mental_r1_jax.programs.step_programs import StepPrograms
from mental_r1_jax.rollout.join import join_groups
from mental_r1_jax.runs import training_run
from mental_r1_jax.runs.step_log import StepLog
from mental_r1_jax.runs.training_run import TrainingRun
from mental_r1_jax.sharding import make_mesh
from mental_r1_jax.training import train_step as updates
from mental_r1_jax.training.metrics import JsonlWriter, Writers
from tests.every_field import toys
from tests.every_field.lab import Lab


def one_device() -> Mesh:
    """A mesh of one: toy arrays are too small for eight, and would only be slower to compile."""
    return make_mesh(1, 1, 1, jax.devices()[:1])


class Lines(JsonlWriter):
    """A writer that keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[int, dict[str, float]]] = []

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Keep the metrics of a step."""
        self.told.append((step, dict(metrics)))


def toy_run(lab: Lab, config: ExperimentConfig) -> TrainingRun:
    """The real run of the recipe, with the toy policy for a network."""
    lab.patch.setattr(updates.network, "completion_stats", toys.toy_stats)
    lab.patch.setattr(training_run, "load_weights", lambda *a, **k: {})
    lab.patch.setattr(train, "compile_first_step", lambda *a: None)
    real = training_run.open_training_run(config)
    first = toys.toy_params(real.model.tokenizer)
    update = functools.partial(
        updates.train_step, config=config, decoder=real.model.decoder, optimizer=real.optimizer
    )
    return dataclasses.replace(
        real,
        mesh=one_device(),
        programs=StepPrograms(
            sample=toys.Called(toys.ToySampler(real)),
            score=toys.Called(lambda params, traces: toys.toy_old_logprobs(first, traces)),
            update=toys.Called(update),
            join=toys.Called(join_groups),
        ),
    )


def with_programs(run: TrainingRun, **programs: Any) -> TrainingRun:
    """The run with other functions for some of its programs."""
    called = {name: toys.Called(function) for name, function in programs.items()}
    return dataclasses.replace(run, programs=dataclasses.replace(run.programs, **called))


@dataclasses.dataclass
class OneStep:
    """A session of one step, without a run folder.

    Attributes:
        state: of the toy policy, before the step and after it.
        log: the real one.
        lines: what it has written.
        progress: the real display, on no screen.
        position: None, as at the start of a run.
    """

    state: updates.TrainState
    log: StepLog
    lines: Lines
    progress: Progress
    position: None = None

    def steps(self) -> Iterator[int]:
        """The first step alone."""
        yield 1

    def traced(self, step: int) -> contextlib.AbstractContextManager[None]:
        """No profile."""
        return contextlib.nullcontext()

    def validate(self, step: int, params: Any) -> None:
        """Never due."""

    def save(self, step: int, state: updates.TrainState, *rest: Any) -> None:
        """Keep the state."""
        self.state = state


def train_one_step(lab: Lab, run: TrainingRun) -> OneStep:
    """`train` for one step; returns the session when it has ended."""
    lines = Lines()
    sessions: list[OneStep] = []

    @contextlib.contextmanager
    def open_session(
        config: Any, model: Any, mesh: Mesh, optimizer: Any, _: int, crpo: Any
    ) -> Iterator[Any]:
        state = updates.init_state(toys.toy_params(model.tokenizer), optimizer, crpo)
        with (
            Progress(1, console=Console(file=io.StringIO(), width=200)) as progress,
            contextlib.closing(StepLog(config.run, mesh, Writers([lines]), progress)) as log,
        ):
            sessions.append(OneStep(state, log, lines, progress))
            yield sessions[0]

    lab.patch.setattr(train, "open_session", open_session)
    train.train(run)
    return sessions[0]
