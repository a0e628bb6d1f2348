"""`mental-r1 evaluate`: task metrics of a model on held-out posts, and the report.

1. Open the model: a run folder (its best checkpoint), a Hugging Face folder or a hub id.
2. Generate greedily, or let k samples vote; read the label out of each answer.
3. Score with scikit-learn, independently of the reward, and write the report.

Finished batches are kept in the folder of the report until it is written: an evaluation that was
interrupted or killed goes on with the same command, to the same report.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jax.sharding import Mesh
from rich.console import Console

import mental_r1_jax
from mental_r1_jax import hosts
from mental_r1_jax.bucket import push_folder
from mental_r1_jax.config import ExperimentConfig
from mental_r1_jax.console.overview import print_only_labels
from mental_r1_jax.console.progress import open_console
from mental_r1_jax.evaluation.audit_report import audit_sections, write_audits
from mental_r1_jax.evaluation.calibration_page import calibration_section
from mental_r1_jax.evaluation.clinical_report import clinical_section, clinical_table
from mental_r1_jax.evaluation.finished import evaluation_folder
from mental_r1_jax.evaluation.kept_batches import KeptBatches
from mental_r1_jax.evaluation.report import check_report_folder, console_table, write_evaluation
from mental_r1_jax.evaluation.training_curves import training_section
from mental_r1_jax.jobs import compare
from mental_r1_jax.models.fingerprint import fingerprint
from mental_r1_jax.opening.devices import open_mesh
from mental_r1_jax.opening.model_source import ModelSource, load_checkpoint, open_model, public_name
from mental_r1_jax.opening.reading import for_reading
from mental_r1_jax.prediction.audits import Evaluated, run_audits
from mental_r1_jax.prediction.held_out import (
    clinical_documents,
    evaluate_posts,
    held_out_posts,
    label_facts,
)
from mental_r1_jax.prediction.predictor import make_predictor
from mental_r1_jax.private_files import check_writable, make_private_folder
from mental_r1_jax.runs.interruption import Interrupted as Interrupted
from mental_r1_jax.runs.interruption import ends_with_a_line
from mental_r1_jax.runs.run_lock import run_lock
from mental_r1_jax.training.metrics import METRICS_FILE, read_sound_metrics


def run(
    config: ExperimentConfig, against: Path | None = None, audit: Sequence[str] | None = None
) -> Path:
    """Write `metrics.json`, `predictions.csv` and `report.html`; returns their folder.

    Args:
        config: the recipe.
        audit: which of `AUDITS` to add, each as a file and a part of the report.
        against: a finished evaluation of the same posts to compare with, see `jobs/compare.py`.
    """
    if against is not None:
        evaluation_folder(against)  # before minutes of work
    config = for_reading(config)
    name = config.evaluate.model or str(config.run.output_dir)
    folder = config.evaluate.output_dir or (
        config.run.output_dir / "evaluation" / config.evaluate.split
    )
    check_report_folder(folder)
    if hosts.is_first():
        check_writable(folder)
    with ends_with_a_line(
        f"evaluation into {folder} ended; finished batches are kept; the same command goes on"
    ):
        _evaluate(config, name, folder, audit or ())
    if against is not None and hosts.is_first():
        compare.run(folder, against)
    return folder


def _evaluate(config: ExperimentConfig, name: str, folder: Path, audit: Sequence[str]) -> None:
    """Evaluate the model `name`; the report goes to `folder`."""
    console = open_console()
    model = open_model(name, config)
    rows = {"evaluate.batch_size": config.evaluate.batch_size}
    mesh = open_mesh(config, rows=rows, model=model.decoder)
    posts = held_out_posts(config, config.evaluate.split, config.evaluate.limit_per_set)
    print_only_labels(console, posts)
    console.print(f"evaluating {name} on {sum(map(len, posts.values()))} posts", markup=False)
    params, step = _load_best(console, model, mesh)
    predictor = make_predictor(model, config, mesh, "evaluate")
    progress = functools.partial(_say_progress, console)
    keep = KeptBatches(folder, _identity(config, params, mesh))
    with contextlib.ExitStack() as stack:
        if hosts.is_first():
            make_private_folder(folder)
            stack.enter_context(run_lock(folder))
        metrics, predictions = evaluate_posts(
            predictor, params, posts, on_batch=progress, keep=keep
        )
        clinical = clinical_documents(config, predictions)
        facts = {one: label_facts(config.data, one) for one in posts}
        say = functools.partial(console.print, markup=False)
        everything = [post for of_set in posts.values() for post in of_set]
        done = Evaluated(predictor, params, everything, predictions, facts, keep, say)
        audits = run_audits(audit, done)
        if hosts.is_first():
            write_evaluation(
                folder,
                metrics,
                predictions,
                include_text=config.evaluate.include_text,
                title=f"{public_name(name)}: {config.evaluate.split} split",
                context=_context(config, name, step),
                checkpoint=step,
                sections=[
                    clinical_section(clinical),
                    calibration_section(clinical),
                    *audit_sections(audits),
                    _training_part(model.run_folder),
                ],
                further=clinical,
                shown_answers=config.evaluate.shown_answers,
            )
            write_audits(folder, audits)
            keep.remove()
            push_folder(folder)
    console.print(console_table(metrics))
    console.print(clinical_table(clinical))
    console.print(f"report: {folder / 'report.html'}", markup=False)


def _load_best(console: Console, model: ModelSource, mesh: Mesh) -> tuple[Any, int | None]:
    """The weights, and which checkpoint of a run they are of, which is told."""
    params, step = load_checkpoint(model, mesh, which="best")
    if step is not None:
        console.print(f"checkpoint of step {step}")
    return params, step


def _say_progress(console: Console, done: int, total: int) -> None:
    """A line for each batch."""
    console.print(f"  {done}/{total} posts")


def _training_part(run_folder: Path | None) -> str:
    """The training curves of the model's run; empty where it has none, as an exported model."""
    if run_folder is None or not (run_folder / METRICS_FILE).is_file():
        return ""
    lines, notes = read_sound_metrics(run_folder / METRICS_FILE)
    return training_section(lines, notes)


def _identity(config: ExperimentConfig, params: Any, mesh: Mesh) -> str:
    """Digest of all that predictions depend on, but posts and prompts."""
    facts = {
        "weights": fingerprint(params),
        "recipe": config.model_dump(mode="json"),
        "mesh": dict(mesh.shape),
        "version": mental_r1_jax.__version__,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _context(config: ExperimentConfig, name: str, step: int | None) -> dict[str, str]:
    """The facts that make the figures repeatable; `step` of the checkpoint of a run."""
    votes = config.evaluate.num_votes
    return {
        "model": public_name(name),
        **({} if step is None else {"checkpoint": f"step {step}"}),
        "split": config.evaluate.split,
        "decoding": "greedy" if votes == 1 else f"majority of {votes} samples",
        "confidence": config.evaluate.confidence,
        "max_completion_length": str(config.rollout.max_completion_length),
        "seed": str(config.run.seed),
        "version": mental_r1_jax.__version__,
    }
