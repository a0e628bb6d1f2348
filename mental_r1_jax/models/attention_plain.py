"""Attention of a group of completions to one shared prompt, in plain XLA, for any machine.

Extra axes, beside those of `mental_r1_jax.types`: R query heads that share one key/value head
(H = K * R, query head k * R + r), h the width of a head, M = T * R rows of logits of a completion,
S key slots of a completion.

Keys and values are taken as ``[..., K, tokens, h]``: the batch axes of every matrix product then
lead, so neither decoding nor training transposes a cache.

Completions are run one of the group after the other, and each in blocks of rows. So the logits
that exist at a time stay in a CPU's cache, and most of what causality hides is never computed. The
backward pass makes them again from the log-sum-exp of each row, and nothing of the size of the
logits is kept in between.
"""

from __future__ import annotations

from functools import partial, reduce
from operator import add

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from mental_r1_jax.models.architecture import AttentionFacts
from mental_r1_jax.models.unit_axes import without_unit_axes

# Queries, keys and values of the prompts, and of their completions.
PromptHeads = tuple[Float[Array, "B P K R h"], Float[Array, "B P K h"], Float[Array, "B P K h"]]
CompletionHeads = tuple[
    Float[Array, "B G T K R h"], Float[Array, "B G T K h"], Float[Array, "B G T K h"]
]

# Finite, so that a padded query row whose keys are all hidden yields numbers instead of NaN.
HIDDEN_LOGIT = -1e30

# What rematerialisation had better keep: results, and log-sum-exps, in `jax.checkpoint` policies.
SAVED_NAME = "attention"

# Rows are split into at most so many blocks, of at least so many tokens: with n blocks, causality
# saves (n - 1) / 2n of a square of logits, and the program grows with n.
MAX_BLOCKS, MIN_BLOCK = 4, 64


def shared_prefix_attention(
    prompt: PromptHeads,
    completions: CompletionHeads,
    prompt_mask: Bool[Array, "B P"],
    facts: AttentionFacts,
) -> tuple[Float[Array, "B P K R h"], Float[Array, "B G T K R h"]]:
    """Return causal attention of prompts, and of completions to their prompt and themselves.

    Token t of a completion has one softmax over two sets of keys, which are never joined:

        o = (sum_j exp(s_j) v_j + sum_{i <= t} exp(s_i) v_i) / (sum_j exp(s_j) + sum_i exp(s_i))

    with j over the real tokens of the prompt and i over the completion's own, s the logits of
    `AttentionFacts`. The prompt's keys and values exist once for all G completions. Padding of
    completions stands on the right, so causality hides it from every real token.

    Args:
        prompt: queries, keys and values of the prompts, rotated, not scaled.
        completions: the same of their completions.
        prompt_mask: true on real prompt tokens, which stand on the left.
        facts: scale, window and softcap of the layer's logits.
    """
    shared = prompt[1].swapaxes(1, 2), prompt[2].swapaxes(1, 2)
    mixed = _attend_by_completion(facts, completions, (*shared, prompt_mask))
    return prompt_attention(*prompt, facts), mixed


def prompt_attention(
    queries: Float[Array, "B P K R h"],
    keys: Float[Array, "B P K h"],
    values: Float[Array, "B P K h"],
    facts: AttentionFacts,
) -> Float[Array, "B P K R h"]:
    """Return causal attention within each prompt, see `attention.prompt_attention`."""
    alone = queries[:, None], keys[:, None], values[:, None]
    return _attend_by_completion(facts, alone, None)[:, 0]


