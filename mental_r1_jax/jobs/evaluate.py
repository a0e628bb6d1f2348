"""`mental-r1 evaluate`: task metrics of a model on held-out posts, and the report.

1. Open the model: a run folder (its best checkpoint), a Hugging Face folder or a hub id.
2. Generate greedily, or let k samples vote; read the label out of each answer.
3. Score with scikit-learn, independently of the reward, and write the report.
"""

from __future__ import annotations

from pathlib import Path

import mental_r1_jax
from mental_r1_jax import hosts
from mental_r1_jax.config import ExperimentConfig
from mental_r1_jax.console.overview import print_only_labels
from mental_r1_jax.console.progress import open_console
from mental_r1_jax.evaluation.report import check_report_folder, console_table, write_evaluation
from mental_r1_jax.opening.devices import open_mesh
from mental_r1_jax.opening.model_source import load_weights, open_model, public_name
from mental_r1_jax.prediction.held_out import evaluate_posts, held_out_posts
from mental_r1_jax.prediction.predictor import make_predictor


def run(config: ExperimentConfig) -> Path:
    """Write `metrics.json`, `predictions.csv` and `report.html`; returns their folder."""
    console = open_console()
    name = config.evaluate.model or str(config.run.output_dir)
    folder = config.evaluate.output_dir or (
        config.run.output_dir / "evaluation" / config.evaluate.split
    )
    check_report_folder(folder)
    model = open_model(name, config)
    rows = {"evaluate.batch_size": config.evaluate.batch_size}
    mesh = open_mesh(config, rows=rows, model=model.decoder)
    posts = held_out_posts(config, config.evaluate.split, config.evaluate.limit_per_set)
    print_only_labels(console, posts)
    console.print(f"evaluating {name} on {sum(map(len, posts.values()))} posts", markup=False)
    params = load_weights(model, mesh, which="best")
    predictor = make_predictor(model, config, mesh, "evaluate")

    def report_progress(done: int, total: int) -> None:
        console.print(f"  {done}/{total} posts")

    metrics, predictions = evaluate_posts(predictor, params, posts, on_batch=report_progress)
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
    console.print(f"report: {folder / 'report.html'}", markup=False)
    return folder


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
