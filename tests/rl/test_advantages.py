"""Advantages against numbers worked out by hand and against PyTorch's std."""

from __future__ import annotations

import itertools
import typing
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mental_r1_jax import sharding
from mental_r1_jax.config import STAGE_NAMES, CrpoConfig
from mental_r1_jax.rl import advantages as estimators
from mental_r1_jax.rl.advantages import (
    divide_by_batch_std,
    divide_by_group_std,
    relative_to_baseline,
    relative_to_mean,
    relative_to_others,
)
from mental_r1_jax.types import Batch

SCALES = ("group", "batch", "none")
BASELINES = ("mean", "leave_one_out")
CHOICES = ("scale_rewards", "advantage_baseline")
REWARDS = jnp.array([[1.0, 2.0, 3.0], [0.0, 0.0, 6.0]])


def chosen(scale: str, baseline: str = "mean") -> CrpoConfig:
    return CrpoConfig(scale_rewards=scale, advantage_baseline=baseline)


def advantages(
    rewards: Any,
    crpo: CrpoConfig,
    baseline: Any = None,
    lengths: Any = None,
    places: int = 6,
    **logprobs: Any,
) -> Any:
    """Advantages of a step of which only these rewards and lengths (one token each) matter."""
    lengths = np.ones(rewards.shape, int) if lengths is None else np.asarray(lengths)
    mask = np.arange(places) < lengths[..., None]
    nothing = np.zeros(mask.shape, np.float32)
    batch = Batch(
        prompt_ids=np.ones((len(rewards), 1), np.int32),
        prompt_mask=np.ones((len(rewards), 1), bool),
        completion_ids=np.zeros(mask.shape, np.int32),
        completion_mask=mask,
        stage_mask=np.zeros((*rewards.shape, len(STAGE_NAMES), places), bool),
        rewards=rewards,
        sampler_logprobs=nothing,
        baseline_rewards=baseline,
        **({"decode_logprobs": nothing} | logprobs),
    )
    return estimators.advantages(batch, crpo)


def test_hand_computed_group_scale() -> None:
    # std of (1, 2, 3) is 1, of (0, 0, 6) is sqrt((4 + 4 + 16) / 2) = sqrt(12)
    first, second = 1 / (1 + 1e-4), 2 / (12**0.5 + 1e-4)
    expected = [[-first, 0.0, first], [-second, -second, 2 * second]]
    np.testing.assert_allclose(advantages(REWARDS, chosen("group")), expected, rtol=1e-6)
    differences = jnp.array([[-1.0, 0.0, 1.0], [-2.0, -2.0, 4.0]])
    np.testing.assert_allclose(divide_by_group_std(differences, REWARDS), expected, rtol=1e-6)


def test_hand_computed_batch_scale() -> None:
    # mean 2; std of all six is sqrt((1 + 0 + 1 + 4 + 4 + 16) / 5) = sqrt(5.2)
    expected = jnp.ones((2, 3)) / (5.2**0.5 + 1e-4)
    np.testing.assert_allclose(divide_by_batch_std(jnp.ones((2, 3)), REWARDS), expected, rtol=1e-6)


def test_hand_computed_differences() -> None:
    np.testing.assert_allclose(relative_to_mean(REWARDS), [[-1, 0, 1], [-2, -2, 4]], rtol=1e-6)
    # the others' means: (2.5, 2, 1.5) and (3, 3, 0)
    np.testing.assert_allclose(
        relative_to_others(REWARDS), [[-1.5, 0, 1.5], [-3, -3, 6]], rtol=1e-6
    )
    np.testing.assert_allclose(
        relative_to_baseline(REWARDS, jnp.array([1.0, -2.0])), [[0, 1, 2], [2, 2, 8]], rtol=1e-6
    )


GOLDEN = np.array([[1.5, -0.5, 0.5, -1.5], [0.5, 0.5, 0.5, -1.0]])
GREEDY = np.array([0.5, -1.0])
LENGTHS = np.array([[2, 4, 3, 1], [1, 1, 2, 6]])


