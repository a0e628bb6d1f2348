"""The decoder as pure functions on a plain tree of parameters; the only door to the network.

The group is a real axis. `forward` runs each prompt once and lets its G completions attend to that
one copy of the prompt's keys and values; no array has the shape ``[B * G, P, ...]``. Sampling does
the same in two parts: `prefill` once, then `decode_step` for every token.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Bool, Float, Int, PyTree

from mental_r1_jax import sharding
from mental_r1_jax.models.architecture import AttentionFacts, DecoderConfig
from mental_r1_jax.models.attention import prompt_attention, shared_prefix_attention
from mental_r1_jax.models.attention_plain import capped
from mental_r1_jax.models.decode import (
    CompletionCache,
    PromptCache,
    cast_matrices,
    decode_step,
    decoding_params,
    grow_completion_cache,
    init_completion_cache,
)
from mental_r1_jax.models.embedding import embed
from mental_r1_jax.models.few_rows import few_rows_product, takes_few_rows
from mental_r1_jax.models.head import token_stats
from mental_r1_jax.models.layer import Heads, rms_norm, run_layers
from mental_r1_jax.models.lora import (
    abstract_adapters,
    adapter_count,
    adapter_logical_axes,
    init_adapters,
    join_weights,
    merge_adapters,
)
from mental_r1_jax.models.parameters import (
    abstract_params,
    init_params,
    param_logical_axes,
    parameter_count,
)
from mental_r1_jax.types import Batch, TraceBatch

# Widths of prompts in which the pass after a prefix is compiled: at most so many, in such steps.
MAX_PREFILLS, PREFILL_STEP = 4, 32

__all__ = [
    "CompletionCache",
    "DecoderConfig",
    "PromptCache",
    "abstract_adapters",
    "abstract_params",
    "abstract_trained",
    "adapter_count",
    "cast_matrices",
    "completion_logprobs",
    "completion_stats",
    "decode_step",
    "decoding_params",
    "forward",
    "grow_completion_cache",
    "init_adapters",
    "init_completion_cache",
    "init_params",
    "join_weights",
    "merge_adapters",
    "param_logical_axes",
    "param_shardings",
    "parameter_count",
    "prefill",
    "prefill_after_prefix",
    "prefill_widths",
    "trained_shardings",
    "unembed",
    "unembed_matrix",
]


def param_shardings(config: DecoderConfig, mesh: Mesh) -> PyTree[NamedSharding]:
    """Return where each parameter lives on `mesh`."""
    return sharding.param_shardings(mesh, abstract_params(config), param_logical_axes(config))


def abstract_trained(config: DecoderConfig) -> PyTree[jax.ShapeDtypeStruct]:
    """Return the shapes of what an update changes: the adapters if there are any, else all."""
    return abstract_params(config) if config.lora is None else abstract_adapters(config)


def trained_shardings(config: DecoderConfig, mesh: Mesh) -> PyTree[NamedSharding]:
    """Return where each array of `abstract_trained` lives on `mesh`."""
    if config.lora is None:
        return param_shardings(config, mesh)
    axes = adapter_logical_axes(config)
    return sharding.param_shardings(mesh, abstract_adapters(config), axes)


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
    length = prompt_ids.shape[1]
    streams = (embed(params["embedding"], config, prompt_ids),)
    positions = (jnp.arange(length)[None],)
    (states,), kept = run_layers(
        params["layers"], config, length, streams, positions, _attend_within_prompts
    )
    hidden = rms_norm(params["final_norm"], config, _last_real(states, prompt_mask))
    keys, values = zip(*kept, strict=True)
    keys = tuple(x.swapaxes(-1, -2) for x in keys)
    return hidden, PromptCache(keys=keys, values=values, mask=prompt_mask)


def _attend_within_prompts(
    facts: AttentionFacts, heads: Heads
) -> tuple[tuple[Array], tuple[Float[Array, "B K P h"], Float[Array, "B K P h"]]]:
    """Attend within the prompts; keep keys and values."""
    keys, values = heads[1:]
    return (prompt_attention(*heads, facts),), (keys.swapaxes(1, 2), values.swapaxes(1, 2))


def prefill_after_prefix(
    params: PyTree,
    config: DecoderConfig,
    prefix_ids: Int[Array, "S F"],
    prompt_ids: Int[Array, "B P"],
    prompt_mask: Bool[Array, "B P"],
) -> tuple[Float[Array, "B D"], PromptCache]:
    """Run prompts that all continue the same prefix, and that prefix once; see `prefill`.

    It is the forward pass of a group whose prompt is the prefix and whose completions are the
    prompts. On a mesh the prompts are sharded, and each of its S parts has a prefix of its own, so
    that nothing of the prompts is exchanged.

    What is padding in all prompts is not run: the program holds the pass for a few widths, and
    takes the smallest that holds the longest prompt. So one program, whose decoding loop takes
    longest to compile, serves short and long prompts. The cache is as wide as `prompt_ids`.
    """
    widths = prefill_widths(prompt_ids.shape[1])

    def run(width: int, ids: Array, mask: Array) -> tuple[Array, PromptCache]:
        state, cache = _prefill_after(params, config, prefix_ids, ids[:, :width], mask[:, :width])
        return state, cache.padded(mask)

    longest = prompt_mask.sum(-1, dtype=jnp.int32).max()
    fitting = sum((longest > width).astype(jnp.int32) for width in widths[:-1])
    return jax.lax.switch(
        jnp.asarray(fitting), [partial(run, width) for width in widths], prompt_ids, prompt_mask
    )


def prefill_widths(length: int) -> tuple[int, ...]:
    """Widths, the greatest `length`, in which `prefill_after_prefix` can run prompts."""
    step = -(-length // (PREFILL_STEP * MAX_PREFILLS)) * PREFILL_STEP
    return (*range(step, length, step), length)


def _prefill_after(
    params: PyTree, config: DecoderConfig, prefix_ids: Array, prompt_ids: Array, prompt_mask: Array
) -> tuple[Array, PromptCache]:
    """`prefill_after_prefix` in one width."""
    num_parts, before = prefix_ids.shape
    rest = prompt_ids.reshape(num_parts, -1, prompt_ids.shape[1])
    rest_mask = prompt_mask.reshape(rest.shape)
    length = rest.shape[2]
    streams = tuple(embed(params["embedding"], config, x) for x in (prefix_ids, rest))
    positions = (jnp.arange(before)[None], before + jnp.arange(length)[None, None])
    attend = partial(_attend_after_prefix, jnp.ones(prefix_ids.shape, bool), rest_mask)
    (_, states), kept = run_layers(
        params["layers"], config, before + length, streams, positions, attend
    )
    states = states.reshape(*prompt_ids.shape, states.shape[-1])
    hidden = rms_norm(params["final_norm"], config, _last_real(states, prompt_mask))
    prefix_keys, prefix_values, keys, values = zip(*kept, strict=True)
    by_prompt = len(prompt_ids), config.num_kv_heads
    return hidden, PromptCache(
        keys=tuple(x.reshape(*by_prompt, config.head_dim, length) for x in keys),
        values=tuple(x.reshape(*by_prompt, length, config.head_dim) for x in values),
        mask=prompt_mask,
        prefix_keys=prefix_keys,
        prefix_values=prefix_values,
    )


def _attend_after_prefix(
    prefix_mask: Bool[Array, "S F"],
    prompt_mask: Bool[Array, "S N P"],
    facts: AttentionFacts,
    prefix: Heads,
    prompts: Heads,
) -> tuple[tuple[Array, Array], tuple[Array, Array, Array, Array]]:
    """Attend within the prefix, and from prompts to it and themselves; keep keys and values."""
    mixed = shared_prefix_attention(prefix, prompts, prefix_mask, prompt_mask, facts)
    keys = (prefix[1].transpose(0, 2, 3, 1), prompts[1].transpose(0, 1, 3, 4, 2))
    values = (prefix[2].swapaxes(1, 2), prompts[2].swapaxes(2, 3))
    return mixed, (keys[0], values[0], keys[1], values[1])


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
    ids, mask = completion_ids[:, :, :-1], completion_mask[:, :, :-1]
    prompt_length, length = prompt_ids.shape[1], ids.shape[2]
    streams = tuple(embed(params["embedding"], config, x) for x in (prompt_ids, ids))
    first = prompt_mask.sum(-1, dtype=jnp.int32)[:, None, None]
    positions = (jnp.arange(prompt_length)[None], first + jnp.arange(length)[None, None])
    attend = partial(_attend_to_shared_prompts, prompt_mask, mask)
    (prompt_states, states), _ = run_layers(
        params["layers"], config, prompt_length + length, streams, positions, attend
    )
    last = _last_real(prompt_states, prompt_mask)[:, None, None]
    last = jnp.broadcast_to(last, (len(last), ids.shape[1], 1, last.shape[-1]))
    return rms_norm(params["final_norm"], config, jnp.concatenate([last, states], axis=2))


def _attend_to_shared_prompts(
    prompt_mask: Bool[Array, "B P"],
    completion_mask: Bool[Array, "B G T"],
    facts: AttentionFacts,
    prompt: Heads,
    completions: Heads,
) -> tuple[tuple[Array, Array], None]:
    """Attend within the prompts, and from completions to their prompt and themselves."""
    masks = prompt_mask, completion_mask
    return shared_prefix_attention(prompt, completions, *masks, facts), None


def completion_stats(
    params: PyTree,
    batch: Batch | TraceBatch,
    *,
    config: DecoderConfig,
    temperature: float,
    chunk_size: int,
) -> tuple[Float[Array, "B G C"], Float[Array, "B G C"]]:
    """Log-probs and entropies (nats) of every completion token, prompts run once a group.

    Of a batch with `target_start` they are those of its targets, and the head runs on no others.
    """
    with jax.named_scope("forward"):
        hidden = forward(
            params,
            config,
            batch.prompt_ids,
            batch.prompt_mask,
            batch.completion_ids,
            batch.completion_mask,
        )
    ids = batch.completion_ids
    if isinstance(batch, TraceBatch) and batch.target_start is not None:
        hidden, ids = _targets(batch, hidden)
    with jax.named_scope("token_stats"):
        return token_stats(
            hidden,
            ids,
            unembed_matrix(params, config),
            temperature=temperature,
            chunk_size=chunk_size,
            softcap=config.logit_softcap,
        )


def _targets(
    batch: TraceBatch, hidden: Float[Array, "B G C D"]
) -> tuple[Float[Array, "B G T D"], Int[Array, "B G T"]]:
    """Pick the states that predict the targets, and their ids; what is no target is any token."""
    assert batch.target_start is not None and batch.target_mask is not None
    slots = batch.target_start[..., None] + jnp.arange(batch.target_mask.shape[-1])[None, None]
    slots = jnp.minimum(slots, batch.completion_ids.shape[-1] - 1)
    states = jnp.take_along_axis(hidden, slots[..., None], axis=2)
    return states, jnp.take_along_axis(batch.completion_ids, slots, axis=2)


def completion_logprobs(
    params: PyTree,
    batch: Batch | TraceBatch,
    *,
    config: DecoderConfig,
    temperature: float,
    chunk_size: int,
) -> Float[Array, "B G C"]:
    """Log-probs (nats) under `params`: of the reference policy, or of the policy that sampled."""
    return completion_stats(
        params, batch, config=config, temperature=temperature, chunk_size=chunk_size
    )[0]


def unembed_matrix(params: PyTree, config: DecoderConfig) -> Float[Array, "D V"]:
    """Return the matrix that turns states into logits, tied or not, in the compute dtype."""
    matrix = params["embedding"].T if config.tie_embeddings else params["unembedding"]
    return matrix.astype(config.dtype)


def unembed(
    params: PyTree, config: DecoderConfig, hidden: Float[Array, "*batch D"]
) -> Float[Array, "*batch V"]:
    """Return float32 logits of final-normed states."""
    # A tied head is read as it stands: turned round, it would be one more copy while decoding.
    tied = config.tie_embeddings
    name, product = ("embedding", "...d,vd->...v") if tied else ("unembedding", "...d,dv->...v")
    matrix, hidden = params[name].astype(config.dtype), hidden.astype(config.dtype)
    rows = hidden.reshape(-1, hidden.shape[-1])
    if tied and takes_few_rows(matrix, config.dtype, len(rows)):
        logits = few_rows_product(rows, matrix).reshape(*hidden.shape[:-1], -1)
    else:
        logits = jnp.einsum(product, hidden, matrix, preferred_element_type=jnp.float32)
    return capped(logits, config.logit_softcap)


def _last_real(states: Array, mask: Array) -> Array:
    """Pick the state `[B, D]` of the last real token of each prompt."""
    last = mask.sum(-1, dtype=jnp.int32) - 1
    return jnp.take_along_axis(states, last[:, None, None], axis=1)[:, 0]
