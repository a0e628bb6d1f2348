"""One token of every completion at a time: caches, weights laid out for it, and the step.

The step runs the layer of `layer.py` on weights that were cast and arranged once before the loop:
the matrices in the compute dtype, one tree a layer, gate and up projection side by side in one
matrix.
"""

from __future__ import annotations

import dataclasses
from functools import partial

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from mental_r1_jax.models.architecture import AttentionFacts, DecoderConfig
from mental_r1_jax.models.attention_plain import allowed_own_keys, allowed_prompt_keys
from mental_r1_jax.models.decode_attention import PrefixHeads, decode_attention
from mental_r1_jax.models.embedding import scaled
from mental_r1_jax.models.few_rows import outputs_first, takes_few_rows
from mental_r1_jax.models.layer import OUTPUTS_FIRST, Attend, Heads, forward_layer, rms_norm
from mental_r1_jax.models.lora import merge_adapters
from mental_r1_jax.models.parameters import param_logical_axes
from mental_r1_jax.models.rope import rope_frequencies, rotation_factors
from mental_r1_jax.models.unit_axes import without_unit_axes
from mental_r1_jax.sharding import constrain_batch, constrain_for_decoding


@flax.struct.dataclass
class PromptCache:
    """Keys and values of prompts, one copy a prompt; keys transposed, see `decode_attention`.

    Attributes:
        keys: one array a layer (L of them), in the compute dtype.
        values: one array a layer, in the compute dtype.
        mask: true on real prompt tokens.
        prefix_keys: of the prefix that stands before all prompts, in S copies, see `PromptBatch`;
            no layers where there is none.
        prefix_values: of that prefix.
    """

    keys: tuple[Float[Array, "B K h P"], ...]
    values: tuple[Float[Array, "B K P h"], ...]
    mask: Bool[Array, "B P"]
    prefix_keys: tuple[Float[Array, "S K h F"], ...] = ()
    prefix_values: tuple[Float[Array, "S K F h"], ...] = ()

    def padded(self, mask: Bool[Array, "B P"]) -> PromptCache:
        """The cache as wide as `mask`, which takes the place of its own."""
        extra = (0, mask.shape[1] - self.mask.shape[1])
        return dataclasses.replace(
            self,
            keys=tuple(jnp.pad(x, [(0, 0)] * 3 + [extra]) for x in self.keys),
            values=tuple(jnp.pad(x, [(0, 0)] * 2 + [extra, (0, 0)]) for x in self.values),
            mask=mask,
        )

    @property
    def prefix_length(self) -> int:
        """Tokens of the prefix, F."""
        return self.prefix_keys[0].shape[-1] if self.prefix_keys else 0

    def prefix_heads(
        self, layer: int, positions: Int[Array, "B 1"], window: int | None
    ) -> PrefixHeads | None:
        """What a layer attends to before the prompts, from tokens at `positions`."""
        if not self.prefix_keys:
            return None
        allowed = None
        if window is not None:
            real = jnp.ones((len(positions), self.prefix_length), bool)
            allowed = allowed_prompt_keys(real, positions, window)[:, 0]
        return PrefixHeads(self.prefix_keys[layer], self.prefix_values[layer], allowed)


@flax.struct.dataclass
class CompletionCache:
    """Keys and values of the completions' own tokens; keys transposed.

    One array a layer, not one stacked array: a decoding loop then updates each in place and reads
    it without slicing it out first (on CPU all of a stacked cache is copied at every token).

    Attributes:
        keys: one array a layer (L of them), in the compute dtype.
        values: one array a layer, in the compute dtype.
    """

    keys: tuple[Float[Array, "B K G h C"], ...]
    values: tuple[Float[Array, "B K G C h"], ...]

    def narrow(self) -> list[Float[Array, "..."]]:
        """All arrays without those of B, K and G that are 1, for a loop to carry; see `_put`."""
        return [without_unit_axes(x, kept=2) for x in jax.tree.leaves(self)]

    def widened(self, narrow: list[Float[Array, "..."]]) -> CompletionCache:
        """The inverse of `narrow`, for arrays of a cache with the shapes of this one."""
        leaves, structure = jax.tree.flatten(self)
        pairs = zip(narrow, leaves, strict=True)
        return jax.tree.unflatten(structure, [x.reshape(like.shape) for x, like in pairs])


def init_completion_cache(
    config: DecoderConfig, num_prompts: int, num_completions: int, length: int
) -> CompletionCache:
    """Return an empty cache with `length` slots for each of B x G completions."""
    heads = (num_prompts, config.num_kv_heads, num_completions)

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


