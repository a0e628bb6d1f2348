"""The exact nucleus of top-p truncation, without a sort and in few passes over the vocabulary.

The nucleus is {v : p(v) >= t} for the largest t whose set holds the wanted mass. A bracket of bit
patterns [low, high), low within and high beyond, shrinks around t (non-negative floats order like
their bits). A part of the vocabulary says where to look first. Then a pass sums what lies above
eight thresholds at once, and interpolation places the next eight as closely as sampling error
allows. When a bracket holds a handful of tokens, a last pass collects them, and their order
decides. What a row does depends on that row alone, so its nucleus does not depend on the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

# Where the first thresholds are put: multiples of the mass that is to be left out.
_FIRST = (0.5, 0.75, 0.9, 0.97, 1.04, 1.13, 1.35, 2.0)
# Where the next ones are put, around the interpolated place, in standard deviations of it.
_AROUND = (-3.5, -2.0, -1.1, -0.35, 0.35, 1.1, 2.0, 3.5)
_BENT = 0.08  # added for each octave of the bracket, over which the mass is not evenly spread
_GRID = 32  # thresholds at which the part of the vocabulary is summed
_BLOCKS = 4  # of the vocabulary that stand for the whole
_COLLECTED = 32  # most tokens of a bracket that the last pass can order
_PATIENCE = 3  # narrowings after which a bracket that is still wide may be one class of ties
_MOST_TURNS = 80  # halving 31 bits takes fewer; only numbers that are not finite get here
_SMALL_VOCABULARY = 2048
_SMALLEST_NORMAL = 2.0**-126


@flax.struct.dataclass
class _Bracket:
    """Bounds of each row's threshold, as bit patterns: `low` holds enough mass and `high` does not.

    Attributes:
        low, high: the bounds.
        mass_low, mass_high: mass of {p >= bound}.
        narrowed: passes that have moved the bounds.
    """

    low: Int[Array, "B G"]
    high: Int[Array, "B G"]
    mass_low: Float[Array, "B G"]
    mass_high: Float[Array, "B G"]
    narrowed: Int[Array, "B G"]


@flax.struct.dataclass
class _Search:
    """Carry of the search. `ready` rows wait for the last pass, `done` ones have a threshold.

    `places` are the thresholds of the next pass. They are carried, and not computed where they are
    used: what is above them and the bound that one of them becomes would then be two programs,
    whose floats may round differently, and a token in between would be in the mass of a bound that
    leaves it out.
    """

    turn: Int[Array, ""]
    bracket: _Bracket
    places: tuple[Int[Array, "B G"], ...]
    ready: Bool[Array, "B G"]
    done: Bool[Array, "B G"]
    threshold: Float[Array, "B G"]


@jax.named_scope("nucleus")
def nucleus_threshold(
    probs: Float[Array, "B G V"], total: Float[Array, "B G"], top_p: float
) -> tuple[Float[Array, "B G"], Int[Array, ""]]:
    """Find t such that {p >= t} is the smallest set of the likeliest that holds the wanted mass.

        t = max {s : sum of p(v) over p(v) >= s is at least top_p * total}

    Tokens that tie with the last one kept are in the set. Sums are in float32: where a share lies
    within their rounding of `top_p`, one class of ties more or less is in it.

    Args:
        probs: non-negative, in the normalisation whose largest is 1.
        total: their sum.
        top_p: share of their sum that is kept, below 1.

    Returns:
        (t, turns): the thresholds, and the passes that summed above thresholds.
    """
    wanted = top_p * total
    high = jnp.full(total.shape, _bits(jnp.ones(())) + 1)
    # What lies below the threshold is at most `total - wanted`; so no token below that share of
    # it matters. A hundredth is left for rounding.
    least = jnp.maximum(0.99 * (total - wanted) / probs.shape[-1], _SMALLEST_NORMAL)
    low = jnp.minimum(_bits(least), high - 1)
    start = jnp.zeros_like(low)
    bracket = _Bracket(low, high, total, jnp.zeros_like(total), start)
    first = _first_thresholds(probs, bracket, total - wanted)
    nobody = jnp.zeros(total.shape, bool)
    search = _Search(jnp.zeros((), jnp.int32), bracket, first, nobody, nobody, total)

    def goes_on(search: _Search) -> Bool[Array, ""]:
        return ~search.done.all() & (search.turn < _MOST_TURNS)

    search = lax.while_loop(goes_on, lambda search: _turn(probs, search, wanted), search)
    return search.threshold, search.turn


def in_nucleus(
    probs: Float[Array, "B G V"],
    total: Float[Array, "B G"],
    drawn: Float[Array, "B G K"],
    top_p: float,
) -> Bool[Array, "B G K"]:
    """Whether tokens of these probabilities lie in the nucleus: one pass.

        p(v) >= t  exactly if  sum of p(u) over p(u) > p(v)  <  top_p * total

    Args:
        probs: non-negative.
        total: their sum.
        drawn: K of them for each row.
        top_p: share of their sum that the nucleus holds.
    """
    next_ones = _floats(_bits(drawn) + 1)
    likelier = _masses(probs, [next_ones[..., k] for k in range(drawn.shape[-1])])
    return jnp.stack(likelier, axis=-1) < (top_p * total)[..., None]


def row_sums(values: Float[Array, "B G V"]) -> Float[Array, "B G"]:
    """Sum of each row; on CPU in strips, see `_masses`."""

    def in_strips(values: Array) -> Array:
        width = values.shape[-1] // 64
        zeros = jnp.zeros((*values.shape[:-1], width))
        sums, rest = _over_strips(values, width, zeros, jnp.add)
        return sums @ jnp.ones(sums.shape[-1]) + rest.sum(axis=-1)

    if values.shape[-1] < _SMALL_VOCABULARY:
        return values.sum(axis=-1)
    return lax.platform_dependent(values, cpu=in_strips, default=lambda values: values.sum(axis=-1))


def _turn(probs: Float[Array, "B G V"], search: _Search, wanted: Float[Array, "B G"]) -> _Search:
    """Narrow the brackets that are wide, then, if none is, collect what is in them."""
    waits = search.ready | search.done
    narrower = _narrow(probs, search.bracket, search.places, wanted)
    bracket = jax.tree.map(lambda old, new: jnp.where(waits, old, new), search.bracket, narrower)
    ready = search.ready | _few(bracket) | (bracket.narrowed > _PATIENCE)

    def collect() -> tuple[Array, Array, Array]:
        found, threshold = _collect(probs, bracket, wanted)
        kept = jnp.where(search.done, search.threshold, threshold)
        return search.done | found, jnp.zeros_like(ready), kept

    def wait() -> tuple[Array, Array, Array]:
        return search.done, ready, search.threshold

    done, ready, threshold = lax.cond((ready | search.done).all(), collect, wait)
    places = _next_thresholds(bracket, wanted)
    return _Search(search.turn + 1, bracket, places, ready, done, threshold)


def _few(bracket: _Bracket) -> Bool[Array, "B G"]:
    """Whether so few tokens are left in the bracket that the last pass can order them."""
    mass = bracket.mass_low - bracket.mass_high
    few = mass <= (_COLLECTED - 8) * _floats(bracket.low)
    return few | (bracket.high - bracket.low <= 1)


def _first_thresholds(
    probs: Float[Array, "B G V"], bracket: _Bracket, left_out: Float[Array, "B G"]
) -> tuple[Int[Array, "B G"], ...]:
    """Thresholds below which a part of the vocabulary has about the mass that is left out.

    Some blocks of tokens stand for all. The likeliest tokens are few and may be missed, but the
    mass below the threshold is that of many.
    """
    cell = (bracket.high - bracket.low)[..., None] // _GRID
    grid = bracket.low[..., None] + cell * jnp.arange(1, _GRID + 1)[None, None]
    blocks = _sample(probs)
    least = _floats(grid)[..., None]
    sums = sum(jnp.where(block[..., None, :] < least, block[..., None, :], 0.0) for block in blocks)
    width = blocks[0].shape[-1]
    below = probs.shape[-1] / (len(blocks) * width) * (sums @ jnp.ones(width))
    # All of the part may have less than is left out: then the threshold is above its largest, among
    # the likeliest tokens, and the search is spread over what is above.
    filled = (below < below[..., -1:]).sum(axis=-1)
    largest = bracket.low + cell[..., 0] * filled
    step = (bracket.high - largest) // (len(_FIRST) + 1)
    thresholds = []
    for k, share in enumerate(_FIRST):
        target = left_out * share
        # `below` rises along the grid. No gathers: on a TPU each would be several operations.
        less = below < target[..., None]
        place = less.sum(axis=-1)
        under = jnp.where(less, below, 0.0).max(axis=-1)
        over = jnp.where(less, jnp.inf, below).min(axis=-1)
        part = jnp.clip((target - under) / jnp.maximum(over - under, _SMALLEST_NORMAL), 0.0, 1.0)
        inside = bracket.low + cell[..., 0] * place + (part * cell[..., 0]).astype(jnp.int32)
        thresholds.append(jnp.where(place >= _GRID, largest + step * (k + 1), inside))
    return tuple(thresholds)


def _sample(probs: Float[Array, "B G V"]) -> list[Float[Array, "B G n"]]:
    """A 32nd of the vocabulary or more, in blocks of the same width that are spread evenly."""
    size = probs.shape[-1]
    if size < _SMALL_VOCABULARY:
        return [probs]
    width = -(-size // 32 // _BLOCKS // 128) * 128
    step = size // _BLOCKS // 128 * 128
    return [probs[..., i * step : i * step + width] for i in range(_BLOCKS)]


def _next_thresholds(
    bracket: _Bracket, wanted: Float[Array, "B G"]
) -> tuple[Int[Array, "B G"], ...]:
    """Thresholds around the one at which the mass, if evenly spread, would be the wanted one.

    Of m tokens in the bracket a fraction f lies above; its standard deviation is that of f m
    successes among m. From the fourth pass on one of them halves the bracket, which bounds the
    number of passes.
    """
    mass = jnp.maximum(bracket.mass_low - bracket.mass_high, _SMALLEST_NORMAL)
    part = (wanted - bracket.mass_high) / mass
    count = jnp.maximum(mass / _floats(bracket.low), 1.0)
    deviation = jnp.sqrt(jnp.maximum(part * (1.0 - part), 1.0 / count) / count)
    octaves = (bracket.high - bracket.low).astype(jnp.float32) / 2**23
    deviation = deviation + _BENT * jnp.minimum(octaves, 2.0)
    width = (bracket.high - bracket.low).astype(jnp.float32)
    thresholds = []
    for k, around in enumerate(_AROUND):
        place = jnp.clip(part + deviation * around, 0.0, 1.0)
        if k == 0:
            place = jnp.where(bracket.narrowed > 2, 0.5, place)
        thresholds.append(bracket.high - (place * width).astype(jnp.int32))
    return tuple(thresholds)


def _narrow(
    probs: Float[Array, "B G V"],
    bracket: _Bracket,
    thresholds: Sequence[Int[Array, "B G"]],
    wanted: Float[Array, "B G"],
) -> _Bracket:
    """The bracket between the neighbouring thresholds around the wanted mass: one pass."""
    low, high = bracket.low, bracket.high
    last = jnp.maximum(high - 1, low + 1)
    places = [jnp.clip(threshold, low + 1, last) for threshold in thresholds]
    mass_low, mass_high = bracket.mass_low, bracket.mass_high
    for place, mass in zip(places, _masses(probs, list(map(_floats, places))), strict=True):
        holds = mass >= wanted
        low = jnp.where(holds, jnp.maximum(low, place), low)
        high = jnp.where(holds, high, jnp.minimum(high, place))
        mass_low = jnp.where(holds, jnp.minimum(mass_low, mass), mass_low)
        mass_high = jnp.where(holds, mass_high, jnp.maximum(mass_high, mass))
    return _Bracket(low, high, mass_low, mass_high, bracket.narrowed + 1)


def _collect(
    probs: Float[Array, "B G V"], bracket: _Bracket, wanted: Float[Array, "B G"]
) -> tuple[Bool[Array, "B G"], Float[Array, "B G"]]:
    """Order the tokens of each bracket, and find the threshold among them: one pass.

    Many slots each take what falls into them and know its largest, smallest and number. With at
    most two different tokens in every slot nothing is lost; else the row is not found.
    """
    largest, smallest, number = _slots(probs, _floats(bracket.low), _floats(bracket.high))
    second = jnp.where((number > 1) & (smallest < largest), smallest, 0.0)
    tokens = jnp.concatenate([largest, second], axis=-1)
    # Where the places are not used, XLA makes a full sort of it on CPU; the barrier keeps them.
    found = lax.top_k(tokens, min(_COLLECTED, tokens.shape[-1]))
    ordered, _ = lax.optimization_barrier(found)
    mass = bracket.mass_high[..., None] + jnp.cumsum(ordered, axis=-1)
    enough = (ordered > 0) & (mass >= wanted[..., None])
    # Sums round: where the last one misses the wanted mass, which `low` holds, all belong to it.
    threshold = jnp.where(enough, ordered, 0.0).max(axis=-1)
    last = jnp.where(ordered > 0, ordered, 2.0).min(axis=-1)
    threshold = jnp.where(enough.any(axis=-1), threshold, last)
    count = number.sum(axis=-1)
    complete = (count == (tokens > 0).sum(axis=-1)) & (count <= ordered.shape[-1])
    one_class = ordered[..., 0] == smallest.min(axis=-1)
    return complete | one_class, threshold


def _masses(
    probs: Float[Array, "B G V"], at: Sequence[Float[Array, "B G"]]
) -> Sequence[Float[Array, "B G"]]:
    """Sum of the probabilities that are at least each threshold."""

    def in_strips(probs: Array, *at: Array) -> tuple[Array, ...]:
        bounds = jnp.stack(at, axis=-1)[..., None]

        def above(part: Array) -> Array:
            part = part[..., None, :]
            return jnp.where(part >= bounds, part, 0.0)

        width = probs.shape[-1] // 64
        zeros = jnp.zeros((*bounds.shape[:-1], width))
        sums, rest = _over_strips(probs, width, zeros, lambda sums, part: sums + above(part))
        masses = sums @ jnp.ones(sums.shape[-1]) + above(rest).sum(axis=-1)
        return tuple(masses[..., k] for k in range(len(at)))

    def at_once(probs: Array, *at: Array) -> tuple[Array, ...]:
        return tuple(jnp.where(probs >= one[..., None], probs, 0.0).sum(axis=-1) for one in at)

    if probs.shape[-1] < _SMALL_VOCABULARY:
        return at_once(probs, *at)
    # XLA on CPU adds along a row one number after the other; strips are added as vectors.
    return lax.platform_dependent(probs, *at, cpu=in_strips, default=at_once)


def _slots(
    probs: Float[Array, "B G V"], low: Float[Array, "B G"], high: Float[Array, "B G"]
) -> tuple[Float[Array, "B G W"], Float[Array, "B G W"], Float[Array, "B G W"]]:
    """Largest, smallest and number of the probabilities in [low, high) that fall into each slot.

    Slots are columns of a table whose rows are strips of the vocabulary.
    """

    def add(slots: tuple[Array, Array, Array], part: Array) -> tuple[Array, Array, Array]:
        inside = (part >= low[..., None]) & (part < high[..., None])
        return (
            jnp.maximum(slots[0], jnp.where(inside, part, 0.0)),
            jnp.minimum(slots[1], jnp.where(inside, part, 2.0)),
            slots[2] + jnp.where(inside, 1.0, 0.0),
        )

    size = probs.shape[-1]
    # On a TPU a slice at a multiple of 128 is read as it lies. The last one may be shorter.
    width = -(-size // 32 // 128) * 128 if size >= _SMALL_VOCABULARY else size
    shape = (*probs.shape[:-1], width)
    empty = jnp.zeros(shape), jnp.full(shape, 2.0), jnp.zeros(shape)
    slots, rest = _over_strips(probs, width, empty, add)
    count = rest.shape[-1]
    some = add((slots[0][..., :count], slots[1][..., :count], slots[2][..., :count]), rest)
    largest, smallest, number = (
        jnp.concatenate([new, old[..., count:]], axis=-1)
        for new, old in zip(some, slots, strict=True)
    )
    return largest, smallest, number


def _over_strips(
    probs: Float[Array, "B G V"], width: int, start: Any, add: Callable[[Any, Array], Any]
) -> tuple[Any, Float[Array, "B G rest"]]:
    """Fold `add` over strips of one width; what is left over is returned beside it.

    In a loop over eight strips at a time: on CPU it makes better code than a program without one,
    and on a TPU one pass for all that `add` sums up, where there would be one for each.
    """
    strips, several = probs.shape[-1] // width, 8 * width

    def fold(total: Any, first: Any, count: int) -> Any:
        for i in range(count):
            part = lax.dynamic_slice_in_dim(
                probs, first + i * width, width, axis=-1, allow_negative_indices=False
            )
            total = add(total, part)
        return total

    total = lax.fori_loop(0, strips // 8, lambda i, total: fold(total, i * several, 8), start)
    total = fold(total, strips // 8 * several, strips % 8)
    # Without the barrier what comes after is fused with the strips and computed again and again.
    return lax.optimization_barrier(total), probs[..., strips * width :]


def _bits(values: Float[Array, "*n"]) -> Int[Array, "*n"]:
    """Bit patterns, which order like the non-negative numbers themselves."""
    return lax.bitcast_convert_type(values, jnp.int32)


def _floats(bits: Int[Array, "*n"]) -> Float[Array, "*n"]:
    """The numbers of bit patterns."""
    return lax.bitcast_convert_type(bits, jnp.float32)