def _attend_by_completion(
    facts: AttentionFacts,
    streams: tuple[Array, Array, Array],
    shared: tuple[Array, Array, Array] | None,
) -> Float[Array, "B G T K R h"]:
    """Attend with ``[B, G, T, ...]`` queries to their own keys and values, and to shared ones."""
    queries, keys, values = streams
    batch, group, length, kv_heads, repeats, width = queries.shape
    if length == 0:  # completions of one token: the prompt alone predicts it
        return queries
    rows = (group, batch, kv_heads, length * repeats, width)
    by_head = queries.transpose(1, 0, 3, 2, 4, 5).reshape(rows)
    own = keys.transpose(1, 0, 3, 2, 4), values.transpose(1, 0, 3, 2, 4)
    prompt, prompt_mask = (None, None) if shared is None else (shared[:2], shared[2])
    mixed = _attend(facts, by_head, own, prompt, prompt_mask)
    mixed = mixed.reshape(group, batch, kv_heads, length, repeats, width)
    return mixed.transpose(1, 0, 3, 2, 4, 5)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(
    facts: AttentionFacts,
    queries: Float[Array, "G B K M h"],
    own: tuple[Float[Array, "G B K T h"], Float[Array, "G B K T h"]],
    shared: tuple[Float[Array, "B K P h"], Float[Array, "B K P h"]] | None,
    prompt_mask: Bool[Array, "B P"] | None,
) -> Float[Array, "G B K M h"]:
    """Return one softmax average over the shared values and, causally, the own ones."""
    return _attend_forward(facts, queries, own, shared, prompt_mask)[0]


def _attend_forward(
    facts: AttentionFacts,
    queries: Array,
    own: tuple[Array, Array],
    shared: tuple[Array, Array] | None,
    prompt_mask: Array | None,
) -> tuple[Array, tuple]:
    """One completion at a time: the result, and what the backward pass needs."""

    def one(completion: tuple) -> tuple[Array, Array]:
        rows, own = completion
        mixed, sums = [], []
        for block, parts in _blocks(facts, rows, own, shared, prompt_mask):
            query = rows[:, :, block]
            logits = [_logits(facts, query, keys) + bias for keys, _, bias in parts]
            top = jnp.stack([part.max(-1) for part in logits]).max(0)[..., None]
            weights = [jnp.exp(part - top) for part in logits]
            total = reduce(add, (part.sum(-1, keepdims=True) for part in weights))
            products = [
                _dot("bkmn,bknh->bkmh", weight.astype(values.dtype), values)
                for weight, (_, values, _) in zip(weights, parts, strict=True)
            ]
            mixed.append((reduce(add, products) / total).astype(rows.dtype))
            sums.append(top + jnp.log(total))
        return jnp.concatenate(mixed, axis=2), jnp.concatenate(sums, axis=2)

    mixed, lse = checkpoint_name(jax.lax.map(one, (queries, own)), SAVED_NAME)
    return mixed, (queries, own, shared, prompt_mask, mixed, lse)


def _attend_backward(facts: AttentionFacts, saved: tuple, cotangent: Array) -> tuple:
    """One completion at a time; the gradient of the shared keys and values adds up in float32.

    With logits s, ``p = exp(s - lse)`` and cotangent c of the result o:

        dv = p c        ds = p (c v - c o)        d(q k) = scale * ds * (1 - (s / softcap)^2)

    where the last factor is the slope of the softcap, and 1 without one. ``c o`` is summed once a
    row: it is what the softmax' normalisation contributes for every key of the row.
    """
    queries, own, shared, prompt_mask, mixed, lse = saved

    def one(of_shared: list, completion: tuple) -> tuple[list, tuple]:
        rows, own, mixed, lse, cotangent = completion
        inner = _row_products(cotangent, mixed)
        of_rows, of_own = [], [jnp.zeros(x.shape, jnp.float32) for x in own]
        for block, parts in _blocks(facts, rows, own, shared, prompt_mask):
            query, change = rows[:, :, block], cotangent[:, :, block]
            of_query = jnp.zeros(query.shape, jnp.float32)
            for (keys, values, bias), total in zip(parts, [of_own, of_shared], strict=False):
                logits = _logits(facts, query, keys)
                weight = jnp.exp(logits + bias - lse[:, :, block])
                slope = _dot("bkmh,bknh->bkmn", change, values) - inner[:, :, block]
                slope = weight * slope * facts.scale
                if facts.softcap is not None:
                    slope = slope * (1 - jnp.square(logits / facts.softcap))
                slope = slope.astype(rows.dtype)
                of_query += _dot("bkmn,bknh->bkmh", slope, keys)
                seen = keys.shape[2]
                of_keys = _dot("bkmn,bkmh->bknh", slope, query)
                of_values = _dot("bkmn,bkmh->bknh", weight.astype(rows.dtype), change)
                total[0] = total[0].at[:, :, :seen].add(of_keys)
                total[1] = total[1].at[:, :, :seen].add(of_values)
            of_rows.append(of_query.astype(rows.dtype))
        return of_shared, (jnp.concatenate(of_rows, axis=2), [x.astype(rows.dtype) for x in of_own])

    start = [jnp.zeros(x.shape, jnp.float32) for x in shared or ()]
    of_shared, (of_queries, of_own) = jax.lax.scan(
        one, start, (queries, own, mixed, lse, cotangent)
    )
    rounded = tuple(x.astype(queries.dtype) for x in of_shared) if shared else None
    return of_queries, tuple(of_own), rounded, None


