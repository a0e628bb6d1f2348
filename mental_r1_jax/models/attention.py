"""Attention of a group of completions to one shared prompt, and rotary positions. Plain XLA.

Extra axes, beside those of `mental_r1_jax.types`: R query heads that share one key/value head
(H = K * R, query head k * R + r), h the width of a head, S key slots of a completion.

Keys and values are kept as ``[..., K, tokens, h]``: the batch axes of every matrix product then
lead, so neither decoding nor training transposes a cache.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

# Finite, so that a padded query row whose keys are all hidden yields numbers instead of NaN.
HIDDEN_LOGIT = -1e30


@dataclass(frozen=True)
class RopeScaling:
    """Change of the rotary frequencies of a model trained for long contexts.

    Attributes:
        kind: `linear` divides every frequency by `factor`; `llama3` divides only the slow ones and
            blends in between (the Llama 3.1 rule).
        factor: by how much the slow frequencies are divided.
        low_freq_factor: wavelengths above `original_length / low_freq_factor` are divided in full.
        high_freq_factor: wavelengths below `original_length / high_freq_factor` stay as they are.
        original_length: context length (tokens) before the extension.
    """

    kind: Literal["linear", "llama3"]
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_length: int = 8192


def rope_frequencies(head_dim: int, theta: float, scaling: RopeScaling | None) -> np.ndarray:
    """Return the rotary frequencies ``f_j = theta ** (-2j / h)``, radians a token, float32 [h/2].

    Under `llama3` scaling with wavelength ``w = 2 pi / f`` and original length ``N``:
    ``f`` where ``w < N / high``, ``f / factor`` where ``w > N / low``, and between them the blend
    ``(1 - s) f / factor + s f`` with ``s = (N / w - low) / (high - low)``.

    Source: RoFormer (arXiv 2104.09864); Llama 3 herd of models (arXiv 2407.21783).
    """
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    frequencies = (1.0 / np.float32(theta) ** exponents).astype(np.float32)
    if scaling is None:
        return frequencies
    if scaling.kind == "linear":
        return frequencies / np.float32(scaling.factor)
    turns = scaling.original_length * frequencies / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    smooth = np.clip((turns - low) / (high - low), 0.0, 1.0)
    scaled = (1 - smooth) * frequencies / scaling.factor + smooth * frequencies
    return scaled.astype(np.float32)


def rotate(
    x: Float[Array, "*tokens heads h"], positions: Int[Array, "*#tokens"], frequencies: np.ndarray
) -> Float[Array, "*tokens heads h"]:
    """Rotate each pair ``(x_j, x_{j + h/2})`` by ``position * f_j`` radians, in float32."""
    angles = positions[..., None].astype(jnp.float32) * frequencies.reshape(
        (1,) * positions.ndim + (-1,)
    )
    cos, sin = jnp.cos(angles)[..., None, :], jnp.sin(angles)[..., None, :]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)


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
