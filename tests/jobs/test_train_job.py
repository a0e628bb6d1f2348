"""The loop of `train` with a toy policy: the order of a step, and what an update is given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from mental_r1_jax.config import ExperimentConfig
from mental_r1_jax.jobs import train
from mental_r1_jax.runs import step_log
from mental_r1_jax.runs.step_log import StepLog
from tests.every_field.lab import Lab, make_shared
from tests.every_field.loop import toy_run, train_one_step, with_programs

PROGRAMS = ("sample", "score", "update")


@pytest.fixture
def lab(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Lab:
    return Lab(make_shared(tmp_path_factory.getbasetemp()), tmp_path, monkeypatch)


def noted(order: list[str], name: str, function: Any) -> Any:
    """`function`, with `name` appended to `order` at every call."""

    def call(*arguments: Any, **options: Any) -> Any:
        order.append(name)
        return function(*arguments, **options)

    return call


def order_of_a_step(lab: Lab, config: ExperimentConfig) -> list[str]:
    """What `train` does in one step, in its order."""
    order: list[str] = []
    run = toy_run(lab, config)
    programs = {name: noted(order, name, getattr(run.programs, name)) for name in PROGRAMS}
    for name in ("next_prompts", "score_completions", "assemble_batch"):
        lab.patch.setattr(train, name, noted(order, name, getattr(train, name)))
    for name in ("flush", "defer"):
        lab.patch.setattr(StepLog, name, noted(order, name, getattr(StepLog, name)))
    written = noted(order, "write_completions", step_log.write_completions)
    lab.patch.setattr(step_log, "write_completions", written)
    train_one_step(lab, with_programs(run, **programs))
    return order


def test_the_device_is_asked_before_the_host_works(lab):
    """Sampling and reference come before the last step's record; rewards, then the update, after.

    The record of the step itself is written when the log is closed, for nothing follows here.
    """
    assert order_of_a_step(lab, lab.config({"run.log_completions_every": 1})) == [
        *("next_prompts", "sample", "score", "flush", "score_completions", "assemble_batch"),
        *("update", "defer", "write_completions"),
    ]


def test_two_updates_a_rollout_score_the_policy_that_sampled_once(lab):
    order = order_of_a_step(lab, lab.config({"crpo.num_iterations": 2}))
    asked = [name for name in order if name in PROGRAMS]
    assert asked == ["sample", "score", "score", "update", "update"]


def test_without_kl_and_with_one_update_nothing_is_scored(lab):
    order = order_of_a_step(lab, lab.config({"crpo.kl_coef": 0.0}))
    assert [name for name in order if name in PROGRAMS] == ["sample", "update"]


def test_rounds_go_on_until_enough_groups_differ(lab):
    """Every second group of the toy policy differs, so two rounds make one batch.

    Each round asks for the next posts and draws with a number of its own; the update is given the
    groups that differ, from both rounds, and the file of completions has all of them.
    """
    run = toy_run(
        lab, lab.config({"rollout.keep_groups": "reward", "run.log_completions_every": 1})
    )
    drawn: list[tuple[Any, int]] = []
    given: list[Any] = []

    def sample(params: Any, prompts: Any, seed: Any, number: Any) -> Any:
        drawn.append((prompts, int(number)))
        return run.programs.sample(params, prompts, seed, number)

    def score(tokenizer: Any, posts: Any, *rest: Any) -> Any:
        groups = real_score(tokenizer, posts, *rest)
        groups.table[1::2, :, 0] = 0.5  # alike in every second group
        return groups

    def update(state: Any, batch: Any) -> Any:
        given.append(batch)
        return run.programs.update(state, batch)

    real_score = train.score_completions
    lab.patch.setattr(train, "score_completions", score)
    session = train_one_step(lab, with_programs(run, sample=sample, update=update))
    assert [number for _, number in drawn] == [1, 1 | 1 << 24]
    first, second = (np.asarray(prompts.prompt_ids) for prompts, _ in drawn)
    assert (first != second).any()
    (batch,) = given
    np.testing.assert_array_equal(batch.prompt_ids, np.concatenate([first[::2], second[::2]]))
    assert np.asarray(batch.group_mask).all()
    ((_, metrics),) = session.lines.told
    rollout = {name: metrics[f"rollout/{name}"] for name in ("rounds", "prompts", "kept", "empty")}
    assert rollout == {"rounds": 2, "prompts": 16, "kept": 0.5, "empty": 0}
    (file,) = (lab.tmp / "run").rglob("*.parquet")
    advantages = pq.read_table(file)["advantage"].to_pylist()
    group = run.config.rollout.num_generations
    assert [value is None for value in advantages] == ([False] * group + [True] * group) * 8


def test_both_updates_are_given_the_log_probs_from_before_the_first(lab):
    """Of the reference by the reference's weights, of the sampler by the state's at the start."""
    run = toy_run(lab, lab.config({"crpo.num_iterations": 2}))
    reference: Any = {"reference": True}
    lab.patch.setattr(train, "reference_weights", lambda run: reference)
    scored: list[tuple[Any, Any]] = []
    given: list[tuple[Any, Any]] = []

    def score(params: Any, traces: Any) -> Any:
        scored.append((params, run.programs.score(None, traces) - len(scored)))
        return scored[-1][1]

    def update(state: Any, batch: Any) -> Any:
        given.append((state, batch))
        return run.programs.update(state, batch)

    session = train_one_step(lab, with_programs(run, score=score, update=update))
    assert len(scored) == len(given) == 2
    assert scored[0][0] is reference and scored[1][0] is given[0][0].params
    assert given[1][0].params is not given[0][0].params
    for _, batch in given:
        assert batch.ref_logprobs is scored[0][1]
        assert batch.old_logprobs is scored[1][1]
    assert int(session.state.num_updates) == 2
