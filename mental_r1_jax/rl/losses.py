"""The CRPO objective: clipped policy loss, KL penalty and stage-wise entropy.

    L = L_policy + kl_coef * KL + sum_t beta_t * Hbar_t - entropy_bonus_coef * mean(H)

Every term is a sum over the tokens or completions of a micro-batch, divided by a weight of the
whole step (`loss_denominators`). The losses of the micro-batches therefore add up to the loss of
the step, and so do their gradients, however it is micro-batched and however many devices share it.

All log-probabilities and entropies are in nats; every loss is dimensionless. The formulas of the
terms are in `loss_terms`, the choices among them in the recipe's section `crpo`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mental_r1_jax.objective import STAGE_NAMES, CrpoConfig
from mental_r1_jax.rl import loss_terms
from mental_r1_jax.rl.entropy_control import EntropyWeights, entropy_weights
from mental_r1_jax.rl.masking import Metric, Sum, masked_sum, max_over, mean_over, min_over
from mental_r1_jax.types import Batch


@flax.struct.dataclass
class Denominators:
    """Weights of the whole step, by which every micro-batch's sums are divided.

    The fields are `Any` so that JAX can build the container of shapes and shardings too.

    Attributes:
        policy: weight of the policy and KL terms, by the rule of `aggregate`; scalar float32.
        tokens: number of tokens that count in the loss; scalar float32.
        stages: number of completions that `Hbar_t` is a mean over, float32 [S].
    """

    policy: Any
    tokens: Any
    stages: Any


def loss_denominators(batch: Batch, crpo: CrpoConfig, max_completion_length: int) -> Denominators:
    """Count what `crpo_loss` divides by, from masks alone; call it once, on the whole step.

    Completions of rows without a group are counted nowhere. No weight is below 1, so an empty step
    has loss 0 rather than NaN.
    """
    mask = batch.completion_mask
    nothing = jnp.zeros(mask.shape, jnp.float32)
    weight = loss_terms.aggregate(nothing, mask, crpo.aggregation, max_completion_length).weight
    completions = jnp.float32(mask.shape[0] * mask.shape[1])
    if batch.group_mask is not None:
        there = jnp.mean(batch.group_mask.astype(jnp.float32))
        completions = completions * there
        if crpo.aggregation != "token":  # whose weight has no tokens of rows without a group
            weight = weight * there
    present = jnp.any(batch.stage_mask & mask[:, :, None, :], axis=-1)
    stages = jnp.sum(present, axis=(0, 1)).astype(jnp.float32)
    if crpo.stage_entropy_mean == "all":
        stages = jnp.full(stages.shape, completions)
    return Denominators(
        policy=jnp.maximum(weight, 1.0),
        tokens=jnp.maximum(jnp.sum(mask).astype(jnp.float32), 1.0),
        stages=jnp.maximum(stages, 1.0),
    )


# Per-token losses of a micro-batch -> its share of the step's loss.
Share = Callable[[Array], Array]


@jax.named_scope("crpo_loss")
def crpo_loss(
    logprobs: Float[Array, "B G C"],
    entropies: Float[Array, "B G C"],
    batch: Batch,
    advantages: Float[Array, "B G"] | Float[Array, "B G C"],
    denominators: Denominators,
    crpo: CrpoConfig,
    max_completion_length: int,
    weights: EntropyWeights | None = None,
    stages: tuple[str, ...] = STAGE_NAMES,
) -> tuple[Float[Array, ""], dict[str, Metric]]:
    """Compute this micro-batch's share of the step's CRPO loss.

        L = L_policy + kl_coef * KL + sum_t beta_t * Hbar_t - entropy_bonus_coef * mean(H)

    Args:
        logprobs: of the sampled tokens under the policy, with gradient.
        entropies: of the policy's next-token distributions, with gradient: the stage term trains
            through them.
        batch: the micro-batch (prompts stay with all their completions) or the whole step.
        advantages: constants; one a completion, which all of its tokens share, or one a token.
        denominators: weights of the whole step, from `loss_denominators`.
        crpo: the recipe's section, static: the program holds the chosen formulas only.
        max_completion_length: the length limit of the rollout, tokens.
        weights: of the entropy terms; None: those of the recipe, which must not be steered.
        stages: names of the stages, in the order of `batch.stage_mask`.

    Returns:
        (loss, metrics): a scalar whose sum over the micro-batches is the loss of the step, and
        metrics to be merged over them.

    Raises:
        ValueError: if `kl_coef` is not 0 and the batch has no reference log-probs, or if the
            sampler is to be corrected and the batch has no `sampler_logprobs`.

    References:
        Mental-R1 (arXiv 2606.13176).
    """
    mask = batch.completion_mask
    logprobs = jnp.where(mask, logprobs, 0.0)
    entropies = jnp.where(mask, entropies, 0.0)
    advantages = jax.lax.stop_gradient(advantages)

    def share(per_token: Array) -> Array:
        """Aggregate over this micro-batch, divided by the weight of the whole step."""
        how = crpo.aggregation
        part = loss_terms.aggregate(per_token, mask, how, max_completion_length)
        return jnp.divide(part.sum, denominators.policy)

    policy_loss, metrics = _policy_term(logprobs, batch, advantages, share, crpo)
    kl_loss, kl_metrics = _kl_term(logprobs, batch, share, crpo)
    weights = weights or entropy_weights(crpo, stages=stages)
    stage_loss, stage_metrics = _stage_term(entropies, batch, denominators, weights.stages, stages)
    bonus = _constant_if_unweighted(entropies, weights.bonus)
    bonus_loss = -weights.bonus * masked_sum(bonus, mask) / denominators.tokens
    metrics |= kl_metrics | stage_metrics
    metrics |= {
        "loss/entropy_bonus": Sum(bonus_loss),
        "entropy": mean_over(entropies, mask),
    }
    loss = policy_loss + kl_loss + stage_loss + bonus_loss
    return loss, jax.lax.stop_gradient(metrics)


@jax.named_scope("policy_loss")
def _policy_term(
    logprobs: Array, batch: Batch, advantages: Array, share: Share, crpo: CrpoConfig
) -> tuple[Array, dict[str, Metric]]:
    """Return the policy loss, and how far the policy has moved."""
    mask, low, high = batch.completion_mask, crpo.clip_epsilon_low, crpo.clip_epsilon_high
    level = crpo.importance_level
    ratio = loss_terms.probability_ratio(logprobs, batch.old_logprobs, level, mask)
    if crpo.policy_loss == "cispo":
        per_token = loss_terms.weighted_logprob_loss(ratio, logprobs, advantages, low, high)
    else:
        per_token = loss_terms.clipped_surrogate(ratio, advantages, low, high, crpo.dual_clip)
    per_token, metrics = _corrected_for_the_sampler(per_token, logprobs, batch, crpo)
    if batch.policy_mask is not None:
        # The tokens left out stay in the denominator, as in the paper.
        per_token = jnp.where(batch.policy_mask, per_token, 0.0)
        metrics["policy_mask/share"] = mean_over(batch.policy_mask, mask)
    loss = share(per_token)
    clipped_low, clipped_high = _clipped_tokens(ratio, advantages, crpo)
    return loss, metrics | {
        "loss/policy": Sum(loss),
        "clip_ratio/low_mean": mean_over(clipped_low, mask),
        "clip_ratio/high_mean": mean_over(clipped_high, mask),
        "clip_ratio/region_mean": mean_over(clipped_low | clipped_high, mask),
        "importance_ratio/mean": mean_over(ratio, mask),
        "importance_ratio/max": max_over(ratio, mask),
        "importance_ratio/min": min_over(ratio, mask),
    }


def _clipped_tokens(ratio: Array, advantages: Array, crpo: CrpoConfig) -> tuple[Array, Array]:
    """Mark the tokens that the lower and the upper clip changed something about.

    That is their weight in CISPO. In the clipped surrogate it is their gradient, which the clip
    takes away, so only one side counts for either sign of advantage.
    """
    advantage = loss_terms.of_tokens(advantages)
    low, high = 1.0 - crpo.clip_epsilon_low, 1.0 + crpo.clip_epsilon_high
    if crpo.policy_loss == "cispo":
        return ratio < low, ratio > high
    return (ratio < low) & (advantage < 0), (ratio > high) & (advantage > 0)


def _corrected_for_the_sampler(
    per_token: Array, logprobs: Array, batch: Batch, crpo: CrpoConfig
) -> tuple[Array, dict[str, Metric]]:
    """Weigh policy losses as `crpo.sampler_correction` says, by the policy that sampled.

    Where it has moved since, the probability ratio already accounts for the way from there.
    """
    if crpo.sampler_correction == "off":
        return per_token, {}
    if batch.sampler_logprobs is None:
        raise ValueError(
            f"crpo_loss: sampler_correction={crpo.sampler_correction} expected "
            "batch.sampler_logprobs, got None; sample with `SamplerSettings.sampler_logprobs`"
        )
    mask = batch.completion_mask
    policy = logprobs if batch.old_logprobs is None else batch.old_logprobs
    policy, sampler = (jnp.where(mask, x, 0.0) for x in (policy, batch.sampler_logprobs))
    weight = loss_terms.sampler_weight(policy, sampler, crpo.sampler_correction)
    mismatch = jnp.abs(jnp.where(mask, logprobs, 0.0) - sampler)
    return weight * per_token, {
        "sampler_correction/mean": mean_over(weight, mask),
        "sampler_mismatch/max": max_over(mismatch, mask),
        "sampler_mismatch/mean": mean_over(mismatch, mask),
    }


@jax.named_scope("kl_penalty")
def _kl_term(
    logprobs: Array, batch: Batch, share: Share, crpo: CrpoConfig
) -> tuple[Array, dict[str, Metric]]:
    """Return the weighted KL penalty, 0 where it is in the reward.

    Without reference log-probs it is 0 too, and there is no metric "kl".
    """
    if batch.ref_logprobs is None:
        if crpo.kl_coef != 0:
            raise ValueError(
                f"crpo_loss: kl_coef={crpo.kl_coef} expected batch.ref_logprobs, got None; "
                "compute them with the frozen start model, or set crpo.kl_coef to 0"
            )
        zero = jnp.float32(0.0)
        return zero, {"loss/kl": Sum(zero)}
    mask = batch.completion_mask
    ref_logprobs = jnp.where(mask, batch.ref_logprobs, 0.0)
    old = None
    if crpo.kl_estimator == "k3_corrected" and batch.old_logprobs is not None:
        old = jnp.where(mask, batch.old_logprobs, 0.0)
    per_token = loss_terms.kl_penalty(logprobs, ref_logprobs, crpo.kl_estimator, old)
    loss = crpo.kl_coef * share(per_token) if crpo.kl_in == "loss" else jnp.float32(0.0)
    return loss, {"loss/kl": Sum(loss), "kl": mean_over(per_token, mask)}


@jax.named_scope("stage_entropy")
def _stage_term(
    entropies: Array,
    batch: Batch,
    denominators: Denominators,
    betas: tuple[float, ...] | Array,
    names: tuple[str, ...],
) -> tuple[Array, dict[str, Metric]]:
    """Return `sum_t beta_t Hbar_t`, and every stage's entropy and coverage.

    The reported entropy of a stage is the mean over the completions that have it, whatever
    `stage_entropy_mean` says: with missing stages counted as 0 it could not be read.
    """
    means, present = loss_terms.stage_entropy(
        _constant_if_unweighted(entropies, betas),
        batch.stage_mask & batch.completion_mask[:, :, None, :],
    )
    stage_means = jnp.sum(means, axis=(0, 1)) / denominators.stages
    loss = jnp.sum(jnp.asarray(betas, jnp.float32) * stage_means)
    metrics: dict[str, Metric] = {"loss/stage_entropy": Sum(loss)}
    everyone = jnp.ones(present.shape[:2], bool)
    for stage, name in enumerate(names):
        metrics[f"entropy/stage/{name}"] = mean_over(means[:, :, stage], present[:, :, stage])
        metrics[f"coverage/stage/{name}"] = mean_over(present[:, :, stage], everyone)
    return loss, metrics


def _constant_if_unweighted(values: Array, weights: float | tuple[float, ...] | Array) -> Array:
    """Return `values`, without gradient where every weight is 0 and stays so.

    The program is then as without the term, to the last bit.
    """
    every = weights if isinstance(weights, tuple) else (weights,)
    steered = any(isinstance(one, jax.Array) for one in every)
    return values if steered or any(every) else jax.lax.stop_gradient(values)
