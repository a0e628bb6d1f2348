"""One turn of the decoding kernel for TPUs: the program that `decode_kernel_tpu` runs on a grid.

Axes: h head width, g completions of the turn, R query heads of one key/value head, m = g * R rows,
n keys.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from mental_r1_jax.models.architecture import AttentionFacts
from mental_r1_jax.models.attention_plain import HIDDEN_LOGIT, capped
from mental_r1_jax.models.attention_tpu import LANES

# Rows of a tile in memory for any dtype: values are updated in stretches of so many slots, keys,
# which are transposed, in such of `LANES`.
ROWS = 32


def one_turn(
    facts: AttentionFacts,
    eps: float | None,
    repeats: int,
    index_ref: Any,
    lengths_ref: Any,
    *refs: Any,
) -> None:
    """Norm and rotate the heads of a turn, put its tokens into the caches, and attend.

    What it computes stands at `decode_kernel_tpu.fused_decode_attention`. The leading axes of all
    blocks are one, but for the completions' caches, whose third one is that of the completions.

    Args:
        facts: scale, window and softcap of the layer.
        eps: of the norms of the heads; None: there are none.
        repeats: R.
        index_ref: slot of the tokens.
        lengths_ref: of all prompts.
        refs: scales of the norms, the operands (see `decode_kernel_tpu`) and the results.
    """
    index, length = index_ref[0], lengths_ref[pl.program_id(1)]
    *inputs, mixed_ref, keys_out, values_out = refs
    norms: list[tuple[Array, float] | None] = [None, None]
    if eps is not None:
        norms = [(ref[...].astype(jnp.float32), eps) for ref in inputs[:2]]
        inputs = inputs[2:]
    side_by_side, key, value = (ref[0] for ref in inputs[:3])
    cos, sin = (ref[0] for ref in inputs[3:5])
    prompt_keys, prompt_values, own_keys, own_values, *prefix = inputs[5:]
    width = key.shape[-1]
    each_head = [slice(r * width, (r + 1) * width) for r in range(repeats)]
    queries = [_finish(side_by_side[:, head], norms[0], cos, sin) for head in each_head]
    queries = [x * jnp.asarray(facts.scale, x.dtype) for x in queries]
    # One below the other, in float32, whose rows can be moved singly; exact.
    rows = jnp.concatenate([x.astype(jnp.float32) for x in queries]).astype(key.dtype)
    key = _finish(key, norms[1], cos, sin)
    _put(index, key, value, own_keys, own_values, keys_out, values_out)

    place = length + index
    shared = [(prompt_keys[0, 0], prompt_values[0, 0], _before(place, facts, prompt_keys, length))]
    if prefix:
        seen = _before(place + prefix[0].shape[-1], facts, prefix[0])
        shared.append((prefix[0][0, 0], prefix[1][0, 0], seen))
    seen = _before(index, facts, own_keys, index)
    own = [(own_keys[0, 0, g], own_values[0, 0, g]) for g in range(len(key))]
    mixed = _attend(facts, rows, shared, (own, seen), (key, value))
    for r, head in enumerate(each_head):
        of_head = mixed[r * len(key) : (r + 1) * len(key)]
        mixed_ref[0, :, head] = of_head.astype(mixed_ref.dtype)


def _attend(
    facts: AttentionFacts,
    rows: Float[Array, "m h"],
    shared: list[tuple[Array, Array, Any]],
    own: tuple[list[tuple[Array, Array]], Any],
    token: tuple[Float[Array, "g h"], Float[Array, "g h"]],
) -> Float[Array, "m h"]:
    """One softmax over the shared keys, those of each row's own completion, and the token's own.

    Args:
        facts: the softcap.
        rows: all completions' first query, then all their second one, scaled.
        shared: keys ``[h, n]``, values and mask that all rows see.
        own: the same of each completion, with one mask for all.
        token: key and value of each completion's token, which its own rows see.
    """
    key, value = token
    caches, own_seen = own
    owner = jax.lax.broadcasted_iota(jnp.int32, (len(rows), 1), 0) % len(key)
    columns = jax.lax.broadcasted_iota(jnp.int32, (1, len(key)), 1)
    logits = [_dot(rows, keys) for keys, _, _ in shared]
    logits.append(_owned(owner, [_dot(rows, keys) for keys, _ in caches]))
    logits.append(_dot(rows, key, transposed=True))
    masks = [mask for _, _, mask in shared] + [own_seen, columns == owner]
    logits = [
        jnp.where(mask, capped(x, facts.softcap), HIDDEN_LOGIT)
        for x, mask in zip(logits, masks, strict=True)
    ]
    top = functools.reduce(jnp.maximum, (x.max(-1, keepdims=True) for x in logits))
    weights = [jnp.exp(x - top) for x in logits]
    total = sum(x.sum(-1, keepdims=True) for x in weights)
    *of_shared, of_own, of_token = (x.astype(value.dtype) for x in weights)
    mixed = _dot(of_token, value) + _owned(owner, [_dot(of_own, values) for _, values in caches])
    for weight, (_, values, _) in zip(of_shared, shared, strict=True):
        mixed += _dot(weight, values)
    return mixed / total


def _finish(
    x: Float[Array, "n h"],
    norm: tuple[Float[Array, "1 h"], float] | None,
    cos: Float[Array, "1 h"],
    sin: Float[Array, "1 h"],
) -> Float[Array, "n h"]:
    """Norm and rotate heads of tokens at one position, rounded as `layer.finish_heads` does."""
    wide = x.astype(jnp.float32)
    if norm is not None:
        scale, eps = norm
        wide = wide * jax.lax.rsqrt(jnp.square(wide).mean(-1, keepdims=True) + eps)
        wide = (wide * scale).astype(x.dtype).astype(jnp.float32)
    return (wide * cos + pltpu.roll(wide, x.shape[-1] // 2, 1) * sin).astype(x.dtype)


def _put(
    index: Int[Array, ""],
    key: Float[Array, "g h"],
    value: Float[Array, "g h"],
    own_keys: Any,
    own_values: Any,
    keys_out: Any,
    values_out: Any,
) -> None:
    """Write the stretch of each cache in which the slot lies, with the token in it."""
    width = key.shape[-1]
    identity = jnp.where(
        jax.lax.broadcasted_iota(jnp.int32, (width, width), 0)
        == jax.lax.broadcasted_iota(jnp.int32, (width, width), 1),
        1.0,
        0.0,
    ).astype(key.dtype)
    as_columns = _dot(identity, key, transposed=True)  # [h, g]: a product with one is exact
    first = pl.multiple_of(index // LANES * LANES, LANES)
    is_slot = first + _lanes(LANES) == index
    start = pl.multiple_of(index // ROWS * ROWS, ROWS)
    is_row = start + jax.lax.broadcasted_iota(jnp.int32, (ROWS, 1), 0) == index
    for g in range(len(key)):
        old = own_keys[0, 0, g, :, pl.ds(first, LANES)].astype(jnp.float32)
        keys_out[0, 0, g] = jnp.where(is_slot, as_columns[:, g : g + 1], old).astype(key.dtype)
        old = own_values[0, 0, g, pl.ds(start, ROWS), :].astype(jnp.float32)
        new = value[g : g + 1].astype(jnp.float32)
        values_out[0, 0, g] = jnp.where(is_row, new, old).astype(value.dtype)


def _owned(owner: Int[Array, "m 1"], of_each: list[Float[Array, "m n"]]) -> Float[Array, "m n"]:
    """Of every row what was worked out with its own completion's cache."""
    result = of_each[0]
    for g, each in enumerate(of_each[1:], start=1):
        result = jnp.where(owner == g, each, result)
    return result


def _before(place: Any, facts: AttentionFacts, cache: Any, filled: Any = None) -> Any:
    """Which of the tokens of a cache, `filled` or all, a token at `place` sees.

    Args:
        place: of the token, counted from the first of the cache.
        facts: the window.
        cache: keys, with their tokens along the last axis.
        filled: number of tokens that are real; None: all.
    """
    slots = _lanes(cache.shape[-1])
    seen = slots >= 0 if filled is None else slots < filled
    return seen if facts.window is None else seen & (place - slots < facts.window)


def _lanes(length: int) -> Int[Array, "1 n"]:
    """0, 1, ... along the last axis."""
    return jax.lax.broadcasted_iota(jnp.int32, (1, length), 1)


def _dot(left: Array, right: Array, *, transposed: bool = False) -> Float[Array, "m n"]:
    """``left right``, or ``left right^T``, summed in float32."""
    inner = 1 if transposed else 0
    return jax.lax.dot_general(
        left, right, (((1,), (inner,)), ((), ())), preferred_element_type=jnp.float32
    )
