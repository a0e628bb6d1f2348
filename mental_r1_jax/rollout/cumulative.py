"""Inverting a cumulative distribution over the vocabulary, without a cumulative sum over all of it.

Two levels: blocks of neighbouring tokens, and the tokens inside of one block.
"""

from __future__ import annotations

import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

BLOCK = 128


@flax.struct.dataclass
class Cumulative:
    """Weights of tokens, ready for inversion.

    Attributes:
        blocks: the weights, in blocks of `BLOCK` neighbours; the last one is filled up with 0.
        ends: sum of the weights up to the end of each block; the last one is the total.
    """

    blocks: Float[Array, "B G N block"]
    ends: Float[Array, "B G N"]

    @property
    def total(self) -> Float[Array, "B G"]:
        """Sum of all weights."""
        return self.ends[..., -1]


def cumulative(weights: Float[Array, "B G V"]) -> Cumulative:
    """Sum the weights up to the end of each block."""
    blocks = in_blocks(weights, 0.0)
    return Cumulative(blocks, jnp.cumsum(blocks.sum(axis=-1), axis=-1))


def invert(
    of: Cumulative, uniform: Float[Array, "B G K"]
) -> tuple[Int[Array, "B G K"], Float[Array, "B G K"]]:
    """Find the first token whose cumulative weight exceeds `uniform` times the total.

    Args:
        of: non-negative weights.
        uniform: K numbers in [0, 1) for each row.

    Returns:
        (ids, weights): for each number the token, whose weight is not 0, and its weight.
    """
    ends, target = of.ends[..., None, :], uniform * of.total[..., None]
    block = _first_above(ends, target)
    inside = pick_block(of.blocks, block)
    earlier = jnp.arange(ends.shape[-1])[None, None, None] < block[..., None]
    before = jnp.where(earlier, ends, 0.0).max(axis=-1)
    place = _first_above(before[..., None] + jnp.cumsum(inside, axis=-1), target)
    chosen = jnp.arange(BLOCK)[None, None, None] == place[..., None]
    return block * BLOCK + place, jnp.where(chosen, inside, 0.0).max(axis=-1)


def in_blocks(rows: Float[Array, "B G V"], fill: float) -> Float[Array, "B G N block"]:
    """Blocks of `BLOCK` neighbours, the last one filled up."""
    *lead, size = rows.shape
    width = [(0, 0)] * len(lead) + [(0, -size % BLOCK)]
    return jnp.pad(rows, width, constant_values=fill).reshape(*lead, -1, BLOCK)


def pick_block(
    blocks: Float[Array, "B G N block"], place: Int[Array, "B G K"]
) -> Float[Array, "B G K block"]:
    """blocks[b, g, place[b, g, k]]."""
    return jnp.take_along_axis(blocks, place[..., None], axis=-2, mode="clip")


def _first_above(
    rising: Float[Array, "B G #K N"], target: Float[Array, "B G K"]
) -> Int[Array, "B G K"]:
    """First index with rising > target; where rounding leaves none, the last increase."""
    first = (rising <= target[..., None]).sum(axis=-1)
    last_increase = jnp.argmax(rising, axis=-1)  # argmax takes the first of equal values
    return jnp.minimum(first, last_increase).astype(jnp.int32)
