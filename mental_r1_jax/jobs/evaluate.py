"""`mental-r1 evaluate`: task metrics of a model on held-out posts, and the report.

1. Open the model: a run folder (its best checkpoint), a Hugging Face folder or a hub id.
2. Generate greedily, or let k samples vote; read the label out of each answer.
3. Score with scikit-learn, independently of the reward, and write the report.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import mental_r1_jax
from mental_r1_jax import hosts
from mental_r1_jax.config import ExperimentConfig
from mental_r1_jax.data.loading import load_examples, set_spec, spread
from mental_r1_jax.evaluation.metrics import SetMetrics, set_metrics
from mental_r1_jax.evaluation.report import console_table, write_evaluation
from mental_r1_jax.jobs.policy import load_weights, open_mesh, open_policy, public_name
from mental_r1_jax.jobs.predict import Predictor, make_predictor, predict
from mental_r1_jax.training.progress import open_console


def run(config: ExperimentConfig) -> Path:
    """Write `metrics.json`, `predictions.csv` and `report.html`; returns their folder."""
    console = open_console()
    name = config.evaluate.model or str(config.run.output_dir)
    policy = open_policy(name, config)
    rows = {"evaluate.batch_size": config.evaluate.batch_size}
    mesh = open_mesh(config, rows=rows, model=policy.config)
    posts = held_out_posts(config, config.evaluate.split, config.evaluate.limit_per_set)
    console.print(f"evaluating {name} on {sum(map(len, posts.values()))} posts")
    params = load_weights(policy, mesh, which="best")
    predictor = make_predictor(policy, config, mesh)

    def report_progress(done: int, total: int) -> None:
        console.print(f"  {done}/{total} posts")

    metrics, predictions = evaluate_posts(predictor, params, posts, on_batch=report_progress)
    folder = config.evaluate.output_dir or (
        config.run.output_dir / "evaluation" / config.evaluate.split
    )
    if hosts.is_first():
        write_evaluation(
            folder,
            metrics,
            predictions,
            include_text=config.evaluate.include_text,
            title=f"{public_name(name)}: {config.evaluate.split} split",
            context=_context(config, name),
        )
    console.print(console_table(metrics))
    console.print(f"report: {folder / 'report.html'}")
    return folder


def held_out_posts(
    config: ExperimentConfig, split: str, limit: int | None
) -> dict[str, Sequence[Any]]:
    """Up to `limit` posts of each set's `split`, evenly spaced, by set."""
    return {name: spread(source, limit) for name, source in load_examples(config, split).items()}


def evaluate_posts(
    predictor: Predictor,
    params: Any,
    posts: Mapping[str, Sequence[Any]],
    on_batch: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[dict[str, SetMetrics], list[Any]]:
    """Predict all posts and score each set: (set -> metrics, predictions)."""
    config = predictor.config
    labels = {name: set_spec(config.data, name).labels for name in posts}
    everything = [post for of_set in posts.values() for post in of_set]
    predictions = predict(predictor, params, everything, labels, on_batch)
    metrics = {
        name: set_metrics(
            [p for p in predictions if p.set_name == name],
            labels[name],
            bootstrap_samples=config.evaluate.bootstrap_samples,
            seed=config.run.seed,
        )
        for name in posts
    }
    return metrics, predictions


def _context(config: ExperimentConfig, name: str) -> dict[str, str]:
    """The facts that make the figures repeatable."""
    votes = config.evaluate.num_votes
    return {
        "model": public_name(name),
        "split": config.evaluate.split,
        "decoding": "greedy" if votes == 1 else f"majority of {votes} samples",
        "max_completion_length": str(config.rollout.max_completion_length),
        "seed": str(config.run.seed),
        "version": mental_r1_jax.__version__,
    }
