"""Steered entropy coefficients: traces by hand, and a closed loop with a policy that answers."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mental_r1_jax.objective import STAGE_NAMES, CrpoConfig
from mental_r1_jax.rl.entropy_control import (
    MeasuredEntropies,
    entropy_weights,
    next_control,
    start_control,
)
from mental_r1_jax.rl.losses import crpo_loss, loss_denominators
from tests.rl.batches import random_step

NAN = float("nan")


def target(**changes: Any) -> CrpoConfig:
    return CrpoConfig(stage_entropy_rule="target", **changes)


def trace(crpo: CrpoConfig, entropies: list[list[float]]) -> list[Any]:
    """The state before the first step and after each, as arrays."""
    states = [start_control(crpo)]
    for measured in entropies:
        states.append(
            next_control(states[-1], MeasuredEntropies(jnp.array(measured), jnp.float32(0)), crpo)
        )
    return [state.stages for state in states]


def test_a_trace_by_hand() -> None:
    """M = 0.25, d = 0.125, zone 5%: above, below, inside, missing, and at the edge of the zone."""
    crpo = target(
        stage_entropy_target_unit="nats",
        stage_entropy_targets=(1.0, 1.0, 1.0, 1.0, 2.0),
        stage_entropy_scale=0.25,
        stage_entropy_step=0.125,
        stage_entropy_coefs=(0.0, 0.0, -0.125, 0.125, 0.0),
    )
    states = trace(
        crpo,
        [
            [1.5, 0.5, 1.04, NAN, 2.09],
            [1.5, 0.5, 0.96, 0.5, 2.11],
            [1.5, 0.5, 0.94, 1.5, 1.0],
            [0.5, 1.0, float("inf"), 1.5, 1.91],
        ],
    )
    np.testing.assert_array_equal(
        [state.betas for state in states],
        [
            [0.0, 0.0, -0.125, 0.125, 0.0],
            [0.125, -0.125, -0.125, 0.125, 0.0],
            [0.25, -0.25, -0.125, 0.0, 0.125],
            [0.25, -0.25, -0.25, 0.125, 0.0],
            [0.125, -0.25, -0.25, 0.25, 0.0],
        ],
    )


def test_relative_targets_are_measured_first_and_then_kept() -> None:
    """Two steps a stage; one that a stage missed does not count, and none of them moves a beta."""
    crpo = target(
        stage_entropy_start_steps=2, stage_entropy_targets=(1.5, 1.0, 1.0, 0.5, 0.5), kl_coef=0.0
    )
    rows = [[1.0, 1.0, NAN, 2.0, 4.0], [2.0, 3.0, 1.0, 4.0, NAN], [9.0, 9.0, 3.0, 9.0, 4.0]]
    states = trace(crpo, rows)
    np.testing.assert_array_equal(
        [state.targets for state in states],
        [[NAN] * 5, [NAN] * 5, [2.25, 2.0, NAN, 1.5, NAN], [2.25, 2.0, 2.0, 1.5, 2.0]],
    )
    assert states[-1].start_steps.tolist() == [2] * 5
    np.testing.assert_array_equal([state.betas for state in states[:3]], np.zeros((3, 5)))
    d = np.float32(crpo.stage_entropy_step)
    np.testing.assert_array_equal(states[3].betas, [d, d, 0.0, d, 0.0])


@pytest.mark.parametrize("start", [0.3, 3.0], ids=["from below", "from above"])
@pytest.mark.parametrize("answer", [5.0, 40.0], ids=["a slow policy", "a quick policy"])
def test_a_policy_that_answers_is_brought_to_every_target(start: float, answer: float) -> None:
    """H follows an equilibrium that beta lowers, with a lag; it ends and stays within the zone.

    The equilibrium without any beta lies at the start, so beta has to hold the entropy there.
    """
    targets = np.array([1.5, 1.2, 1.0, 0.8, 0.5])
    crpo = target(
        stage_entropy_target_unit="nats",
        stage_entropy_targets=tuple(targets),
        stage_entropy_scale=1.0,
        stage_entropy_step=5e-4,
    )
    step = jax.jit(
        lambda state, entropies: next_control(
            state, MeasuredEntropies(entropies, jnp.float32(0)), crpo
        )
    )
    state, entropies, history = start_control(crpo), np.full(5, start), []
    for _ in range(1500):
        state = step(state, jnp.asarray(entropies, jnp.float32))
        equilibrium = np.maximum(start - answer * np.asarray(state.stages.betas), 0.0)
        entropies = entropies + 0.3 * (equilibrium - entropies)
        history.append(entropies)
    late = np.array(history[-200:])
    # Once inside, a step of beta moves the equilibrium by answer * d.
    assert (np.abs(late - targets) <= 0.05 * targets + 2 * answer * 5e-4).all()
    assert (np.sign(np.asarray(state.stages.betas)) == np.sign(start - targets)).all()
    assert np.abs(np.asarray(state.stages.betas)).max() <= 1.0


def test_a_target_out_of_reach_ends_at_the_bound() -> None:
    crpo = target(stage_entropy_target_unit="nats", stage_entropy_scale=0.001)
    betas = np.asarray(trace(crpo, [[0.01] * 5] * 20)[-1].betas)
    np.testing.assert_array_equal(betas, np.full(5, -np.float32(0.001)))


def test_steered_coefficients_weigh_the_loss_as_explicit_ones_do() -> None:
    """The loss has + sum_t beta_t Hbar_t in both; the gradient of each token's entropy shows it."""
    step, betas = random_step(3), (0.5, -0.25, 0.125, 0.0, -1.0)
    given = CrpoConfig(stage_entropy_rule="explicit", stage_entropy_coefs=betas)
    steered = target(stage_entropy_scale=1.0, stage_entropy_coefs=betas)
    denominators = loss_denominators(step.batch, given, 9)

    def gradient(crpo: CrpoConfig, control: Any) -> jax.Array:
        def loss(entropies: jax.Array, control: Any) -> jax.Array:
            weights = entropy_weights(crpo, control)
            arguments = (step.batch, step.advantages, denominators, crpo, 9, weights)
            return crpo_loss(step.logprobs, entropies, *arguments)[0]

        return jax.jit(jax.grad(loss))(step.entropies, control)

    expected = gradient(given, None)
    # The compiler folds the constants of the explicit rule, which rounds otherwise.
    np.testing.assert_allclose(gradient(steered, start_control(steered)), expected, rtol=1e-6)
    assert np.abs(expected).max() > 0.01


