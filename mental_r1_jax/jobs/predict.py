"""Generate and read answers for labelled posts: the shared heart of validation and evaluation."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Float

from mental_r1_jax import hosts, sharding
from mental_r1_jax.config import ExperimentConfig
from mental_r1_jax.evaluation.metrics import Prediction, vote
from mental_r1_jax.jobs.compiled import as_word, jit_sampler, trace_batch
from mental_r1_jax.jobs.policy import Policy
from mental_r1_jax.rewards import match_label
from mental_r1_jax.rollout.collect import (
    LabelledPost,
    ScoredCompletion,
    pad_prompts,
    prompt_width,
    put_batch,
    render_prompts,
    score_completions,
)
from mental_r1_jax.rollout.sampler import SamplingConfig
from mental_r1_jax.training.train_step import policy_stats
from mental_r1_jax.types import TraceBatch


@dataclasses.dataclass(frozen=True)
class Predictor:
    """Compiled generation for evaluation; build it once with `make_predictor`.

    Attributes:
        policy: the model without its weights.
        config: the recipe; `rollout` lengths, `evaluate` batch size and votes, `rewards` matching.
        mesh: where the weights live.
        sample: `(params, prompts, seed, step) -> Completions`, see `Programs`.
        entropies: `(params, traces) -> [B, votes, C]`, nats.
    """

    policy: Policy
    config: ExperimentConfig
    mesh: Mesh
    sample: Callable[..., Any]
    entropies: Callable[..., Any]


def make_predictor(policy: Policy, config: ExperimentConfig, mesh: Mesh) -> Predictor:
    """Bind everything static; programs compile at their first call, one for each prompt length."""
    votes = config.evaluate.num_votes
    sampling = SamplingConfig(
        num_generations=votes,
        max_completion_length=config.rollout.max_completion_length,
        temperature=config.rollout.temperature,
        top_p=config.rollout.top_p,
        top_k=config.rollout.top_k,
        eos_ids=policy.tokenizer.eos_ids,
        pad_id=policy.tokenizer.pad_id,
        greedy=votes == 1,
    )

    def entropies(params: Any, traces: TraceBatch) -> jax.Array:
        return policy_stats(
            params,
            traces,
            config=policy.config,
            temperature=config.rollout.temperature,
            chunk_size=config.model.logprob_chunk_size,
        )[1]

    sample = jit_sampler(policy.config, sampling, mesh)
    cut = sharding.batch_sharding(mesh, 3)
    return Predictor(policy, config, mesh, sample, jax.jit(entropies, out_shardings=cut))


def predict(
    predictor: Predictor,
    params: Any,
    posts: Sequence[LabelledPost],
    labels: dict[str, tuple[str, ...]],
    on_batch: Callable[[int, int], None] = lambda done, total: None,
) -> list[Prediction]:
    """One prediction a post, in the order of `posts`.

    Args:
        predictor: from `make_predictor`.
        params: weights on the predictor's mesh.
        posts: labelled posts of any of the sets.
        labels: set name -> its labels.
        on_batch: called with (posts done, posts in all) after each batch.
    """
    config = predictor.config
    prompts = render_prompts(predictor.policy.tokenizer, posts, config.rollout.max_prompt_length)
    # Posts of like length share a batch, so that short ones run in a small compiled shape.
    order = sorted(range(len(posts)), key=lambda i: len(prompts[i].ids))
    size = config.evaluate.batch_size
    held = hosts.local_rows(predictor.mesh, size)
    predictions: dict[int, Prediction] = {}
    for start in range(0, len(order), size):
        batch = order[start : start + size]
        # Filled with repetitions of the last post: one compiled shape.
        batch += batch[-1:] * (size - len(batch))
        width = prompt_width([prompts[row] for row in batch], config.rollout.prompt_lengths)
        rows = [batch[place] for place in held]
        groups, entropies = _generate(predictor, params, posts, prompts, rows, width)
        for place, row in enumerate(rows):
            predictions[row] = _prediction(
                posts[row],
                labels[posts[row].set_name],
                groups.completions[place],
                groups.stage_mask[place],
                entropies[place],
                match=config.rewards.answer_match,
            )
        on_batch(min(start + size, len(order)), len(posts))
    return hosts.all_items(predictions.items())


def _generate(
    predictor: Predictor, params: Any, posts: Any, prompts: Any, rows: list[int], width: int
) -> tuple[Any, Float[np.ndarray, "B votes C"]]:
    """Sample completions for `rows`, parse them, and measure their entropies."""
    config, tokenizer = predictor.config, predictor.policy.tokenizer
    asked = [prompts[row] for row in rows]
    # The rows are positions in all posts: votes of a post draw their own noise whatever batch it
    # falls into.
    batch = put_batch(predictor.mesh, pad_prompts(asked, width, tokenizer.pad_id, rows))
    completions = predictor.sample(params, batch, as_word(config.run.seed), as_word(0))
    entropies = predictor.entropies(params, trace_batch(batch, completions))
    wanted = (completions.completion_ids, completions.completion_mask, completions.finished)
    ids, mask, finished, entropies = map(hosts.fetch_rows, (*wanted, entropies))
    posts = [posts[row] for row in rows]
    groups = score_completions(tokenizer, posts, ids, mask, finished, functions=())
    return groups, entropies


def _prediction(
    post: LabelledPost,
    labels: tuple[str, ...],
    completions: Sequence[ScoredCompletion],
    stage_mask: Bool[np.ndarray, "votes S C"],
    entropies: Float[np.ndarray, "votes C"],
    *,
    match: Any,
) -> Prediction:
    """Read the label out of one post's completions; several of them vote."""
    answers = [match_label(c.parsed.answer, labels, match) for c in completions]
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
    )