_attend.defvjp(_attend_forward, _attend_backward)


def _row_products(left: Float[Array, "B K M h"], right: Float[Array, "B K M h"]) -> Array:
    """Return ``sum_h left right``, ``[B, K, M, 1]``, in float32; see `unit_axes` for the shapes."""
    rows, others = (without_unit_axes(x.astype(jnp.float32), kept=1) for x in (left, right))
    return (rows * others).sum(-1).reshape(*left.shape[:-1], 1)


def _blocks(
    facts: AttentionFacts,
    rows: Array,
    own: tuple[Array, Array],
    shared: tuple[Array, Array] | None,
    prompt_mask: Array | None,
) -> list[tuple[slice, list[tuple[Array, Array, Array]]]]:
    """Split the rows of a completion; list for each block the keys, values and bias that it sees.

    Own keys come first, up to the last that a row of the block sees, then the shared ones.
    """
    length = own[0].shape[2]
    repeats = rows.shape[2] // length
    size = max(MIN_BLOCK, -(-length // MAX_BLOCKS))
    blocks = []
    for start in range(0, length, size):
        stop = min(start + size, length)
        token = jnp.repeat(jnp.arange(start, stop), repeats)
        keys, values = (x[:, :, :stop] for x in own)
        allowed = _within(token[:, None], jnp.arange(stop)[None], facts.window)
        parts = [(keys, values, _bias(allowed[None]))]
        if shared is not None and prompt_mask is not None:
            first = prompt_mask.sum(-1, dtype=jnp.int32)[:, None]
            allowed = allowed_prompt_keys(prompt_mask, first + token[None], facts.window)
            parts.append((*shared, _bias(allowed)))
        blocks.append((slice(start * repeats, stop * repeats), parts))
    return blocks


def _bias(allowed: Bool[Array, "B m n"]) -> Float[Array, "B 1 m n"]:
    """Return what to add to the logits of any head."""
    return jnp.where(allowed, 0.0, HIDDEN_LOGIT)[:, None]


def _logits(facts: AttentionFacts, query: Array, keys: Array) -> Float[Array, "B K m n"]:
    """Return the scaled and capped logits, float32."""
    return capped(_dot("bkmh,bknh->bkmn", query, keys) * facts.scale, facts.softcap)


def capped(logits: Float[Array, "*rows"], softcap: float | None) -> Float[Array, "*rows"]:
    """Return ``softcap * tanh(logits / softcap)``, or the logits where there is no softcap."""
    return logits if softcap is None else softcap * jnp.tanh(logits / softcap)


def _dot(subscripts: str, left: Array, right: Array) -> Array:
    """Matrix product of compute-dtype operands, accumulated and returned in float32."""
    return jnp.einsum(subscripts, left, right, preferred_element_type=jnp.float32)


def allowed_prompt_keys(
    prompt_mask: Bool[Array, "B P"],
    positions: Int[Array, "B T"],
    window: int | None,
) -> Bool[Array, "B T P"]:
    """Say which prompt keys a completion token at `positions` sees: the real ones in its window."""
    shape = (*positions.shape, prompt_mask.shape[1])
    allowed = jnp.broadcast_to(prompt_mask[:, None, :], shape)
    if window is None:
        return allowed
    slots = jnp.arange(prompt_mask.shape[1])[None, None, :]
    return allowed & (positions[:, :, None] - slots < window)


def allowed_own_keys(
    query_slots: Int[Array, " T"], num_slots: int, window: int | None
) -> Bool[Array, "T S"]:
    """Say which slots of its own completion a token sees: itself and earlier ones in its window."""
    return _within(query_slots[:, None], jnp.arange(num_slots)[None, :], window)


def _within(query: Array, key: Array, window: int | None) -> Array:
    """Causality, and nearness where there is a window."""
    allowed = query >= key
    return allowed if window is None else allowed & (query - key < window)
