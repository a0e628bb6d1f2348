"""One token of every completion at a time: caches, weights laid out for it, and the step.

The step computes what `DecoderLayer` computes, from weights that were cast and arranged once before
the loop: the matrices in the compute dtype, one tree a layer, gate and up projection side by side
in one product, and the head as ``[D, V]`` even where it is tied to the embedding.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from mental_r1_jax.models.architecture import DecoderConfig, RMSNorm
from mental_r1_jax.models.attention_plain import allowed_own_keys, allowed_prompt_keys
from mental_r1_jax.models.decode_attention import decode_attention
from mental_r1_jax.models.rope import rope_frequencies, rotate
from mental_r1_jax.sharding import constrain_batch, constrain_for_decoding


@flax.struct.dataclass
class PromptCache:
    """Keys and values of prompts, one copy a prompt; keys transposed, see `decode_attention`.

    Attributes:
        keys: one array a layer (L of them), in the compute dtype.
        values: like `keys`.
        mask: true on real prompt tokens.
    """

    keys: tuple[Float[Array, "B K h P"], ...]
    values: tuple[Float[Array, "B K P h"], ...]
    mask: Bool[Array, "B P"]


@flax.struct.dataclass
class CompletionCache:
    """Keys and values of the completions' own tokens; keys transposed.

    One array a layer, not one stacked array: a decoding loop then updates each in place and reads
    it without cutting it out first (a stacked cache is copied whole at every token on CPU).

    Attributes:
        keys: one array a layer (L of them), in the compute dtype.
        values: like `keys`.
    """

    keys: tuple[Float[Array, "B G K h C"], ...]
    values: tuple[Float[Array, "B G K C h"], ...]


def init_completion_cache(
    config: DecoderConfig, num_prompts: int, num_completions: int, length: int
) -> CompletionCache:
    """Return an empty cache with `length` slots for each of B x G completions."""
    heads = (num_prompts, num_completions, config.num_kv_heads)

    def empty(*shape: int) -> tuple[Array, ...]:
        return tuple(jnp.zeros(heads + shape, config.dtype) for _ in range(config.num_layers))

    return CompletionCache(
        keys=empty(config.head_dim, length), values=empty(length, config.head_dim)
    )


def grow_completion_cache(cache: CompletionCache, length: int) -> CompletionCache:
    """Return the cache with `length` slots; the new ones are empty."""

    def grow(array: Array, axis: int) -> Array:
        padding = [(0, 0)] * array.ndim
        padding[axis] = (0, length - array.shape[axis])
        return jnp.pad(array, padding)

    return CompletionCache(
        keys=tuple(grow(keys, 4) for keys in cache.keys),
        values=tuple(grow(values, 3) for values in cache.values),
    )


def cast_matrices(params: PyTree, config: DecoderConfig) -> PyTree:
    """Round matrices and biases to the compute dtype; RMSNorm computes with float32 scales."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf if path[-1].key == "scale" else leaf.astype(config.dtype), params
    )


def decoding_params(
    params: PyTree, config: DecoderConfig, logical_axes: PyTree[tuple[str, ...]]
) -> PyTree:
    """Lay the parameters out for `decode_step`; call it once, outside the decoding loop.

    Inside the loop, slicing and casting the stacked float32 master parameters would cost as much as
    the matrix products. Gate and up projection become one kernel ``[D, 2, F]``: a new axis, so that
    F stays cut over `tensor` as it was. On a mesh the weights are made whole over `fsdp`, see
    `constrain_for_decoding`.

    Args:
        params: from `init_params`.
        config: of the decoder.
        logical_axes: names of the dimensions of every parameter.
    """
    cast = constrain_for_decoding(cast_matrices(params, config), logical_axes)
    stacked = dict(cast["layers"])
    gate, up = stacked.pop("gate"), stacked.pop("up")
    stacked["gate_up"] = {name: jnp.stack([gate[name], up[name]], axis=-2) for name in gate}
    leaves, tree = jax.tree.flatten(stacked)
    each = range(config.num_layers)
    layers = tuple(jax.tree.unflatten(tree, [leaf[i] for leaf in leaves]) for i in each)
    head = cast["embedding"].T if config.tie_embeddings else cast["unembedding"]
    return {**cast, "layers": layers, "head": head}


