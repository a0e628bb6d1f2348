"""Weighted F1 on held-out posts while training, independent of the reward."""

from __future__ import annotations

from typing import Any

from jax.sharding import Mesh

from mental_r1_jax.config import ExperimentConfig
from mental_r1_jax.console.progress import Progress
from mental_r1_jax.evaluation.metrics import average_metrics
from mental_r1_jax.opening.model_source import ModelSource
from mental_r1_jax.prediction.held_out import evaluate_posts, held_out_posts
from mental_r1_jax.prediction.predictor import make_predictor
from mental_r1_jax.training.metrics import Writers


class Validator:
    """Scores the current weights on the validation posts and logs the result."""

    def __init__(
        self,
        config: ExperimentConfig,
        model: ModelSource,
        mesh: Mesh,
        writers: Writers,
        progress: Progress,
    ) -> None:
        self._writers, self._progress = writers, progress
        self._posts = held_out_posts(config, "validation", config.run.eval_limit_per_set)
        self._predictor = make_predictor(model, config, mesh, "validate")

    def validate(self, step: int, params: Any) -> float:
        """Score `params`, log every set, and return the mean weighted F1 (0 to 1)."""
        self._progress.phase("validating")
        by_set, _ = evaluate_posts(self._predictor, params, self._posts)
        average = average_metrics(by_set)
        self._writers.write(
            step,
            {f"eval/{name}/weighted_f1": m.weighted_f1 for name, m in by_set.items()}
            | {f"eval/average/{key}": value for key, value in average.items()},
        )
        self._progress.print(
            f"step {step}: validation weighted F1 {100 * average['weighted_f1']:.1f}, "
            f"macro F1 {100 * average['macro_f1']:.1f}, "
            f"well formed {100 * average['well_formed']:.0f}%"
        )
        return average["weighted_f1"]
