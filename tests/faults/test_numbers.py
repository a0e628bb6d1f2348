"""Numbers that are none: in a start model, in logits, in gradients. Each ends in one error."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import load_file, save_file

from mental_r1_jax.config import RunConfig
from mental_r1_jax.console.progress import Progress
from mental_r1_jax.errors import UserError
from mental_r1_jax.models.hf_config import decoder_config_from_hf, read_hf_config
from mental_r1_jax.models.hf_format import load_params
from mental_r1_jax.models.tiny import make_tiny_model
from mental_r1_jax.prediction.label_scores import refuse_non_finite
from mental_r1_jax.rl.masking import Sum
from mental_r1_jax.runs import step_log
from mental_r1_jax.runs.step_log import SKIPPED_STEPS, StepLog, StepRecord
from mental_r1_jax.training.metrics import Writers

NAME = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("numbers") / "tiny"
    sizes = {"vocab_size": 400, "hidden_size": 16, "intermediate_size": 32, "num_layers": 2}
    return make_tiny_model(folder, ["made-up words for a tokenizer"] * 4, **sizes)


def load(folder: Path, change: Any) -> Any:
    """Load the model with one tensor changed by `change`; returns its weights."""
    file = folder / "model.safetensors"
    before = file.read_bytes()
    tensors = load_file(file)
    tensors[NAME] = change(tensors[NAME].astype(np.float32))
    save_file(tensors, file)
    try:
        return load_params(folder, decoder_config_from_hf(read_hf_config(folder)))
    finally:
        file.write_bytes(before)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_no_number_is_named(model: Path, value: float) -> None:
    def change(weights: np.ndarray) -> np.ndarray:
        weights[3, 5] = value
        return weights

    with pytest.raises(UserError, match=f"{NAME}.*1 of 512 are NaN or infinite"):
        load(model, change)


@pytest.mark.parametrize("dtype", ["int32", "int8", "uint8", "bool", "int64"])
def test_weights_that_are_no_floats_are_refused(model: Path, dtype: str) -> None:
    with pytest.raises(UserError, match=f"dtype of {NAME}: expected one of F32.*got "):
        load(model, lambda weights: weights.astype(dtype))


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_other_floats_are_read(model: Path, dtype: str) -> None:
    """With the values that they hold, in float32."""
    changed = load(model, lambda weights: weights.astype(dtype))
    rounded = load(model, lambda weights: weights.astype(dtype).astype(np.float32))
    for got, expected in zip(jax.tree.leaves(changed), jax.tree.leaves(rounded), strict=True):
        np.testing.assert_array_equal(got, expected)


def test_logits_that_are_no_numbers_are_refused_where_tokens_are() -> None:
    entropies = np.ones((2, 1, 3), np.float32)
    mask = np.array([[[True, True, False]], [[True, False, False]]])
    entropies[0, 0, 2] = np.nan  # padding
    refuse_non_finite(entropies, mask)
    entropies[1, 0, 0] = np.inf
    with pytest.raises(UserError, match="1 of 3 tokens.*compute_dtype=float32"):
        refuse_non_finite(entropies, mask)


def flush_steps(tmp_path: Path, skipped: list[list[float]], monkeypatch: Any) -> int:
    """Flush a step for each list, with so many skipped updates each; returns steps that passed."""
    monkeypatch.setattr(step_log, "time", SimpleNamespace(perf_counter=lambda: 1.0))
    run = RunConfig(output_dir=tmp_path)
    with Progress(9, console=Console(file=io.StringIO())) as progress:
        log = StepLog(run, None, Writers([]), progress)
        for step, of_step in enumerate(skipped, start=1):
            updates = [{"updates/skipped": Sum(np.float32(one))} for one in of_step]
            log.defer(StepRecord(step, updates, 1e-3, 0.0))
            with contextlib.suppress(UserError):
                log.flush()
                continue
            return step
    return len(skipped) + 1


def test_a_run_that_skips_every_update_is_ended(tmp_path: Path, monkeypatch) -> None:
    none, half, whole = [0.0, 0.0], [1.0, 0.0], [1.0, 1.0]
    assert flush_steps(tmp_path, [whole] * SKIPPED_STEPS, monkeypatch) == SKIPPED_STEPS
    interrupted = [whole] * (SKIPPED_STEPS - 1) + [half] + [whole] * SKIPPED_STEPS
    assert flush_steps(tmp_path, interrupted, monkeypatch) == 2 * SKIPPED_STEPS
    assert flush_steps(tmp_path, [none, whole] * SKIPPED_STEPS, monkeypatch) > 2 * SKIPPED_STEPS
