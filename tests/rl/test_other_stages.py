"""Another number of stages: terms by hand, and state and metrics under the names of the grammar."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mental_r1_jax.objective import CrpoConfig
from mental_r1_jax.rl.entropy_control import (
    MeasuredEntropies,
    control_metrics,
    entropy_weights,
    measured_entropies,
    next_control,
    start_control,
)
from mental_r1_jax.rl.loss_terms import stage_coefficients
from mental_r1_jax.rl.losses import crpo_loss, loss_denominators
from mental_r1_jax.rl.masking import Sum
from tests.rl.batches import random_step

NAMES = {
    1: ("only",),
    3: ("night", "cause", "judgement"),
    20: tuple(f"s{number}" for number in range(20)),
}
on_every_number = pytest.mark.parametrize("number", NAMES)


def crpo_of(number: int, **keys: object) -> CrpoConfig:
    return CrpoConfig(kl_coef=0.0, stage_entropy_threshold=(number + 2) / 2, **keys)


@on_every_number
def test_coefficients_follow_the_formula_for_any_number(number: int) -> None:
    tau = (number + 2) / 2
    expected = [0.06 * math.tanh(t - tau) for t in range(1, number + 1)]
    np.testing.assert_allclose(stage_coefficients(crpo_of(number), NAMES[number]), expected)
    off = CrpoConfig(stage_entropy_rule="off")
    assert stage_coefficients(off, NAMES[number]) == (0.0,) * number


@pytest.mark.parametrize("number", [3, 20])
def test_the_stage_term_is_the_sum_over_these_stages(number: int) -> None:
    step = random_step(3)
    rng = np.random.default_rng(number)
    shape = step.batch.completion_mask.shape
    mask = rng.random((*shape[:2], number, shape[2])) < 0.4
    batch = dataclasses.replace(step.batch, stage_mask=jnp.asarray(mask))
    crpo, names = crpo_of(number), NAMES[number]
    denominators = loss_denominators(batch, crpo, shape[2])
    _, metrics = crpo_loss(
        *(step.logprobs, step.entropies, batch, step.advantages, denominators, crpo, shape[2]),
        stages=names,
    )
    counted = mask & np.asarray(batch.completion_mask)[:, :, None]
    entropies = np.asarray(step.entropies)[:, :, None]
    tokens = counted.sum(-1)
    means = (entropies * counted).sum(-1) / np.maximum(tokens, 1)
    expected = sum(
        0.06 * math.tanh(t + 1 - (number + 2) / 2) * means[:, :, t].mean() for t in range(number)
    )
    np.testing.assert_allclose(metrics["loss/stage_entropy"].value, expected, rtol=1e-5)
    for t, name in enumerate(names):
        there = tokens[:, :, t] > 0
        shown = metrics[f"entropy/stage/{name}"].value
        np.testing.assert_allclose(shown, means[:, :, t][there].mean(), rtol=1e-5)
        np.testing.assert_allclose(metrics[f"coverage/stage/{name}"].value, there.mean(), rtol=1e-6)
    assert sum(key.startswith("entropy/stage/") for key in metrics) == number


@on_every_number
def test_steering_has_a_coefficient_for_each_of_these_stages(number: int) -> None:
    names = NAMES[number]
    crpo = crpo_of(
        number,
        stage_entropy_rule="target",
        stage_entropy_target_unit="nats",
        stage_entropy_targets=(1.0,) * number,
        stage_entropy_step=0.01,
    )
    state = start_control(crpo, names)
    assert all(leaf.shape == (number,) for leaf in jax.tree.leaves(state))
    measured = {f"entropy/stage/{name}": Sum(jnp.float32(2.0)) for name in names[:-1]}
    measured |= {f"entropy/stage/{names[-1]}": Sum(jnp.float32(0.5)), "entropy": Sum(jnp.ones(()))}
    found = measured_entropies(measured, names)
    assert isinstance(found, MeasuredEntropies)
    after = next_control(state, found, crpo)
    expected = [0.01] * (number - 1) + [-0.01]  # above the target, and the last one below it
    np.testing.assert_allclose(entropy_weights(crpo, after, names).stages, expected, rtol=1e-6)
    shown = control_metrics(after, crpo, names)
    np.testing.assert_allclose([shown[f"beta/stage/{name}"].value for name in names], expected)


def test_masks_of_another_number_of_stages_are_refused() -> None:
    step = random_step(3)
    crpo = CrpoConfig(kl_coef=0.0)
    limit = step.batch.completion_mask.shape[-1]
    denominators = loss_denominators(step.batch, crpo, limit)
    with pytest.raises((ValueError, TypeError)):
        crpo_loss(
            *(step.logprobs, step.entropies, step.batch, step.advantages),
            *(denominators, crpo, limit),
            stages=("one", "two", "three"),
        )