def whitened_one_token_at_a_time(differences: np.ndarray) -> np.ndarray:
    """REINFORCE++'s last step on a list of tokens, as its paper tells it."""
    tokens = np.repeat(differences.ravel(), LENGTHS.ravel())
    assert len(tokens) == 20
    return (differences - tokens.mean()) / tokens.std()


# method -> its keys, the baseline it is given, its advantages (group means are 0 and 0.125)
PUBLISHED = {
    "rloo": ("none", "leave_one_out", None, [[2, -2 / 3, 2 / 3, -2], [0.5, 0.5, 0.5, -1.5]]),
    "remax": ("none", "greedy", GREEDY, [[1, -1, 0, -2], [1.5, 1.5, 1.5, 0]]),
    "reinforce_pp": ("tokens", "none", None, whitened_one_token_at_a_time(GOLDEN)),
    "reinforce_pp_baseline": (
        *("tokens", "mean", None),
        whitened_one_token_at_a_time(GOLDEN - [[0.0], [0.125]]),
    ),
}


@pytest.mark.parametrize("method", PUBLISHED)
def test_published_estimators_by_hand_in_numpy_and_jax(method: str) -> None:
    *keys, baseline, expected = PUBLISHED[method]
    host = advantages(GOLDEN, chosen(*keys), baseline, LENGTHS)
    assert isinstance(host, np.ndarray) and host.dtype == np.float64
    np.testing.assert_allclose(host, expected, rtol=1e-14)
    placed = None if baseline is None else jnp.asarray(baseline, jnp.float32)
    device = advantages(jnp.asarray(GOLDEN, jnp.float32), chosen(*keys), placed, LENGTHS)
    np.testing.assert_allclose(device, expected, rtol=1e-6)


def test_whitened_advantages_are_those_computed_elsewhere() -> None:
    """Six digits each, worked out apart from this file; mu -0.15 and var 0.7525 without baseline,
    mu -0.2125 and var 0.787656 with the group's mean."""
    np.testing.assert_allclose(
        advantages(GOLDEN, chosen("tokens", "none"), lengths=LENGTHS),
        [[1.902088, -0.403473, 0.749308, -1.556254], [0.749308] * 3 + [-0.979864]],
        atol=5e-7,
    )
    np.testing.assert_allclose(
        advantages(GOLDEN, chosen("tokens", "mean"), lengths=LENGTHS),
        [[1.929577, -0.323944, 0.802817, -1.450704], [0.661972] * 3 + [-1.028169]],
        atol=5e-7,
    )


def test_ragged_lengths_tell_reinforce_pp_from_scaling_by_group_or_batch() -> None:
    """Elsewhere "REINFORCE++" was GRPO: only whitening over tokens may look at the lengths."""
    equal = np.full_like(LENGTHS, 3)
    for scale in SCALES:
        ours = (advantages(GOLDEN, chosen(scale), lengths=n) for n in (LENGTHS, equal))
        np.testing.assert_array_equal(*ours)
    ragged, even = (advantages(GOLDEN, chosen("tokens"), lengths=n) for n in (LENGTHS, equal))
    assert np.abs(ragged - even).min() > 0.01
    # With equal lengths it divides by the spread of the eight differences, whose mean is 0.
    np.testing.assert_allclose(even, (GOLDEN - [[0], [0.125]]) / np.sqrt(6.6875 / 8), rtol=1e-12)


def test_completions_outside_the_mask_do_not_move_the_whitening() -> None:
    lengths = np.where(GOLDEN == 1.5, 0, LENGTHS)
    other = np.where(GOLDEN == 1.5, 40.0, GOLDEN)
    before, after = (
        advantages(r, chosen("tokens", "none"), lengths=lengths) for r in (GOLDEN, other)
    )
    np.testing.assert_allclose(before[lengths > 0], after[lengths > 0], rtol=1e-12)
    nobody = advantages(GOLDEN, chosen("tokens", "none"), lengths=0 * LENGTHS)
    assert np.isfinite(nobody).all()


