"""A token of the nucleus without its threshold: draw from all tokens until one lies inside.

Rejection sampling: a token drawn from p, given that it lies in a set, is distributed as p
renormalised over this set. Whether a token lies in the nucleus takes one pass over the vocabulary,
which sums what is likelier, and serves two tokens at once. The search of `nucleus.py` takes three
or four. It is needed where the nucleus' mass is, which a token drawn in this way does not tell.
"""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from mental_r1_jax.rollout.cumulative import Cumulative, invert
from mental_r1_jax.rollout.nucleus import in_nucleus

# Below it too many draws fall outside for this to be the shorter way.
LEAST_TOP_P = 0.8
_CANDIDATES = 2  # of a turn: 2.5 in 1,000 rows need another one at top-p 0.95
# 32 candidates outside of a nucleus that holds 0.8 have a chance of 1e-22: rows that get here have
# numbers that are not finite, and keep any token.
_MOST_TURNS = 16


@flax.struct.dataclass
class _Draw:
    """Carry of the loop; `ids` of rows that have not `accepted` lie outside of the nucleus."""

    turn: Int[Array, ""]
    accepted: Bool[Array, "B G"]
    ids: Int[Array, "B G"]
    weights: Float[Array, "B G"]


@jax.named_scope("rejection")
def draw_from_nucleus(
    table: Cumulative, uniform: Float[Array, "B G"], top_p: float
) -> tuple[Int[Array, "B G"], Float[Array, "B G"]]:
    """Draw one token a row from the smallest set of the likeliest that holds `top_p` of the total.

    The first candidate is the token at which the cumulative sum over all tokens passes `uniform`:
    where that lies in the nucleus, top-p has changed nothing.

    Args:
        table: probabilities times a factor.
        uniform: a number in [0, 1) for each row.
        top_p: share of their sum that the nucleus holds, at least `LEAST_TOP_P`.

    Returns:
        (ids, weights): the tokens and their weights.
    """
    weights = table.blocks.reshape(*uniform.shape, -1)

    def goes_on(draw: _Draw) -> Bool[Array, ""]:
        return ~draw.accepted.all() & (draw.turn < _MOST_TURNS)

    def again(draw: _Draw) -> _Draw:
        candidates, drawn = invert(table, _numbers(uniform, draw.turn))
        inside = in_nucleus(weights, table.total, drawn, top_p)

        def chosen(old: Array, new: Array) -> Array:
            first = jnp.where(inside[..., 0], new[..., 0], new[..., 1])
            return jnp.where(draw.accepted, old, first)

        return _Draw(
            draw.turn + 1,
            draw.accepted | inside.any(axis=-1),
            chosen(draw.ids, candidates),
            chosen(draw.weights, drawn),
        )

    nobody, nothing = jnp.zeros(uniform.shape, bool), jnp.zeros(uniform.shape, jnp.int32)
    start = _Draw(jnp.zeros((), jnp.int32), nobody, nothing, jnp.zeros_like(uniform))
    draw = lax.while_loop(goes_on, again, start)
    return draw.ids, draw.weights


def _numbers(uniform: Float[Array, "B G"], turn: Int[Array, ""]) -> Float[Array, "B G K"]:
    """The row's own number first, then those of a generator that it and the turn seed.

    A float32 number in [0, 1) has 23 random bits, so that a token is drawn at this resolution,
    with and without truncation.
    """
    seed = lax.bitcast_convert_type(uniform, jnp.uint32)
    data = jnp.stack([seed, jnp.broadcast_to(turn.astype(jnp.uint32), seed.shape)], axis=-1)
    keys = jax.random.wrap_key_data(data, impl="threefry2x32")
    others = jax.vmap(jax.vmap(lambda key: jax.random.uniform(key, (_CANDIDATES,))))(keys)
    own = (jnp.arange(_CANDIDATES)[None, None] == 0) & (turn == 0)
    return jnp.where(own, uniform[..., None], others)
