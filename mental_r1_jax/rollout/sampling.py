"""Drawing one token from logits: temperature, top-k, top-p, one uniform number a token.

The threshold of top-p is found by `nucleus.py` in a few passes over the vocabulary, without a sort.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from mental_r1_jax.rollout.nucleus import nucleus_threshold, row_sums
from mental_r1_jax.sharding import on_own_rows

_BLOCK = 128


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
    scaled = logits.astype(jnp.float32) / temperature
    largest = scaled.max(axis=-1)
    # p times a factor, so that one pass with exponentials does for the sum and for the draw. The
    # barrier keeps XLA from computing them again in every pass that reads them.
    weights = jax.lax.optimization_barrier(jnp.exp(scaled - largest[..., None]))
    total = row_sums(weights)
    kept = truncate(weights, total, top_p=top_p, top_k=top_k)
    ids, kept_mass = _invert_cumulative(kept, uniform)
    log_weight = _pick(scaled, ids) - largest
    if top_p >= 1.0 and top_k is None:
        kept_mass = total
    return ids, log_weight - jnp.log(kept_mass), log_weight - jnp.log(total)


def truncate(
    weights: Float[jax.Array, "B G V"],
    total: Float[jax.Array, "B G"],
    *,
    top_p: float,
    top_k: int | None,
) -> Float[jax.Array, "B G V"]:
    """Zero all but the `top_k` likeliest tokens, then all but the nucleus of what is left.

    Args:
        weights: probabilities times a factor by which the largest becomes 1.
        total: their sum.
        top_p: share of what `top_k` leaves that the nucleus holds.
        top_k: number of tokens, or None for all.
    """
    if top_k is not None and top_k < weights.shape[-1]:
        # Where the places are not used, XLA makes a full sort of it on CPU; the barrier keeps them.
        likeliest, _ = jax.lax.optimization_barrier(jax.lax.top_k(weights, top_k))
        weights = jnp.where(weights >= likeliest[..., -1:], weights, 0.0)
        weights = jax.lax.optimization_barrier(weights)
        total = row_sums(weights)
    if top_p < 1.0:
        threshold = _threshold(weights, total, top_p)
        weights = jnp.where(weights >= threshold[..., None], weights, 0.0)
    return jax.lax.optimization_barrier(weights)


def _threshold(
    weights: Float[jax.Array, "B G V"], total: Float[jax.Array, "B G"], top_p: float
) -> Float[jax.Array, "B G"]:
    """The threshold of the nucleus; on TPUs each device searches for its own rows alone.

    XLA for CPUs ends the process at the search inside of a `shard_map` (a check of its own, that a
    barrier is no element of a tuple, in jaxlib 0.10.2), and exchanges between CPU devices cost
    little.
    """
    device = jax.typeof(weights).sharding.mesh.abstract_device

    def search(
        rows: Float[jax.Array, "b g V"], sums: Float[jax.Array, "b g"]
    ) -> Float[jax.Array, "b g"]:
        return nucleus_threshold(rows, sums, top_p)[0]

    on_tpus = device is not None and device.platform == "tpu"
    return on_own_rows(search, weights, total) if on_tpus else search(weights, total)


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


def entropy(logits: Float[jax.Array, "B G V"], temperature: float) -> Float[jax.Array, "B G"]:
    """Entropy (nats) of p = softmax(logits / temperature), ``-sum_v p_v log p_v``; float32.

    A probability that underflows adds nothing.
    """
    logprobs = jax.nn.log_softmax(logits.astype(jnp.float32) / temperature, axis=-1)
    return -(jnp.exp(logprobs) * logprobs).sum(axis=-1)


def _pick(values: Float[jax.Array, "B G V"], ids: Int[jax.Array, "B G"]) -> Float[jax.Array, "B G"]:
    """values[b, g, ids[b, g]]."""
    return jnp.take_along_axis(values, ids[..., None], axis=-1)[..., 0]


def _invert_cumulative(
    probs: Float[jax.Array, "B G V"], uniform: Float[jax.Array, "B G"]
) -> tuple[Int[jax.Array, "B G"], Float[jax.Array, "B G"]]:
    """First token whose cumulative weight exceeds `uniform` times the total, and that total.

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
    return block * _BLOCK + token, block_ends[..., -1]


def _first_above(
    cumulative: Float[jax.Array, "B G N"], target: Float[jax.Array, "B G"]
) -> Int[jax.Array, "B G"]:
    """First index with cumulative > target; where rounding leaves none, the last increase."""
    first = (cumulative <= target[..., None]).sum(axis=-1)
    last_increase = jnp.argmax(cumulative, axis=-1)  # argmax takes the first of equal values
    return jnp.minimum(first, last_increase).astype(jnp.int32)
