"""Metrics come one step late, and are never lost."""

from __future__ import annotations

import contextlib
import math
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mental_r1_jax.config import RunConfig
from mental_r1_jax.rl.masking import Sum, SumWeight
from mental_r1_jax.rollout.collect import ScoredGroups, StepPrompts
from mental_r1_jax.rollout.rounds import Rollout, Round
from mental_r1_jax.runs import step_log
from mental_r1_jax.runs.step_log import (
    SILENT_STEPS,
    RolloutRecord,
    StepLog,
    StepRecord,
    read_record,
)
from mental_r1_jax.sharding import make_mesh
from mental_r1_jax.text.prompts import RenderedPrompt
from mental_r1_jax.types import PromptBatch


class Told:
    """Stands for the writers and for the display; both are told the same."""

    def __init__(self) -> None:
        self.told: list[tuple[int, dict[str, float]]] = []
        self.lines: list[str] = []

    def write(self, step: int, metrics: dict[str, float]) -> None:
        self.told.append((step, metrics))

    update = write

    def phase(self, name: str) -> None:
        """Not of interest."""

    def print(self, text: str) -> None:
        self.lines.append(text)


def log_into(told: Told, **options: Any) -> contextlib.closing[StepLog]:
    """A log that is closed at the end, as a session does."""
    run = RunConfig(output_dir=Path("nowhere"), **{"log_completions_every": 0} | options)
    mesh = make_mesh(1, 1, 1, jax.devices()[:1])
    return contextlib.closing(StepLog(run, mesh, told, told))


def record(step: int, loss: float = 0.5, **fields: Any) -> StepRecord:
    updates = [{"loss": Sum(jnp.float32(loss)), "updates/skipped": Sum(jnp.float32(0))}]
    return StepRecord(step, updates, 1e-3, time.perf_counter(), **fields)


def rollout_of(rewards: list[list[float]]) -> RolloutRecord:
    """A rollout with these rewards and no reward function."""
    table = np.zeros((len(rewards), len(rewards[0]), 6), np.float32)
    table[..., 0] = rewards
    ids: Any = np.zeros((2, 1), np.int32)
    rendered = [RenderedPrompt((0,), "", truncated=True)] * 2
    prompts = StepPrompts((), rendered, PromptBatch(ids, ids == 0, ids[:, 0]))
    groups = ScoredGroups((), table, np.zeros((2, 2, 5, 1), bool))
    drawn = Rollout((Round(prompts, groups, table),), sources=np.arange(2))
    return RolloutRecord(drawn, (), jnp.zeros((2, 2)), 3, time.perf_counter())


def test_metrics_are_written_when_they_are_flushed_and_only_once() -> None:
    told = Told()
    with log_into(told) as log:
        assert log.flush() == -math.inf
        log.defer(record(1))
        assert told.told == []
        before = time.perf_counter()
        assert before <= log.flush() <= time.perf_counter()
        assert log.flush() == -math.inf
        assert [(step, line["loss"]) for step, line in told.told] == [(1, 0.5)] * 2
        log.defer(record(2, 1.0))
    assert [(step, line["loss"]) for step, line in told.told[2:]] == [(2, 1.0)] * 2


def test_the_metrics_of_a_step_are_kept_when_the_next_one_fails() -> None:
    told = Told()
    with pytest.raises(ZeroDivisionError), log_into(told) as log:
        log.defer(record(7))
        raise ZeroDivisionError
    assert [step for step, _ in told.told] == [7, 7]


def test_metrics_that_cannot_be_read_are_not_asked_for_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = []

    def broken(one: StepRecord) -> Any:
        calls.append(one.step)
        raise RuntimeError("out of memory")

    monkeypatch.setattr(step_log, "read_record", broken)
    with pytest.raises(RuntimeError, match="out of memory"), log_into(Told()) as log:
        log.defer(record(1))
        log.flush()
    assert calls == [1]


def test_several_updates_give_the_last_ones_metrics_and_all_skipped_ones() -> None:
    def of_update(norm: float, skipped: float) -> dict[str, Any]:
        one = jnp.float32(1)
        return {
            "grad_norm": SumWeight(jnp.float32(norm), one),
            "updates/skipped": Sum(jnp.float32(skipped)),
        }

    several = [of_update(3.0, 1.0), of_update(2.0, 1.0), of_update(4.0, 0.0)]
    numbers, finished = read_record(StepRecord(5, several, 2e-3, time.perf_counter() - 10))
    assert numbers["grad_norm"] == 4 and numbers["updates/skipped"] == 2
    assert numbers["learning_rate"] == 2e-3
    assert 10 <= numbers["time/step"] < 20 and finished <= time.perf_counter()


def test_times_of_a_step_with_a_rollout_add_up() -> None:
    rollout = rollout_of([[0.0, 1.0], [2.0, 4.0]])
    tokens = [{"tokens/completion": Sum(jnp.float32(60)), "updates/skipped": Sum(jnp.float32(0))}]
    started = rollout.sampled - 3.0
    numbers, finished = read_record(StepRecord(1, tokens, 0.0, started, rollout))
    assert numbers["time/rollout"] == pytest.approx(3.0)
    assert numbers["time/train"] == pytest.approx(finished - rollout.sampled)
    assert numbers["time/step"] == pytest.approx(numbers["time/rollout"] + numbers["time/train"])
    assert numbers["tokens_per_second"] == pytest.approx(60 / numbers["time/step"])
    assert numbers["reward"] == pytest.approx(7 / 4)
    assert (numbers["prompts/truncated"], numbers["compiled_programs"]) == (1.0, 3.0)


def warnings_after(shares: list[float]) -> list[int]:
    """Steps (from 1) at which a run with these `frac_reward_zero_std` prints the warning."""
    told, printed, steps = Told(), 0, []
    with log_into(told) as log:
        for step, share in enumerate(shares, start=1):
            rewards = [[1.0, 1.0], [1.0, 1.0 if share == 1.0 else 2.0]]
            tokens = {"tokens/completion": Sum(jnp.float32(1))}
            one = record(step, rollout=rollout_of(rewards))
            log.defer(StepRecord(step, [one.updates[0] | tokens], 0.0, one.started, one.rollout))
            log.flush()
            if len(told.lines) > printed:
                printed = len(told.lines)
                steps.append(step)
    return steps


def test_the_warning_comes_once_after_enough_silent_steps() -> None:
    assert SILENT_STEPS == 5
    assert warnings_after([1.0] * 12) == [5]
    assert warnings_after([1.0] * 4 + [0.9] + [1.0] * 4) == []
    assert warnings_after([0.5] + [1.0] * 5 + [0.0] + [1.0] * 5) == [6, 12]
