"""The CRPO objective: clipped policy loss, KL penalty and stage-wise entropy.

    L = L_policy + kl_coef * KL + sum_t beta_t * Hbar_t - entropy_bonus_coef * mean(H)

Every term is a sum over the tokens or completions of a micro-batch, divided by a weight of the
whole step (`loss_denominators`). The losses of the micro-batches therefore add up to the loss of
the step, and so do their gradients, however it is cut and over however many devices it is spread.

All log-probabilities and entropies are in nats; every loss is dimensionless. The formulas of the
terms are in `loss_terms`.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mental_r1_jax.rl.loss_terms import (
    Aggregation,
    KlEstimator,
    RatioLevel,
    aggregate,
    clipped_surrogate,
    kl_penalty,
    probability_ratio,
    stage_coefficients,
    stage_entropy,
)
from mental_r1_jax.rl.masking import (
    Metric,
    Sum,
    SumWeight,
    masked_sum,
    max_over,
    mean_over,
    min_over,
)
from mental_r1_jax.types import Batch

__all__ = [
    "Denominators",
    "LossConfig",
    "aggregate",
    "clipped_surrogate",
    "crpo_loss",
    "kl_penalty",
    "loss_denominators",
    "probability_ratio",
    "stage_coefficients",
    "stage_entropy",
]


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """The static choices of `crpo_loss`; the defaults are the paper's.

    Attributes:
        stage_names: one name a stage, in the order of the stage mask; names of metrics.
        stage_entropy_coefs: `beta_t`, one a stage, see `stage_coefficients`. Negative rewards
            entropy, positive penalises it.
        stage_entropy_mean: `Hbar_t` is a mean over "all" completions (one that lacks the stage
            counts as 0), or over those that have it ("present_only").
        clip_epsilon_low: the ratio is clipped from below at `1 - clip_epsilon_low`.
        clip_epsilon_high: and from above at `1 + clip_epsilon_high`.
        dual_clip: largest ratio that counts when the advantage is negative (> 1), or None.
        importance_level: "token", or "sequence" for one ratio a completion.
        kl_coef: weight of the KL penalty; 0 needs no reference log-probs.
        kl_estimator: see `kl_penalty`.
        aggregation: see `aggregate`.
        max_completion_length: the constant C of "dr_grpo", needed there only.
        entropy_bonus_coef: weight of one global entropy bonus over all tokens.

    Raises:
        ValueError: if the choices contradict each other.
    """

    stage_names: tuple[str, ...]
    stage_entropy_coefs: tuple[float, ...]
    stage_entropy_mean: Literal["all", "present_only"] = "all"
    clip_epsilon_low: float = 0.2
    clip_epsilon_high: float = 0.2
    dual_clip: float | None = None
    importance_level: RatioLevel = "token"
    kl_coef: float = 0.01
    kl_estimator: KlEstimator = "k3"
    aggregation: Aggregation = "token"
    max_completion_length: int | None = None
    entropy_bonus_coef: float = 0.0

    def __post_init__(self) -> None:
        """Refuse choices that contradict each other."""
        if len(self.stage_names) != len(self.stage_entropy_coefs):
            raise ValueError(
                f"LossConfig: expected one coefficient a stage, got {self.stage_entropy_coefs=} "
                f"for {self.stage_names=}; give as many coefficients as there are stages"
            )
        if self.dual_clip is not None and self.dual_clip <= 1:
            raise ValueError(
                f"LossConfig: expected dual_clip > 1, got {self.dual_clip}; a bound at or below 1 "
                "would switch off the on-policy gradient of negative advantages; try 3.0"
            )
        if self.aggregation == "dr_grpo" and self.max_completion_length is None:
            raise ValueError(
                "LossConfig: aggregation 'dr_grpo' divides by the length limit; expected "
                "max_completion_length, got None; pass the rollout's limit"
            )


@flax.struct.dataclass
class Denominators:
    """Weights of the whole step, by which every micro-batch's sums are divided.

    The fields are `Any` so that JAX can build the container of shapes and shardings too.

    Attributes:
        policy: weight of the policy and KL terms, by the rule of `aggregate`; scalar float32.
        tokens: number of tokens that count in the loss; scalar float32.
        completions: number of completions; scalar float32.
        stages: number of completions that `Hbar_t` is a mean over, float32 [S].
    """

    policy: Any
    tokens: Any
    completions: Any
    stages: Any


def loss_denominators(batch: Batch, loss_config: LossConfig) -> Denominators:
    """Count what `crpo_loss` divides by; call it once, on the whole step.

    No weight is below 1, so an empty step has loss 0 rather than NaN.
    """
    mask = batch.completion_mask
    completions = jnp.float32(mask.shape[0] * mask.shape[1])
    weight = aggregate(
        jnp.zeros(mask.shape, jnp.float32),
        mask,
        loss_config.aggregation,
        loss_config.max_completion_length,
    ).weight
    present = jnp.any(batch.stage_mask & mask[:, :, None, :], axis=-1)
    present_in = jnp.sum(present, axis=(0, 1)).astype(jnp.float32)
    everyone = jnp.full(present_in.shape, completions)
    stages = present_in if loss_config.stage_entropy_mean == "present_only" else everyone
    return Denominators(
        policy=jnp.maximum(weight, 1.0),
        tokens=jnp.maximum(jnp.sum(mask).astype(jnp.float32), 1.0),
        completions=completions,
        stages=jnp.maximum(stages, 1.0),
    )


@jax.named_scope("crpo_loss")
def crpo_loss(
    logprobs: Float[Array, "B G C"],
    entropies: Float[Array, "B G C"],
    batch: Batch,
    advantages: Float[Array, "B G"],
    denominators: Denominators,
    loss_config: LossConfig,
) -> tuple[Float[Array, ""], dict[str, Metric]]:
    """Compute this micro-batch's share of the step's CRPO loss.

        L = L_policy + kl_coef * KL + sum_t beta_t * Hbar_t - entropy_bonus_coef * mean(H)

    Args:
        logprobs: of the sampled tokens under the policy, with gradient.
        entropies: of the policy's next-token distributions, with gradient: the stage term trains
            through them.
        batch: the micro-batch (prompts stay with all their completions) or the whole step.
        advantages: of its completions, constants.
        denominators: of the whole step, from `loss_denominators`.
        loss_config: the static choices.

    Returns:
        (loss, metrics): a scalar whose sum over the micro-batches is the loss of the step, and
        metrics to be merged over them.

    Raises:
        ValueError: if `kl_coef` is not 0 and the batch has no reference log-probs.

    References:
        Mental-R1 (arXiv 2606.13176).
    """
    mask = batch.completion_mask
    logprobs = jnp.where(mask, logprobs, 0.0)
    entropies = jnp.where(mask, entropies, 0.0)
    advantages = jax.lax.stop_gradient(advantages)
    ratio = probability_ratio(logprobs, batch.old_logprobs, loss_config.importance_level, mask)
    policy_loss, metrics = _policy_term(ratio, advantages, mask, denominators, loss_config)
    kl_loss, kl_metrics = _kl_term(logprobs, batch, denominators, loss_config)
    # A term of weight 0 has no gradient, so that the program is as without it, to the last bit.
    stages = _constant_if_unweighted(entropies, loss_config.stage_entropy_coefs)
    stage_loss, stage_metrics = _stage_term(stages, batch, denominators, loss_config)
    bonus = _constant_if_unweighted(entropies, (loss_config.entropy_bonus_coef,))
    bonus_loss = -loss_config.entropy_bonus_coef * masked_sum(bonus, mask) / denominators.tokens
    mismatch = jnp.abs(logprobs - jnp.where(mask, batch.sampler_logprobs, 0.0))
    metrics |= kl_metrics | stage_metrics
    metrics |= {
        "loss/entropy_bonus": Sum(bonus_loss),
        "entropy": mean_over(entropies, mask),
        "sampler_mismatch/max": max_over(mismatch, mask),
        "sampler_mismatch/mean": mean_over(mismatch, mask),
    }
    loss = policy_loss + kl_loss + stage_loss + bonus_loss
    return loss, jax.lax.stop_gradient(metrics)


@jax.named_scope("policy_loss")
def _policy_term(
    ratio: Array,
    advantages: Array,
    mask: Bool[Array, "B G C"],
    denominators: Denominators,
    loss_config: LossConfig,
) -> tuple[Array, dict[str, Metric]]:
    """Return the clipped policy loss, and how far the policy has moved."""
    low, high = loss_config.clip_epsilon_low, loss_config.clip_epsilon_high
    per_token = clipped_surrogate(ratio, advantages, low, high, loss_config.dual_clip)
    loss = _share(per_token, mask, denominators, loss_config)
    # Clipped = the gradient is taken away, so only one side counts for either sign of advantage.
    clipped_low = (ratio < 1.0 - low) & (advantages[..., None] < 0)
    clipped_high = (ratio > 1.0 + high) & (advantages[..., None] > 0)
    return loss, {
        "loss/policy": Sum(loss),
        "clip_ratio/low_mean": mean_over(clipped_low, mask),
        "clip_ratio/high_mean": mean_over(clipped_high, mask),
        "clip_ratio/region_mean": mean_over(clipped_low | clipped_high, mask),
        "importance_ratio/mean": mean_over(ratio, mask),
        "importance_ratio/max": max_over(ratio, mask),
        "importance_ratio/min": min_over(ratio, mask),
    }


@jax.named_scope("kl_penalty")
def _kl_term(
    logprobs: Array, batch: Batch, denominators: Denominators, loss_config: LossConfig
) -> tuple[Array, dict[str, Metric]]:
    """Return the weighted KL penalty; without reference log-probs a 0 and no metric "kl"."""
    if batch.ref_logprobs is None:
        if loss_config.kl_coef != 0:
            raise ValueError(
                f"crpo_loss: kl_coef={loss_config.kl_coef} expected batch.ref_logprobs, got None; "
                "compute them with the frozen start model, or set crpo.kl_coef to 0"
            )
        zero = jnp.float32(0.0)
        return zero, {"loss/kl": Sum(zero)}
    mask = batch.completion_mask
    ref_logprobs = jnp.where(mask, batch.ref_logprobs, 0.0)
    per_token = kl_penalty(logprobs, ref_logprobs, loss_config.kl_estimator)
    loss = loss_config.kl_coef * _share(per_token, mask, denominators, loss_config)
    return loss, {"loss/kl": Sum(loss), "kl": mean_over(per_token, mask)}


@jax.named_scope("stage_entropy")
def _stage_term(
    entropies: Array, batch: Batch, denominators: Denominators, loss_config: LossConfig
) -> tuple[Array, dict[str, Metric]]:
    """Return `sum_t beta_t Hbar_t`, and every stage's entropy and coverage.

    The reported entropy of a stage is the mean over the completions that have it, whatever
    `stage_entropy_mean` says: with missing stages counted as 0 it could not be read.
    """
    means, present = stage_entropy(
        entropies, batch.stage_mask & batch.completion_mask[:, :, None, :]
    )
    stage_means = jnp.sum(means, axis=(0, 1)) / denominators.stages
    loss = jnp.sum(jnp.array(loss_config.stage_entropy_coefs, jnp.float32) * stage_means)
    metrics: dict[str, Metric] = {"loss/stage_entropy": Sum(loss)}
    everyone = jnp.ones(present.shape[:2], bool)
    for stage, name in enumerate(loss_config.stage_names):
        metrics[f"entropy/stage/{name}"] = mean_over(means[:, :, stage], present[:, :, stage])
        metrics[f"coverage/stage/{name}"] = mean_over(present[:, :, stage], everyone)
    return loss, metrics


def _constant_if_unweighted(values: Array, weights: tuple[float, ...]) -> Array:
    """Return `values`, without gradient where nothing weighs them."""
    return values if any(weights) else jax.lax.stop_gradient(values)


def _share(
    per_token: Array, mask: Array, denominators: Denominators, loss_config: LossConfig
) -> Array:
    """Aggregate over this micro-batch, divided by the weight of the whole step."""
    part: SumWeight = aggregate(
        per_token, mask, loss_config.aggregation, loss_config.max_completion_length
    )
    share: Array = part.sum / denominators.policy
    return share