@pytest.mark.parametrize("key", CHOICES)
def test_every_value_of_a_choice_changes_the_advantages(key: str) -> None:
    """An estimator that can be named but is never reached would equal another one."""
    values = typing.get_args(CrpoConfig.model_fields[key].annotation)
    results = [advantages(GOLDEN, CrpoConfig(**{key: v}), GREEDY, LENGTHS) for v in values]
    for one, other in itertools.combinations(results, 2):
        assert np.abs(one - other).max() > 0.01


def test_whitening_is_over_the_step_on_any_number_of_devices() -> None:
    rng = np.random.default_rng(3)
    rewards = rng.standard_normal((8, 4)).astype(np.float32)
    lengths = rng.integers(1, 7, rewards.shape)
    expected = advantages(rewards.astype(np.float64), chosen("tokens"), lengths=lengths)
    everywhere = jax.device_put(rewards, sharding.batch_sharding(sharding.make_mesh(8, 1, 1), 2))
    ours = jax.jit(lambda r: advantages(r, chosen("tokens"), lengths=lengths))(everywhere)
    assert len(ours.sharding.device_set) == 8
    np.testing.assert_allclose(ours, expected, atol=1e-6)


def test_a_greedy_baseline_may_be_scaled_too() -> None:
    expected = (GOLDEN - [[0.5], [-1.0]]) / (GOLDEN.std(ddof=1) + 1e-4)
    ours = advantages(GOLDEN, chosen("batch", "greedy"), GREEDY)
    np.testing.assert_allclose(ours, expected, rtol=1e-12)


def test_remax_without_its_baseline_raises() -> None:
    """Elsewhere it was lost in silence, and ReMax was REINFORCE without a baseline."""
    with pytest.raises(ValueError, match="greedy expected batch.baseline_rewards, got None"):
        advantages(GOLDEN, chosen("none", "greedy"))


# p - q of two completions of three tokens and one; the rest is padding.
KL = np.array([[[0.1, 0.2, -0.3], [0.5, np.nan, 7.0]]], np.float32)
# By hand, with kl_coef 0.2: rewards 2 and 0 less what the tokens from here on are charged.
RETURNS = np.array([2 - 0.2 * 0.0, 2 + 0.2 * 0.1, 2 + 0.2 * 0.3, 0 - 0.2 * 0.5])


@pytest.mark.parametrize("policy", ["decode_logprobs", "old_logprobs"])
@pytest.mark.parametrize("scale", ["none", "tokens", "group"])
def test_a_kl_penalty_in_the_reward_by_hand(scale: str, policy: str) -> None:
    """The policy that sampled is the one scored for several updates, else the decoding pass's."""
    crpo = CrpoConfig(scale_rewards=scale, advantage_baseline="none", kl_in="reward", kl_coef=0.2)
    logprobs = {"ref_logprobs": -1.0 - KL, policy: np.full(KL.shape, -1.0, np.float32)}
    if policy == "old_logprobs":
        logprobs["decode_logprobs"] = np.full(KL.shape, 9.0, np.float32)
    given = {"lengths": [[3, 1]], "places": 3}
    ours = advantages(np.array([[2.0, 0.0]], np.float32), crpo, **given, **logprobs)
    std = 2**0.5 + 1e-4  # of (2, 0); it divides the scalar reward alone
    expected = {
        "none": RETURNS,
        "tokens": (RETURNS - RETURNS.mean()) / RETURNS.std(),
        "group": RETURNS - [2, 2, 2, 0] + np.array([2, 2, 2, 0]) / std,
    }[scale]
    assert ours.shape == KL.shape
    np.testing.assert_allclose([*ours[0, 0], ours[0, 1, 0]], expected, rtol=1e-5)
    mask = np.array([[[True] * 3, [True, False, False]]])
    shown = estimators.of_completions(ours, jnp.asarray(mask))
    np.testing.assert_allclose(shown, [[expected[:3].mean(), expected[3]]], rtol=1e-5)


