"""The audits of `mental-r1 evaluate --audit NAME`, on posts and answers of an evaluation."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mental_r1_jax.config import ExperimentConfig
from mental_r1_jax.data.loading import load_examples
from mental_r1_jax.data.records import Example
from mental_r1_jax.evaluation.clinical import LabelFacts
from mental_r1_jax.evaluation.kept_batches import KeptBatches
from mental_r1_jax.evaluation.memory import memory_document
from mental_r1_jax.evaluation.metrics import Prediction
from mental_r1_jax.prediction.audit_groups import audit_groups
from mental_r1_jax.prediction.audit_stages import Changed, audit_stages
from mental_r1_jax.prediction.label_scores import Reasoning, all_probabilities, make_label_scorer
from mental_r1_jax.prediction.predictor import Predictor, predict
from mental_r1_jax.rollout.collect import render_prompts
from mental_r1_jax.text.forced_answer import forced_answer
from mental_r1_jax.text.tokenizer import printable
from mental_r1_jax.text.wording import grammar_of


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """An evaluation that was just made.

    Attributes:
        predictor: what has answered.
        params: its weights.
        posts: the posts, in the order of `predictions`.
        predictions: the answers, with their completions.
        facts: set -> what is known of its labels.
        keep: where finished batches are kept, see `predict`.
        say: takes a line about how far an audit is.
    """

    predictor: Predictor
    params: Any
    posts: Sequence[Example]
    predictions: Sequence[Prediction]
    facts: Mapping[str, LabelFacts]
    keep: KeptBatches | None = None
    say: Callable[[str], None] = lambda line: None

    @property
    def config(self) -> ExperimentConfig:
        """The recipe."""
        return self.predictor.config


def run_audits(names: Sequence[str], evaluated: Evaluated) -> dict[str, dict[str, Any]]:
    """Audit -> its numbers, as JSON types; in the order of `AUDITS`."""
    return {name: audit(evaluated) for name, audit in AUDITS.items() if name in names}


def _stages(evaluated: Evaluated) -> dict[str, Any]:
    """Score labels after changed reasonings."""
    predictor, config = evaluated.predictor, evaluated.config
    tokenizer, grammar = predictor.model.tokenizer, grammar_of(config.text)
    scorer = predictor.labels or make_label_scorer(predictor.model, config, predictor.mesh)
    limit = config.rollout.max_prompt_length
    prompts = render_prompts(tokenizer, evaluated.posts, limit, grammar)

    def ask(changed: Sequence[Changed]) -> list[tuple[float, ...]]:
        asked = []
        for i, text in changed:
            ids = tokenizer.encode(printable(text))
            labels = evaluated.facts[evaluated.posts[i].set_name].labels
            forced = forced_answer(tokenizer, ids, labels, grammar)
            asked.append(Reasoning(prompts[i].ids, forced))
        evaluated.say(f"audit of stages: {len(asked)} reasonings")
        return all_probabilities(
            scorer,
            evaluated.params,
            asked,
            batch_size=config.evaluate.batch_size,
            num_labels=max(len(facts.labels) for facts in evaluated.facts.values()),
        )

    return audit_stages(
        evaluated.predictions,
        ask,
        samples=config.evaluate.bootstrap_samples,
        seed=config.run.seed,
        grammar=grammar,
    )


def _groups(evaluated: Evaluated) -> dict[str, Any]:
    """Answer posts with other beginnings."""
    labels = {name: facts.labels for name, facts in evaluated.facts.items()}
    asked = 0

    def answer(posts: Sequence[Example]) -> list[Prediction]:
        predictor, params = evaluated.predictor, evaluated.params
        nonlocal asked
        asked += 1
        evaluated.say(f"audit of groups: beginning {asked}, {len(posts)} posts")
        return predict(predictor, params, posts, labels, keep=evaluated.keep)

    return audit_groups(
        evaluated.posts,
        evaluated.predictions,
        evaluated.facts,
        answer,
        samples=evaluated.config.evaluate.bootstrap_samples,
        seed=evaluated.config.run.seed,
    )


def _memory(evaluated: Evaluated) -> dict[str, Any]:
    """Look for the training posts of the recipe in completions."""
    training = load_examples(evaluated.config, "train")
    return memory_document(
        [(p.set_name, p.row) for p in evaluated.predictions],
        [p.completion for p in evaluated.predictions],
        [p.text for p in evaluated.predictions],
        [post.text for of_set in training.values() for post in of_set],
    )


AUDITS: Mapping[str, Callable[[Evaluated], dict[str, Any]]] = {
    "stages": _stages,
    "groups": _groups,
    "memory": _memory,
}
