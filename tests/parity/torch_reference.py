"""The CRPO objective written down a second time, in PyTorch, for the parity tests.

It follows the formulas of the method, one completion, one stage and one token at a time, starts
from logits and finds everything else by itself: log-probs, entropies, ratios, standard deviations,
means, and gradients by autograd. It runs in float64, shares no code with the package, and knows
neither micro-batches nor masks nor chunks.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from torch import Tensor

torch = pytest.importorskip("torch", reason="compares with PyTorch")


@dataclasses.dataclass(frozen=True)
class Inputs:
    """One step: B prompts with G completions each; logits are those that predict each token.

    Attributes:
        logits: of the policy, before temperature, float64 [B, G, C, V], with gradient.
        old_logits: of the policy that sampled, or None.
        ref_logits: of the reference policy, or None.
        ids: sampled tokens [B, G, C].
        lengths: number of tokens of every completion [B, G].
        spans: for every completion the (start, end) token span of every stage, or None.
        rewards: [B, G].
        sampler_logprobs: of the tokens under the distribution that they were drawn from [B, G, C].
        temperature: divides all logits.
    """

    logits: Tensor
    old_logits: Tensor | None
    ref_logits: Tensor | None
    ids: Tensor
    lengths: Tensor
    spans: list[list[list[tuple[int, int] | None]]]
    rewards: Tensor
    sampler_logprobs: Tensor
    temperature: float


@dataclasses.dataclass(frozen=True)
class Options:
    """The choices of the objective, by the names of the package's configuration."""

    stage_entropy_coefs: tuple[float, ...]
    stage_entropy_mean: str = "all"
    clip_epsilon_low: float = 0.2
    clip_epsilon_high: float = 0.2
    dual_clip: float | None = None
    importance_level: str = "token"
    kl_coef: float = 0.01
    kl_estimator: str = "k3"
    aggregation: str = "token"
    max_completion_length: int | None = None
    entropy_bonus_coef: float = 0.0
    scale_rewards: str = "group"
    advantage_baseline: str = "mean"
    policy_loss: str = "clipped"
    policy_entropy_share: float = 1.0
    sampler_correction: str = "off"


def log_softmax(logits: Tensor, temperature: float) -> Tensor:
    """ln p_v = z_v / T - ln sum_w exp(z_w / T)."""
    scaled = logits / temperature
    return scaled - torch.logsumexp(scaled, dim=-1, keepdim=True)


def whitened(values: Tensor, lengths: Tensor) -> Tensor:
    """(x - mean) / sqrt(max(var, 1e-8)) over a list of all tokens."""
    tokens = torch.cat(
        [v.repeat(int(n)) for v, n in zip(values.ravel(), lengths.ravel(), strict=True)]
    )
    return (values - tokens.mean()) / tokens.var(unbiased=False).clamp(min=1e-8).sqrt()


def advantages(rewards: Tensor, lengths: Tensor, options: Options) -> Tensor:
    """A = (r - baseline) / (std + 1e-4), only the difference, or the difference whitened."""
    result = torch.zeros_like(rewards)
    for b, group in enumerate(rewards):
        for g, reward in enumerate(group):
            others = torch.cat([group[:g], group[g + 1 :]])
            baselines = {"leave_one_out": others.mean(), "mean": group.mean(), "none": 0.0}
            result[b, g] = reward - baselines[options.advantage_baseline]
            if options.scale_rewards == "group":
                result[b, g] /= group.std() + 1e-4
            elif options.scale_rewards == "batch":
                result[b, g] /= rewards.std() + 1e-4
    return whitened(result, lengths) if options.scale_rewards == "tokens" else result


def policy_loss(ratio: Tensor, p: Tensor, advantage: Tensor, options: Options) -> Tensor:
    """-min(r A, clip(r) A), bounded by the dual clip where A < 0; or -clip(r).detach() A p."""
    clipped = ratio.clamp(1 - options.clip_epsilon_low, 1 + options.clip_epsilon_high)
    if options.policy_loss == "cispo":
        return -clipped.detach() * advantage * p
    objective = torch.min(ratio * advantage, clipped * advantage)
    if options.dual_clip is not None and advantage < 0:
        objective = torch.max(objective, options.dual_clip * advantage)
    return -objective


