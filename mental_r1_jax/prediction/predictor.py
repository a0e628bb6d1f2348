"""Generate and read answers for labelled posts: the shared heart of validation and evaluation."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Float

from mental_r1_jax import hosts
from mental_r1_jax.config import ExperimentConfig
from mental_r1_jax.data.records import Example
from mental_r1_jax.evaluation.completion_tokens import CompletionTokens
from mental_r1_jax.evaluation.kept_batches import KeptBatches
from mental_r1_jax.evaluation.metrics import Prediction, vote, vote_shares
from mental_r1_jax.opening.model_source import ModelSource
from mental_r1_jax.prediction.label_scores import (
    LabelScorer,
    Reasoning,
    make_label_scorer,
    refuse_non_finite,
)
from mental_r1_jax.prediction.prompt_shape import PromptShape
from mental_r1_jax.prediction.token_entropies import completion_tokens
from mental_r1_jax.programs.step_programs import as_word, bind_sampler
from mental_r1_jax.rollout.collect import (
    ScoredCompletion,
    ScoredGroups,
    render_prompts,
    score_completions,
)
from mental_r1_jax.rollout.sampler import sampler_settings
from mental_r1_jax.text.answers import AnswerReader
from mental_r1_jax.text.forced_answer import forced_answer
from mental_r1_jax.text.prompts import RenderedPrompt
from mental_r1_jax.text.wording import grammar_of
from mental_r1_jax.types import Completions


@dataclasses.dataclass(frozen=True)
class Predictor:
    """Compiled generation for evaluation; build it once with `make_predictor`.

    Attributes:
        model: the model without its weights.
        config: the recipe; `rollout` lengths, `evaluate` batch size and votes, `rewards` matching.
        mesh: where the weights live.
        sample: `(params, prompts, seed, step) -> Completions`, see `StepPrograms`.
        confidence: whence predictions get probabilities of labels: `evaluate.confidence`, and
            nowhere in validation.
        labels: scores labels, where the probabilities come from there.
        keep_tokens: whether predictions hold the entropies of their tokens.
    """

    model: ModelSource
    config: ExperimentConfig
    mesh: Mesh
    sample: Callable[..., Any]
    confidence: Literal["none", "votes", "labels"] = "none"
    labels: LabelScorer | None = None
    keep_tokens: bool = False


def make_predictor(
    model: ModelSource,
    config: ExperimentConfig,
    mesh: Mesh,
    use: Literal["validate", "evaluate", "predict"],
) -> Predictor:
    """Bind everything static; programs compile at their first call, one for each shape.

    For all uses but evaluation, predictions are without entropies and probabilities of labels.
    """
    settings = sampler_settings(
        config, use, eos_ids=model.tokenizer.eos_ids, pad_id=model.tokenizer.pad_id
    )
    sample = bind_sampler(model.decoder, settings, mesh)
    confidence = config.evaluate.confidence if use == "evaluate" else "none"
    labels = make_label_scorer(model, config, mesh) if confidence == "labels" else None
    keep_tokens = use == "evaluate" and config.evaluate.shown_answers > 0
    return Predictor(model, config, mesh, sample, confidence, labels, keep_tokens)


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
    grammar, limit = grammar_of(config.text), config.rollout.max_prompt_length
    prompts = render_prompts(predictor.model.tokenizer, posts, limit, grammar)
    size = config.evaluate.batch_size
    shape = PromptShape.of(prompts)
    predictions: dict[int, Prediction] = {}
    for number, batch in enumerate(length_batches(prompts, size)):

        def answer(batch: list[int] = batch) -> dict[int, Prediction]:
            return _answer(predictor, params, posts, prompts, batch, reader, shape)

        if keep is None:
            predictions |= answer()
        else:
            predictions |= _answer_once(keep, posts, prompts, batch, answer, shape)
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
    shape: PromptShape,
) -> dict[int, Prediction]:
    """Predictions of a batch by row, on every process: those that are kept, else from `answer`."""
    rows = sorted(set(batch))
    # Questions are in the prompts; how posts were truncated is, too.
    facts = [(row, prompts[row].ids, posts[row]) for row in batch]
    key = keep.key([shape, *facts, *(posts[row].text for row in rows)])
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
    shape: PromptShape,
) -> dict[int, Prediction]:
    """Predictions by row, of those rows of a batch that this process holds."""
    rows = [batch[place] for place in hosts.local_rows(predictor.mesh, len(batch))]
    sampled = ask(predictor, params, [prompts[row] for row in rows], rows, shape)
    groups, entropies = _read(predictor, [posts[row] for row in rows], sampled, reader)
    chosen = [_vote(posts[row], groups.completions[i], reader) for i, row in enumerate(rows)]
    shares = _probabilities(
        predictor, params, [prompts[row] for row in rows], chosen, sampled, reader
    )
    ids = hosts.fetch_rows(sampled.completion_ids)

    def tokens_of(place: int) -> CompletionTokens | None:
        if not predictor.keep_tokens or entropies is None:
            return None
        vote = chosen[place].place
        completion, measured = groups.completions[place][vote], entropies[place, vote]
        tokenizer, tag = predictor.model.tokenizer, grammar_of(predictor.config.text).answer_tag
        return completion_tokens(tokenizer, completion, ids[place, vote], measured, tag)

    return {
        row: _prediction(
            posts[row],
            chosen[place],
            groups.completions[place],
            groups.stage_mask[place],
            None if entropies is None else entropies[place],
            shares[place],
            tokens_of(place),
        )
        for place, row in enumerate(rows)
    }


def _read(
    predictor: Predictor, posts: Sequence[Example], completions: Completions, reader: AnswerReader
) -> tuple[ScoredGroups, Float[np.ndarray, "B votes C"] | None]:
    """Wait for the completions of this process's posts and parse them; entropies where measured."""
    tokenizer, grammar = predictor.model.tokenizer, grammar_of(predictor.config.text)
    groups = score_completions(tokenizer, posts, completions, (), reader, grammar)
    wanted = (completions.decode_logprobs, completions.completion_mask)
    refuse_non_finite(*map(hosts.fetch_rows, wanted))
    measured = completions.entropies
    return groups, None if measured is None else hosts.fetch_rows(measured)


