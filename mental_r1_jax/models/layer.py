"""The layer of every dense decoder family, and the loop over all layers.

One definition serves training, prefill and decoding; they differ in what a token attends to, which
is the argument `attend`, and in how the weights come: `decoding_params` casts them beforehand and
lays gate and up projection side by side in one matrix.

Axes beside those of `mental_r1_jax.types`: R query heads of one key/value head, h head width.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int, PyTree

from mental_r1_jax.models.architecture import (
    Activation,
    AttentionFacts,
    Block,
    DecoderConfig,
    layer_blocks,
)
from mental_r1_jax.models.attention_plain import SAVED_NAME
from mental_r1_jax.models.few_rows import few_rows_product
from mental_r1_jax.models.lora import LORA_A, low_rank_product
from mental_r1_jax.models.rope import rope_frequencies, rotate
from mental_r1_jax.models.unit_axes import without_unit_axes
from mental_r1_jax.sharding import constrain_batch

# In place of "kernel" in weights from `decoding_params` on CPUs, ``[*outputs, N]``; see `few_rows`.
OUTPUTS_FIRST = "outputs_first"

# Results of matrix products, in `jax.checkpoint` policies.
PRODUCT_NAME = "product"

# Rotated queries [*tokens, K, R, h], and keys and values [*tokens, K, h], of one stream of tokens.
Heads = tuple[Array, Array, Array]

# (facts, heads of every stream) -> (what each stream attended to, shaped like its queries; keys and
# values to keep).
Attend = Callable[..., tuple[tuple[Array, ...], Any]]

_ACTIVATIONS: dict[Activation, Callable[[Array], Array]] = {
    "silu": jax.nn.silu,
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
}


def forward_layer(
    weights: PyTree[Array],
    config: DecoderConfig,
    facts: AttentionFacts,
    streams: tuple[Float[Array, "... D"], ...],
    positions: tuple[Int[Array, "..."], ...],
    attend: Attend,
    *,
    as_projected: bool = False,
) -> tuple[tuple[Float[Array, "... D"], ...], Any]:
    """Run one layer: attention and feed-forward part, each behind an RMSNorm and with a residual.

        x <- x + output(attend(rotate(query(n)), rotate(key(n)), value(n)))     n = norm(x)
        x <- x + down(silu(gate(n)) * up(n))                                    n = norm(x)

    Families with `post_norms` norm what is added as well; `activation` may replace the SiLU.

    Streams are tokens that share the layer's weights and differ in shape, such as the prompts
    ``[B, P]`` and their completions ``[B, G, T]``: run side by side, a sharded layer is gathered
    once for all of them.

    Args:
        weights: of one layer, in any dtype; matrices are cast to that of `streams`.
        config: sizes, epsilon and compute dtype of the decoder.
        facts: scale, window, rope base and softcap of this layer.
        streams: states in the compute dtype.
        positions: of the tokens of each stream; they rotate queries and keys.
        attend: receives the facts and the heads of every stream; returns a mixture of values for
            every query, and anything that is to be kept.
        as_projected: `attend` norms and rotates queries and keys itself.

    Returns:
        The new states, and what `attend` keeps.
    """
    with jax.named_scope("attention"):
        heads = []
        for x, at in zip(streams, positions, strict=True):
            projected = _project_heads(weights, config, x)
            if not as_projected:
                projected = finish_heads(weights, config, facts, projected, at)
            heads.append(_by_kv_head(config, projected))
        mixed, kept = attend(facts, *heads)
        streams = tuple(
            x + _post_norm(weights, "attention", config, _project(weights, config, "output", y))
            for x, y in zip(streams, _join_heads(mixed), strict=True)
        )
    with jax.named_scope("feed_forward"):
        return tuple(_feed_forward(weights, config, x) for x in streams), kept


def run_layers(
    layers: PyTree[Float[Array, "L ..."]],
    config: DecoderConfig,
    length: int,
    streams: tuple[Float[Array, "... D"], ...],
    positions: tuple[Int[Array, "..."], ...],
    attend: Attend,
) -> tuple[tuple[Float[Array, "... D"], ...], list[Any]]:
    """Run all layers, block by block, each block a `jax.lax.scan`; see `layer_blocks`.

    Equal layers that follow each other within a block are a loop in its loop. Backward, layers are
    run again as `DecoderConfig.remat` says. The result of attention is always kept: it takes long
    to compute and is no larger than the state of a layer. A block's part of a stacked parameter is
    a copy of it, so a model of several blocks, or of such loops, holds its layers' weights twice.

    Args:
        layers: the stacked weights.
        config: sizes, epsilon and compute dtype of the decoder.
        length: tokens of the longest sequence; windows of that length or longer hide nothing.
        streams: see `forward_layer`.
        positions: see `forward_layer`.
        attend: see `forward_layer`.

    Returns:
        The states after the last layer (not normed), and what `attend` kept in every layer.
    """
    kept: list[Any] = []
    first = 0
    for block in layer_blocks(config.layer_facts(length)):
        last = first + len(block.pattern) * block.repeats
        weights = jax.tree.map(partial(_part, first, last, len(block.pattern)), layers)
        run = partial(_run_pattern, config, block, positions, attend)
        parts = _parts(weights, block)
        streams, of_block = jax.lax.scan(run, streams, parts, length=block.repeats)
        for n in range(block.repeats):
            for (_, count), of_run in zip(block.runs, of_block, strict=True):
                once = _pick(of_run, n)
                kept += [once] if count == 1 else [_pick(once, i) for i in range(count)]
        first = last
    return streams, kept


def _part(first: int, last: int, pattern: int, x: Array) -> Array:
    """Take the layers of a block out of a stacked parameter, ``[repeats, (pattern,) ...]``."""
    x = x if last - first == len(x) else x[first:last]
    return x if pattern == 1 else x.reshape(-1, pattern, *x.shape[1:])


def _parts(weights: PyTree[Array], block: Block) -> list[PyTree[Array]]:
    """The weights of each run, ``[repeats, (count,) ...]``; all in one tree if no run is a loop.

    What an inner loop runs over has to stand on its own, or the backward pass would keep a copy of
    it from each turn of the outer one.
    """
    counts = [count for _, count in block.runs]
    if len(counts) == len(block.pattern):
        return [weights]
    starts = itertools.accumulate(counts, initial=0)
    return [
        jax.tree.map(lambda x, s=s, n=n: x[:, s] if n == 1 else x[:, s : s + n], weights)
        for s, n in zip(starts, counts, strict=False)
    ]


def _pick(tree: PyTree[Array], index: int) -> PyTree[Array]:
    """Take one element off the first axis of every array."""
    return jax.tree.map(lambda x: x[index], tree)


def _run_pattern(
    config: DecoderConfig,
    block: Block,
    positions: tuple[Array, ...],
    attend: Attend,
    streams: tuple[Array, ...],
    parts: list[PyTree[Array]],
) -> tuple[tuple[Array, ...], list[Any]]:
    """Run the layers of one repetition of a block, rematerialised if the config says so."""
    names = (SAVED_NAME, PRODUCT_NAME) if config.remat == "elementwise" else (SAVED_NAME,)
    policy = jax.checkpoint_policies.save_only_these_names(*names)

    def run(
        facts: AttentionFacts,
        place: int | None,
        in_loop: bool,
        streams: tuple[Array, ...],
        weights: PyTree[Array],
    ) -> tuple[tuple[Array, ...], Any]:
        def layer(weights: PyTree[Array], streams: tuple[Array, ...]) -> tuple:
            # Picked in here, a layer's weights are nothing that a backward pass keeps.
            of_layer = weights if place is None else _pick(weights, place)
            return forward_layer(of_layer, config, facts, streams, positions, attend)

        if config.remat != "none":
            # In a loop, forward and backward pass are apart anyway; a loop of one turn is none.
            layer = jax.checkpoint(layer, prevent_cse=not in_loop, policy=policy)
        return layer(weights, streams)

    kept, runs, repeated = [], block.runs, block.repeats > 1
    for number, (facts, count) in enumerate(runs):
        if len(parts) < len(runs):
            streams, of_run = run(facts, number, repeated, streams, parts[0])
        elif count == 1:
            streams, of_run = run(facts, None, repeated, streams, parts[number])
        else:
            one = partial(run, facts, None, True)
            streams, of_run = jax.lax.scan(one, streams, parts[number])
        kept.append(of_run)
    return streams, kept


def rms_norm(
    weights: PyTree[Array], config: DecoderConfig, x: Float[Array, "*batch D"]
) -> Float[Array, "*batch D"]:
    """Return ``x / sqrt(mean(x^2) + eps) * (offset + scale)`` over the last axis.

    Computed in float32, returned in the compute dtype. Axes of length 1, such as that of a single
    prompt, are left out meanwhile: with one in front, XLA for CPU takes a dozen times as long for
    the row sums of the backward pass.
    """
    rows = without_unit_axes(x.astype(jnp.float32), kept=1)
    rows = rows * jax.lax.rsqrt(jnp.square(rows).mean(-1, keepdims=True) + config.rms_norm_eps)
    scale = weights["scale"].astype(jnp.float32).reshape((1,) * (rows.ndim - 1) + (-1,))
    return (rows * (config.norm_offset + scale)).astype(config.dtype).reshape(x.shape)


def _post_norm(weights: PyTree[Array], part: str, config: DecoderConfig, y: Array) -> Array:
    """Norm what a part of the layer adds to the states, in families that do."""
    name = f"{part}_post_norm"
    return rms_norm(weights[name], config, y) if name in weights else y


def _join_heads(mixed: tuple[Array, ...]) -> list[Array]:
    """``[*tokens, K, R, h] -> [*tokens, K * R * h]``."""
    return [y.reshape(*y.shape[:-3], math.prod(y.shape[-3:])) for y in mixed]


def _project_heads(weights: PyTree[Array], config: DecoderConfig, x: Array) -> Heads:
    """Make queries ``[*tokens, H, h]``, keys and values of tokens, neither normed nor rotated."""
    x = rms_norm(weights["attention_norm"], config, x)
    queries, keys, values = (
        _project(weights, config, name, x) for name in ("query", "key", "value")
    )
    return queries, keys, values


def finish_heads(
    weights: PyTree[Array],
    config: DecoderConfig,
    facts: AttentionFacts,
    heads: Heads,
    at: Int[Array, "..."],
) -> Heads:
    """Norm the queries and keys, in families that do, and rotate them to the positions `at`.

    Args:
        weights: of one layer.
        config: sizes, epsilon and compute dtype of the decoder.
        facts: rope base and scaling of this layer.
        heads: as projected, queries ``[*tokens, H, h]``.
        at: positions of the tokens.
    """
    queries, keys, values = heads
    if config.qk_norm:
        queries = rms_norm(weights["query_norm"], config, queries)
        keys = rms_norm(weights["key_norm"], config, keys)
    frequencies = rope_frequencies(config.head_dim, facts.rope_theta, facts.rope_scaling)
    return rotate(queries, at, frequencies), rotate(keys, at, frequencies), values


def _by_kv_head(config: DecoderConfig, heads: Heads) -> Heads:
    """Group the queries by the key/value head that they share, ``[*tokens, K, R, h]``."""
    queries, keys, values = heads
    repeats = config.num_heads // config.num_kv_heads
    by_kv_head = (*queries.shape[:-2], config.num_kv_heads, repeats, config.head_dim)
    return queries.reshape(by_kv_head), keys, values


def _feed_forward(weights: PyTree[Array], config: DecoderConfig, x: Array) -> Array:
    """The gated feed-forward part with its residual connection."""
    y = rms_norm(weights["mlp_norm"], config, x)
    if "gate_up" in weights:  # from `decoding_params`: one product instead of two
        both = _project(weights, config, "gate_up", y)
        gate, up = both[..., 0, :], both[..., 1, :]
    else:
        gate, up = _project(weights, config, "gate", y), _project(weights, config, "up", y)
    y = _project(weights, config, "down", _ACTIVATIONS[config.activation](gate) * up)
    return constrain_batch(x + _post_norm(weights, "mlp", config, y))


def _project(
    weights: PyTree[Array], config: DecoderConfig, name: str, x: Float[Array, "*tokens N"]
) -> Array:
    """Return ``x W (+ b)``, where W of shape ``[*inputs, *outputs]`` has N inputs.

    Where the projection has an adapter, what that adds is in it, see `lora.py`.

    All tokens are rows of one matrix, and all inputs one axis: contracted over several axes, the
    kernel's gradient would be made from transposed copies of the activations on CPU.
    """
    with jax.named_scope(name):
        rows = x.reshape(-1, x.shape[-1])
        if OUTPUTS_FIRST in weights[name]:
            product = few_rows_product(rows, weights[name][OUTPUTS_FIRST])
        else:
            matrix = weights[name]["kernel"].astype(x.dtype)
            if len(matrix) != x.shape[-1]:  # the output projection's [H, h, D]
                matrix = matrix.reshape(x.shape[-1], -1)
            product = jnp.tensordot(rows, matrix, axes=1)
        if LORA_A in weights[name]:
            product = product + low_rank_product(weights[name], config, rows)
        product = checkpoint_name(product, PRODUCT_NAME)
        y = product.reshape(*x.shape[:-1], *product.shape[1:])
        if "bias" in weights[name]:
            bias = weights[name]["bias"].astype(x.dtype)
            y = y + bias.reshape((1,) * (y.ndim - bias.ndim) + bias.shape)
        return y
