"""Probes of what is done with adapters: where their base is, and how they are released."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mental_r1_jax.config import ExperimentConfig
from mental_r1_jax.jobs import export
from mental_r1_jax.models import peft_format
from mental_r1_jax.opening.model_source import open_start_model, save_base_model, wanted_adapters
from mental_r1_jax.runs.training_run import fresh_state
from mental_r1_jax.training import checkpoint
from mental_r1_jax.training.optimizer import make_optimizer
from tests.every_field.lab import Lab
from tests.every_field.loop import one_device


def base_of_start_model(lab: Lab, config: ExperimentConfig) -> Any:
    """The model under the adapters of a PEFT folder, which names `tiny`."""
    lora = wanted_adapters(config)
    assert lora is not None
    Path(config.model.path).mkdir()
    tiny = str(lab.shared / "tiny")
    peft_format.write_peft_config(Path(config.model.path), lora, tiny)
    base = open_start_model(config).base
    return base and base.name


def released_adapters(lab: Lab, config: ExperimentConfig) -> Any:
    """Files of the export of a run with adapters."""
    model = open_start_model(config)
    state = fresh_state(model, make_optimizer(config.optimizer, 1), one_device())
    folder = config.run.output_dir
    folder.mkdir()
    save_base_model(model, folder)
    with checkpoint.open_checkpoints(folder / "checkpoints") as manager:
        checkpoint.save(manager, 1, state, {}, None)
        manager.wait_until_finished()
    return sorted(path.name for path in export.run(config).iterdir())
