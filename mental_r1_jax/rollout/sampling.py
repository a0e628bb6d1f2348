"""Drawing one token from logits: temperature, top-k, top-p, one uniform number a token.

The truncation thresholds are found by bisection on the bits of the probabilities instead of a sort:
non-negative floats order like their bit patterns, so 31 halvings give the exact threshold.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

_BLOCK = 128
_BITS_OF_ONE = 0x3F800000  # bit pattern of 1.0, the largest probability


def sample_token(
    logits: Float[jax.Array, "B G V"],
    uniform: Float[jax.Array, "B G"],
    *,
    temperature: float,
    top_p: float,
    top_k: int | None,
) -> tuple[Int[jax.Array, "B G"], Float[jax.Array, "B G"], Float[jax.Array, "B G"]]:
    """Draw one token a row by inverting the cumulative distribution at `uniform`.

    The distribution is p = softmax(logits / T), truncated to the `top_k` likeliest tokens, then to
    the smallest set of the likeliest whose share of what is left reaches `top_p`, renormalised.
    Tokens that tie with the last one kept are kept too.

    Returns:
        ids: the drawn tokens.
        sampler_logprobs: log-probability (nats) under the truncated distribution.
        decode_logprobs: log-probability (nats) under p itself.
    """
    logprobs = jax.nn.log_softmax(logits.astype(jnp.float32) / temperature, axis=-1)
    probs = jnp.exp(logprobs)
    if top_k is not None and top_k < logits.shape[-1]:
        probs = _keep(probs, lambda kept: kept.sum(axis=-1) >= top_k)
    if top_p < 1.0:
        wanted = top_p * probs.sum(axis=-1)
        probs = _keep(probs, lambda kept: jnp.where(kept, probs, 0.0).sum(axis=-1) >= wanted)
    ids = _invert_cumulative(probs, uniform)
    decode_logprobs = _pick(logprobs, ids)
    truncated = top_p < 1.0 or top_k is not None
    kept_mass = probs.sum(axis=-1) if truncated else jnp.ones_like(uniform)
    return ids, decode_logprobs - jnp.log(kept_mass), decode_logprobs


def greedy_token(
    logits: Float[jax.Array, "B G V"],
) -> tuple[Int[jax.Array, "B G"], Float[jax.Array, "B G"], Float[jax.Array, "B G"]]:
    """The likeliest token and, twice, its log-probability (nats) at temperature 1."""
    # The first place of the maximum; on CPU, XLA's argmax takes several times as long.
    places = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
    top = logits.max(axis=-1, keepdims=True)
    ids = jnp.where(logits == top, places, logits.shape[-1] - 1).min(axis=-1)
    logprobs = _pick(jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1), ids)
    return ids, logprobs, logprobs


def _pick(values: Float[jax.Array, "B G V"], ids: Int[jax.Array, "B G"]) -> Float[jax.Array, "B G"]:
    """values[b, g, ids[b, g]]."""
    return jnp.take_along_axis(values, ids[..., None], axis=-1)[..., 0]


def _keep(
    probs: Float[jax.Array, "B G V"],
    enough: Callable[[Bool[jax.Array, "B G V"]], Bool[jax.Array, "B G"]],
) -> Float[jax.Array, "B G V"]:
    """Zero all but the likeliest tokens: the smallest such set for which `enough` holds."""
    bits = jax.lax.bitcast_convert_type(probs, jnp.int32)

    def halve(_: jax.Array, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds  # `enough` holds at `low` and fails at `high`
        middle = low + (high - low) // 2
        holds = enough(bits >= middle[..., None])
        return jnp.where(holds, middle, low), jnp.where(holds, high, middle)

    low = jnp.zeros(probs.shape[:-1], jnp.int32)
    high = jnp.full(probs.shape[:-1], _BITS_OF_ONE + 2, jnp.int32)
    threshold, _ = jax.lax.fori_loop(0, 31, halve, (low, high))
    return jnp.where(bits >= threshold[..., None], probs, 0.0)


def _invert_cumulative(
    probs: Float[jax.Array, "B G V"], uniform: Float[jax.Array, "B G"]
) -> Int[jax.Array, "B G"]:
    """First token whose cumulative weight exceeds `uniform` times the total.

    Two levels, blocks and tokens inside one block, so that no cumulative sum over V is made.
    """
    *lead, size = probs.shape
    blocks = jnp.pad(probs, [(0, 0)] * len(lead) + [(0, -size % _BLOCK)]).reshape(*lead, -1, _BLOCK)
    block_ends = jnp.cumsum(blocks.sum(axis=-1), axis=-1)
    target = uniform * block_ends[..., -1]
    block = _first_above(block_ends, target)
    inside = jnp.take_along_axis(blocks, block[..., None, None], axis=-2)[..., 0, :]
    before = jnp.where(block > 0, _pick(block_ends, jnp.maximum(block - 1, 0)), 0.0)
    token = _first_above(before[..., None] + jnp.cumsum(inside, axis=-1), target)
    return block * _BLOCK + token


def _first_above(
    cumulative: Float[jax.Array, "B G N"], target: Float[jax.Array, "B G"]
) -> Int[jax.Array, "B G"]:
    """First index with cumulative > target; where rounding leaves none, the last increase."""
    first = (cumulative <= target[..., None]).sum(axis=-1)
    last_increase = jnp.argmax(cumulative, axis=-1)  # argmax takes the first of equal values
    return jnp.minimum(first, last_increase).astype(jnp.int32)
