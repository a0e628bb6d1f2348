"""Advantages: what a completion's reward is compared with, and what divides the difference.

Every function is one equation. Rewards are all of the step, `[B, G]`, before micro-batching, as
arrays of JAX or of NumPy; the result is of the same kind, but for advantages of tokens, which are
JAX's. Standard deviations of the group and of the batch are unbiased (n - 1).
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mental_r1_jax.objective import CrpoConfig
from mental_r1_jax.rl.masking import masked_mean
from mental_r1_jax.types import Batch

# Keeps the divisions finite, in units of reward. TRL has the same number.
EPSILON = 1e-4
# The smallest variance that whitening divides by, in squared units of reward; as in OpenRLHF.
SMALLEST_VARIANCE = 1e-8


def advantages(batch: Batch, crpo: CrpoConfig) -> Float[Any, "B G"] | Float[Any, "B G C"]:
    """Compute the advantages that the recipe asks for, over the whole step.

        A_bg = (r_bg - baseline_bg) / (s_b + epsilon)

    `crpo.advantage_baseline` chooses the baseline and `crpo.scale_rewards` the divisor, or
    whitening in its place; docs/methods.md names the pairs that are published. Groups of equal
    rewards get exact zeros, if their baseline is their own and nothing is whitened. With the KL
    penalty in the reward (`crpo.kl_in`) every token has an advantage of its own: returns to go of
    the penalty are added to `A_bg`, before the whitening if there is one.

    Args:
        batch: the whole step, before micro-batching.
        crpo: the recipe's section.

    Returns:
        Advantages, dimensionless (in units of reward where nothing divides them).

    Raises:
        ValueError: if a group of one completion is compared with itself, or if the greedy baseline
            or the log-probs of the reference are missing.
    """
    rewards = batch.rewards
    if crpo.advantage_baseline == "greedy":
        if batch.baseline_rewards is None:
            raise ValueError(
                "advantages: crpo.advantage_baseline=greedy expected batch.baseline_rewards, got "
                "None; decode a greedy completion of each prompt, or choose another baseline"
            )
        difference = relative_to_baseline(rewards, batch.baseline_rewards)
    elif crpo.advantage_baseline == "leave_one_out":
        difference = relative_to_others(rewards)
    elif crpo.advantage_baseline == "mean":
        difference = relative_to_mean(rewards)
    else:
        difference = rewards
    if crpo.scale_rewards == "group":
        difference = divide_by_group_std(difference, rewards)
    elif crpo.scale_rewards == "batch":
        difference = divide_by_batch_std(difference, rewards)
    if crpo.kl_in == "reward" and crpo.kl_coef > 0:
        difference = difference[..., None] + crpo.kl_coef * _kl_returns_of(batch)
    if crpo.scale_rewards == "tokens":
        return whiten_over_tokens(difference, batch.completion_mask)
    return difference


def relative_to_mean(rewards: Float[Any, "B G"]) -> Float[Any, "B G"]:
    """Compare each reward with the mean of its group: `r_bg - mean_g(r_bg)`.

    References:
        Shao et al. 2024, "DeepSeekMath", section 4.1.
    """
    relative = _relative_to_first(rewards)
    return relative - relative.mean(axis=1, keepdims=True)


def relative_to_others(rewards: Float[Any, "B G"]) -> Float[Any, "B G"]:
    """Compare each reward with the mean of the other G - 1 rewards of its group (leave one out).

        r_bg - (sum_g(r_bg) - r_bg) / (G - 1) = (r_bg - mean_g(r_bg)) * G / (G - 1)

    References:
        Kool et al. 2019, "Buy 4 REINFORCE samples, get a baseline for free!".
    """
    group_size = rewards.shape[1]
    return relative_to_mean(rewards) * (group_size / (group_size - 1))


def relative_to_baseline(
    rewards: Float[Any, "B G"], baseline: Float[Any, " B"]
) -> Float[Any, "B G"]:
    """Compare each reward with that of one further completion of its prompt: `r_bg - b_b`.

    The completion behind `b` is not in the loss, so the baseline does not bias the gradient.

    References:
        Li et al. 2023, "ReMax", where it is the greedy completion.
    """
    return rewards - baseline[:, None]


def divide_by_group_std(
    differences: Float[Any, "B G"], rewards: Float[Any, "B G"]
) -> Float[Any, "B G"]:
    """Divide by the spread of the group's rewards: `d_bg / (std_g(r_bg) + epsilon)`.

    References:
        Shao et al. 2024, "DeepSeekMath", section 4.1.
    """
    std = _relative_to_first(rewards).std(axis=1, ddof=1, keepdims=True)
    return differences / (std + EPSILON)


def divide_by_batch_std(
    differences: Float[Any, "B G"], rewards: Float[Any, "B G"]
) -> Float[Any, "B G"]:
    """Divide by the spread of all rewards of the step: `d_bg / (std(r) + epsilon)`."""
    return differences / (rewards.std(ddof=1) + EPSILON)


def kl_returns(
    logprobs: Float[Any, "B G C"], ref_logprobs: Float[Any, "B G C"], mask: Bool[Any, "B G C"]
) -> Float[Array, "B G C"]:
    """Sum what the KL penalty still takes away from each token on, undiscounted, in nats.

        R_i = -sum_{j >= i} m_j (p_j - q_j)

    with p of the policy that sampled and q of the reference: the reward of token j is
    `-kl_coef (p_j - q_j)`, the k1 estimate, and the scalar reward comes at the last token, so that
    every token's return has all of it. At the first token `-R` is the KL of the whole completion.

    References:
        Hu et al. 2025, "REINFORCE++" (arXiv 2501.03262), with discount 1.
    """
    penalty = jnp.where(mask, logprobs - ref_logprobs, 0.0)
    return -jnp.cumsum(penalty[..., ::-1], axis=-1)[..., ::-1]


def _kl_returns_of(batch: Batch) -> Float[Array, "B G C"]:
    """`kl_returns` of the policy that sampled, by what is known of it.

    With one update a rollout nobody scores it again; the decoding pass has written down the same
    log-probs, up to rounding.
    """
    if batch.ref_logprobs is None:
        raise ValueError(
            "advantages: crpo.kl_in=reward expected batch.ref_logprobs, got None; compute them "
            "with the frozen start model, or set crpo.kl_coef to 0"
        )
    policy = batch.decode_logprobs if batch.old_logprobs is None else batch.old_logprobs
    return kl_returns(policy, batch.ref_logprobs, batch.completion_mask)


def of_completions(
    advantages: Float[Any, "B G"] | Float[Any, "B G C"], mask: Bool[Any, "B G C"]
) -> Float[Any, "B G"]:
    """One advantage a completion, to be read by people: the mean over its tokens."""
    return advantages if advantages.ndim == 2 else masked_mean(advantages, mask, axis=-1)


def whiten_over_tokens(
    differences: Float[Any, "B G"] | Float[Any, "B G C"], mask: Bool[Any, "B G C"]
) -> Float[Any, "B G"] | Float[Any, "B G C"]:
    """Give the differences mean 0 and variance 1 over all valid tokens of the step.

        A_bgi = (d_bgi - mu) / sqrt(max(var, 1e-8))
        mu = sum_bgi m_bgi d_bgi / N,  var = sum_bgi m_bgi (d_bgi - mu)^2 / N,  N = sum_bgi m_bgi

    where all tokens of a completion may share one difference, `d_bgi = d_bg`. A completion counts
    as often as it has tokens, so the result depends on the lengths, which dividing by the std of
    the group or of the batch does not. Equal differences give exact zeros.

    References:
        Hu et al. 2025, "REINFORCE++" (arXiv 2501.03262).
    """
    # A shift leaves the result alone, and makes exact zeros of equal differences.
    shifted = differences - differences[(slice(1),) * differences.ndim]
    counts = mask if differences.ndim == 3 else mask.sum(axis=-1)
    tokens = mask.sum().clip(min=1)
    centred = shifted - (counts * shifted).sum() / tokens
    variance = (counts * centred**2).sum() / tokens
    return centred / variance.clip(min=SMALLEST_VARIANCE) ** 0.5


def _relative_to_first(rewards: Any) -> Any:
    """Differences to the group's first reward, which leave means and spreads as they are.

    In a constant group they are exact zeros, while `r - mean(r)` may leave a rounding error, which
    a division by epsilon alone would magnify.
    """
    if rewards.shape[1] < 2:
        raise ValueError(
            "advantages: expected at least 2 completions of a prompt to compare, got rewards of "
            f"shape {rewards.shape}; set rollout.num_generations to 2 or more"
        )
    return rewards - rewards[:, :1]
