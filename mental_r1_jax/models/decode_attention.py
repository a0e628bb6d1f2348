"""Attention of one new token of every completion, for the decoding loop.

Keys are kept transposed, ``[..., h, tokens]``, and values as ``[..., tokens, h]``: then both matrix
products have their right operand in the order in which matrix units and vector units want it, and
no cache is transposed at every token. On CPU that makes the products up to three times as fast.

Axes beside those of `mental_r1_jax.types`: R query heads of one key/value head, h head width, C
slots of the completion's own cache, S parts of the batch with a copy each of the prefix that all
prompts share, F tokens of that prefix.
"""

from __future__ import annotations

import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mental_r1_jax.models.architecture import AttentionFacts
from mental_r1_jax.models.attention_plain import HIDDEN_LOGIT, capped


@flax.struct.dataclass
class PrefixHeads:
    """Keys and values of a prefix that stands before all prompts of the batch.

    Attributes:
        keys: one copy for each part of the batch.
        values: one copy for each part of the batch.
        allowed: true on the tokens of the prefix that are seen; None: all are.
    """

    keys: Float[Array, "S K h F"]
    values: Float[Array, "S K F h"]
    allowed: Bool[Array, "B F"] | None


def decode_attention(
    queries: Float[Array, "B G K R h"],
    prompt_keys: Float[Array, "B K h P"],
    prompt_values: Float[Array, "B K P h"],
    own_keys: Float[Array, "B K G h C"],
    own_values: Float[Array, "B K G C h"],
    prompt_allowed: Bool[Array, "B P"],
    own_allowed: Bool[Array, " C"],
    facts: AttentionFacts,
    prefix: PrefixHeads | None = None,
) -> Float[Array, "B G K R h"]:
    """Attend from one token of each completion to its prompt's one copy and to its own tokens.

    One softmax over both key sets, ``softmax(scale [q k_prompt, q k_own]) [v_prompt; v_own]``,
    without joining them: with the common maximum ``m`` and ``e = exp(logit - m)``,
    ``(e_prompt v_prompt + e_own v_own) / (sum e_prompt + sum e_own)``. The G completions are rows
    of one matrix product with the prompt's keys. Logits, exponentials and sums are float32.

    A prefix is a third key set in the same softmax. All completions of all prompts of a part are
    rows of one product with its keys, which so are read once and not once a prompt.

    Args:
        queries: rotated, not scaled.
        prompt_keys: one copy a prompt.
        prompt_values: one copy a prompt.
        own_keys: of each completion, the present token's included.
        own_values: of each completion, the present token's included.
        prompt_allowed: true on the prompt's tokens that are seen.
        own_allowed: true on the slots of the own cache that are seen, in every completion.
        facts: scale and softcap of the layer; its window is in the masks.
        prefix: what stands before all prompts; None: nothing.
    """
    queries = (queries * jnp.asarray(facts.scale, queries.dtype)).swapaxes(1, 2)
    to_prompt = capped(_dot("bkgrh,bkhp->bkgrp", queries, prompt_keys), facts.softcap)
    to_prompt = jnp.where(prompt_allowed[:, None, None, None, :], to_prompt, HIDDEN_LOGIT)
    to_own = capped(_dot("bkgrh,bkghc->bkgrc", queries, own_keys), facts.softcap)
    to_own = jnp.where(own_allowed, to_own, HIDDEN_LOGIT)
    top = jnp.maximum(to_prompt.max(-1), to_own.max(-1))
    if prefix is not None:
        to_prefix = _prefix_logits(queries, prefix, facts)
        top = jnp.maximum(top, _by_prompt(to_prefix.max(-1), queries))
    from_prompt, from_own = (jnp.exp(logits - top[..., None]) for logits in (to_prompt, to_own))
    total = from_prompt.sum(-1) + from_own.sum(-1)
    mixed = _dot("bkgrp,bkph->bkgrh", from_prompt, prompt_values)
    mixed += _dot("bkgrc,bkgch->bkgrh", from_own, own_values)
    if prefix is not None:
        from_prefix = jnp.exp(to_prefix - _by_part(top, prefix)[..., None])
        total += _by_prompt(from_prefix.sum(-1), queries)
        of_prefix = _dot("skmf,skfh->skmh", from_prefix, prefix.values)
        mixed += _by_prompt(of_prefix, queries)
    return (mixed / total[..., None]).astype(queries.dtype).swapaxes(1, 2)


def _prefix_logits(
    queries: Float[Array, "B K G R h"], prefix: PrefixHeads, facts: AttentionFacts
) -> Float[Array, "S K M F"]:
    """Logits of all (scaled) queries on the prefix, M = B / S * G * R rows a part and head."""
    logits = capped(_dot("skmh,skhf->skmf", _by_part(queries, prefix), prefix.keys), facts.softcap)
    if prefix.allowed is None:
        return logits
    num_parts, kv_heads, _, length = logits.shape
    per_prompt = logits.reshape(num_parts, kv_heads, len(queries) // num_parts, -1, length)
    seen = prefix.allowed.reshape(num_parts, 1, -1, 1, length)
    return jnp.where(seen, per_prompt, HIDDEN_LOGIT).reshape(logits.shape)


def _by_part(x: Float[Array, "B K G R *h"], prefix: PrefixHeads) -> Float[Array, "S K M *h"]:
    """Lay the prompts of a part of the batch end to end."""
    num_prompts, kv_heads, _, _, *rest = x.shape
    num_parts = len(prefix.keys)
    split = x.reshape(num_parts, num_prompts // num_parts, kv_heads, -1, *rest)
    return split.swapaxes(1, 2).reshape(num_parts, kv_heads, -1, *rest)


def _by_prompt(
    x: Float[Array, "S K M *h"], queries: Float[Array, "B K G R h"]
) -> Float[Array, "B K G R *h"]:
    """The inverse of `_by_part`, for the rows of `queries`."""
    num_parts, kv_heads, _, *rest = x.shape
    split = x.reshape(num_parts, kv_heads, len(queries) // num_parts, -1, *rest)
    return split.swapaxes(1, 2).reshape(*queries.shape[:4], *rest)


def _dot(subscripts: str, left: Array, right: Array) -> Array:
    """Matrix product in the dtype of the cache, accumulated in float32."""
    left = left.astype(right.dtype)
    return jnp.einsum(subscripts, left, right, preferred_element_type=jnp.float32)
