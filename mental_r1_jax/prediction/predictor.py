"""Generate and read answers for labelled posts: the shared heart of validation and evaluation."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Float

from mental_r1_jax import hosts, sharding
from mental_r1_jax.config import ExperimentConfig
from mental_r1_jax.data.records import Example
from mental_r1_jax.errors import UserError
from mental_r1_jax.evaluation.kept_batches import KeptBatches
from mental_r1_jax.evaluation.metrics import Prediction, vote
from mental_r1_jax.models import decoder as network
from mental_r1_jax.opening.model_source import ModelSource
from mental_r1_jax.programs.step_programs import as_word, bind_sampler, traces_of
from mental_r1_jax.rollout.collect import (
    ScoredCompletion,
    pad_prompts,
    prompt_width,
    render_prompts,
    score_completions,
)
from mental_r1_jax.rollout.sampler import sampler_settings
from mental_r1_jax.text.answers import AnswerReader
from mental_r1_jax.text.prompts import RenderedPrompt
from mental_r1_jax.types import Completions, PromptBatch, TraceBatch


@dataclasses.dataclass(frozen=True)
class Predictor:
    """Compiled generation for evaluation; build it once with `make_predictor`.

    Attributes:
        model: the model without its weights.
        config: the recipe; `rollout` lengths, `evaluate` batch size and votes, `rewards` matching.
        mesh: where the weights live.
        sample: `(params, prompts, seed, step) -> Completions`, see `StepPrograms`.
        entropies: `(params, traces) -> [B, votes, C]`, nats.
    """

    model: ModelSource
    config: ExperimentConfig
    mesh: Mesh
    sample: Callable[..., Any]
    entropies: Callable[..., Any]


def make_predictor(
    model: ModelSource,
    config: ExperimentConfig,
    mesh: Mesh,
    use: Literal["validate", "evaluate"],
) -> Predictor:
    """Bind everything static; programs compile at their first call, one for each prompt length."""
    settings = sampler_settings(
        config, use, eos_ids=model.tokenizer.eos_ids, pad_id=model.tokenizer.pad_id
    )

    def entropies(params: Any, traces: TraceBatch) -> jax.Array:
        return network.completion_stats(
            params,
            traces,
            config=model.decoder,
            temperature=config.rollout.temperature,
            chunk_size=config.model.logprob_chunk_size,
        )[1]

    sample = bind_sampler(model.decoder, settings, mesh)
    by_prompt = sharding.batch_sharding(mesh, 3)
    return Predictor(model, config, mesh, sample, jax.jit(entropies, out_shardings=by_prompt))


def predict(
    predictor: Predictor,
    params: Any,
    posts: Sequence[Example],
    labels: dict[str, tuple[str, ...]],
    on_batch: Callable[[int, int], None] = lambda done, total: None,
    keep: KeptBatches | None = None,
) -> list[Prediction]:
    """One prediction a post, in the order of `posts`.

    Args:
        predictor: from `make_predictor`.
        params: weights on the predictor's mesh.
        posts: labelled posts of any of the sets.
        labels: set name -> its labels.
        on_batch: called with (posts done, posts in all) after each batch.
        keep: where finished batches are kept, and found by a later call; its identity must tell
            weights, recipe and mesh.
    """
    config = predictor.config
    reader = AnswerReader(labels, config.rewards.answer_match)
    prompts = render_prompts(predictor.model.tokenizer, posts, config.rollout.max_prompt_length)
    size = config.evaluate.batch_size
    predictions: dict[int, Prediction] = {}
    for number, batch in enumerate(length_batches(prompts, size)):

        def answer(batch: list[int] = batch) -> dict[int, Prediction]:
            return _answer(predictor, params, posts, prompts, batch, reader)

        if keep is None:
            predictions |= answer()
        else:
            predictions |= _answer_once(keep, posts, prompts, batch, answer)
        on_batch(min((number + 1) * size, len(posts)), len(posts))
    return hosts.all_items(predictions.items())


def length_batches(prompts: Sequence[RenderedPrompt], size: int) -> list[list[int]]:
    """Rows of `prompts` in batches of `size`, the shortest prompts first.

    Posts of like length share a batch, so that short ones run in a small compiled shape. The last
    batch is filled with repetitions of its last row: one compiled shape.
    """
    order = sorted(range(len(prompts)), key=lambda row: len(prompts[row].ids))
    batches = [order[start : start + size] for start in range(0, len(order), size)]
    return [batch + batch[-1:] * (size - len(batch)) for batch in batches]


def _answer_once(
    keep: KeptBatches,
    posts: Sequence[Example],
    prompts: Sequence[RenderedPrompt],
    batch: list[int],
    answer: Callable[[], dict[int, Prediction]],
) -> dict[int, Prediction]:
    """Predictions of a batch by row, on every process: those that are kept, else from `answer`."""
    rows = sorted(set(batch))
    # Questions are in the prompts; how posts were truncated is, too.
    facts = [(row, prompts[row].ids, posts[row]) for row in batch]
    key = keep.key([*facts, *(posts[row].text for row in rows)])
    own = keep.read(key, [posts[row] for row in rows]) if hosts.is_first() else None
    found = hosts.all_items(enumerate(own or []))
    if found:
        return dict(zip(rows, found, strict=True))
    found = hosts.all_items(answer().items())
    if hosts.is_first():
        keep.write(key, found)
    return dict(zip(rows, found, strict=True))


def _answer(
    predictor: Predictor,
    params: Any,
    posts: Sequence[Example],
    prompts: Sequence[RenderedPrompt],
    batch: list[int],
    reader: AnswerReader,
) -> dict[int, Prediction]:
    """Predictions by row, of those rows of a batch that this process holds."""
    config = predictor.config
    width = prompt_width([prompts[row] for row in batch], config.rollout.prompt_lengths)
    rows = [batch[place] for place in hosts.local_rows(predictor.mesh, len(batch))]
    groups, entropies = _generate(predictor, params, posts, prompts, rows, width, reader)
    return {
        row: _prediction(
            posts[row],
            groups.completions[place],
            groups.stage_mask[place],
            entropies[place],
            reader=reader,
        )
        for place, row in enumerate(rows)
    }


def _generate(
    predictor: Predictor,
    params: Any,
    posts: Any,
    prompts: Any,
    rows: list[int],
    width: int,
    reader: AnswerReader,
) -> tuple[Any, Float[np.ndarray, "B votes C"]]:
    """Sample completions for `rows`, parse them, and measure their entropies."""
    tokenizer = predictor.model.tokenizer
    batch, completions = ask(predictor, params, [prompts[row] for row in rows], width, rows)
    entropies = predictor.entropies(params, traces_of(batch, completions))
    posts = [posts[row] for row in rows]
    groups = score_completions(tokenizer, posts, completions, (), reader)
    measured = hosts.fetch_rows(entropies)
    refuse_non_finite(measured, hosts.fetch_rows(completions.completion_mask))
    return groups, measured


def ask(
    predictor: Predictor,
    params: Any,
    prompts: Sequence[RenderedPrompt],
    width: int,
    rows: Sequence[int],
) -> tuple[PromptBatch, Completions]:
    """Start sampling answers to a batch of prompts; the device may be at work for long after.

    Args:
        predictor: from `make_predictor`.
        params: weights on the predictor's mesh.
        prompts: this process's share of the batch.
        width: the compiled prompt length that holds them.
        rows: positions in all posts: votes of a post draw their own noise whatever batch it falls
            into.
    """
    pad_id, seed = predictor.model.tokenizer.pad_id, as_word(predictor.config.run.seed)
    batch = hosts.put_batch(predictor.mesh, pad_prompts(prompts, width, pad_id, rows))
    return batch, predictor.sample(params, batch, seed, as_word(0))


def refuse_non_finite(
    values: Float[np.ndarray, "B votes C"], mask: Bool[np.ndarray, "B votes C"]
) -> None:
    """Refuse answers of a model whose logits overflow or are NaN: the tokens mean nothing.

    Args:
        values: entropies of the tokens' distributions, or log-probs of the tokens, nats; finite
            exactly where the logits are.
        mask: which tokens are real.

    Raises:
        UserError: the value of a real token is no number.
    """
    wrong = int((~np.isfinite(values[mask])).sum())
    if wrong:
        raise UserError(
            what="the model computes logits that are no numbers",
            expected="finite logits for every token of every answer",
            got=f"NaN or infinity at {wrong} of {int(mask.sum())} tokens of a batch",
            remedy="its weights are broken, or too large for model.compute_dtype: evaluate an "
            "earlier checkpoint, or try model.compute_dtype=float32",
        )


def _prediction(
    post: Example,
    completions: Sequence[ScoredCompletion],
    stage_mask: Bool[np.ndarray, "votes S C"],
    entropies: Float[np.ndarray, "votes C"],
    *,
    reader: AnswerReader,
) -> Prediction:
    """Read the label out of one post's completions; several of them vote."""
    answers = [reader.read(post.set_name, c.parsed.answer) for c in completions]
    winner = vote(answers)
    chosen = answers.index(winner)
    completion = completions[chosen]
    stages = tuple(
        float(entropies[chosen][mask].mean()) if mask.any() else None for mask in stage_mask[chosen]
    )
    return Prediction(
        set_name=post.set_name,
        row=post.row,
        label=post.label,
        prediction=winner,
        well_formed=completion.parsed.well_formed,
        truncated=not completion.finished,
        num_tokens=completion.num_tokens,
        answer=completion.parsed.answer,
        stage_entropies=stages,
        completion=completion.text,
        text=post.text,
        group=post.group,
    )
