"""Array containers that travel between the parts, and the glossary of their axes.

Axes
    B  prompts of one step            G  completions of one prompt (the group)
    P  prompt tokens                  C  completion tokens
    S  reasoning stages               V  vocabulary
    D  model width                    L  layers
    H  query heads                    K  key/value heads

Sequences are padded on the right. A mask is true where a token is real; it is made from lengths,
never from token ids, so a sampled pad or a pad that equals the EOS token stays a real token.
"""

from __future__ import annotations

import flax.struct
import jax
from jaxtyping import Bool, Float, Int


@flax.struct.dataclass
class PromptBatch:
    """Tokenized prompts.

    Attributes:
        prompt_ids: token ids, padded on the right.
        prompt_mask: true on real tokens; every row has at least one.
        prompt_index: position of the prompt in the global step, the source of its random numbers.
        prefix_ids: tokens that stand before those of every prompt, one copy (they are all equal)
            for each of the S parts into which the mesh shards the prompts; None where prompts are
            whole.
    """

    prompt_ids: Int[jax.Array, "B P"]
    prompt_mask: Bool[jax.Array, "B P"]
    prompt_index: Int[jax.Array, " B"]
    prefix_ids: Int[jax.Array, "S prefix"] | None = None


@flax.struct.dataclass
class Completions:
    """What the sampler returns for a `PromptBatch`.

    Attributes:
        completion_ids: sampled ids, including the EOS token that ended a completion.
        completion_mask: true on sampled tokens, EOS included.
        sampler_logprobs: log-probability (nats) of each token under the distribution it was drawn
            from, that is, after temperature, top-k and top-p; None where nobody reads them.
        decode_logprobs: the same before top-k and top-p, as the decoding pass computed it; the
            training pass must find these numbers again up to rounding.
        finished: true where the completion ended by itself, false where it hit the length limit.
        greedy: one more completion of each prompt (G = 1), decoded greedily with the others; None
            where the recipe asks for none.
        entropies: entropy (nats) of the distribution of each token under the whole policy, at the
            temperature of sampling, greedy decoding included; None where nobody reads them.
    """

    completion_ids: Int[jax.Array, "B G C"]
    completion_mask: Bool[jax.Array, "B G C"]
    sampler_logprobs: Float[jax.Array, "B G C"] | None
    decode_logprobs: Float[jax.Array, "B G C"]
    finished: Bool[jax.Array, "B G"]
    greedy: Completions | None = None
    entropies: Float[jax.Array, "B G C"] | None = None


@flax.struct.dataclass
class Batch:
    """One step of training data: everything `train_step` needs, and nothing about text.

    Attributes:
        prompt_ids: see `PromptBatch`.
        prompt_mask: see `PromptBatch`.
        completion_ids: see `Completions`.
        completion_mask: tokens that count in the loss (sampled tokens, EOS included).
        stage_mask: true where a token lies wholly inside a stage's content; spans of malformed text
            may overlap, so every stage has a mask of its own.
        rewards: weighted sum of the reward functions.
        sampler_logprobs: see `Completions`; None without the sampler correction, which reads it.
        decode_logprobs: see `Completions`; metrics read it, and a KL penalty in the reward.
        old_logprobs: log-probs (nats) of the policy that sampled, or None when the policy has not
            moved since (one update a rollout), where the ratio is identically 1.
        ref_logprobs: log-probs (nats) of the frozen reference policy, or None when `kl_coef` is 0.
        baseline_rewards: reward of one further completion of each prompt, which is never trained
            on; None unless `crpo.advantage_baseline` is "greedy".
        group_mask: false for rows without a group, whose completions count in no mean; None where
            every row has one (`rollout.keep_groups=all`).
        policy_mask: tokens that count in the policy loss, where not all of `completion_mask` do; an
            update finds them by its own weights.
    """

    prompt_ids: Int[jax.Array, "B P"]
    prompt_mask: Bool[jax.Array, "B P"]
    completion_ids: Int[jax.Array, "B G C"]
    completion_mask: Bool[jax.Array, "B G C"]
    stage_mask: Bool[jax.Array, "B G S C"]
    rewards: Float[jax.Array, "B G"]
    sampler_logprobs: Float[jax.Array, "B G C"] | None
    decode_logprobs: Float[jax.Array, "B G C"]
    old_logprobs: Float[jax.Array, "B G C"] | None = None
    ref_logprobs: Float[jax.Array, "B G C"] | None = None
    baseline_rewards: Float[jax.Array, " B"] | None = None
    group_mask: Bool[jax.Array, " B"] | None = None
    policy_mask: Bool[jax.Array, "B G C"] | None = None


@flax.struct.dataclass
class TraceBatch:
    """Tokens whose log-probs are asked for: completions, or supervised traces.

    Attributes:
        prompt_ids: see `PromptBatch`.
        prompt_mask: see `PromptBatch`.
        completion_ids: tokens behind the prompt, EOS included.
        completion_mask: true on these tokens.
        target_start: where the log-probs that are asked for begin, of T tokens; None: at 0, of all.
        target_mask: true on those of the T that are real; None: `completion_mask`.
    """

    prompt_ids: Int[jax.Array, "B P"]
    prompt_mask: Bool[jax.Array, "B P"]
    completion_ids: Int[jax.Array, "B G C"]
    completion_mask: Bool[jax.Array, "B G C"]
    target_start: Int[jax.Array, "B G"] | None = None
    target_mask: Bool[jax.Array, "B G T"] | None = None
