"""The probe of what a run keeps: the real loop with real files, and a policy of two numbers."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mental_r1_jax.config import ExperimentConfig
from mental_r1_jax.jobs import run_loop, validation
from mental_r1_jax.jobs.policy import open_mesh, open_policy
from mental_r1_jax.training.train_step import init_state
from tests.every_field.lab import Lab


class TwoNumbers:
    """Work that adds one to its weights."""

    def step(self, step: int, state: Any, progress: Any, meanwhile: Any) -> Any:
        """Do one step."""
        meanwhile()
        return state.replace(params={"w": state.params["w"] + 1.0}), lambda: {"reward": step}

    def position(self) -> dict[str, Any]:
        """Nothing to remember."""
        return {}

    def seek(self, position: dict[str, Any]) -> None:
        """Nothing to go to."""


def run_kept(lab: Lab, config: ExperimentConfig) -> Any:
    """Files of a run of four steps, posts of every validation, and what trackers were told."""
    optimizer = optax.sgd(1.0)
    validated: list[int] = []
    tracked: list[str] = []

    def fresh(*arguments: Any) -> Any:
        return init_state({"w": jnp.zeros(2)}, optimizer)

    def abstract(*arguments: Any) -> Any:
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), fresh())

    def scored(predictor: Any, params: Any, posts: Any) -> Any:
        validated.append(sum(map(len, posts.values())))
        return {}, []

    def start(*, project: str, **options: Any) -> Any:
        tracked.append(project)
        return SimpleNamespace(log=lambda *a, **k: None, finish=lambda: None)

    lab.patch.setattr(run_loop, "fresh_state", fresh)
    lab.patch.setattr(run_loop, "abstract_state", abstract)
    lab.patch.setattr(validation, "evaluate_posts", scored)
    scores = {"weighted_f1": 0.5, "macro_f1": 0.5, "well_formed": 1.0}
    lab.patch.setattr(validation, "average_metrics", lambda by_set: scores)
    lab.patch.setitem(sys.modules, "wandb", SimpleNamespace(init=start))
    policy = open_policy(config.model.path, config)
    mesh = open_mesh(config, rows={})
    run_loop.run_loop(TwoNumbers(), config, policy, mesh, optimizer, 4)
    folder = config.run.output_dir
    steps = sorted(path.name for path in (folder / "checkpoints").iterdir())
    kinds = sorted(path.name for path in folder.iterdir())
    return str(folder.relative_to(lab.tmp)), steps, kinds, validated, tracked