def decoding_params(params: PyTree, config: DecoderConfig, num_rows: int | None = None) -> PyTree:
    """Lay the parameters out for `decode_step`; call it once, outside the decoding loop.

    Inside the loop, slicing and casting the stacked float32 master parameters would cost as much as
    the matrix products. Adapters are merged into their kernels. Gate and up projection become one
    kernel ``[D, 2, F]``: a new axis, so that F stays sharded over `tensor` as it was. On a mesh the
    weights are gathered over `fsdp`, see `constrain_for_decoding`. On CPUs kernels stand with their
    outputs first where few rows are decoded, see `few_rows`.

    Args:
        params: the policy's parameters.
        config: compute dtype, and what is merged.
        num_rows: completions that are decoded, B x G; None: many.
    """
    axes = param_logical_axes(config)
    outside = {name: leaf for name, leaf in params.items() if name != "layers"}
    outside = constrain_for_decoding(
        cast_matrices(outside, config), {name: axes[name] for name in outside}
    )
    each = range(config.num_layers)
    layers = tuple(_decoding_layer(params["layers"], axes["layers"], i, config) for i in each)
    if num_rows is not None and takes_few_rows(params["embedding"], config.dtype, num_rows):
        layers = tuple({name: _for_few_rows(name, x) for name, x in of.items()} for of in layers)
    return {**outside, "layers": layers}


def _for_few_rows(name: str, weights: dict[str, Array]) -> dict[str, Array]:
    """A projection of a layer with its outputs first; norms stay as they are."""
    if "kernel" not in weights:
        return weights
    others = {key: leaf for key, leaf in weights.items() if key != "kernel"}
    num_inputs = 2 if name == "output" else 1  # [H, h, D]
    return others | {OUTPUTS_FIRST: outputs_first(weights["kernel"], num_inputs)}


def _decoding_layer(
    stacked: PyTree[Float[Array, "L ..."]],
    axes: PyTree[tuple[str, ...]],
    number: int,
    config: DecoderConfig,
) -> PyTree[Float[Array, "..."]]:
    """Lay out one layer: merging all of them at once would need memory for two more copies."""
    layer = jax.tree.map(lambda leaf: leaf[number : number + 1], stacked)
    merged = merge_adapters({"layers": layer}, config)["layers"]
    gathered = constrain_for_decoding(cast_matrices(merged, config), axes)
    weights = jax.tree.map(lambda leaf: leaf[0], gathered)
    gate, up = weights.pop("gate"), weights.pop("up")
    return weights | {
        "gate_up": {name: jnp.stack([gate[name], up[name]], axis=-2) for name in gate}
    }


def decode_step(
    params: PyTree,
    config: DecoderConfig,
    token_ids: Int[Array, "B G"],
    index: Int[Array, ""] | int,
    prompt_cache: PromptCache,
    completion_cache: CompletionCache,
) -> tuple[Float[Array, "B G D"], CompletionCache]:
    """Run one token of every completion, and put its keys and values into the cache.

    The token in slot i of a completion stands at position ``length of its prompt + i``, the prefix
    of all prompts included. In every layer it attends to that prefix, to the real tokens of the
    prompt and to slots 0 to i of its own completion. The slot is the same for all completions:
    those that ended earlier go on with padding, and what is computed for it is dropped by the
    sampler.

    The layers are spelled out one after the other, not scanned: in a loop over tokens, each then
    updates its own cache in place.

    Args:
        params: from `decoding_params`.
        config: sizes, epsilon and compute dtype of the decoder.
        token_ids: the token in slot `index` of each completion.
        index: slot of the token.
        prompt_cache: from `prefill`.
        completion_cache: holds the slots before `index`.

    Returns:
        The final-normed state that predicts the token of slot ``index + 1``, and the cache with
        slot `index` filled.
    """
    index = jnp.asarray(index, jnp.int32)
    before = prompt_cache.prefix_length
    positions = prompt_cache.mask.sum(-1, dtype=jnp.int32)[:, None] + index
    places = positions + before if before else positions
    x = jnp.take(params["embedding"], token_ids, axis=0, mode="clip").astype(config.dtype)
    streams: tuple[Array, ...] = (constrain_batch(scaled(x, config)),)
    slots = before + prompt_cache.mask.shape[1] + completion_cache.values[0].shape[3]
    kept = []
    for i, facts in enumerate(config.layer_facts(slots)):
        weights = params["layers"][i]
        own = (completion_cache.keys[i], completion_cache.values[i])
        attend = _kernel_attention(config, weights, streams[0], index, prompt_cache, i, own)
        as_projected = attend is not None
        if attend is None:
            prompt = (prompt_cache.keys[i], prompt_cache.values[i], prompt_cache.mask)
            prefix = prompt_cache.prefix_heads(i, places, facts.window)
            attend = partial(_attend, index, positions, prefix, prompt, own)
        streams, cached = forward_layer(
            weights, config, facts, streams, (places,), attend, as_projected=as_projected
        )
        kept.append(cached)
    hidden = rms_norm(params["final_norm"], config, streams[0])
    keys, values = zip(*kept, strict=True)
    return hidden, dataclasses.replace(completion_cache, keys=keys, values=values)


