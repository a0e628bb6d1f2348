"""Sampling a group of completions for every prompt: prefill once, then decode [B, G] together."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from mental_r1_jax.models import decoder
from mental_r1_jax.rollout.sampling import greedy_token, sample_token
from mental_r1_jax.types import Completions, PromptBatch


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """Static knobs of the sampler.

    Attributes:
        num_generations: G.
        max_completion_length: C, the EOS token included.
        temperature: divides the logits.
        top_p: nucleus share.
        top_k: number of likeliest tokens kept, or None.
        eos_ids: any of these ends a completion.
        pad_id: fills the places after the end.
        greedy: take the likeliest token and ignore temperature, top-p and top-k.
    """

    num_generations: int
    max_completion_length: int
    temperature: float
    top_p: float
    top_k: int | None
    eos_ids: tuple[int, ...]
    pad_id: int
    greedy: bool = False


@flax.struct.dataclass
class _DecodeState:
    """Carry of the decoding loop; `hidden` predicts the token at `index`."""

    index: Int[Array, ""]
    hidden: Float[Array, "B G D"]
    finished: Bool[Array, "B G"]
    lengths: Int[Array, "B G"]
    ids: Int[Array, "B G C"]
    sampler_logprobs: Float[Array, "B G C"]
    decode_logprobs: Float[Array, "B G C"]
    cache: Any


def sample_completions(
    params: Any,
    prompts: PromptBatch,
    step_key: Key[Array, ""],
    *,
    config: decoder.DecoderConfig,
    sampling: SamplingConfig,
) -> Completions:
    """Sample G completions of each prompt; pure, and the same on any number of devices.

    Each prompt is prefilled once and its keys and values are shared by the group. The noise of a
    token is one uniform number from (step key, prompt index, completion, position). The loop ends
    as soon as every completion has.

    Args:
        params: the policy's parameters.
        prompts: B tokenized prompts.
        step_key: random key of this step (seed and step folded in).
        config: the decoder's architecture.
        sampling: static knobs; `jit` compiles one program for each and each shape of `prompts`.
    """
    num_prompts = prompts.prompt_ids.shape[0]
    group, length = sampling.num_generations, sampling.max_completion_length
    noise = _uniform_noise(step_key, prompts.prompt_index, group, length)
    hidden, prompt_cache = decoder.prefill(params, config, prompts.prompt_ids, prompts.prompt_mask)
    weights = decoder.decoding_params(params, config)

    def advance(state: _DecodeState) -> _DecodeState:
        logits = decoder.unembed(weights, config, state.hidden)
        uniform = jax.lax.dynamic_index_in_dim(noise, state.index, axis=2, keepdims=False)
        token, *logprobs = _draw(logits, uniform, sampling)
        token = jnp.where(state.finished, sampling.pad_id, token)
        hidden, cache = decoder.decode_step(
            weights, config, token, state.index, prompt_cache, state.cache
        )
        state = _record(state, token, logprobs, sampling.eos_ids)
        return dataclasses.replace(state, hidden=hidden, cache=cache)

    shape = (num_prompts, group, length)
    start = _DecodeState(
        index=jnp.zeros((), jnp.int32),
        hidden=jnp.broadcast_to(hidden[:, None], (num_prompts, group, hidden.shape[-1])),
        finished=jnp.zeros(shape[:2], bool),
        lengths=jnp.zeros(shape[:2], jnp.int32),
        ids=jnp.full(shape, sampling.pad_id, jnp.int32),
        sampler_logprobs=jnp.zeros(shape, jnp.float32),
        decode_logprobs=jnp.zeros(shape, jnp.float32),
        cache=decoder.init_completion_cache(config, *shape),
    )
    last = jax.lax.while_loop(
        lambda state: (state.index < length) & ~state.finished.all(), advance, start
    )
    return Completions(
        completion_ids=last.ids,
        completion_mask=jnp.arange(length)[None, None, :] < last.lengths[..., None],
        sampler_logprobs=last.sampler_logprobs,
        decode_logprobs=last.decode_logprobs,
        finished=last.finished,
    )


def _draw(
    logits: Float[Array, "B G V"], uniform: Float[Array, "B G"], sampling: SamplingConfig
) -> tuple[Int[Array, "B G"], Float[Array, "B G"], Float[Array, "B G"]]:
    """The next token of every completion, its log-prob as sampled, and under the whole policy."""
    if sampling.greedy:
        return greedy_token(logits)
    return sample_token(
        logits,
        uniform,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
    )


def _record(
    state: _DecodeState,
    token: Int[Array, "B G"],
    logprobs: Sequence[Float[Array, "B G"]],
    eos_ids: tuple[int, ...],
) -> _DecodeState:
    """Write the token at `index`; completions that had ended before keep pads and zeros."""
    ends = (token[..., None] == jnp.asarray(eos_ids, jnp.int32)[None, None, :]).any(axis=-1)

    def put(row: Array, value: Array) -> Array:
        return jax.lax.dynamic_update_slice_in_dim(row, value[..., None], state.index, axis=2)

    sampler, decode = (jnp.where(state.finished, 0.0, logprob) for logprob in logprobs)
    return dataclasses.replace(
        state,
        index=state.index + 1,
        finished=state.finished | ends,
        lengths=state.lengths + ~state.finished,
        ids=put(state.ids, token),
        sampler_logprobs=put(state.sampler_logprobs, sampler),
        decode_logprobs=put(state.decode_logprobs, decode),
    )


def step_key(seed: int, step: int) -> Key[Array, ""]:
    """The random key of one step: a function of seed and step, so a resumed run draws the same."""
    return jax.random.fold_in(jax.random.key(seed), step)


def _uniform_noise(
    key: Key[Array, ""], prompt_index: Int[Array, " B"], group: int, length: int
) -> Float[Array, "B G C"]:
    """Uniform numbers in [0, 1) that depend on (key, prompt index, completion, position) alone."""

    def of_completion(prompt: Int[Array, ""], completion: Int[Array, ""]) -> Float[Array, " C"]:
        own = jax.random.fold_in(jax.random.fold_in(key, prompt), completion)
        return jax.vmap(lambda i: jax.random.uniform(jax.random.fold_in(own, i)))(
            jnp.arange(length)
        )

    over_group = jax.vmap(of_completion, in_axes=(None, 0))
    return jax.vmap(over_group, in_axes=(0, None))(prompt_index, jnp.arange(group))
