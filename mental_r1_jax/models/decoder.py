"""The decoder as pure functions on a plain tree of parameters; the only door to the network.

The group is a real axis. `forward` runs each prompt once and lets its G completions attend to that
one copy of the prompt's keys and values; no array has the shape ``[B * G, P, ...]``. Sampling does
the same in two parts: `prefill` once, then `decode_step` for every token.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from mental_r1_jax.models.architecture import Decoder, DecoderConfig, DecoderLayer, RMSNorm
from mental_r1_jax.sharding import constrain_looked_up

__all__ = [
    "CompletionCache",
    "DecoderConfig",
    "PromptCache",
    "abstract_params",
    "cast_matrices",
    "decode_step",
    "decoding_params",
    "forward",
    "init_completion_cache",
    "init_params",
    "param_logical_axes",
    "prefill",
    "unembed",
    "unembed_matrix",
]


@flax.struct.dataclass
class PromptCache:
    """Keys and values of prompts, one copy a prompt.

    Attributes:
        keys: one array a layer (L of them), in the compute dtype.
        values: like `keys`.
        mask: true on real prompt tokens.
    """

    keys: tuple[Float[Array, "B K P h"], ...]
    values: tuple[Float[Array, "B K P h"], ...]
    mask: Bool[Array, "B P"]


@flax.struct.dataclass
class CompletionCache:
    """Keys and values of the completions' own tokens.

    One array a layer, not one stacked array: a decoding loop then updates each in place and reads
    it without cutting it out first (a stacked cache is copied whole at every token on CPU).

    Attributes:
        keys: one array a layer (L of them), in the compute dtype.
        values: like `keys`.
    """

    keys: tuple[Float[Array, "B G K C h"], ...]
    values: tuple[Float[Array, "B G K C h"], ...]


def init_params(config: DecoderConfig, key: Key[Array, ""]) -> PyTree[Array]:
    """Draw random float32 parameters: normal with `config.init_scale`, norms 1, biases 0."""
    return nn.meta.unbox(_boxed(config, key))


def abstract_params(config: DecoderConfig) -> PyTree[jax.ShapeDtypeStruct]:
    """Return the shapes and dtypes of the parameters; nothing is allocated."""
    return jax.eval_shape(lambda: init_params(config, jax.random.key(0)))


def param_logical_axes(config: DecoderConfig) -> PyTree[tuple[str, ...]]:
    """Return the logical axis names of every parameter, as declared in the network."""
    boxed = jax.eval_shape(lambda: _boxed(config, jax.random.key(0)))
    return jax.tree.map(lambda box: tuple(box.names), boxed, is_leaf=_is_box)


def prefill(
    params: PyTree,
    config: DecoderConfig,
    prompt_ids: Int[Array, "B P"],
    prompt_mask: Bool[Array, "B P"],
) -> tuple[Float[Array, "B D"], PromptCache]:
    """Run the prompts once.

    Returns:
        The final-normed state of each prompt's last real token, which predicts the first completion
        token, and the keys and values that `decode_step` attends to.
    """
    network = Decoder(config)
    states, keys, values = _apply(network, params, "prefill", prompt_ids)
    hidden = _apply(network, params, "normalize", _last_real(states, prompt_mask))
    each = range(config.num_layers)
    cache = PromptCache(
        keys=tuple(keys[i] for i in each), values=tuple(values[i] for i in each), mask=prompt_mask
    )
    return hidden, cache


def forward(
    params: PyTree,
    config: DecoderConfig,
    prompt_ids: Int[Array, "B P"],
    prompt_mask: Bool[Array, "B P"],
    completion_ids: Int[Array, "B G C"],
    completion_mask: Bool[Array, "B G C"],
) -> Float[Array, "B G C D"]:
    """Return final-normed states, where ``hidden[b, g, i]`` predicts ``completion_ids[b, g, i]``.

    State 0 is that of the last real prompt token, shared by the group; state i > 0 is that of
    completion token i - 1, so the last completion token is not run at all.
    """
    network, group = Decoder(config), completion_ids.shape[1]
    prompt_states, states = _apply(
        network,
        params,
        "run_group",
        prompt_ids,
        prompt_mask,
        completion_ids[:, :, :-1],
        completion_mask[:, :, :-1],
    )
    first = _last_real(prompt_states, prompt_mask)[:, None, None]
    first = jnp.broadcast_to(first, (first.shape[0], group, 1, first.shape[-1]))
    return _apply(network, params, "normalize", jnp.concatenate([first, states], axis=2))


def init_completion_cache(
    config: DecoderConfig, num_prompts: int, num_completions: int, max_length: int
) -> CompletionCache:
    """Return an empty cache for B x G completions of up to `max_length` (C) tokens."""
    shape = (num_prompts, num_completions, config.num_kv_heads, max_length, config.head_dim)

    def empty() -> tuple[Array, ...]:
        return tuple(jnp.zeros(shape, config.dtype) for _ in range(config.num_layers))

    return CompletionCache(keys=empty(), values=empty())


def cast_matrices(params: PyTree, config: DecoderConfig) -> PyTree:
    """Round matrices and biases to the compute dtype; RMSNorm computes with float32 scales."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf if path[-1].key == "scale" else leaf.astype(config.dtype), params
    )


