"""What a run folder knows of its run, read for the model card."""

from __future__ import annotations

from pathlib import Path

from mental_r1_jax.config import ExperimentConfig
from mental_r1_jax.data.benchmarks import SPLITS
from mental_r1_jax.data.loading import label_counts, load_examples
from mental_r1_jax.evaluation.run_metrics import training_seconds, training_steps
from mental_r1_jax.models.decoder import adapter_count, parameter_count
from mental_r1_jax.opening.adapters import run_folder_of
from mental_r1_jax.opening.model_source import ModelSource
from mental_r1_jax.release.tripod import RunRecord
from mental_r1_jax.training.metrics import METRICS_FILE, read_sound_metrics


def read_record(config: ExperimentConfig, model: ModelSource, evaluation: Path | None) -> RunRecord:
    """What the run of `config` knows beyond its recipe.

    Args:
        config: the resolved recipe.
        model: the model that is exported.
        evaluation: the `metrics.json` that the card shows, or None.
    """
    lines, _ = read_sound_metrics(config.run.output_dir / METRICS_FILE)
    steps = training_steps(lines)
    decoder = model.decoder
    folder = None if evaluation is None else evaluation.parent.name
    return RunRecord(
        model_type=str(model.hf_config.get("model_type")),
        parameters=parameter_count(decoder),
        adapter_parameters=0 if decoder.lora is None else adapter_count(decoder),
        started_from_run=run_folder_of(config.model.path) is not None,
        counts={split: label_counts(load_examples(config, split)) for split in SPLITS},
        supervised=bool(steps) and not any("reward" in line for line in steps),
        steps=int(max(line["step"] for line in steps)) if steps else None,
        seconds=training_seconds(steps),
        evaluated_split=folder if folder in SPLITS else None,
    )