def test_a_trace_of_the_adaptive_bonus_by_hand() -> None:
    """H* = 1, d = 0.25, max 0.5: down to 0, up to the bound, nothing measured, at the target."""
    crpo = CrpoConfig(
        entropy_bonus_rule="adaptive",
        entropy_bonus_coef=0.25,
        entropy_bonus_target=1.0,
        entropy_bonus_step=0.25,
        entropy_bonus_max=0.5,
    )
    state, alphas, weights = start_control(crpo), [], []
    for entropy in (2.0, 3.0, 0.5, 0.5, 0.5, NAN, 1.0, 0.5):
        alphas.append(float(state.bonus.alpha))
        weights.append(float(entropy_weights(crpo, state).bonus))
        state = next_control(state, MeasuredEntropies(jnp.zeros(5), jnp.float32(entropy)), crpo)
    assert alphas == [0.25, 0.0, 0.0, 0.25, 0.5, 0.5, 0.5, 0.25]
    assert weights == [0.0, 0.0, 0.0, 0.25, 0.5, 0.5, 0.5, 0.0]


def test_the_adaptive_bonus_keeps_a_collapsing_entropy_near_its_target() -> None:
    """An entropy that falls by itself, and that the bonus raises."""
    crpo = CrpoConfig(entropy_bonus_rule="adaptive", entropy_bonus_target=0.5)

    @jax.jit
    def answer(state: Any, entropy: jax.Array) -> tuple[Any, jax.Array]:
        entropy = entropy + 0.1 * (200.0 * entropy_weights(crpo, state).bonus - entropy)
        return next_control(state, MeasuredEntropies(jnp.zeros(5), entropy), crpo), entropy

    state, entropy, history = start_control(crpo), jnp.float32(1.0), []
    for _ in range(600):
        state, entropy = answer(state, entropy)
        history.append(float(entropy))
    assert 0.35 < min(history[-300:]) and max(history[-300:]) < 0.65


def test_nothing_is_steered_unless_the_recipe_says_so() -> None:
    assert start_control(CrpoConfig()) is None
    assert len(entropy_weights(CrpoConfig()).stages) == len(STAGE_NAMES)
    with pytest.raises(ValueError, match="expected a state of the coefficients, got None"):
        entropy_weights(target())
    with pytest.raises(ValueError, match="adaptive expected a state"):
        entropy_weights(CrpoConfig(entropy_bonus_rule="adaptive"))
