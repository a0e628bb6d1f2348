"""The formulas that the CRPO objective is made of, each on its own.

All log-probabilities and entropies are in nats; every loss is dimensionless. Masked places are
replaced before any `exp`: masking afterwards gives a finite loss with gradient 0 * inf = NaN.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mental_r1_jax.objective import (
    STAGE_NAMES,
    Aggregation,
    CrpoConfig,
    KlEstimator,
    RatioLevel,
    SamplerCorrection,
)
from mental_r1_jax.rl.masking import SumWeight, masked_mean, masked_sum, mean_over

# Largest weight of "tis"; smallest and largest of "icepop", outside which a token does not count.
TIS_LIMIT = 2.0
ICEPOP_RANGE = (0.5, 5.0)


def stage_coefficients(
    crpo: CrpoConfig, stages: tuple[str, ...] = STAGE_NAMES
) -> tuple[float, ...]:
    """Compute the entropy coefficient beta_t of every stage, by `crpo.stage_entropy_rule`.

        tanh:      beta_t = M * tanh(t - tau),  t = 1..S
        explicit:  as given
        target:    as given, or 0: those of the first step, which `entropy_control` then steers
        off:       all 0, which is GRPO

    M is `crpo.stage_entropy_scale`; tau, `crpo.stage_entropy_threshold`, is the stage at which
    exploring turns into deciding.

    References:
        Mental-R1 (arXiv 2606.13176); M = 0.06 and tau = 3.5 are its settings.
    """
    if crpo.stage_entropy_coefs is not None:  # only for the rules "explicit" and "target"
        return crpo.stage_entropy_coefs
    if crpo.stage_entropy_rule in ("off", "target"):
        return (0.0,) * len(stages)
    scale, tau = crpo.stage_entropy_scale, crpo.stage_entropy_threshold
    return tuple(scale * math.tanh(t - tau) for t in range(1, len(stages) + 1))


def probability_ratio(
    logprobs: Float[Array, "B G C"],
    old_logprobs: Float[Array, "B G C"] | None,
    level: RatioLevel,
    mask: Bool[Array, "B G C"],
) -> Float[Array, "B G C"]:
    """Compute how much likelier the policy makes the tokens than the policy that sampled them.

        token:     r_i = exp(p_i - p_old_i)
        sequence:  r_i = s = exp(mean_j(p_j - p_old_j)), the same for every token of a completion

    The gradient flows through `logprobs` alone. Without `old_logprobs` the policy has not moved
    since it sampled: the ratio is 1, its gradient that of the log-probs. Masked places hold 1
    ("token") or `s` ("sequence"), with no gradient of their own.

    References:
        Schulman et al. 2017, "PPO" (token); Zheng et al. 2025, "GSPO" (sequence).
    """
    old = logprobs if old_logprobs is None else old_logprobs
    log_ratio = jnp.where(mask, logprobs - jax.lax.stop_gradient(old), 0.0)
    if level == "sequence":
        mean = masked_mean(log_ratio, mask, axis=-1)
        log_ratio = jnp.broadcast_to(mean[..., None], log_ratio.shape)
    return jnp.exp(log_ratio)


def clipped_surrogate(
    ratio: Float[Array, "B G C"],
    advantages: Float[Array, "B G"] | Float[Array, "B G C"],
    clip_epsilon_low: float,
    clip_epsilon_high: float,
    dual_clip: float | None = None,
) -> Float[Array, "B G C"]:
    """Compute the policy loss of every token, to be minimised.

        l = -min(r A, clip(r, 1 - eps_low, 1 + eps_high) A)
        with dual clip delta, where A < 0:  l = min(l, -delta A) = -max(min(...), delta A)

    The clip takes the gradient from tokens that have moved far enough in the direction of their
    advantage, and only from those: at A < 0 a ratio above the range keeps its gradient (the loss
    grows with r), one below it has none. The dual clip bounds the former at `delta * |A|`.

    References:
        Schulman et al. 2017, "PPO", eq. 7; Ye et al. 2020, "Mastering complex control in MOBA games
        with deep reinforcement learning" (dual clip). `dual_clip` is TRL's `delta`.
    """
    advantage = of_tokens(advantages)
    unclipped = ratio * advantage
    clipped = jnp.clip(ratio, 1.0 - clip_epsilon_low, 1.0 + clip_epsilon_high) * advantage
    # A selection rather than `minimum`, which would split the gradient at the tie r = 1.
    objective = jnp.where(clipped < unclipped, clipped, unclipped)
    if dual_clip is not None:
        floor = dual_clip * advantage
        objective = jnp.where((advantage < 0) & (objective < floor), floor, objective)
    return -objective


def weighted_logprob_loss(
    ratio: Float[Array, "B G C"],
    logprobs: Float[Array, "B G C"],
    advantages: Float[Array, "B G"] | Float[Array, "B G C"],
    clip_epsilon_low: float,
    clip_epsilon_high: float,
) -> Float[Array, "B G C"]:
    """Compute CISPO's policy loss of every token, to be minimised.

        l = -stop_gradient(clip(r, 1 - eps_low, 1 + eps_high)) A p

    The clip bounds the weight of a token, never its gradient `-clip(r) A dp`: rare tokens that
    moved far early are trained on, where the clipped surrogate drops them.

    References:
        MiniMax 2025, "MiniMax-M1" (arXiv 2506.13585), eq. 4 (CISPO).
    """
    weight = jnp.clip(ratio, 1.0 - clip_epsilon_low, 1.0 + clip_epsilon_high)
    return -jax.lax.stop_gradient(weight) * of_tokens(advantages) * logprobs


def top_entropy_mask(
    entropies: Float[Array, "B G C"], mask: Bool[Array, "B G C"], share: float
) -> Bool[Array, "B G C"]:
    """Mark the tokens of the highest entropy among all valid tokens of the step.

        m_i = 1  iff  H_i >= the k-th largest H,  k = max(1, round(share N)),  N valid tokens

    Tokens that tie with the k-th are marked too. The threshold belongs to the whole step, so this
    comes before micro-batching.

    References:
        Wang et al. 2025, "Beyond the 80/20 rule" (arXiv 2506.01939), where `share` is 0.2.
    """
    descending = -jnp.sort(-jnp.where(mask, entropies, -jnp.inf).reshape(-1))
    wanted = jnp.round(share * jnp.sum(mask).astype(jnp.float32)).astype(jnp.int32)
    return mask & (entropies >= descending[jnp.maximum(wanted, 1) - 1])


def sampler_weight(
    logprobs: Float[Array, "B G C"],
    sampler_logprobs: Float[Array, "B G C"],
    correction: SamplerCorrection,
) -> Float[Array, "B G C"]:
    """Compute how much likelier the policy makes a token than the distribution it was drawn from.

        w = exp(clip(p - p_sampler, -20, 20)), without gradient
        tis:  min(w, 2)        icepop:  w if 0.5 <= w <= 5, else 0        off:  1

    `p_sampler` is that of the distribution after top-k and top-p, so with exact arithmetic `w` is
    the mass that truncation kept, and 1 without truncation. Replace masked places before the call.

    References:
        Yao et al. 2025, "Your efficient RL framework secretly brings you off-policy RL training"
        (tis); Ling team 2025, "Every step evolves" (arXiv 2510.18855) (icepop).
    """
    difference = jax.lax.stop_gradient(logprobs) - sampler_logprobs
    weight = jnp.exp(jnp.clip(difference, -20.0, 20.0))
    if correction == "tis":
        return jnp.minimum(weight, TIS_LIMIT)
    if correction == "icepop":
        low, high = ICEPOP_RANGE
        return jnp.where((weight >= low) & (weight <= high), weight, 0.0)
    return jnp.ones_like(weight)


def of_tokens(
    advantages: Float[Array, "B G"] | Float[Array, "B G C"],
) -> Float[Array, "B G 1"] | Float[Array, "B G C"]:
    """Give advantages a token axis; that of a completion is the same for each of its tokens."""
    return advantages if advantages.ndim == 3 else advantages[..., None]


def kl_penalty(
    logprobs: Float[Array, "*tokens"],
    ref_logprobs: Float[Array, "*tokens"],
    estimator: KlEstimator,
    old_logprobs: Float[Array, "*tokens"] | None = None,
) -> Float[Array, "*tokens"]:
    """Estimate KL(policy || reference) from the log-probs of sampled tokens, in nats.

        k1 = p - q        k2 = (p - q)^2 / 2        k3 = exp(q - p) - (q - p) - 1
        k3_corrected = exp(p - p_old) k3

    with p = policy and q = reference log-prob, and `p_old` that of the policy which sampled (the
    policy itself without `old_logprobs`). Replace masked places before the call.

    In expectation over the policy's own samples k1 and k3 have the *value* of
    KL(policy || reference), k2 to second order. As losses, differentiated sample by sample, they
    differ: the expected gradient of k1 is 0, that of k2 is the gradient of
    KL(policy || reference), and that of k3 the gradient of the other direction,
    KL(reference || policy); near equal policies the two directions agree. So k1 does not hold the
    policy back at all: it is there to measure. The ratio in k3_corrected carries the gradient of
    the choice of tokens, also where it is 1, so its expected gradient is that of
    KL(policy || reference), and its value too when another policy sampled.

    References:
        Mental-R1 (arXiv 2606.13176) uses k3; Schulman 2020, "Approximating KL divergence";
        DeepSeek-AI 2025, "DeepSeek-V3.2" (arXiv 2512.02556), section 3.1 (k3_corrected).
    """
    log_ratio = jax.lax.stop_gradient(ref_logprobs) - logprobs
    if estimator == "k1":
        return -log_ratio
    if estimator == "k2":
        return 0.5 * jnp.square(log_ratio)
    k3 = jnp.expm1(log_ratio) - log_ratio
    if estimator == "k3":
        return k3
    old = logprobs if old_logprobs is None else old_logprobs
    return jnp.exp(logprobs - jax.lax.stop_gradient(old)) * k3


def stage_entropy(
    entropies: Float[Array, "B G C"], stage_mask: Bool[Array, "B G S C"]
) -> tuple[Float[Array, "B G S"], Bool[Array, "B G S"]]:
    """Average the token entropies over every stage of every completion.

        h_tb = sum_i m_tbi H_bi / max(1, sum_i m_tbi)

    Returns:
        (means, present): `h_tb` in nats, 0 where the completion has no token of the stage, and
        whether it has one.

    References:
        Mental-R1 (arXiv 2606.13176): `Hbar_t` is the mean of `h_tb` over the completions.
    """
    tokens = jnp.broadcast_to(entropies[:, :, None, :], stage_mask.shape)
    return masked_mean(tokens, stage_mask, axis=-1), jnp.any(stage_mask, axis=-1)


def aggregate(
    per_token: Float[Array, "B G C"],
    mask: Bool[Array, "B G C"],
    how: Aggregation,
    max_completion_length: int,
) -> SumWeight:
    """Turn values of tokens into the sum and the weight of one number.

        token:     sum_bi m x / sum_bi m                     TRL "bnpo" (local) and "dapo" (global)
        sequence:  mean_b( sum_i m x / max(1, sum_i m) )     TRL "grpo"
        dr_grpo:   sum_bi m x / (completions * C)            TRL "dr_grpo", C = the length limit

    A completion without a single counted token adds 0 to "sequence" and counts in its mean, as in
    TRL. "token" weighs long completions more; "sequence" weighs the tokens of short ones more;
    "dr_grpo" weighs all tokens alike and makes the size of the update depend on the lengths.

    References:
        Mental-R1 (arXiv 2606.13176) uses "token"; Liu et al. 2025, "Understanding R1-Zero-like
        training" ("dr_grpo").
    """
    completions = jnp.float32(mask.shape[0] * mask.shape[1])
    if how == "token":
        return mean_over(per_token, mask)
    if how == "sequence":
        return SumWeight(sum=masked_mean(per_token, mask, axis=-1).sum(), weight=completions)
    return SumWeight(sum=masked_sum(per_token, mask), weight=completions * max_completion_length)
