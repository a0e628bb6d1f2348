"""Group advantages against numbers worked out by hand and against PyTorch's std."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mental_r1_jax.rl.advantages import group_advantages

SCALES = ("group", "batch", "none")
BASELINES = ("mean", "leave_one_out")
REWARDS = jnp.array([[1.0, 2.0, 3.0], [0.0, 0.0, 6.0]])


def test_hand_computed_group_scale() -> None:
    # std of (1, 2, 3) is 1, of (0, 0, 6) is sqrt((4 + 4 + 16) / 2) = sqrt(12)
    expected = [[-1.0, 0.0, 1.0], [-2 / 12**0.5, -2 / 12**0.5, 4 / 12**0.5]]
    np.testing.assert_allclose(group_advantages(REWARDS, epsilon=0.0), expected, rtol=1e-6)


def test_hand_computed_none_and_leave_one_out() -> None:
    np.testing.assert_allclose(
        group_advantages(REWARDS, scale="none"), [[-1, 0, 1], [-2, -2, 4]], rtol=1e-6
    )
    # the others' means: (2.5, 2, 1.5) and (3, 3, 0)
    np.testing.assert_allclose(
        group_advantages(REWARDS, scale="none", baseline="leave_one_out"),
        [[-1.5, 0, 1.5], [-3, -3, 6]],
        rtol=1e-6,
    )


def test_epsilon_is_added_to_the_std() -> None:
    np.testing.assert_allclose(
        group_advantages(jnp.array([[0.0, 2.0]]), epsilon=1.0),
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
    np.testing.assert_allclose(
        group_advantages(jnp.asarray(rewards), scale=scale), expected, atol=1e-6
    )


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("baseline", BASELINES)
def test_constant_groups_get_exact_zeros(scale: str, baseline: str) -> None:
    rewards = jnp.array([[0.1] * 3, [0.7] * 3, [-1.3] * 3])  # means that round differently
    advantages = group_advantages(rewards, scale=scale, baseline=baseline)
    np.testing.assert_array_equal(advantages, np.zeros((3, 3)))


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
    options = {"scale": scale, "baseline": baseline}
    advantages = group_advantages(rewards, **options)
    shifted = group_advantages(rewards + jnp.float32(shift), **options)
    # The shift itself rounds rewards by up to 8 * 2^-24, magnified by 1 / std in narrow groups.
    narrowest = 1.0 if scale == "none" else float(rewards.std(axis=1, ddof=1).min())
    np.testing.assert_allclose(shifted, advantages, atol=1e-5 / min(1.0, narrowest))
    order = rng.permutation(4)
    np.testing.assert_allclose(
        group_advantages(rewards[:, order], **options), advantages[:, order], atol=1e-5
    )


@pytest.mark.parametrize("scale", SCALES)
def test_one_completion_has_nothing_to_compare_with(scale: str) -> None:
    with pytest.raises(ValueError, match="at least 2 completions.*num_generations"):
        group_advantages(jnp.ones((3, 1)), scale=scale)