def _attend(
    index: Int[Array, ""],
    positions: Int[Array, "B 1"],
    prefix: PrefixHeads | None,
    prompt: tuple[Float[Array, "B K h P"], Float[Array, "B K P h"], Bool[Array, "B P"]],
    own: tuple[Float[Array, "B K G h C"], Float[Array, "B K G C h"]],
    facts: AttentionFacts,
    heads: Heads,
) -> tuple[tuple[Array], tuple[Float[Array, "B K G h C"], Float[Array, "B K G C h"]]]:
    """Put the token's keys and values into slot `index` of its cache, and attend to all caches.

    `positions` count from the first token of the prompt behind the prefix.
    """
    queries, (key, value) = heads[0], (x.swapaxes(1, 2) for x in heads[1:])
    keys = _put(own[0], key[..., None], index, -1)
    values = _put(own[1], value[..., None, :], index, -2)
    prompt_allowed = allowed_prompt_keys(prompt[2], positions, facts.window)[:, 0]
    own_allowed = allowed_own_keys(index[None], values.shape[3], facts.window)[0]
    mixed = decode_attention(
        queries, prompt[0], prompt[1], keys, values, prompt_allowed, own_allowed, facts, prefix
    )
    return (mixed,), (keys, values)


def _put(
    cache: Float[Array, "B K G ..."], new: Float[Array, "B K G ..."], index: Array, axis: int
) -> Float[Array, "B K G ..."]:
    """Put `new` at `index` along `axis` of a cache; in place.

    XLA drops axes of length 1 (one prompt, one completion, one head) from the products that read a
    cache. With them, a decoding loop on CPU would write a cache in both shapes, and so copy it at
    every token.
    """
    narrow, slot = without_unit_axes(cache, kept=2), without_unit_axes(new, kept=2)
    put = jax.lax.dynamic_update_slice_in_dim
    return put(narrow, slot, index, axis, allow_negative_indices=False).reshape(cache.shape)


def _kernel_attention(
    config: DecoderConfig,
    weights: PyTree[Array],
    states: Float[Array, "B G D"],
    index: Int[Array, ""],
    prompts: PromptCache,
    layer: int,
    own: tuple[Float[Array, "B K G h C"], Float[Array, "B K G C h"]],
) -> Attend | None:
    """A layer's attention by `decode_kernel_tpu`; None where it is not wanted or cannot run."""
    if not config.decode_kernel:
        return None
    from mental_r1_jax.models import decode_kernel_tpu as kernel

    prompt = prompts.keys[layer], prompts.values[layer]
    prefix = None
    if prompts.prefix_keys:
        prefix = prompts.prefix_keys[layer], prompts.prefix_values[layer]
    if not kernel.takes(config, states, prompt, own, prefix):
        return None
    norms = None
    if config.qk_norm:
        query, key = (
            config.norm_offset + weights[name]["scale"].astype(jnp.float32)
            for name in ("query_norm", "key_norm")
        )
        norms = kernel.HeadNorms(query, key, config.rms_norm_eps)
    lengths = prompts.mask.sum(-1, dtype=jnp.int32)
    places = lengths + index + prompts.prefix_length

    def attend(facts: AttentionFacts, heads: Heads) -> tuple[tuple[Array], tuple[Array, Array]]:
        frequencies = rope_frequencies(config.head_dim, facts.rope_theta, facts.rope_scaling)
        rotation = rotation_factors(places, frequencies)
        mixed, cache = kernel.fused_decode_attention(
            heads, index, lengths, rotation, prompt, own, facts, norms, prefix
        )
        return (mixed,), cache

    return attend
