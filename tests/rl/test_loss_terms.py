"""Every formula of the objective against numbers worked out by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

from mental_r1_jax.config import CrpoConfig
from mental_r1_jax.rl.loss_terms import (
    aggregate,
    clipped_surrogate,
    kl_penalty,
    probability_ratio,
    sampler_weight,
    stage_coefficients,
    stage_entropy,
    top_entropy_mask,
    weighted_logprob_loss,
)


def one_token(
    ratio: float, advantage: float, dual_clip: float | None = None
) -> tuple[Array, Array]:
    """Loss of one token and its derivative by the ratio."""

    def loss(r: Array) -> Array:
        return clipped_surrogate(
            r.reshape(1, 1, 1), jnp.array([[advantage]]), 0.2, 0.3, dual_clip
        ).sum()

    return jax.value_and_grad(loss)(jnp.float32(ratio))


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient"),
    [
        (2.0, -1.0, 2.0, 1.0),  # moved the wrong way: the loss grows, the gradient pulls back
        (0.5, -1.0, 0.8, 0.0),  # moved the right way far enough: clipped
        (2.0, 1.0, -1.3, 0.0),  # clipped at 1 + epsilon_high
        (0.5, 1.0, -0.5, -1.0),
        (1.0, 1.0, -1.0, -1.0),  # on policy: the full gradient for either sign
        (1.0, -1.0, 1.0, 1.0),
        (1.25, 2.0, -2.5, -2.0),  # inside the wider upper range
        (1.0, 0.0, 0.0, 0.0),
    ],
)
def test_clip_for_positive_and_negative_advantages(
    ratio: float, advantage: float, loss: float, gradient: float
) -> None:
    """The clip is not inverted for negative advantages."""
    np.testing.assert_allclose(one_token(ratio, advantage), (loss, gradient), rtol=1e-6)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient"),
    [
        (2.0, -1.0, 2.0, 1.0),  # below the bound
        (5.0, -1.0, 3.0, 0.0),  # min(5, 3 * 1)
        (5.0, -2.0, 6.0, 0.0),
        (5.0, 1.0, -1.3, 0.0),  # no effect on positive advantages
        (0.5, -1.0, 0.8, 0.0),
    ],
)
def test_dual_clip_bounds_the_loss_of_negative_advantages(
    ratio: float, advantage: float, loss: float, gradient: float
) -> None:
    np.testing.assert_allclose(
        one_token(ratio, advantage, dual_clip=3.0), (loss, gradient), rtol=1e-6
    )


@pytest.mark.parametrize(
    ("ratio", "weight"),
    [(0.5, 0.8), (0.9, 0.9), (1.25, 1.25), (2.0, 1.3)],  # clipped to [0.8, 1.3]
)
@pytest.mark.parametrize("advantage", [2.0, -1.0])
def test_cispo_clips_the_weight_and_every_token_keeps_its_gradient(
    ratio: float, weight: float, advantage: float
) -> None:
    """l = -weight A p at p = -1.5; where the clipped surrogate has gradient 0 this has its own."""

    def loss(p: Array) -> Array:
        ratios = jnp.full((1, 1, 1), ratio) * jnp.exp(p + 1.5)  # moves with p, as in training
        tokens = p.reshape(1, 1, 1)
        return weighted_logprob_loss(ratios, tokens, jnp.array([[advantage]]), 0.2, 0.3).sum()

    ours = jax.value_and_grad(loss)(jnp.float32(-1.5))
    np.testing.assert_allclose(ours, (1.5 * weight * advantage, -weight * advantage), rtol=1e-6)


def test_the_top_share_of_entropies_is_of_all_valid_tokens() -> None:
    """Seven valid tokens: a share of 0.3 is round(2.1) = 2 of them, of 0.01 still one."""
    entropies = jnp.array([[[0.1, 0.9, 0.5, 99.0], [0.7, 0.7, 0.2, 0.0]]])
    mask = jnp.array([[[True, True, True, False], [True, True, True, True]]])

    def kept(share: float) -> list[list[int]]:
        return np.argwhere(top_entropy_mask(entropies, mask, share)[0]).tolist()

    assert kept(0.01) == [[0, 1]]
    assert kept(0.3) == [[0, 1], [1, 0], [1, 1]]  # the tie with the second is kept
    assert kept(0.6) == [[0, 1], [0, 2], [1, 0], [1, 1]]
    np.testing.assert_array_equal(top_entropy_mask(entropies, mask, 1.0), mask)
    assert not top_entropy_mask(entropies, mask & False, 0.5).any()


def test_sampler_weights_by_hand() -> None:
    difference = np.log([[[0.25, 0.5, 0.8, 1.0, 1.9, 4.0, 6.0]]])
    sampler = jnp.full(difference.shape, -3.0)
    policy = jnp.asarray(difference - 3.0, jnp.float32)
    tis, icepop, off = (sampler_weight(policy, sampler, c) for c in ("tis", "icepop", "off"))
    np.testing.assert_allclose(tis, [[[0.25, 0.5, 0.8, 1, 1.9, 2, 2]]], rtol=1e-6)
    np.testing.assert_allclose(icepop[0, 0, 2:], [0.8, 1, 1.9, 4, 0], rtol=1e-6)
    assert icepop[0, 0, 0] == 0 and (off == 1).all()
    far = sampler_weight(jnp.full((1, 1, 1), 0.0), jnp.full((1, 1, 1), -1e4), "tis")
    assert far == 2.0  # bounded before `exp`, which would be infinite
    gradient = jax.grad(lambda p: sampler_weight(p, sampler, "tis").sum())(policy)
    assert not gradient.any()


def test_each_token_may_have_an_advantage_of_its_own() -> None:
    ratio = jnp.array([[[2.0, 2.0, 0.5], [0.5, 1.0, 1.0]]])
    advantages = jnp.array([[[1.0, -1.0, 3.0], [-2.0, 0.0, 5.0]]])
    losses = clipped_surrogate(ratio, advantages, 0.2, 0.3)
    np.testing.assert_allclose(losses, [[[-1.3, 2.0, -1.5], [1.6, 0.0, -5.0]]], rtol=1e-6)


LOGPROBS = jnp.array([[[-1.0, -2.0, -0.5], [-1.0, -1.0, -7.0]]])
OLD = jnp.array([[[-1.5, -2.0, -0.25], [-1.2, -0.4, 3.0]]])
MASK = jnp.array([[[True, True, True], [True, True, False]]])


def test_token_ratio_hand_values_and_gradient() -> None:
    ratio = probability_ratio(LOGPROBS, OLD, "token", MASK)
    expected = np.exp([[[0.5, 0.0, -0.25], [0.2, -0.6, 0.0]]])
    np.testing.assert_allclose(ratio, expected, rtol=1e-6)
    gradient = jax.grad(lambda p: probability_ratio(p, OLD, "token", MASK).sum())(LOGPROBS)
    np.testing.assert_allclose(gradient, np.where(MASK, expected, 0), rtol=1e-6)


def test_sequence_ratio_hand_values_and_gradient() -> None:
    """s = exp(mean log-ratio) on every token; its derivative by each of n log-probs is s / n."""
    expected = np.exp([0.25 / 3, -0.4 / 2])
    ratio = probability_ratio(LOGPROBS, OLD, "sequence", MASK)
    np.testing.assert_allclose(ratio, np.repeat(expected, 3).reshape(1, 2, 3), rtol=1e-6)
    gradient = jax.grad(lambda p: probability_ratio(p, OLD, "sequence", MASK)[0, :, 0].sum())(
        LOGPROBS
    )
    by_hand = np.where(MASK, (expected / [3, 2])[:, None], 0)
    np.testing.assert_allclose(gradient, by_hand, rtol=1e-6)


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_stop_gradient_is_on_the_old_policy_and_nowhere_else(level: str) -> None:
    def total(logprobs: Array, old: Array) -> Array:
        return probability_ratio(logprobs, old, level, MASK).sum()

    by_new, by_old = jax.grad(total, argnums=(0, 1))(LOGPROBS, OLD)
    assert jnp.all((by_new != 0) == MASK)
    np.testing.assert_array_equal(by_old, np.zeros_like(OLD))


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_without_old_logprobs_the_ratio_is_one_and_has_a_gradient(level: str) -> None:
    """sum_i w_i r_i with r = 1 has gradient w_i ("token") or their mean over a row ("sequence")."""
    weights = jnp.array([[[1.0, 2.0, 6.0], [-3.0, 5.0, 9.0]]]) * MASK

    def total(logprobs: Array) -> Array:
        return jnp.sum(weights * probability_ratio(logprobs, None, level, MASK))

    value, gradient = jax.value_and_grad(total)(LOGPROBS)
    assert value == 11.0
    rows = {"token": weights, "sequence": jnp.array([[[3.0] * 3, [1.0, 1.0, 0.0]]])}
    np.testing.assert_allclose(gradient, rows[level], rtol=1e-6)


@pytest.mark.parametrize(
    ("estimator", "value", "gradient"),
    [
        ("k1", np.log(2), 1.0),
        ("k2", np.log(2) ** 2 / 2, np.log(2)),
        ("k3", 0.5 + np.log(2) - 1, 1 - 0.5),  # exp(q - p) = 1/2
        # At ratio 1 the value is k3's; the gradient has k3 itself more.
        ("k3_corrected", 0.5 + np.log(2) - 1, 1 - 0.5 + 0.5 + np.log(2) - 1),
    ],
)
def test_kl_hand_values_where_the_policy_is_twice_as_likely(
    estimator: str, value: float, gradient: float
) -> None:
    ours = jax.value_and_grad(lambda p: kl_penalty(p, jnp.log(jnp.float32(0.2)), estimator))(
        jnp.log(jnp.float32(0.4))
    )
    np.testing.assert_allclose(ours, (value, gradient), rtol=1e-6)


def expected_gradient(estimator: str, *, weigh: bool = False) -> np.ndarray:
    """E_{a ~ p}[d/dz estimator(log p_a, log q_a)] by summing over the five tokens.

    The sampling probabilities are constants, as they are in training. With `weigh` the estimator is
    multiplied by the ratio p / stop_gradient(p), through which the choice of tokens is trained too.
    """

    def loss(logits: Array) -> Array:
        logp = jax.nn.log_softmax(logits)
        sampled = jax.lax.stop_gradient(jnp.exp(logp))
        ratio = jnp.exp(logp) / sampled if weigh else 1.0
        return jnp.sum(sampled * ratio * kl_penalty(logp, REFERENCE, estimator))

    return np.asarray(jax.grad(loss)(LOGITS))


LOGITS = jnp.array([0.3, -1.2, 0.8, 0.0, 1.5])
REFERENCE = jax.nn.log_softmax(jnp.array([1.0, 0.2, -0.5, 0.4, -0.3]))
P = np.exp(np.asarray(LOGITS, np.float64)) / np.exp(np.asarray(LOGITS, np.float64)).sum()
Q = np.exp(np.asarray(REFERENCE, np.float64))
# By hand, d/dz_j of sum_a p_a ln(p_a / q_a), and of sum_a q_a ln(q_a / p_a):
EXACT_KL_OF_POLICY_TO_REFERENCE = P * (np.log(P / Q) - np.sum(P * np.log(P / Q)))
EXACT_KL_OF_REFERENCE_TO_POLICY = P - Q


def test_k1_as_a_loss_has_zero_gradient_in_expectation() -> None:
    np.testing.assert_allclose(expected_gradient("k1"), np.zeros(5), atol=1e-7)
    assert np.abs(EXACT_KL_OF_POLICY_TO_REFERENCE).max() > 0.1  # while the KL itself has one


def test_k2_as_a_loss_has_the_gradient_of_the_exact_kl() -> None:
    np.testing.assert_allclose(expected_gradient("k2"), EXACT_KL_OF_POLICY_TO_REFERENCE, atol=1e-6)


def test_k3_as_a_loss_has_the_gradient_of_the_exact_reverse_kl() -> None:
    """The direction is KL(reference || policy); weighed with the ratio it is the other one."""
    np.testing.assert_allclose(expected_gradient("k3"), EXACT_KL_OF_REFERENCE_TO_POLICY, atol=1e-6)
    np.testing.assert_allclose(
        expected_gradient("k3", weigh=True), EXACT_KL_OF_POLICY_TO_REFERENCE, atol=1e-6
    )


def test_corrected_k3_is_unbiased_whoever_sampled() -> None:
    """Value and gradient are those of KL(policy || reference), summed over tokens of any policy."""
    old = jax.nn.log_softmax(jnp.array([-0.4, 0.9, 0.1, 0.6, -1.0]))
    for sampled in (jax.nn.log_softmax(LOGITS), old):

        def loss(logits: Array, sampled: Array = sampled) -> Array:
            logp = jax.nn.log_softmax(logits)
            return jnp.sum(jnp.exp(sampled) * kl_penalty(logp, REFERENCE, "k3_corrected", sampled))

        value, gradient = jax.value_and_grad(loss)(LOGITS)
        np.testing.assert_allclose(value, np.sum(P * np.log(P / Q)), rtol=1e-6)
        np.testing.assert_allclose(gradient, EXACT_KL_OF_POLICY_TO_REFERENCE, atol=1e-6)


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_k1_and_k3_have_the_value_of_the_exact_kl_in_expectation(estimator: str) -> None:
    values = np.asarray(kl_penalty(jnp.log(jnp.asarray(P, jnp.float32)), REFERENCE, estimator))
    np.testing.assert_allclose(np.sum(P * values), np.sum(P * np.log(P / Q)), rtol=1e-6)


PER_TOKEN = jnp.array([[[1.0, 2.0, 3.0, jnp.nan], [10.0, jnp.nan, jnp.nan, jnp.nan]]])
COUNTED = jnp.array([[[True, True, True, False], [True, False, False, False]]])


@pytest.mark.parametrize(
    ("how", "expected"),
    [("token", 16 / 4), ("sequence", (2 + 10) / 2), ("dr_grpo", 16 / (2 * 8))],
)
def test_aggregation_hand_values(how: str, expected: float) -> None:
    assert aggregate(PER_TOKEN, COUNTED, how, max_completion_length=8).value == expected


def test_an_empty_completion_counts_in_the_mean_over_sequences() -> None:
    empty = COUNTED.at[0, 1].set(False)
    assert aggregate(PER_TOKEN, empty, "sequence", 8).value == 2 / 2
    assert aggregate(PER_TOKEN, empty, "token", 8).value == 2.0


def test_stage_coefficients_are_the_papers() -> None:
    np.testing.assert_allclose(
        stage_coefficients(CrpoConfig()),
        [-0.05920, -0.05431, -0.02773, 0.02773, 0.05431],
        atol=5e-6,
    )
    assert stage_coefficients(CrpoConfig(stage_entropy_rule="off")) == (0.0,) * 5
    explicit = (1.0, 0.0, -2.0, 3.0, 4.0)
    given = CrpoConfig(stage_entropy_rule="explicit", stage_entropy_coefs=explicit)
    assert stage_coefficients(given) == explicit
    scaled = stage_coefficients(CrpoConfig(stage_entropy_scale=2.0, stage_entropy_threshold=1.0))
    # 2 tanh(0) and 2 tanh(1), with tanh(1) = (e^2 - 1) / (e^2 + 1)
    assert scaled[0] == 0.0
    assert scaled[1] == pytest.approx(2 * (np.e**2 - 1) / (np.e**2 + 1), rel=1e-12)


def test_stage_entropy_hand_values_with_overlap_and_a_missing_stage() -> None:
    entropies = jnp.array([[[1.0, 2.0, 4.0, jnp.nan]]])
    stage_mask = jnp.array(
        [[[[True, True, False, False], [False, True, True, False], [False] * 4]]]
    )
    means, present = stage_entropy(entropies, stage_mask)
    np.testing.assert_array_equal(means, [[[1.5, 3.0, 0.0]]])
    np.testing.assert_array_equal(present, [[[True, True, False]]])
