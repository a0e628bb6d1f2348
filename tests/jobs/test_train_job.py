"""The parts of the train job that need no model: warnings, and the order of a step."""

from __future__ import annotations

import dataclasses
import io
from typing import Any

from rich.console import Console

from mental_r1_jax.jobs import train
from mental_r1_jax.jobs.train import SILENT_STEPS, CrpoWork
from mental_r1_jax.training.progress import Progress
from mental_r1_jax.training.train_step import init_state
from tests.every_field.lab import Lab, make_shared
from tests.every_field.probes import make_toy_trainer, params0

PROGRAMS = ("sample", "logprobs", "update")


class RecordingProgress:
    """Keeps what would be printed."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def print(self, text: str) -> None:
        self.lines.append(text)


def warnings_after(shares: list[float]) -> list[int]:
    """Steps (from 1) at which a run with these `frac_reward_zero_std` prints the warning."""
    work = object.__new__(CrpoWork)
    work._silent_steps = 0
    printed, steps = 0, []
    progress = RecordingProgress()
    for step, share in enumerate(shares, start=1):
        work._warn_if_silent({"frac_reward_zero_std": share}, progress)
        if len(progress.lines) > printed:
            printed = len(progress.lines)
            steps.append(step)
    return steps


def test_the_warning_comes_once_after_enough_silent_steps():
    assert SILENT_STEPS == 5
    assert warnings_after([1.0] * 12) == [5]
    assert warnings_after([1.0] * 4 + [0.9] + [1.0] * 4) == []
    assert warnings_after([0.5] + [1.0] * 5 + [0.0] + [1.0] * 5) == [6, 12]


def test_the_device_is_asked_before_the_host_works(tmp_path_factory, tmp_path, monkeypatch):
    """Sampling and reference come before the last step's books; rewards, then the update, after."""
    lab = Lab(make_shared(tmp_path_factory.getbasetemp()), tmp_path, monkeypatch)
    toy, _ = make_toy_trainer(lab, lab.config({"run.log_completions_every": 1}))
    order: list[str] = []

    def noted(name: str, function: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            order.append(name)
            return function(*arguments, **options)

        return call

    parts = {name: noted(name, getattr(toy.programs, name)) for name in PROGRAMS}
    programs = dataclasses.replace(toy.programs, **parts)
    for name in ("score_completions", "write_completions"):
        monkeypatch.setattr(train, name, noted(name, getattr(train, name)))
    work = CrpoWork(dataclasses.replace(toy, programs=programs))
    state = init_state(params0(toy), toy.optimizer)
    with Progress(1, console=Console(file=io.StringIO())) as progress:
        work.step(1, state, progress, noted("meanwhile", lambda: None))
    assert order == [
        *("sample", "logprobs", "meanwhile", "score_completions", "update", "write_completions")
    ]
