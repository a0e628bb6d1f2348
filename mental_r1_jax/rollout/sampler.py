"""Sampling a group of completions for every prompt: prefill once, then decode [B, G] together."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Integer, Key

from mental_r1_jax.config import ExperimentConfig, RolloutConfig
from mental_r1_jax.models import decoder
from mental_r1_jax.rollout.sampling import entropy, greedy_token, sample_token
from mental_r1_jax.sharding import constrain_batch, constrain_logits
from mental_r1_jax.types import Completions, PromptBatch

Use = Literal["train", "validate", "evaluate", "predict", "verify"]


@dataclasses.dataclass(frozen=True)
class SamplerSettings:
    """Everything static about sampling; one compiled program for each value.

    Attributes:
        rollout: the recipe's own section: lengths, temperature, truncation, cache and halvings.
        num_completions: G, completions of each prompt.
        greedy: take the likeliest token and ignore temperature, top-p and top-k.
        eos_ids: any of these tokens ends a completion.
        pad_id: token that fills the places after the end.
        greedy_row: decode one more completion of each prompt, greedily, beside the G drawn ones.
        entropies: measure the entropy of each token as well.
        sampler_logprobs: measure the log-probability under the truncated distribution as well.
    """

    rollout: RolloutConfig
    num_completions: int
    greedy: bool
    eos_ids: tuple[int, ...]
    pad_id: int
    greedy_row: bool = False
    entropies: bool = False
    sampler_logprobs: bool = False

    @property
    def num_rows(self) -> int:
        """Completions of each prompt that are decoded."""
        return self.num_completions + self.greedy_row


def sampler_settings(
    config: ExperimentConfig, use: Use, *, eos_ids: tuple[int, ...], pad_id: int
) -> SamplerSettings:
    """The sampler's settings for each use of a recipe, all from `config.rollout`.

    Training draws `rollout.num_generations` completions, and decodes one greedily beside them where
    `crpo.advantage_baseline` is "greedy". Validation and verification decode one
    greedily. Evaluation and prediction in bulk do so too, unless `evaluate.num_votes` asks for
    several samples to vote. Evaluation alone shows entropies, and the sampler correction alone
    reads `sampler_logprobs`.

    Args:
        config: the recipe.
        use: what the completions are for.
        eos_ids: tokens of the model that end a completion.
        pad_id: token of the model that fills up short rows.
    """
    if use == "train":
        completions, greedy = config.rollout.num_generations, False
        greedy_row = config.decoded_completions > completions
    else:
        completions = config.evaluate.num_votes if use in ("evaluate", "predict") else 1
        greedy, greedy_row = completions == 1, False
    return SamplerSettings(
        config.rollout,
        completions,
        greedy,
        eos_ids,
        pad_id,
        greedy_row,
        entropies=use == "evaluate",
        sampler_logprobs=use == "train" and config.crpo.sampler_correction != "off",
    )


@dataclasses.dataclass(frozen=True)
class Segment:
    """A stretch of the decoding loop with arrays of one size, and so one compiled body.

    Attributes:
        rows: completions of each prompt that are still run.
        cache_length: slots of their cache; the segment ends before `index` reaches it.
        rows_after: the segment also ends once no group has more unfinished completions than this.
    """

    rows: int
    cache_length: int
    rows_after: int


def decoding_segments(settings: SamplerSettings) -> tuple[Segment, ...]:
    """The segments of the decoding loop, in order.

    First the cache grows, by doubling, with all G rows: attention then reads at most twice the live
    slots. Then come segments with half the rows, a quarter, ..., each entered once every group has
    so many completions ended. Any segment may pass without a single turn.
    """
    group, length = settings.num_rows, settings.rollout.max_completion_length
    halved = [group]
    while len(halved) <= settings.rollout.halvings and halved[-1] > 1:
        halved.append((halved[-1] + 1) // 2)
    lengths = [min(settings.rollout.first_cache_length, length)]
    while lengths[-1] < length:
        lengths.append(min(2 * lengths[-1], length))
    sizes = [(group, cache_length) for cache_length in lengths]
    sizes += [(rows, length) for rows in halved[1:]]
    after = dict(zip(halved, [*halved[1:], 0], strict=True))
    return tuple(Segment(rows, cache_length, after[rows]) for rows, cache_length in sizes)


@flax.struct.dataclass
class _Rows:
    """What every completion that is still run carries; g counts the rows of the segment.

    `greedy` marks the row that takes the likeliest token, None where all rows are alike;
    `sampler_logprobs` and `entropies` are None where they are not wanted.
    """

    hidden: Float[Array, "B g D"]
    finished: Bool[Array, "B g"]
    lengths: Int[Array, "B g"]
    noise: Float[Array, "B g C"]
    ids: Int[Array, "B g C"]
    decode_logprobs: Float[Array, "B g C"]
    greedy: Bool[Array, "B g"] | None
    sampler_logprobs: Float[Array, "B g C"] | None
    entropies: Float[Array, "B g C"] | None


@flax.struct.dataclass
class _DecodeState:
    """Carry of the decoding loop; `hidden` predicts the token at `index`."""

    index: Int[Array, ""]
    rows: _Rows
    cache: Any


def sample_completions(
    params: Any,
    prompts: PromptBatch,
    step_key: Key[Array, ""],
    *,
    config: decoder.DecoderConfig,
    settings: SamplerSettings,
) -> Completions:
    """Sample G completions of each prompt; pure, and the same on any number of devices.

    Each prompt is prefilled once and its keys and values are shared by the group; so is a prefix of
    all prompts, for all of them. The noise of a token is one uniform number from (step key, prompt
    index, completion, position). The loop ends as soon as every completion has. With
    `settings.greedy_row` the group has one row more, which changes nothing about the others.

    Args:
        params: the policy's parameters.
        prompts: B tokenized prompts.
        step_key: random key of this step (seed and step folded in).
        config: the decoder's architecture.
        settings: everything static; `jit` compiles one program for each of them and each shape of
            `prompts`.
    """
    hidden, prompt_cache = _prefill(params, prompts, config)
    weights = decoder.decoding_params(params, config, len(prompts.prompt_ids) * settings.num_rows)

    def advance(state: _DecodeState) -> _DecodeState:
        rows = state.rows
        with jax.named_scope("head"):
            logits = constrain_logits(decoder.unembed(weights, config, rows.hidden))
        with jax.named_scope("draw"):
            uniform = jax.lax.dynamic_index_in_dim(
                rows.noise, state.index, axis=2, keepdims=False, allow_negative_indices=False
            )
            token, measured = _draw(logits, uniform, rows.greedy, settings)
            if settings.entropies:
                measured["entropies"] = entropy(logits, settings.rollout.temperature)
            token = constrain_batch(jnp.where(rows.finished, settings.pad_id, token))
        hidden, cache = decoder.decode_step(
            weights, config, token, state.index, prompt_cache, state.cache
        )
        rows = _record(rows, state.index, token, measured, settings.eos_ids)
        return _DecodeState(state.index + 1, dataclasses.replace(rows, hidden=hidden), cache)

    noise = constrain_batch(
        _uniform_noise(
            step_key,
            prompts.prompt_index,
            settings.num_rows,
            settings.rollout.max_completion_length,
        )
    )
    with jax.named_scope("decode"):
        done = _run_segments(advance, _first_rows(hidden, noise, settings), config, settings)
    return _completions(done, settings)


@jax.named_scope("prefill")
def _prefill(
    params: Any, prompts: PromptBatch, config: decoder.DecoderConfig
) -> tuple[Float[Array, "B D"], Any]:
    """The last states of the prompts and their cache; a prefix that all begin with is run once."""
    whole = (prompts.prompt_ids, prompts.prompt_mask)
    if prompts.prefix_ids is None:
        return decoder.prefill(params, config, *whole)
    return decoder.prefill_after_prefix(params, config, prompts.prefix_ids, *whole)


def _completions(done: _Rows, settings: SamplerSettings) -> Completions:
    """What is handed on of all rows; a greedy one is told from the drawn ones."""
    length = done.ids.shape[2]
    everything = Completions(
        completion_ids=done.ids,
        completion_mask=jnp.arange(length)[None, None, :] < done.lengths[..., None],
        sampler_logprobs=done.sampler_logprobs,
        decode_logprobs=done.decode_logprobs,
        finished=done.finished,
        entropies=done.entropies,
    )
    if not settings.greedy_row:
        return everything
    group: Completions = jax.tree.map(lambda x: x[:, :-1], everything)
    greedy = jax.tree.map(lambda x: x[:, -1:], everything)
    return dataclasses.replace(group, greedy=greedy)


def _first_rows(
    hidden: Float[Array, "B D"], noise: Float[Array, "B G C"], settings: SamplerSettings
) -> _Rows:
    """G empty completions of each prompt, the last of them greedy where one is."""
    num_prompts, group, _ = noise.shape
    greedy = None
    if settings.greedy_row:
        is_last = jnp.arange(group)[None] == group - 1
        greedy = jnp.broadcast_to(is_last, (num_prompts, group))
    zeros = jnp.zeros(noise.shape, jnp.float32)
    return _Rows(
        hidden=jnp.broadcast_to(hidden[:, None], (num_prompts, group, hidden.shape[-1])),
        finished=jnp.zeros((num_prompts, group), bool),
        lengths=jnp.zeros((num_prompts, group), jnp.int32),
        noise=noise,
        ids=jnp.full(noise.shape, settings.pad_id, jnp.int32),
        decode_logprobs=zeros,
        greedy=greedy,
        sampler_logprobs=zeros if settings.sampler_logprobs else None,
        entropies=zeros if settings.entropies else None,
    )


def _run_segments(
    advance: Callable[[_DecodeState], _DecodeState],
    rows: _Rows,
    config: decoder.DecoderConfig,
    settings: SamplerSettings,
) -> _Rows:
    """Run the loop through all segments and return all G rows of every prompt."""
    segments = decoding_segments(settings)
    num_prompts, group = rows.finished.shape
    cache = decoder.init_completion_cache(config, num_prompts, group, segments[0].cache_length)
    state = _DecodeState(jnp.zeros((), jnp.int32), rows, cache)
    everything = rows
    places = jnp.broadcast_to(jnp.arange(group, dtype=jnp.int32)[None], (num_prompts, group))
    for segment in segments:
        if segment.rows < state.rows.finished.shape[1]:
            everything = _put_rows(everything, places, state.rows)
            places, state = _keep_unfinished(places, state, segment.rows)
        whole = decoder.grow_completion_cache(state.cache, segment.cache_length)
        turn = functools.partial(_turn, advance, whole)
        state = dataclasses.replace(state, cache=whole.narrow())
        state = jax.lax.while_loop(functools.partial(_goes_on, segment=segment), turn, state)
        state = dataclasses.replace(state, cache=whole.widened(state.cache))
    return _put_rows(everything, places, state.rows)


def _turn(
    advance: Callable[[_DecodeState], _DecodeState], whole: Any, state: _DecodeState
) -> _DecodeState:
    """A turn of a loop that carries the cache without axes of length 1."""
    done = advance(dataclasses.replace(state, cache=whole.widened(state.cache)))
    return dataclasses.replace(done, cache=done.cache.narrow())


def _goes_on(state: _DecodeState, *, segment: Segment) -> Bool[Array, ""]:
    """Whether the segment makes another turn."""
    unfinished = (~state.rows.finished).sum(axis=1).max()
    return (state.index < segment.cache_length) & (unfinished > segment.rows_after)


def _keep_unfinished(
    places: Int[Array, "B g"], state: _DecodeState, count: int
) -> tuple[Int[Array, "B n"], _DecodeState]:
    """Keep `count` rows of each group, unfinished ones first; `places` says where they belong."""
    order = jnp.argsort(state.rows.finished, axis=1, stable=True)[:, :count]

    def keep(array: Array, axis: int = 1) -> Array:
        of_prompt = functools.partial(jnp.take, axis=axis - 1)
        return jax.vmap(of_prompt)(array, order)

    rows = jax.tree.map(keep, state.rows)
    cache = jax.tree.map(functools.partial(keep, axis=2), state.cache)
    return keep(places), _DecodeState(state.index, rows, cache)


def _put_rows(everything: _Rows, places: Int[Array, "B g"], rows: _Rows) -> _Rows:
    """Write the rows of a segment back to their places among all G."""
    return jax.tree.map(
        lambda whole, part: jax.vmap(lambda w, p, at: w.at[at].set(p))(whole, part, places),
        everything,
        rows,
    )


def _draw(
    logits: Float[Array, "B G V"],
    uniform: Float[Array, "B G"],
    greedy: Bool[Array, "B G"] | None,
    settings: SamplerSettings,
) -> tuple[Int[Array, "B G"], dict[str, Float[Array, "B G"] | None]]:
    """The next token of every completion, and its log-probs by their field of `_Rows`."""
    if settings.greedy:
        ids, decode = greedy_token(logits)
        sampler = decode if settings.sampler_logprobs else None
        return ids, {"decode_logprobs": decode, "sampler_logprobs": sampler}
    ids, decode, sampler = sample_token(
        logits,
        uniform,
        temperature=settings.rollout.temperature,
        top_p=settings.rollout.top_p,
        top_k=settings.rollout.top_k,
        sampler_logprobs=settings.sampler_logprobs,
    )
    if greedy is not None:
        likeliest, logprobs = greedy_token(logits)
        ids, decode = jnp.where(greedy, likeliest, ids), jnp.where(greedy, logprobs, decode)
        sampler = None if sampler is None else jnp.where(greedy, logprobs, sampler)
    return ids, {"decode_logprobs": decode, "sampler_logprobs": sampler}


def _record(
    rows: _Rows,
    index: Int[Array, ""],
    token: Int[Array, "B g"],
    measured: dict[str, Float[Array, "B g"] | None],
    eos_ids: tuple[int, ...],
) -> _Rows:
    """Write the token at `index`; completions that had ended before keep pads and zeros.

    `measured` are numbers of the token by their field of `_Rows`, None where they are not wanted.
    """
    ends = (token[..., None] == jnp.asarray(eos_ids, jnp.int32)[None, None, :]).any(axis=-1)

    def put(row: Array, value: Array) -> Array:
        return jax.lax.dynamic_update_slice_in_dim(
            row, value[..., None], index, axis=2, allow_negative_indices=False
        )

    numbers = {
        name: put(getattr(rows, name), jnp.where(rows.finished, 0.0, value))
        for name, value in measured.items()
        if value is not None
    }
    return dataclasses.replace(
        rows,
        finished=rows.finished | ends,
        lengths=rows.lengths + ~rows.finished,
        ids=put(rows.ids, token),
        **numbers,
    )


def step_key(seed: int | Integer[Array, ""], step: int | Integer[Array, ""]) -> Key[Array, ""]:
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
