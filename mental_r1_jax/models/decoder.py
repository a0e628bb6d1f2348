"""The decoder as pure functions on a plain tree of parameters; the only door to the network.

The group is a real axis. `forward` runs each prompt once and lets its G completions attend to that
one copy of the prompt's keys and values; no array has the shape ``[B * G, P, ...]``. Sampling does
the same in two parts: `prefill` once, then `decode_step` for every token.
"""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from mental_r1_jax.models import decode
from mental_r1_jax.models.architecture import Decoder, DecoderConfig
from mental_r1_jax.models.decode import (
    CompletionCache,
    PromptCache,
    cast_matrices,
    decode_step,
    grow_completion_cache,
    init_completion_cache,
)

__all__ = [
    "CompletionCache",
    "DecoderConfig",
    "PromptCache",
    "abstract_params",
    "cast_matrices",
    "decode_step",
    "decoding_params",
    "forward",
    "grow_completion_cache",
    "init_completion_cache",
    "init_params",
    "param_logical_axes",
    "prefill",
    "unembed",
    "unembed_matrix",
]


def init_params(config: DecoderConfig, key: Key[Array, ""]) -> PyTree[Array]:
    """Draw random float32 parameters: normal with `config.init_scale`, norms 1, biases 0."""
    return nn.meta.unbox(_boxed(config, key))


def abstract_params(config: DecoderConfig) -> PyTree[jax.ShapeDtypeStruct]:
    """Return the shapes and dtypes of the parameters; nothing is allocated."""
    return nn.meta.unbox(_boxed_shapes(config))


def param_logical_axes(config: DecoderConfig) -> PyTree[tuple[str, ...]]:
    """Return the logical axis names of every parameter, as declared in the network."""
    return jax.tree.map(lambda box: tuple(box.names), _boxed_shapes(config), is_leaf=_is_box)


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
        keys=tuple(keys[i].swapaxes(-1, -2) for i in each),
        values=tuple(values[i] for i in each),
        mask=prompt_mask,
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


def decoding_params(params: PyTree, config: DecoderConfig) -> PyTree:
    """Lay the parameters out for `decode_step`; call it once, outside the decoding loop."""
    return decode.decoding_params(params, config, param_logical_axes(config))


def unembed_matrix(params: PyTree, config: DecoderConfig) -> Float[Array, "D V"]:
    """Return the matrix that turns states into logits, tied or not, in the compute dtype."""
    matrix = params["embedding"].T if config.tie_embeddings else params["unembedding"]
    return matrix.astype(config.dtype)


def unembed(
    params: PyTree, config: DecoderConfig, hidden: Float[Array, "*batch D"]
) -> Float[Array, "*batch V"]:
    """Return float32 logits of final-normed states."""
    # From `decoding_params` the matrix comes ready; a decoding loop would make it at every token.
    matrix = params["head"] if "head" in params else unembed_matrix(params, config)
    hidden = hidden.astype(config.dtype)
    return jnp.einsum("...d,dv->...v", hidden, matrix, preferred_element_type=jnp.float32)


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


@functools.lru_cache
def _boxed_shapes(config: DecoderConfig) -> Any:
    """The same without values; traced once, for a start-up asks for it a dozen times."""
    return jax.eval_shape(lambda: _boxed(config, jax.random.key(0)))


def _is_box(leaf: Any) -> bool:
    """Whether a leaf is a parameter still in its box."""
    return isinstance(leaf, nn.meta.AxisMetadata)