def ask(
    predictor: Predictor,
    params: Any,
    prompts: Sequence[RenderedPrompt],
    rows: Sequence[int],
    shape: PromptShape,
) -> Completions:
    """Start sampling answers to a batch of prompts; the device may be at work for long after.

    Args:
        predictor: from `make_predictor`.
        params: weights on the predictor's mesh.
        prompts: this process's share of the batch.
        rows: positions in all posts: votes of a post draw their own noise whatever batch it falls
            into.
        shape: of prompts that these are among.
    """
    pad_id, seed = predictor.model.tokenizer.pad_id, as_word(predictor.config.run.seed)
    batch = shape.place(predictor.mesh, prompts, pad_id, rows)
    completions: Completions = predictor.sample(params, batch, seed, as_word(0))
    return completions


@dataclasses.dataclass(frozen=True)
class _Vote:
    """What the completions of one post say together.

    Attributes:
        set_name: data set of the post.
        answers: label that each completion names, or None.
        winner: the label that most of them name, or None.
        place: the first completion that says so.
    """

    set_name: str
    answers: tuple[str | None, ...]
    winner: str | None
    place: int


def _vote(post: Example, completions: Sequence[ScoredCompletion], reader: AnswerReader) -> _Vote:
    """Read the label out of one post's completions; several of them vote."""
    answers = tuple(reader.read(post.set_name, c.parsed.answer) for c in completions)
    winner = vote(answers)
    return _Vote(post.set_name, answers, winner, answers.index(winner))


def _probabilities(
    predictor: Predictor,
    params: Any,
    prompts: Sequence[RenderedPrompt],
    chosen: Sequence[_Vote],
    sampled: Completions,
    reader: AnswerReader,
) -> list[dict[str, float] | None]:
    """Of each post the probabilities of its labels, from where the recipe wants them."""
    labels = [reader.labels[one.set_name] for one in chosen]
    if predictor.confidence == "votes":
        both = zip(chosen, labels, strict=True)
        return [vote_shares(one.answers, of_set) for one, of_set in both]
    if predictor.labels is None:
        return [None] * len(chosen)
    tokenizer, grammar = predictor.model.tokenizer, grammar_of(predictor.config.text)
    ids, mask = map(hosts.fetch_rows, (sampled.completion_ids, sampled.completion_mask))
    asked = []
    for row, (one, of_set) in enumerate(zip(chosen, labels, strict=True)):
        completion = ids[row, one.place][mask[row, one.place]].tolist()
        answer = forced_answer(tokenizer, completion, of_set, grammar)
        asked.append(Reasoning(prompts[row].ids, answer))
    most = max(map(len, reader.labels.values()))
    found = predictor.labels.probabilities(params, asked, most)
    return [dict(zip(of_set, p, strict=True)) for of_set, p in zip(labels, found, strict=True)]


def _prediction(
    post: Example,
    chosen: _Vote,
    completions: Sequence[ScoredCompletion],
    stage_mask: Bool[np.ndarray, "votes S C"],
    entropies: Float[np.ndarray, "votes C"] | None,
    probabilities: dict[str, float] | None,
    tokens: CompletionTokens | None,
) -> Prediction:
    """The prediction of one post, with the text of the completion chosen and its entropies."""
    completion = completions[chosen.place]
    stages = tuple(
        float(entropies[chosen.place][mask].mean())
        if entropies is not None and mask.any()
        else None
        for mask in stage_mask[chosen.place]
    )
    return Prediction(
        set_name=post.set_name,
        row=post.row,
        label=post.label,
        prediction=chosen.winner,
        well_formed=completion.parsed.well_formed,
        truncated=not completion.finished,
        num_tokens=completion.num_tokens,
        answer=completion.parsed.answer,
        stage_entropies=stages,
        completion=completion.text,
        text=post.text,
        group=post.group,
        probabilities=probabilities,
        tokens=tokens,
    )
