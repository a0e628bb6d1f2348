"""`mental-r1 quickstart`: the whole path on made-up posts with a tiny model, in minutes on a CPU.

random model -> cold start -> CRPO -> export -> reload, with an evaluation on the test split after
each stage; ends with one table and the path of the Hugging Face folder.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.table import Table

from mental_r1_jax.addresses import address_of
from mental_r1_jax.config import ExperimentConfig
from mental_r1_jax.console.progress import open_console
from mental_r1_jax.errors import UserError
from mental_r1_jax.jobs import evaluate, export, sft, train
from mental_r1_jax.models.tiny import make_tiny_model
from mental_r1_jax.text.prompts import system_instruction
from mental_r1_jax.text.wording import grammar_of


def run(config: ExperimentConfig, *, model_only: bool = False) -> dict[str, dict[str, float]]:
    """Run the whole path below `run.output_dir`; returns stage -> set -> weighted F1 (0 to 1).

    With `model_only` it ends after making the tiny start model, as a study needs it.
    """
    started = time.perf_counter()
    root = config.run.output_dir
    if address_of(root) is not None:
        raise UserError(
            what="the quickstart makes several runs below its folder",
            expected="run.output_dir: a path on this machine",
            got=str(address_of(root)),
            remedy="choose a path; train and sft write runs into a bucket",
        )
    tiny, cold, crpo = (root / name for name in ("tiny_model", "cold_start", "crpo"))
    if not (tiny / "config.json").is_file():
        make_tiny_model(tiny, corpus(config), seed=config.run.seed)
    if model_only:
        return {}
    scores = {"random": _evaluate(config, tiny, root / "evaluation" / "random")}

    cold_config = _changed(config, model=str(tiny), output_dir=cold)
    sft.run(cold_config)
    scores["cold start"] = _evaluate(cold_config, cold, cold / "evaluation" / "test")

    crpo_config = _changed(config, model=str(cold), output_dir=crpo)
    train.run(crpo_config)
    scores["CRPO"] = _evaluate(crpo_config, crpo, crpo / "evaluation" / "test")

    released = export.run(crpo_config)
    scores["reloaded"] = _evaluate(crpo_config, released, root / "evaluation" / "reloaded")
    minutes = (time.perf_counter() - started) / 60
    _print_table(scores, released, minutes)
    return scores


def corpus(config: ExperimentConfig) -> Iterator[str]:
    """Text to train the tiny tokenizer on: instruction, questions, posts and traces."""
    instruction = system_instruction(grammar_of(config.text))
    for trace in sft.collect_traces(config):
        yield instruction
        yield trace.question
        yield trace.post
        yield trace.completion


def _changed(config: ExperimentConfig, *, model: str, output_dir: Path) -> ExperimentConfig:
    """The same recipe for another start model and run folder."""
    return config.model_copy(
        update={
            "model": config.model.model_copy(update={"path": model}),
            "run": config.run.model_copy(update={"output_dir": output_dir}),
        }
    )


def _evaluate(config: ExperimentConfig, model: Path, folder: Path) -> dict[str, float]:
    """Weighted F1 of each set on the test split, and their mean."""
    section = config.evaluate.model_copy(update={"model": str(model), "output_dir": folder})
    evaluate.run(config.model_copy(update={"evaluate": section}))
    document: dict[str, Any] = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    scores = {name: values["weighted_f1"] for name, values in document["sets"].items()}
    return scores | {"average": document["average"]["weighted_f1"]}


def _print_table(scores: dict[str, dict[str, float]], released: Path, minutes: float) -> None:
    """Weighted F1 by set and stage, and where the model is."""
    table = Table(title="weighted F1 on the test split, in percent")
    table.add_column("set")
    for stage in scores:
        table.add_column(stage, justify="right")
    for name in scores["CRPO"]:
        table.add_row(name, *(f"{100 * of_stage[name]:.1f}" for of_stage in scores.values()))
    console = open_console()
    console.print(table)
    console.print(f"Hugging Face folder: {released}", soft_wrap=True, markup=False)
    console.print(f"{minutes:.1f} minutes")