def kl(p: Tensor, q: Tensor, estimator: str) -> Tensor:
    """k1, k2 or k3 of the log-probs p (policy) and q (reference)."""
    if estimator == "k1":
        return p - q
    if estimator == "k2":
        return (p - q) ** 2 / 2
    return torch.exp(q - p) - (q - p) - 1


def correction(old: Tensor, sampler: Tensor, options: Options) -> Tensor:
    """Weight of every token by the sampler that drew it."""
    weight = (old.detach() - sampler).clamp(-20, 20).exp()
    if options.sampler_correction == "tis":
        return weight.clamp(max=2)
    inside = (weight >= 0.5) & (weight <= 5)
    return weight * inside if options.sampler_correction == "icepop" else torch.ones_like(weight)


def entropy_threshold(inputs: Inputs, options: Options) -> float:
    """The entropy that the wanted share of the step's tokens reaches."""
    every = torch.cat(
        [
            entropy(inputs.logits[b, g, : int(n)], inputs.temperature).detach()
            for b, row in enumerate(inputs.lengths)
            for g, n in enumerate(row)
        ]
    )
    count = max(1, round(options.policy_entropy_share * len(every)))
    return every.sort(descending=True).values[count - 1].item()


def token_losses(inputs: Inputs, options: Options, advantage: Tensor, b: int, g: int) -> Tensor:
    """Policy loss plus weighted KL of every token of one completion, 1-D."""
    tokens = torch.arange(int(inputs.lengths[b, g]))
    ids = inputs.ids[b, g, : len(tokens)]

    def logprobs(logits: Tensor) -> Tensor:
        return log_softmax(logits[b, g], inputs.temperature)[tokens, ids]

    p = logprobs(inputs.logits)
    old = p.detach() if inputs.old_logits is None else logprobs(inputs.old_logits)
    log_ratio = p - old
    if options.importance_level == "sequence" and len(tokens):
        log_ratio = log_ratio.mean().expand(len(tokens))
    losses = policy_loss(torch.exp(log_ratio), p, advantage[b, g], options)
    losses = losses * correction(old, inputs.sampler_logprobs[b, g, : len(tokens)], options)
    entropies = entropy(inputs.logits[b, g, : len(tokens)], inputs.temperature).detach()
    losses = losses * (entropies >= entropy_threshold(inputs, options))
    if inputs.ref_logits is not None:
        losses = losses + options.kl_coef * kl(p, logprobs(inputs.ref_logits), options.kl_estimator)
    return losses


def entropy(logits: Tensor, temperature: float) -> Tensor:
    """H = -sum_v p_v ln p_v, in nats."""
    logp = log_softmax(logits, temperature)
    return -(torch.exp(logp) * logp).sum(-1)


def stage_term(inputs: Inputs, options: Options) -> Tensor:
    """sum_t beta_t Hbar_t."""
    total = torch.zeros((), dtype=torch.float64)
    completions = [(b, g) for b in range(len(inputs.spans)) for g in range(len(inputs.spans[b]))]
    for stage, beta in enumerate(options.stage_entropy_coefs):
        means = []
        for b, g in completions:
            span = inputs.spans[b][g][stage]
            if span is not None:
                means.append(entropy(inputs.logits[b, g, slice(*span)], inputs.temperature).mean())
        over = len(completions) if options.stage_entropy_mean == "all" else max(1, len(means))
        total = total + beta * sum(means, start=torch.zeros((), dtype=torch.float64)) / over
    return total


def crpo_loss(inputs: Inputs, options: Options) -> Tensor:
    """The whole objective as one number."""
    advantage = advantages(inputs.rewards, inputs.lengths, options)
    rows = [
        token_losses(inputs, options, advantage, b, g)
        for b in range(inputs.ids.shape[0])
        for g in range(inputs.ids.shape[1])
    ]
    if options.aggregation == "token":
        loss = torch.cat(rows).mean()
    elif options.aggregation == "sequence":
        loss = sum(row.sum() / max(1, len(row)) for row in rows) / len(rows)
    else:
        loss = torch.cat(rows).sum() / (len(rows) * options.max_completion_length)
    every_entropy = [
        entropy(inputs.logits[b, g, : int(n)], inputs.temperature)
        for b, lengths in enumerate(inputs.lengths)
        for g, n in enumerate(lengths)
    ]
    bonus = options.entropy_bonus_coef * torch.cat(every_entropy).mean()
    return loss + stage_term(inputs, options) - bonus
