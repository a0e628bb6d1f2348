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
    weights, total = _exponentials(scaled, largest)
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
    """The first of the likeliest tokens and, twice, its log-probability (nats) at temperature 1.

    Two levels, blocks and tokens inside one block: on CPU, XLA looks along a whole row one number
    after the other.
    """
    logits = logits.astype(jnp.float32)
    blocks = _in_blocks(logits, -jnp.inf)
    tops = blocks.max(axis=-1)
    block = jnp.argmax(tops, axis=-1)
    ids = block * _BLOCK + jnp.argmax(_pick_block(blocks, block), axis=-1)
    # Of the likeliest token log p = log 1 - log sum.
    _, total = _exponentials(logits, tops.max(axis=-1))
    logprobs = -jnp.log(total)
    return ids.astype(jnp.int32), logprobs, logprobs


def entropy(logits: Float[jax.Array, "B G V"], temperature: float) -> Float[jax.Array, "B G"]:
    """Entropy (nats) of p = softmax(logits / temperature), ``-sum_v p_v log p_v``; float32.

    A probability that underflows adds nothing.
    """
    scaled = logits.astype(jnp.float32) / temperature
    largest = scaled.max(axis=-1)
    weights, total = _exponentials(scaled, largest)
    below = jnp.where(weights > 0, weights * (largest[..., None] - scaled), 0.0)
    return jnp.log(total) + row_sums(jax.lax.optimization_barrier(below)) / total


def _exponentials(
    scaled: Float[jax.Array, "B G V"], largest: Float[jax.Array, "B G"]
) -> tuple[Float[jax.Array, "B G V"], Float[jax.Array, "B G"]]:
    """exp(scaled - largest), which is p times a factor, and its sum.

    The barrier keeps XLA from computing the exponentials again in every pass that reads them.
    """
    weights = jax.lax.optimization_barrier(jnp.exp(scaled - largest[..., None]))
    return weights, row_sums(weights)


def _pick(values: Float[jax.Array, "B G V"], ids: Int[jax.Array, "B G"]) -> Float[jax.Array, "B G"]:
    """values[b, g, ids[b, g]]."""
    return jnp.take_along_axis(values, ids[..., None], axis=-1, mode="clip")[..., 0]


def _invert_cumulative(
    probs: Float[jax.Array, "B G V"], uniform: Float[jax.Array, "B G"]
) -> tuple[Int[jax.Array, "B G"], Float[jax.Array, "B G"]]:
    """First token whose cumulative weight exceeds `uniform` times the total, and that total.

    Two levels, blocks and tokens inside one block, so that no cumulative sum over V is made.
    """
    blocks = _in_blocks(probs, 0.0)
    block_ends = jnp.cumsum(blocks.sum(axis=-1), axis=-1)
    target = uniform * block_ends[..., -1]
    block = _first_above(block_ends, target)
    inside = _pick_block(blocks, block)
    earlier = jnp.arange(block_ends.shape[-1])[None, None] < block[..., None]
    before = jnp.where(earlier, block_ends, 0.0).max(axis=-1)
    token = _first_above(before[..., None] + jnp.cumsum(inside, axis=-1), target)
    return block * _BLOCK + token, block_ends[..., -1]


def _in_blocks(rows: Float[jax.Array, "B G V"], fill: float) -> Float[jax.Array, "B G N block"]:
    """Blocks of `_BLOCK` neighbours, the last one filled up."""
    *lead, size = rows.shape
    width = [(0, 0)] * len(lead) + [(0, -size % _BLOCK)]
    return jnp.pad(rows, width, constant_values=fill).reshape(*lead, -1, _BLOCK)


def _pick_block(
    blocks: Float[jax.Array, "B G N block"], place: Int[jax.Array, "B G"]
) -> Float[jax.Array, "B G block"]:
    """blocks[b, g, place[b, g]]."""
    return jnp.take_along_axis(blocks, place[..., None, None], axis=-2, mode="clip")[..., 0, :]


def _first_above(
    cumulative: Float[jax.Array, "B G N"], target: Float[jax.Array, "B G"]
) -> Int[jax.Array, "B G"]:
    """First index with cumulative > target; where rounding leaves none, the last increase."""
    first = (cumulative <= target[..., None]).sum(axis=-1)
    last_increase = jnp.argmax(cumulative, axis=-1)  # argmax takes the first of equal values
    return jnp.minimum(first, last_increase).astype(jnp.int32)
