"""Adapters through whole runs: cold start -> CRPO -> evaluation -> both exports, and resuming."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from mental_r1_jax.config import ExperimentConfig
from mental_r1_jax.errors import UserError
from mental_r1_jax.jobs import evaluate, export, sft, train
from mental_r1_jax.release.export_manifest import read_export
from mental_r1_jax.runs import training_run
from mental_r1_jax.training.checkpoint import open_checkpoints
from mental_r1_jax.training.metrics import read_metrics
from tests.e2e.test_resume import CALLS_A_STEP, run_until

LORA = {"rank": 4, "alpha": 8, "targets": ["q_proj", "v_proj", "down_proj"]}
VERIFIED = importlib.util.find_spec("peft") is not None


def kept(folder: Path) -> tuple[int, Any, Any]:
    """Step, adapters and the rest of the newest checkpoint."""
    with open_checkpoints(folder / "checkpoints", read_only=True) as manager:
        step = manager.latest_step()
        restore = ocp.args.StandardRestore
        items = manager.restore(
            step, args=ocp.args.Composite(params=restore(), optimizer=restore())
        )
    return step, items["params"], items["optimizer"]


def with_export(config: ExperimentConfig, **changes: Any) -> ExperimentConfig:
    return config.model_copy(update={"export": config.export.model_copy(update=changes)})


@pytest.mark.slow
def test_from_a_cold_start_of_adapters_to_both_exports(recipe, tmp_path, monkeypatch):
    base = recipe(tmp_path / "unused").model.path
    model = {"path": base, "compute_dtype": "float32", "lora": LORA}
    lengths = {"prompts_per_step": 8, "num_generations": 2, "max_prompt_length": 400}
    lengths |= {"max_completion_length": 160}
    cold = recipe(
        tmp_path / "cold",
        model=model,
        rollout=lengths,
        sft={"batch_size": 8, "num_steps": 3, "optimizer": {"learning_rate": 0.02}},
    )
    sft.run(cold)
    _, of_cold_start, moments = kept(tmp_path / "cold")
    assert set(of_cold_start) == {"layers"}
    assert set(of_cold_start["layers"]) == {"query", "value", "down"}
    assert all(set(node) == {"lora_a", "lora_b"} for node in of_cold_start["layers"].values())
    assert np.abs(of_cold_start["layers"]["query"]["lora_b"]).max() > 0

    # CRPO goes on with these adapters, and its reference is the cold start, not the base.
    references: list[Any] = []
    original = training_run.reference_weights
    monkeypatch.setattr(
        train, "reference_weights", lambda run: references.append(original(run)) or references[0]
    )
    config = recipe(
        tmp_path / "crpo",
        model={**model, "path": str(tmp_path / "cold")},
        rollout=lengths,
        export={"dtype": "float32", "verify": VERIFIED},
        run={"num_steps": 2},
    )
    train.run(config)
    jax.tree.map(np.testing.assert_array_equal, references[0], of_cold_start)
    lines = read_metrics(tmp_path / "crpo/metrics.jsonl")
    kl = [line["kl"] for line in lines if "kl" in line]
    assert abs(kl[0]) < 1e-5 < abs(kl[1])
    assert max(line.get("sampler_drift/max", 0) for line in lines) < 1e-4
    evaluate.run(config)

    merged = export.run(with_export(config, output_dir=tmp_path / "merged"))
    adapters = export.run(with_export(config, output_dir=tmp_path / "peft", format="peft"))
    assert not (merged / "adapter_config.json").exists() and (merged / "config.json").is_file()
    assert not (adapters / "config.json").exists()
    assert json.loads((adapters / "adapter_config.json").read_text())["r"] == 4
    assert read_export(merged).base is None and read_export(adapters).base == base
    # Both answer alike, and the PEFT folder is a start model as good as the run.
    reports = []
    for folder in (merged, adapters):
        changes = {"model": str(folder), "output_dir": tmp_path / "report" / folder.name}
        section = config.evaluate.model_copy(update={**changes, "include_text": True})
        report = evaluate.run(config.model_copy(update={"evaluate": section}))
        reports.append((report / "predictions.csv").read_text())
    assert reports[0] == reports[1]
    again = recipe(tmp_path / "again", model={**model, "path": str(adapters)}, run={"num_steps": 1})
    train.run(again)

    with pytest.raises(UserError, match="not those of the recipe"):
        train.run(recipe(tmp_path / "no", model={"path": str(tmp_path / "cold")}))


@pytest.mark.slow
def test_a_stopped_run_of_adapters_goes_on_bit_for_bit(recipe, tmp_path):
    def config(name: str) -> ExperimentConfig:
        base = recipe(tmp_path / "unused").model
        return recipe(
            tmp_path / name,
            model={"path": base.path, "compute_dtype": "float32", "lora": LORA},
            rewards={"custom": {"tests.e2e.rewards:stop_after": 1.0}},
            run={"num_steps": 3},
        )

    run_until(config("whole"), train, None)
    run_until(config("parts"), train, CALLS_A_STEP + 5)
    run_until(config("parts"), train, None)
    whole, parts = kept(tmp_path / "whole"), kept(tmp_path / "parts")
    assert whole[0] == parts[0] == 3
    jax.tree.map(np.testing.assert_array_equal, whole[1:], parts[1:])