def decode_step(
    params: PyTree,
    config: DecoderConfig,
    token_ids: Int[Array, "B G"],
    index: Int[Array, ""] | int,
    prompt_cache: PromptCache,
    completion_cache: CompletionCache,
) -> tuple[Float[Array, "B G D"], CompletionCache]:
    """Run one token of every completion.

    Args:
        params: from `decoding_params`.
        config: of the decoder.
        token_ids: the token in slot `index` of each completion.
        index: slot of the token, the same for all; its position is the prompt's length + index.
        prompt_cache: from `prefill`.
        completion_cache: holds the slots before `index`.

    Returns:
        The final-normed state that predicts the token of slot ``index + 1``, and the cache with
        slot `index` filled.
    """
    index = jnp.asarray(index, jnp.int32)
    windows = config.windows()
    x = jnp.take(params["embedding"], token_ids, axis=0).astype(config.dtype)
    x = constrain_batch(x)
    all_keys, all_values = [], []
    for i, layer in enumerate(params["layers"]):
        window = None if windows is None else jnp.asarray(windows[i])
        prompt = (prompt_cache.keys[i], prompt_cache.values[i], prompt_cache.mask)
        own = (completion_cache.keys[i], completion_cache.values[i])
        with jax.named_scope("attention"):
            x, keys, values = _attend(layer, config, x, index, prompt, own, window)
        with jax.named_scope("feed_forward"):
            x = _feed_forward(layer, config, x)
        all_keys.append(keys)
        all_values.append(values)
    hidden = _norm(params["final_norm"], config, x)
    return hidden, dataclasses.replace(
        completion_cache, keys=tuple(all_keys), values=tuple(all_values)
    )


def _attend(
    layer: PyTree,
    config: DecoderConfig,
    x: Float[Array, "B G D"],
    index: Int[Array, ""],
    prompt: tuple[Float[Array, "B K h P"], Float[Array, "B K P h"], Bool[Array, "B P"]],
    own: tuple[Float[Array, "B G K h C"], Float[Array, "B G K C h"]],
    window: Int[Array, ""] | None,
) -> tuple[Float[Array, "B G D"], Float[Array, "B G K h C"], Float[Array, "B G K C h"]]:
    """Attention with its residual connection; the token's keys and values go to slot `index`."""
    positions = prompt[2].sum(-1, dtype=jnp.int32)[:, None] + index
    normed = _norm(layer["attention_norm"], config, x)
    queries, key, value = (_project(layer[name], normed, 1) for name in ("query", "key", "value"))
    if config.qk_norm:
        queries = _norm(layer["query_norm"], config, queries)
        key = _norm(layer["key_norm"], config, key)
    frequencies = rope_frequencies(config.head_dim, config.rope_theta, config.rope_scaling)
    queries = rotate(queries, positions, frequencies)
    key = rotate(key, positions, frequencies)
    zero = jnp.zeros_like(index)
    keys = jax.lax.dynamic_update_slice(own[0], key[..., None], (zero,) * 4 + (index,))
    at = (zero, zero, zero, index, zero)
    values = jax.lax.dynamic_update_slice(own[1], value[..., None, :], at)
    kv_heads = config.num_kv_heads
    by_kv_head = (*x.shape[:2], kv_heads, config.num_heads // kv_heads, config.head_dim)
    mixed = decode_attention(
        queries.reshape(by_kv_head),
        prompt[0],
        prompt[1],
        keys,
        values,
        allowed_prompt_keys(prompt[2], positions, window)[:, 0],
        allowed_own_keys(index[None], values.shape[3], window)[0],
    )
    mixed = mixed.reshape(*x.shape[:2], config.num_heads, config.head_dim)
    return x + _project(layer["output"], mixed, 2), keys, values


def _feed_forward(
    layer: PyTree, config: DecoderConfig, x: Float[Array, "B G D"]
) -> Float[Array, "B G D"]:
    """The gated feed-forward part with its residual connection."""
    gate_up = _project(layer["gate_up"], _norm(layer["mlp_norm"], config, x), 1)
    gated = jax.nn.silu(gate_up[..., 0, :]) * gate_up[..., 1, :]
    return constrain_batch(x + _project(layer["down"], gated, 1))


def _project(params: PyTree, x: Array, num_in: int) -> Array:
    """``x W (+ b)`` over the last `num_in` axes of `x`."""
    y = jnp.tensordot(x, params["kernel"], axes=num_in)
    if "bias" not in params:
        return y
    bias = params["bias"]
    return y + bias.reshape((1,) * (y.ndim - bias.ndim) + bias.shape)


def _norm(params: PyTree, config: DecoderConfig, x: Array) -> Array:
    """RMSNorm as the network has it."""
    module = RMSNorm(config.rms_norm_eps, config.dtype)
    normed: Any = module.apply({"params": params}, x)
    return normed
