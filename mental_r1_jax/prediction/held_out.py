"""Held-out posts, and task metrics of a model on them: what validation and evaluation share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mental_r1_jax.config import DataConfig, ExperimentConfig
from mental_r1_jax.data.benchmarks import Split
from mental_r1_jax.data.loading import load_examples, set_spec, spread
from mental_r1_jax.data.records import Example
from mental_r1_jax.evaluation.clinical import LabelFacts, clinical_document
from mental_r1_jax.evaluation.kept_batches import KeptBatches
from mental_r1_jax.evaluation.metrics import Prediction, SetMetrics, set_metrics
from mental_r1_jax.prediction.predictor import Predictor, predict


def held_out_posts(
    config: ExperimentConfig, split: Split, limit: int | None
) -> dict[str, Sequence[Example]]:
    """Up to `limit` posts of each set's `split`, evenly spaced, by set."""
    return {name: spread(source, limit) for name, source in load_examples(config, split).items()}


def evaluate_posts(
    predictor: Predictor,
    params: Any,
    posts: Mapping[str, Sequence[Example]],
    on_batch: Callable[[int, int], None] = lambda done, total: None,
    keep: KeptBatches | None = None,
) -> tuple[dict[str, SetMetrics], list[Prediction]]:
    """Predict all posts and score each set: (set -> metrics, predictions).

    Args:
        predictor: holds the recipe, whose seed draws the bootstrap's resamples.
        params: weights on the predictor's mesh.
        posts: set name -> labelled posts, at least one each.
        on_batch: called with (posts done, posts in all) after each batch.
        keep: where finished batches are kept, see `predict`.
    """
    config = predictor.config
    labels = {name: set_spec(config.data, name).labels for name in posts}
    everything = [post for of_set in posts.values() for post in of_set]
    predictions = predict(predictor, params, everything, labels, on_batch, keep)
    metrics = {
        name: set_metrics(
            [p for p in predictions if p.set_name == name],
            labels[name],
            bootstrap_samples=config.evaluate.bootstrap_samples,
            seed=config.run.seed,
            stages=config.text.stage_names,
        )
        for name in posts
    }
    return metrics, predictions


def clinical_documents(
    config: ExperimentConfig, predictions: Sequence[Prediction]
) -> dict[str, dict[str, Any]]:
    """Set -> its clinical numbers, as JSON types; sets in the order of the recipe."""
    source = {"confidence": config.evaluate.confidence}
    return {
        name: source
        | clinical_document(
            [p for p in predictions if p.set_name == name],
            label_facts(config.data, name),
            samples=config.evaluate.bootstrap_samples,
            seed=config.run.seed,
        )
        for name in config.data.sets
    }


def label_facts(data: DataConfig, name: str) -> LabelFacts:
    """What the recipe says of the labels of a set."""
    spec = set_spec(data, name)
    return LabelFacts(spec.labels, spec.positive_labels, spec.ordered)
