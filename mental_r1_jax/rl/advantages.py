"""Advantages: what a completion's reward is compared with, and what divides the difference.

Every function is one equation. Rewards are all of the step, `[B, G]`, before micro-batching, as
arrays of JAX or of NumPy; the result is of the same kind. Standard deviations of the group and of
the batch are unbiased (n - 1).
"""

from __future__ import annotations

from typing import Any

from jaxtyping import Bool, Float

from mental_r1_jax.objective import CrpoConfig
from mental_r1_jax.types import Batch

# Keeps the divisions finite, in units of reward. TRL has the same number.
EPSILON = 1e-4
# The smallest variance that whitening divides by, in squared units of reward; as in OpenRLHF.
SMALLEST_VARIANCE = 1e-8


def advantages(batch: Batch, crpo: CrpoConfig) -> Float[Any, "B G"]:
    """Compute the advantages that the recipe asks for, over the whole step.

        A_bg = (r_bg - baseline_bg) / (s_b + epsilon)

    `crpo.advantage_baseline` chooses the baseline and `crpo.scale_rewards` the divisor, or
    whitening in its place; docs/methods.md names the pairs that are published. Groups of equal
    rewards get exact zeros, if their baseline is their own and nothing is whitened.

    Args:
        batch: the whole step, before micro-batching.
        crpo: the recipe's section.

    Returns:
        Advantages, dimensionless (in units of reward where nothing divides them).

    Raises:
        ValueError: if a group of one completion is compared with itself, or the greedy baseline is
            missing.
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
        return divide_by_group_std(difference, rewards)
    if crpo.scale_rewards == "batch":
        return divide_by_batch_std(difference, rewards)
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


def whiten_over_tokens(
    differences: Float[Any, "B G"], mask: Bool[Any, "B G C"]
) -> Float[Any, "B G"]:
    """Give the differences mean 0 and variance 1 over all valid tokens of the step.

        A_bg = (d_bg - mu) / sqrt(max(var, 1e-8))
        mu = sum_bgi m_bgi d_bg / N,  var = sum_bgi m_bgi (d_bg - mu)^2 / N,  N = sum_bgi m_bgi

    A completion counts as often as it has tokens, so the result depends on the lengths, which
    dividing by the std of the group or of the batch does not. Equal differences give exact zeros.

    References:
        Hu et al. 2025, "REINFORCE++" (arXiv 2501.03262).
    """
    shifted = differences - differences[:1, :1]  # leaves the result alone; equal ones become 0
    lengths = mask.sum(axis=-1)
    tokens = lengths.sum().clip(min=1)
    centred = shifted - (lengths * shifted).sum() / tokens
    variance = (lengths * centred**2).sum() / tokens
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
