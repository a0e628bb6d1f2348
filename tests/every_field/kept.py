"""The probe of what a run keeps: `train` with real files, and the toy policy for a network."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import jax

from mental_r1_jax.config import ExperimentConfig
from mental_r1_jax.jobs import train
from mental_r1_jax.prediction import validation
from mental_r1_jax.runs import session
from mental_r1_jax.training.train_step import init_state
from tests.every_field import toys
from tests.every_field.lab import Lab
from tests.every_field.loop import toy_run


def run_kept(lab: Lab, config: ExperimentConfig) -> Any:
    """Files of a run of four steps, posts of every validation, and what trackers were told."""
    validated: list[int] = []
    tracked: list[str] = []
    long = config.run.model_copy(update={"num_steps": 4})
    run = toy_run(lab, config.model_copy(update={"run": long}))

    def fresh(*arguments: Any) -> Any:
        return init_state(toys.toy_params(run.model.tokenizer), run.optimizer)

    def abstract(*arguments: Any) -> Any:
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), fresh())

    def scored(predictor: Any, params: Any, posts: Any) -> Any:
        validated.append(sum(map(len, posts.values())))
        return {}, []

    def start(*, project: str, **options: Any) -> Any:
        tracked.append(project)
        return SimpleNamespace(log=lambda *a, **k: None, finish=lambda: None)

    lab.patch.setattr(session, "fresh_state", fresh)
    lab.patch.setattr(session, "abstract_state", abstract)
    lab.patch.setattr(validation, "evaluate_posts", scored)
    scores = {"weighted_f1": 0.5, "macro_f1": 0.5, "well_formed": 1.0}
    lab.patch.setattr(validation, "average_metrics", lambda by_set: scores)
    for package in ("wandb", "trackio"):
        lab.patch.setitem(sys.modules, package, SimpleNamespace(init=start))
    status: Any = 0
    try:
        train.train(run)
    except SystemExit as ended:  # with `run.max_hours`
        status = ended.code
    folder = config.run.output_dir
    steps = sorted(path.name for path in (folder / "checkpoints").iterdir())
    kinds = sorted(path.name for path in folder.iterdir())
    completions = sorted(path.name for path in folder.glob("completions/*"))
    where = str(folder.relative_to(lab.tmp))
    return where, status, steps, kinds, completions, validated, tracked
