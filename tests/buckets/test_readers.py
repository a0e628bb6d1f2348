"""A run is evaluated, exported and trained on by its address, as by its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from mental_r1_jax.bucket import Copies, checkpoints_of, opened
from mental_r1_jax.config import ExperimentConfig
from mental_r1_jax.jobs import evaluate, export
from mental_r1_jax.opening.adapters import open_base
from mental_r1_jax.opening.devices import open_mesh
from mental_r1_jax.opening.model_source import (
    load_checkpoint,
    open_model,
    origin_of,
    public_name,
    save_base_model,
)
from mental_r1_jax.recipe import dump_config, load_config
from mental_r1_jax.runs.training_run import fresh_state
from mental_r1_jax.training import checkpoint
from mental_r1_jax.training.optimizer import make_optimizer
from tests.buckets.runs import ADDRESS, write_out
from tests.buckets.stand_in import Bucket
from tests.buckets.toy_train import prepare
from tests.every_field import predictions, toys
from tests.every_field.lab import Lab
from tests.every_field.loop import one_device


def make_run(config: ExperimentConfig) -> None:
    """A run with checkpoints 1 (the better one by validation) and 2."""
    model, folder = open_model(config.model.path, config), config.run.output_dir
    mesh = open_mesh(config, rows={})
    state = fresh_state(model, make_optimizer(config.optimizer, 10), mesh)
    save_base_model(model, folder)
    (folder / "config.yaml").write_text(dump_config(config), encoding="utf-8")
    copies = Copies(folder)
    place = checkpoints_of(folder)
    with checkpoint.open_checkpoints(place, before_commit=copies.push) as manager:
        for step, score in ((1, 0.9), (2, 0.1)):
            state = state.replace(params=jax.tree.map(lambda leaf: leaf + 1.0, state.params))
            checkpoint.save(manager, step, state, {}, score)


def read(lab: Lab, config: ExperimentConfig) -> tuple[Path, float]:
    """Evaluate and export a run; the folder of both, and the sum of the evaluated weights."""
    sums = []

    def loaded(*arguments: Any, **options: Any) -> Any:
        params, step = load_checkpoint(*arguments, **options)
        sums.append(sum(float(np.sum(leaf)) for leaf in jax.tree.leaves(params)))
        return {}, step

    lab.patch.setattr(evaluate, "load_checkpoint", loaded)
    report = evaluate.run(config)
    export.run(config)
    return report.parents[1], sums[0]


@pytest.mark.slow
def test_a_run_is_read_by_its_address(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = Lab(prepare(tmp_path), tmp_path, monkeypatch)
    local = lab.config({})
    there = lab.config({"run.output_dir": ADDRESS})
    for config in (local, there):
        make_run(config)
    assert load_config(opened(ADDRESS)) == there

    predictions._patch_network(lab, local, toys.COMPLETIONS[0])
    monkeypatch.setattr(evaluate, "open_mesh", lambda *a, **k: one_device())
    folder, weights = read(lab, local)
    _, same_weights = read(lab, there)
    assert weights == same_weights
    held = write_out(bucket, ADDRESS, tmp_path / "held")
    for name in ("evaluation/test/predictions.csv", "hf/model.safetensors", "hf/tokenizer.json"):
        assert (held / name).read_bytes() == (folder / name).read_bytes()
    assert not [name for name in bucket.names() if "unfinished" in name or "run.lock" in name]

    assert public_name(ADDRESS) == "first" and origin_of(ADDRESS) == str(tmp_path / "tiny")
    ours, theirs = open_base(ADDRESS), open_base(str(folder))
    # Training goes on from the better one of the two checkpoints.
    assert (ours.name, ours.step) == (ADDRESS, theirs.step) == (ADDRESS, 1)
