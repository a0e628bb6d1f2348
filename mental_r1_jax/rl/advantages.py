"""Group-relative advantages: the rewards of one prompt's completions compared with each other."""

from __future__ import annotations

from typing import Any, Literal

from jaxtyping import Float


def group_advantages(
    rewards: Float[Any, "B G"],
    *,
    scale: Literal["group", "batch", "none"] = "group",
    baseline: Literal["mean", "leave_one_out"] = "mean",
    epsilon: float = 1e-4,
) -> Float[Any, "B G"]:
    """Compare every completion's reward with the rest of its group.

        A_bg = (r_bg - baseline_bg) / (s_b + epsilon)

    with `baseline` "mean": `mean_g(r_bg)`, or "leave_one_out": the mean of the other G - 1 rewards;
    and `scale` "group": `s_b = std_g(r_bg)`, "batch": `s = std(r)` over all B x G rewards, "none":
    no division. Standard deviations are unbiased (n - 1). Groups of equal rewards get exact zeros.

    Args:
        rewards: all rewards of the step; advantages are computed before micro-batching. Arrays of
            JAX or of NumPy; the advantages are of the same kind.
        scale: what the differences are divided by.
        baseline: what the rewards are compared with.
        epsilon: keeps the division finite, in units of reward.

    Returns:
        Advantages, dimensionless (in units of reward with `scale="none"`).

    Raises:
        ValueError: if the group has one completion, whose advantage would always be 0.

    References:
        Shao et al. 2024, "DeepSeekMath", section 4.1 (group mean and std); Kool et al. 2019, "Buy 4
        REINFORCE samples, get a baseline for free!" (leave one out). TRL calls the choice of scale
        `scale_rewards`.
    """
    group_size = rewards.shape[1]
    if group_size < 2:
        raise ValueError(
            "group advantages: expected at least 2 completions of a prompt to compare, got "
            f"rewards of shape {rewards.shape}; set rollout.num_generations to 2 or more"
        )
    # Differences to the group's first reward: in a constant group they are exact zeros, while
    # `r - mean(r)` may leave a rounding error, which a division by epsilon alone would magnify.
    relative = rewards - rewards[:, :1]
    advantages = relative - relative.mean(axis=1, keepdims=True)
    if baseline == "leave_one_out":
        # r - (sum(r) - r) / (G - 1) = (r - mean(r)) * G / (G - 1)
        advantages = advantages * (group_size / (group_size - 1))
    if scale == "group":
        return advantages / (relative.std(axis=1, ddof=1, keepdims=True) + epsilon)
    if scale == "batch":
        return advantages / (rewards.std(ddof=1) + epsilon)
    return advantages
