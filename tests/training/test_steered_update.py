"""Steered entropy coefficients inside the update, of a policy that compiles quickly."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mental_r1_jax.config import STAGE_NAMES
from mental_r1_jax.training import train_step as updates
from mental_r1_jax.training.train_step import init_state, train_step
from mental_r1_jax.types import Batch
from tests.tiny_decoder import CONFIG, random_batch, tiny_recipe
from tests.training.updates import OPTIMIZER, assert_close, place

BETAS = (0.05, -0.04, 0.03, 0.0, -0.06)
TARGET = {"stage_entropy_rule": "target", "stage_entropy_target_unit": "nats"}


@pytest.fixture(scope="module")
def batch() -> Batch:
    return random_batch()


@pytest.fixture(autouse=True)
def policy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Log-probs and entropies are a weight times the token; the network is left out."""

    def stats(params: Any, batch: Batch, **_: Any) -> tuple[jax.Array, jax.Array]:
        values = params["weight"] * (batch.completion_ids + 1.0) / CONFIG.vocab_size
        return -values, values

    monkeypatch.setattr(updates.network, "completion_stats", stats)


def update_of(**changes: Any) -> tuple[Any, Any]:
    """The update of a recipe, and the state that it starts from."""
    config, params = tiny_recipe(**changes), {"weight": jnp.float32(1.0)}
    step = functools.partial(train_step, config=config, decoder=CONFIG, optimizer=OPTIMIZER)
    return step, init_state(params, OPTIMIZER, config.crpo)


def program_text(batch: Batch, **changes: Any) -> str:
    """The update of a recipe before it is compiled."""
    step, state = update_of(**changes)
    return str(jax.make_jaxpr(step)(state, batch))


def test_steps_of_size_0_are_the_explicit_rule(batch):
    """The same program on the same state, so the same bits."""
    explicit = program_text(batch, stage_entropy_rule="explicit", stage_entropy_coefs=BETAS)
    changes = {"stage_entropy_coefs": BETAS, **TARGET}
    assert program_text(batch, **changes, stage_entropy_step=0.0) == explicit
    assert program_text(batch, **changes) != explicit


def several_updates(batch: Batch, mesh: tuple[int, ...], **changes: Any) -> tuple[Any, list[Any]]:
    """The state after two steps of two updates each, and every update's metrics."""
    step, state = update_of(**changes, num_iterations=2)
    compiled, numbers = jax.jit(step), []
    for _ in range(4):
        state, metrics, _ = compiled(state, place(batch, mesh))
        numbers.append({name: float(metric.value) for name, metric in metrics.items()})
    return jax.tree.map(np.asarray, (state.params, state.entropy_control)), numbers


def test_coefficients_move_once_a_step_whatever_computes_it(batch):
    """By the second update's entropies, over all micro-batches and devices."""
    targets = (9.0, 0.01, 9.0, 9.0, 0.01)
    changes = {**TARGET, "stage_entropy_targets": targets, "stage_entropy_step": 0.01}
    changes |= {"entropy_bonus_rule": "adaptive", "entropy_bonus_target": 9.0}
    (params, control), numbers = several_updates(batch, (1,), **changes)
    alphas = [n["entropy_bonus/alpha"] for n in numbers]
    np.testing.assert_allclose(alphas, [0, 0, 1e-4, 1e-4], rtol=1e-6)
    # The bonus is in the loss from the second step on: its value is that of the formula.
    assert [n["entropy_bonus/on"] for n in numbers] == [0, 0, 1, 1]
    bonus = -1e-4 * numbers[2]["entropy"]
    np.testing.assert_allclose(numbers[2]["loss/entropy_bonus"], bonus, rtol=1e-5)
    np.testing.assert_allclose(control.bonus.alpha, 2e-4, rtol=1e-6)
    d = 0.01 * np.array([-1, 1, -1, -1, 1])
    of_updates = [[n[f"beta/stage/{name}"] for name in STAGE_NAMES] for n in numbers]
    np.testing.assert_allclose(of_updates, [0 * d, 0 * d, d, d], rtol=1e-6)
    np.testing.assert_allclose(control.stages.betas, 2 * d, rtol=1e-6)
    assert [numbers[0][f"entropy_target/stage/{name}"] for name in STAGE_NAMES] == [
        np.float32(target) for target in targets
    ]
    others, _ = several_updates(batch, (4,), **changes, micro_batches=2)
    assert_close((params, control), others)


def test_relative_targets_are_of_the_last_update_of_each_step(batch):
    """The mean of what the second updates measured, over all micro-batches."""
    changes = {**TARGET, "stage_entropy_target_unit": "relative", "stage_entropy_start_steps": 2}
    (_, control), numbers = several_updates(batch, (1,), **changes, micro_batches=2)
    measured = [[numbers[i][f"entropy/stage/{name}"] for name in STAGE_NAMES] for i in (1, 3)]
    np.testing.assert_allclose(control.stages.start_entropies, np.mean(measured, 0), rtol=1e-6)
    expected = np.mean(measured, 0) * [1.1, 1.1, 1.0, 0.8, 0.6]
    np.testing.assert_allclose(control.stages.targets, expected, rtol=1e-6)
    assert numbers[0]["entropy/stage/stimulus"] != numbers[1]["entropy/stage/stimulus"]