def decoding_params(params: PyTree, config: DecoderConfig) -> PyTree:
    """Lay the parameters out for `decode_step`: matrices in the compute dtype, one tree a layer.

    Call it once, outside the decoding loop; inside, slicing and casting the stacked float32 master
    parameters would cost as much as the matrix products.
    """
    cast = cast_matrices(params, config)
    leaves, tree = jax.tree.flatten(cast["layers"])
    each = range(config.num_layers)
    layers = tuple(jax.tree.unflatten(tree, [leaf[i] for leaf in leaves]) for i in each)
    return {**cast, "layers": layers}


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
        params: from `init_params`, or faster in a loop, from `decoding_params`.
        config: of the decoder.
        token_ids: the token in slot `index` of each completion.
        index: slot of the token, the same for all; its position is the prompt's length + index.
        prompt_cache: from `prefill`.
        completion_cache: holds the slots before `index`.

    Returns:
        The final-normed state that predicts the token of slot ``index + 1``, and the cache with
        slot `index` filled.
    """
    if not isinstance(params["layers"], tuple):
        params = decoding_params(params, config)
    index = jnp.asarray(index, jnp.int32)
    windows = config.windows()
    layer, norm = DecoderLayer(config), RMSNorm(config.rms_norm_eps, config.dtype)
    x = jnp.take(params["embedding"], token_ids[:, :, None], axis=0).astype(config.dtype)
    x = constrain_looked_up(x)
    all_keys, all_values = [], []
    for i, layer_params in enumerate(params["layers"]):
        x, keys, values = _apply(
            layer,
            layer_params,
            "decode",
            x,
            index,
            (prompt_cache.keys[i], prompt_cache.values[i], prompt_cache.mask),
            (completion_cache.keys[i], completion_cache.values[i]),
            None if windows is None else jnp.asarray(windows[i]),
        )
        all_keys.append(keys)
        all_values.append(values)
    hidden = _apply(norm, params["final_norm"], "__call__", x[:, :, 0])
    return hidden, CompletionCache(keys=tuple(all_keys), values=tuple(all_values))


def unembed_matrix(params: PyTree, config: DecoderConfig) -> Float[Array, "D V"]:
    """Return the matrix that turns states into logits, tied or not, in the compute dtype."""
    matrix = params["embedding"].T if config.tie_embeddings else params["unembedding"]
    return matrix.astype(config.dtype)


def unembed(
    params: PyTree, config: DecoderConfig, hidden: Float[Array, "*batch D"]
) -> Float[Array, "*batch V"]:
    """Return float32 logits of final-normed states."""
    # The embedding is not transposed first: a decoding loop would copy it at every token.
    tied = config.tie_embeddings
    return jnp.einsum(
        "...d,vd->...v" if tied else "...d,dv->...v",
        hidden.astype(config.dtype),
        params["embedding" if tied else "unembedding"].astype(config.dtype),
        preferred_element_type=jnp.float32,
    )


def _apply(module: nn.Module, params: PyTree, method: str, *args: Any) -> Any:
    """Call a method of a module on plain parameters."""
    return module.apply({"params": params}, *args, method=method)


def _last_real(states: Array, mask: Array) -> Array:
    """Pick the state `[B, D]` of the last real token of each prompt."""
    last = mask.sum(-1, dtype=jnp.int32) - 1
    return jnp.take_along_axis(states, last[:, None, None], axis=1)[:, 0]


def _boxed(config: DecoderConfig, key: Array) -> Any:
    """Initialise, leaving every parameter in the box that names its axes."""
    return Decoder(config).init(key, jnp.zeros((1, 1), jnp.int32))["params"]


def _is_box(leaf: Any) -> bool:
    """Whether a leaf is a parameter still in its box."""
    return isinstance(leaf, nn.meta.AxisMetadata)
