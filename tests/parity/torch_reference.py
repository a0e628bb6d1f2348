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
    kl_in: str = "loss"
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


def advantages(rewards: Tensor, options: Options) -> Tensor:
    """A = (r - baseline) / (std + 1e-4), or only the difference."""
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
    return result


def token_advantages(inputs: Inputs, options: Options) -> list[list[Tensor]]:
    """Advantages of the tokens of every completion, with what the KL still takes, whitened."""
    of_completions = advantages(inputs.rewards, options)
    rows = [
        [of_completions[b, g].expand(int(n)) for g, n in enumerate(row)]
        for b, row in enumerate(inputs.lengths)
    ]
    if options.kl_in == "reward":
        sampled = inputs.logits if inputs.old_logits is None else inputs.old_logits
        for b, row in enumerate(rows):
            for g, values in enumerate(row):
                p, q = (
                    token_logprobs(inputs, x.detach(), b, g) for x in (sampled, inputs.ref_logits)
                )
                taken = [options.kl_coef * (p - q)[i:].sum() for i in range(len(values))]
                row[g] = values - torch.stack(taken) if taken else values
    if options.scale_rewards == "tokens":
        tokens = torch.cat([values for row in rows for values in row])
        std = tokens.var(unbiased=False).clamp(min=1e-8).sqrt()
        rows = [[(values - tokens.mean()) / std for values in row] for row in rows]
    return rows


def token_logprobs(inputs: Inputs, logits: Tensor, b: int, g: int) -> Tensor:
    """Log-probs of the tokens of one completion."""
    tokens = torch.arange(int(inputs.lengths[b, g]))
    return log_softmax(logits[b, g], inputs.temperature)[tokens, inputs.ids[b, g, : len(tokens)]]


def policy_loss(ratio: Tensor, p: Tensor, advantage: Tensor, options: Options) -> Tensor:
    """-min(r A, clip(r) A), bounded by the dual clip where A < 0; or -clip(r).detach() A p."""
    clipped = ratio.clamp(1 - options.clip_epsilon_low, 1 + options.clip_epsilon_high)
    if options.policy_loss == "cispo":
        return -clipped.detach() * advantage * p
    objective = torch.min(ratio * advantage, clipped * advantage)
    if options.dual_clip is not None:
        bounded = torch.max(objective, options.dual_clip * advantage)
        objective = torch.where(advantage < 0, bounded, objective)
    return -objective


def kl(p: Tensor, q: Tensor, estimator: str) -> Tensor:
    """k1, k2 or k3, before its correction, of the log-probs p (policy) and q (reference)."""
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
    p = token_logprobs(inputs, inputs.logits, b, g)
    on_policy = inputs.old_logits is None
    old = p.detach() if on_policy else token_logprobs(inputs, inputs.old_logits, b, g)
    ratio = torch.exp(p - old)
    if options.importance_level == "sequence" and len(p):
        ratio = torch.exp((p - old).mean().expand(len(p)))
    losses = policy_loss(ratio, p, advantage, options)
    losses = losses * correction(old, inputs.sampler_logprobs[b, g, : len(p)], options)
    entropies = entropy(inputs.logits[b, g, : len(p)], inputs.temperature).detach()
    losses = losses * (entropies >= entropy_threshold(inputs, options))
    if inputs.ref_logits is not None and options.kl_in == "loss":
        penalty = kl(p, token_logprobs(inputs, inputs.ref_logits, b, g), options.kl_estimator)
        corrected = options.kl_estimator == "k3_corrected"
        losses = losses + options.kl_coef * (torch.exp(p - old) if corrected else 1) * penalty
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
    advantage = token_advantages(inputs, options)
    rows = [
        token_losses(inputs, options, advantage[b][g], b, g)
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
