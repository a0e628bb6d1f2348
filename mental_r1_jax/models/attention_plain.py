"""Attention of a group of completions to one shared prompt, in plain XLA, for any machine.

Extra axes, beside those of `mental_r1_jax.types`: R query heads that share one key/value head
(H = K * R, query head k * R + r), h the width of a head, S key slots of a completion.

Keys and values are kept as ``[..., K, tokens, h]``: the batch axes of every matrix product then
lead, so neither decoding nor training transposes a cache.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

# Finite, so that a padded query row whose keys are all hidden yields numbers instead of NaN.
HIDDEN_LOGIT = -1e30


def shared_prefix_attention(
    prompt: tuple[Array, Array, Array],
    completions: tuple[Array, Array, Array],
    prompt_mask: Bool[Array, "B P"],
    completion_mask: Bool[Array, "B G T"],
    window: Int[Array, ""] | None,
) -> tuple[Float[Array, "B P K R h"], Float[Array, "B G T K R h"]]:
    """Attention of whole prompts and completions, see `attention.shared_prefix_attention`."""
    queries, keys, values = prompt
    keys, values = keys.swapaxes(1, 2), values.swapaxes(1, 2)
    mixed_prompt = prompt_attention(queries, keys, values, window)
    queries, own_keys, own_values = completions
    steps = jnp.arange(completion_mask.shape[-1])
    positions = prompt_mask.sum(-1, dtype=jnp.int32)[:, None] + steps[None]
    own_allowed = allowed_own_keys(steps, len(steps), window)[None, None]
    mixed = group_attention(
        queries,
        keys,
        values,
        own_keys.swapaxes(2, 3),
        own_values.swapaxes(2, 3),
        allowed_prompt_keys(prompt_mask, positions, window),
        own_allowed & completion_mask[:, :, None, :],
    )
    return mixed_prompt, mixed


def prompt_attention(
    queries: Float[Array, "B P K R h"],
    keys: Float[Array, "B K P h"],
    values: Float[Array, "B K P h"],
    window: Int[Array, ""] | None,
) -> Float[Array, "B P K R h"]:
    """Return causal attention within each prompt, ``softmax(q k / sqrt(h)) v``, logits in float32.

    Padding stands on the right, so causality alone hides it from every real token. With a `window`
    a token sees itself and the ``window - 1`` tokens before it.
    """
    length = queries.shape[1]
    by_head = queries.transpose(0, 2, 1, 3, 4)  # [B, K, P, R, h]
    logits = _rows_dot("bkmh,bkph->bkmp", by_head, 2, keys) * queries.shape[-1] ** -0.5
    token = jnp.arange(length)
    allowed = _within(token[:, None], token[None, :], window)
    logits = jnp.where(allowed.reshape(1, 1, length, 1, length), logits, HIDDEN_LOGIT)
    weights = jax.nn.softmax(logits, axis=-1).astype(values.dtype)
    mixed = _rows_dot("bkmp,bkph->bkmh", weights, 2, values)
    return mixed.transpose(0, 2, 1, 3, 4).astype(queries.dtype)


def group_attention(
    queries: Float[Array, "B G T K R h"],
    prompt_keys: Float[Array, "B K P h"],
    prompt_values: Float[Array, "B K P h"],
    own_keys: Float[Array, "B G K S h"],
    own_values: Float[Array, "B G K S h"],
    prompt_allowed: Bool[Array, "B T P"],
    own_allowed: Bool[Array, "#B #G T S"],
) -> Float[Array, "B G T K R h"]:
    """Return attention of G completions to one copy of their prompt and each to its own tokens.

    One softmax over both key sets, ``softmax([q k_prompt, q k_own] / sqrt(h)) [v_prompt; v_own]``,
    computed without joining them: with the common maximum ``m`` and ``e = exp(logit - m)``,
    ``(e_prompt v_prompt + e_own v_own) / (sum e_prompt + sum e_own)``. Logits, exponentials and
    sums are float32. T is the number of new tokens: all of them in training, one in decoding.
    """
    scale = queries.shape[-1] ** -0.5
    by_head = queries.transpose(0, 3, 1, 2, 4, 5)  # [B, K, G, T, R, h]
    to_prompt = _rows_dot("bkmh,bkph->bkmp", by_head, 2, prompt_keys) * scale
    to_own = _rows_dot("bgkmh,bgksh->bgkms", by_head.swapaxes(1, 2), 3, own_keys) * scale
    to_prompt = jnp.where(prompt_allowed[:, None, None, :, None, :], to_prompt, HIDDEN_LOGIT)
    to_own = jnp.where(own_allowed[:, :, None, :, None, :], to_own, HIDDEN_LOGIT)
    top = jnp.maximum(
        to_prompt.max(-1), to_own.max(-1, initial=HIDDEN_LOGIT).swapaxes(1, 2)
    )  # [B, K, G, T, R]
    top = jax.lax.stop_gradient(top)
    from_prompt = jnp.exp(to_prompt - top[..., None])
    from_own = jnp.exp(to_own - top.swapaxes(1, 2)[..., None])
    total = from_prompt.sum(-1) + from_own.sum(-1).swapaxes(1, 2)
    from_prompt, from_own = from_prompt.astype(queries.dtype), from_own.astype(queries.dtype)
    mixed = _rows_dot("bkmp,bkph->bkmh", from_prompt, 2, prompt_values)
    mixed += _rows_dot("bgkms,bgksh->bgkmh", from_own, 3, own_values).swapaxes(1, 2)
    return (mixed / total[..., None]).transpose(0, 2, 3, 1, 4, 5).astype(queries.dtype)


def allowed_prompt_keys(
    prompt_mask: Bool[Array, "B P"],
    positions: Int[Array, "B T"],
    window: Int[Array, ""] | None,
) -> Bool[Array, "B T P"]:
    """Say which prompt keys a completion token at `positions` sees: the real ones in its window."""
    shape = (*positions.shape, prompt_mask.shape[1])
    allowed = jnp.broadcast_to(prompt_mask[:, None, :], shape)
    if window is None:
        return allowed
    slots = jnp.arange(prompt_mask.shape[1])[None, None, :]
    return allowed & (positions[:, :, None] - slots < window)


def allowed_own_keys(
    query_slots: Int[Array, " T"], num_slots: int, window: Int[Array, ""] | None
) -> Bool[Array, "T S"]:
    """Say which slots of its own completion a token sees: itself and earlier ones in its window."""
    return _within(query_slots[:, None], jnp.arange(num_slots)[None, :], window)


def _within(query: Array, key: Array, window: Array | None) -> Array:
    """Causality, and nearness where there is a window."""
    allowed = query >= key
    return allowed if window is None else allowed & (query - key < window)


def _rows_dot(subscripts: str, left: Array, num_batch: int, right: Array) -> Array:
    """Matrix product of compute-dtype operands, accumulated and returned in float32.

    The axes of `left` between the first `num_batch` and the last become one axis of rows: with
    several, decoding on CPU is up to twice as slow, and XLA's CPU backend refuses some bfloat16
    products whose result has its rows between the batch axes.
    """
    batch, rows = left.shape[:num_batch], left.shape[num_batch:-1]
    matrix = left.reshape(*batch, math.prod(rows), left.shape[-1])
    product = jnp.einsum(subscripts, matrix, right, preferred_element_type=jnp.float32)
    return product.reshape(*batch, *rows, product.shape[-1])
