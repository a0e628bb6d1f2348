"""Drawing one token from logits: temperature, top-k, top-p, one uniform number a token.

Top-p is exact and needs no sort: `rejection.py` draws until a token lies in the nucleus, and where
the nucleus' mass is wanted, too, `nucleus.py` finds its threshold in a few passes.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int, PyTree, Shaped

from mental_r1_jax.rollout.cumulative import (
    BLOCK,
    Cumulative,
    cumulative,
    in_blocks,
    invert,
    pick_block,
)
from mental_r1_jax.rollout.nucleus import nucleus_threshold, row_sums
from mental_r1_jax.rollout.rejection import LEAST_TOP_P, draw_from_nucleus
from mental_r1_jax.sharding import on_own_rows


def sample_token(
    logits: Float[jax.Array, "B G V"],
    uniform: Float[jax.Array, "B G"],
    *,
    temperature: float,
    top_p: float,
    top_k: int | None,
    sampler_logprobs: bool,
) -> tuple[Int[jax.Array, "B G"], Float[jax.Array, "B G"], Float[jax.Array, "B G"] | None]:
    """Draw one token a row by inverting the cumulative distribution at `uniform`.

    The distribution is p = softmax(logits / T), truncated to the `top_k` likeliest tokens, then to
    the smallest set of the likeliest whose share of what is left reaches `top_p`, renormalised.
    Tokens that tie with the last one kept are kept too.

    Args:
        logits: of the next token.
        uniform: a number in [0, 1) for each row.
        temperature: T.
        top_p: share of the mass that is kept.
        top_k: number of tokens that are kept, or None for all.
        sampler_logprobs: whether they are wanted. Without them a truncated draw is shorter, and
            takes other tokens for the same numbers.

    Returns:
        ids: the drawn tokens.
        decode_logprobs: log-probability (nats) under p itself.
        sampler_logprobs: log-probability (nats) under the truncated distribution, or None.
    """
    scaled = logits.astype(jnp.float32) / temperature
    weights = _exponentials(scaled, scaled.max(axis=-1))
    whole = cumulative(weights)
    by_rejection = LEAST_TOP_P <= top_p < 1.0 and not sampler_logprobs
    kept = truncate(weights, whole.total, top_p=1.0 if by_rejection else top_p, top_k=top_k)
    table = whole if kept is weights else cumulative(kept)
    if by_rejection:
        ids, drawn = _draw_by_rejection(table, uniform, top_p)
    else:
        ids, drawn = (x[..., 0] for x in invert(table, uniform[..., None]))
    sampler = jnp.log(drawn) - jnp.log(table.total) if sampler_logprobs else None
    return ids, jnp.log(drawn) - jnp.log(whole.total), sampler


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
        weights = jax.lax.optimization_barrier(weights)
    return weights


def _draw_by_rejection(
    table: Cumulative, uniform: Float[jax.Array, "B G"], top_p: float
) -> tuple[Int[jax.Array, "B G"], Float[jax.Array, "B G"]]:
    """A token of the nucleus for each row, and its weight."""

    def draw(
        blocks: Float[jax.Array, "b g N block"],
        ends: Float[jax.Array, "b g N"],
        numbers: Float[jax.Array, "b g"],
    ) -> tuple[Int[jax.Array, "b g"], Float[jax.Array, "b g"]]:
        return draw_from_nucleus(Cumulative(blocks, ends), numbers, top_p)

    return _each_device_alone(draw, table.blocks, table.ends, uniform)


def _threshold(
    weights: Float[jax.Array, "B G V"], total: Float[jax.Array, "B G"], top_p: float
) -> Float[jax.Array, "B G"]:
    """The threshold of the nucleus."""

    def search(
        rows: Float[jax.Array, "b g V"], sums: Float[jax.Array, "b g"]
    ) -> Float[jax.Array, "b g"]:
        return nucleus_threshold(rows, sums, top_p)[0]

    return _each_device_alone(search, weights, total)


def _each_device_alone(
    function: Callable[..., PyTree[jax.Array]], *rows: Float[jax.Array, "B G ..."]
) -> PyTree[Shaped[jax.Array, "B G"]]:
    """A loop over rows; on TPUs each device runs it for its own rows alone.

    XLA for CPUs ends the process at the search inside of a `shard_map` (a check of its own, that a
    barrier is no element of a tuple, in jaxlib 0.10.2), and exchanges between CPU devices cost
    little.
    """
    device = jax.typeof(rows[0]).sharding.mesh.abstract_device
    on_tpus = device is not None and device.platform == "tpu"
    return on_own_rows(function, *rows) if on_tpus else function(*rows)


def greedy_token(
    logits: Float[jax.Array, "B G V"],
) -> tuple[Int[jax.Array, "B G"], Float[jax.Array, "B G"]]:
    """The first of the likeliest tokens, and its log-probability (nats) at temperature 1.

    Two levels, blocks and tokens inside one block: on CPU, XLA looks along a whole row one number
    after the other.
    """
    logits = logits.astype(jnp.float32)
    blocks = in_blocks(logits, -jnp.inf)
    tops = blocks.max(axis=-1)
    block = jnp.argmax(tops, axis=-1)
    inside = pick_block(blocks, block[..., None])[..., 0, :]
    ids = block * BLOCK + jnp.argmax(inside, axis=-1)
    # Of the likeliest token log p = log 1 - log sum.
    total = row_sums(_exponentials(logits, tops.max(axis=-1)))
    return ids.astype(jnp.int32), -jnp.log(total)


def entropy(logits: Float[jax.Array, "B G V"], temperature: float) -> Float[jax.Array, "B G"]:
    """Entropy (nats) of p = softmax(logits / temperature), ``-sum_v p_v log p_v``; float32.

    A probability that underflows adds nothing.
    """
    scaled = logits.astype(jnp.float32) / temperature
    largest = scaled.max(axis=-1)
    weights = _exponentials(scaled, largest)
    total = row_sums(weights)
    below = jnp.where(weights > 0, weights * (largest[..., None] - scaled), 0.0)
    return jnp.log(total) + row_sums(jax.lax.optimization_barrier(below)) / total


def _exponentials(
    scaled: Float[jax.Array, "B G V"], largest: Float[jax.Array, "B G"]
) -> Float[jax.Array, "B G V"]:
    """exp(scaled - largest), which is p times a factor.

    The barrier keeps XLA from computing the exponentials again in every pass that reads them.
    """
    return jax.lax.optimization_barrier(jnp.exp(scaled - largest[..., None]))