def test_a_kl_penalty_in_the_reward_needs_the_reference() -> None:
    with pytest.raises(ValueError, match=r"kl_in=reward expected batch\.ref_logprobs"):
        advantages(GOLDEN, CrpoConfig(kl_in="reward"))
    off = CrpoConfig(kl_in="reward", kl_coef=0.0)
    np.testing.assert_array_equal(advantages(GOLDEN, off), advantages(GOLDEN, CrpoConfig()))


def test_epsilon_is_added_to_the_std() -> None:
    # Of (0, 2e-4) the std is sqrt(2) * 1e-4, as small as epsilon.
    np.testing.assert_allclose(
        advantages(jnp.array([[0.0, 2e-4]]), chosen("group")),
        np.array([[-1.0, 1.0]]) / (2**0.5 + 1),
        rtol=1e-6,
    )


@pytest.mark.parametrize("scale", ["group", "batch"])
def test_standard_deviation_is_pytorchs_unbiased_one(scale: str) -> None:
    torch = pytest.importorskip("torch", reason="compares with PyTorch")
    rewards = np.random.default_rng(5).standard_normal((4, 6)).astype(np.float32)
    tensor = torch.from_numpy(rewards).double()
    std = tensor.std(dim=1, keepdim=True) if scale == "group" else tensor.std()
    expected = (tensor - tensor.mean(dim=1, keepdim=True)) / (std + 1e-4)
    np.testing.assert_allclose(advantages(jnp.asarray(rewards), chosen(scale)), expected, atol=1e-6)


def test_whitened_equal_rewards_are_exact_zeros() -> None:
    """Also where the mean rounds: nothing is divided by the smallest variance but 0."""
    rewards = jnp.full((3, 3), 0.1)
    np.testing.assert_array_equal(advantages(rewards, chosen("tokens", "none")), np.zeros((3, 3)))


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("baseline", BASELINES)
def test_constant_groups_get_exact_zeros(scale: str, baseline: str) -> None:
    rewards = jnp.array([[0.1] * 3, [0.7] * 3, [-1.3] * 3])  # means that round differently
    np.testing.assert_array_equal(advantages(rewards, chosen(scale, baseline)), np.zeros((3, 3)))


@settings(max_examples=25)
@given(
    seed=st.integers(0, 2**16),
    shift=st.floats(-8, 8, width=32),
    scale=st.sampled_from(SCALES),
    baseline=st.sampled_from(BASELINES),
)
def test_shift_invariant_and_permuted_with_the_group(
    seed: int, shift: float, scale: str, baseline: str
) -> None:
    rng = np.random.default_rng(seed)
    rewards = jnp.asarray(rng.standard_normal((3, 4)), jnp.float32)
    crpo = chosen(scale, baseline)
    ours = advantages(rewards, crpo)
    shifted = advantages(rewards + jnp.float32(shift), crpo)
    # The shift itself rounds rewards by up to 8 * 2^-24, magnified by 1 / std in narrow groups.
    narrowest = 1.0 if scale == "none" else float(rewards.std(axis=1, ddof=1).min())
    np.testing.assert_allclose(shifted, ours, atol=1e-5 / min(1.0, narrowest))
    order = rng.permutation(4)
    np.testing.assert_allclose(advantages(rewards[:, order], crpo), ours[:, order], atol=1e-5)


@pytest.mark.parametrize("scale", SCALES)
def test_one_completion_has_nothing_to_compare_with(scale: str) -> None:
    with pytest.raises(ValueError, match="at least 2 completions.*num_generations"):
        advantages(jnp.ones((3, 1)), chosen(scale))
    with pytest.raises(ValueError, match="at least 2 completions"):
        advantages(jnp.ones((3, 1)), chosen(scale, "leave_one_out"))
