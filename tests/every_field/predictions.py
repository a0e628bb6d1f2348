"""Probes of predictions: the real validation and evaluation, with scripted logits for a network."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mental_r1_jax.config import ExperimentConfig
from mental_r1_jax.jobs import evaluate
from mental_r1_jax.opening.model_source import open_model
from mental_r1_jax.prediction import label_scores, validation
from mental_r1_jax.prediction import predictor as predict
from mental_r1_jax.training.metrics import Writers
from tests.every_field import toys
from tests.every_field.lab import Lab
from tests.every_field.loop import Lines, one_device
from tests.every_field.probes import patch_sampler

# An answer that starts with a label and goes on.
LONG_ANSWER = toys.COMPLETIONS[1]

Shapes = list[tuple[tuple[int, ...], tuple[int, ...]]]


class _Nobody:
    """A display that shows nothing."""

    def phase(self, name: str) -> None:
        """Show nothing."""

    print = phase


def _patch_network(lab: Lab, config: ExperimentConfig, text: str) -> Shapes:
    """Put the script in place of the network; gets the shapes that will be run."""
    shapes: Shapes = []
    ask = predict.ask

    def asked(predictor: Any, params: Any, prompts: Any, *others: Any) -> Any:
        completions = ask(predictor, params, prompts, *others)
        longest = max(len(prompt.ids) for prompt in prompts)
        shapes.append(((len(prompts), longest), completions.completion_ids.shape))
        return completions

    patch_sampler(lab, open_model(config.model.path, config).tokenizer, text)
    lab.patch.setattr(predict, "ask", asked)
    lab.patch.setattr(label_scores.network, "completion_stats", toys.toy_stats)
    return shapes


def _evaluate(lab: Lab, config: ExperimentConfig, text: str) -> dict[str, Any]:
    """Run `mental-r1 evaluate` on the run with two checkpoints."""
    shapes = _patch_network(lab, config, text)
    lab.patch.setattr(evaluate, "open_mesh", lambda *a, **k: one_device())
    lab.patch.setattr(evaluate, "load_checkpoint", lambda *a, **k: ({}, None))
    lab.run_folder()
    folder = evaluate.run(config)
    opened = open_model(config.evaluate.model or str(config.run.output_dir), config)
    return {
        "folder": str(folder.relative_to(lab.tmp)),
        "metrics": json.loads((folder / "metrics.json").read_text(encoding="utf-8")),
        "predictions": (folder / "predictions.csv").read_text(encoding="utf-8"),
        "shapes": shapes,
        "model": opened.decoder.intermediate_size,
    }


def evaluated(lab: Lab, config: ExperimentConfig) -> Any:
    """Every file of an evaluation, the model that was opened, and the shapes that were run."""
    return _evaluate(lab, config, toys.COMPLETIONS[0])


def reading_room(lab: Lab, config: ExperimentConfig) -> Any:
    """How many completions the report shows."""
    folder = lab.tmp / evaluated(lab, config)["folder"]
    return (folder / "report.html").read_text(encoding="utf-8").count("<details")


def evaluated_shapes(lab: Lab, config: ExperimentConfig) -> Any:
    """The shapes alone."""
    return evaluated(lab, config)["shapes"]


def evaluated_intervals(lab: Lab, config: ExperimentConfig) -> Any:
    """Bootstrap intervals of every set."""
    sets = evaluated(lab, config)["metrics"]["sets"]
    return {name: scores["weighted_f1_interval"] for name, scores in sets.items()}


def evaluated_long_answers(lab: Lab, config: ExperimentConfig) -> Any:
    """Predictions of an evaluation where every answer goes on after a label."""
    return _evaluate(lab, config, LONG_ANSWER)["predictions"]


def evaluated_randomness(lab: Lab, config: ExperimentConfig) -> Any:
    """Seed and step that an evaluation samples with. It ends there."""
    asked: list[list[int]] = []

    def sample(params: Any, prompts: Any, *randomness: Any) -> Any:
        asked.append([int(number) for number in randomness])
        raise InterruptedError

    lab.patch.setattr(predict, "bind_sampler", lambda *a: sample)
    with pytest.raises(InterruptedError):
        evaluated(lab, config)
    return asked


def _validate(lab: Lab, config: ExperimentConfig, text: str) -> tuple[Any, Shapes]:
    """Metrics of a validation, and the shapes that were run."""
    shapes = _patch_network(lab, config, text)
    lines, nobody = Lines(), _Nobody()
    model: Any = open_model(config.model.path, config)
    writers, display = Writers([lines]), nobody
    validation.Validator(config, model, one_device(), writers, display).validate(1, {})
    return lines.told, shapes


def validated_shapes(lab: Lab, config: ExperimentConfig) -> Any:
    """Shapes that a validation runs."""
    return _validate(lab, config, toys.COMPLETIONS[0])[1]


def validated_long_answers(lab: Lab, config: ExperimentConfig) -> Any:
    """Metrics of a validation where every answer goes on after a label."""
    return _validate(lab, config, LONG_ANSWER)[0]
