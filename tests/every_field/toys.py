"""Stand-ins that let the real jobs run in milliseconds: a scripted decoder and a toy policy.

Only the network is replaced. Everything between a recipe and the network, and between the network
and the files, is the real program.
"""

from __future__ import annotations

import dataclasses
from random import Random
from types import SimpleNamespace
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from mental_r1_jax.data.traces import template_completion
from mental_r1_jax.runs.training_run import TrainingRun
from mental_r1_jax.text.prompts import system_instruction
from mental_r1_jax.text.stages import GRAMMAR
from mental_r1_jax.text.tokenizer import Tokenizer
from mental_r1_jax.types import Batch, Completions, PromptBatch

STAGE_TEXTS = ("tea", "it is warm", "there is more", "calm and glad", "fine")

# What the toy policy writes, in turn: right or wrong by label, a prefix match, a malformed one, and
# a longer one that never ends.
COMPLETIONS = (
    GRAMMAR.render(STAGE_TEXTS, "Yes"),
    GRAMMAR.render(STAGE_TEXTS, "Yes and No"),
    "tea</stimulus><primary_appraisal>it is warm</primary_appraisal><answer>No</answer>",
    GRAMMAR.render([text + " and more tea" for text in STAGE_TEXTS], "No"),
)
TEMPLATES = [template_completion("post number 1 about tea", "Yes", Random(i)) for i in range(20)]
CORPUS = (
    *COMPLETIONS,
    *TEMPLATES,
    *[system_instruction()] * 2,
    *["Is the writer calm? Yes No Statement: post number about tea "] * 3,
)


@flax.struct.dataclass
class _NoCache:
    """A completion cache that holds nothing."""

    def narrow(self) -> list[jax.Array]:
        """What a loop carries of it."""
        return []

    def widened(self, narrow: list[jax.Array]) -> _NoCache:
        """The inverse of `narrow`."""
        return self


def scripted_decoder(tokenizer: Tokenizer, text: str) -> Any:
    """A decoder in the sampler's eyes: likeliest is the next token of `text`."""
    script = [*tokenizer.encode(text), tokenizer.eos_ids[0]]
    noise = np.random.default_rng(0).standard_normal((len(script) + 1, tokenizer.vocab_size))
    table = noise.clip(max=3.0).astype(np.float32)
    table[np.arange(len(script)), script] = 4.0
    logits = jnp.asarray(table)

    def row(index: Any) -> jax.Array:
        return logits[jnp.minimum(index, len(script))]

    def prefill(params: Any, config: Any, ids: Any, mask: Any) -> Any:
        return jnp.broadcast_to(row(0), (ids.shape[0], logits.shape[1])), jnp.zeros(())

    def prefill_after_prefix(params: Any, config: Any, prefix: Any, ids: Any, mask: Any) -> Any:
        return prefill(params, config, ids, mask)

    def decode_step(
        params: Any, config: Any, ids: Any, index: Any, prompt_cache: Any, cache: Any
    ) -> Any:
        return jnp.broadcast_to(row(index + 1), (*ids.shape, logits.shape[1])), cache

    return SimpleNamespace(
        prefill=prefill,
        prefill_after_prefix=prefill_after_prefix,
        decode_step=decode_step,
        decoding_params=lambda params, config, num_rows: params,
        init_completion_cache=lambda config, *sizes: _NoCache(),
        grow_completion_cache=lambda cache, length: cache,
        unembed=lambda params, config, hidden: hidden,
    )


def toy_params(tokenizer: Tokenizer) -> dict[str, jax.Array]:
    """One log-prob and one entropy parameter for every token of the vocabulary."""
    rng = np.random.default_rng(1)
    size = tokenizer.vocab_size
    return {
        "logprob": jnp.asarray(-rng.gamma(2.0, 1.0, size), jnp.float32),
        "entropy": jnp.asarray(rng.gamma(2.0, 0.5, size), jnp.float32),
    }


def toy_stats(
    params: Any, batch: Any, *, config: Any, temperature: float, chunk_size: int
) -> tuple[jax.Array, jax.Array]:
    """`completion_stats` of the toy policy."""
    ids = batch.completion_ids
    place = jnp.cos(jnp.arange(ids.shape[-1], dtype=jnp.float32))
    # Where no weights are given (evaluation), every token is alike.
    logprob = params["logprob"][ids] if params else jnp.full(ids.shape, -1.0)
    entropy = params["entropy"][ids] if params else jnp.full(ids.shape, 0.5)
    return (logprob + 0.1 * place[None, None]) / temperature, entropy * temperature


class Called:
    """A function that stands for a `Program`."""

    def __init__(self, function: Any) -> None:
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)

    def compiled(self) -> int:
        """As if it had been called with one shape."""
        return 1


@dataclasses.dataclass(frozen=True)
class ToySampler:
    """`StepPrograms.sample` of the toy policy."""

    run: TrainingRun

    def __call__(self, params: Any, prompts: PromptBatch, *randomness: Any) -> Completions:
        """Give the completions in turn; the greedy one, where it is asked for, is the first."""
        b, config = prompts.prompt_ids.shape[0], self.run.config
        drawn = self._in_turn(b, config.rollout.num_generations)
        wanted = config.decoded_completions > config.rollout.num_generations
        return dataclasses.replace(drawn, greedy=self._in_turn(b, 1)) if wanted else drawn

    def _in_turn(self, b: int, g: int) -> Completions:
        """Completions of `b` groups of `g`, the last in turn truncated at the length limit."""
        tokenizer, c = self.run.model.tokenizer, self.run.config.rollout.max_completion_length
        ids = np.full((b, g, c), tokenizer.pad_id, np.int32)
        lengths, finished = np.zeros((b, g), np.int32), np.zeros((b, g), bool)
        for place in range(b * g):
            turn = (place // g + place) % len(COMPLETIONS)
            tokens = tokenizer.encode(COMPLETIONS[turn])
            finished.flat[place] = turn != len(COMPLETIONS) - 1
            if finished.flat[place]:
                tokens = [*tokens, tokenizer.eos_ids[0]]
            tokens = tokens[:c]
            ids[place // g, place % g, : len(tokens)] = tokens
            lengths.flat[place] = len(tokens)
        mask = np.arange(c)[None, None] < lengths[..., None]
        logprobs = jnp.where(mask, -1.0, 0.0)
        return Completions(*map(jnp.asarray, (ids, mask, logprobs, logprobs, finished)))


def toy_old_logprobs(params: Any, batch: Batch) -> jax.Array:
    """Log-probs of another policy, far enough to reach every clip."""
    spread = jnp.sin(jnp.arange(batch.completion_ids.size, dtype=jnp.float32) * 1.7)
    return toy_stats(params, batch, config=None, temperature=1.0, chunk_size=1)[0] + (
        1.5 * spread.reshape(batch.completion_ids.shape)
    )
