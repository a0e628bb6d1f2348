"""Probes of verbs that read posts without training on them: what each of them sees of a recipe."""

from __future__ import annotations

import io
from typing import Any

import jax
import numpy as np
import pytest
from rich.console import Console

from mental_r1_jax.config import ExperimentConfig
from mental_r1_jax.errors import UserError
from mental_r1_jax.jobs import data, evaluate, sample
from mental_r1_jax.opening.model_source import open_model
from mental_r1_jax.prediction import predictor as predict
from mental_r1_jax.release import verify
from tests.every_field.lab import Lab
from tests.every_field.programs import Caught


def reported(lab: Lab, config: ExperimentConfig) -> Any:
    """What `mental-r1 data` finds, with its status or error; not the title, which quotes a key."""
    screen = Console(file=io.StringIO(), width=200)
    lab.patch.setattr(data, "open_console", lambda: screen)
    try:
        ended: Any = data.run(config)
    except UserError as error:
        ended = str(error)
    assert isinstance(screen.file, io.StringIO)
    lines = screen.file.getvalue().splitlines()
    return ended, [line for line in lines if "Labelled posts" not in line]


def evaluated_posts(lab: Lab, config: ExperimentConfig) -> Any:
    """The posts that `mental-r1 evaluate` predicts, by set. It ends there."""
    asked: list[Any] = []

    def catch(predictor: Any, params: Any, posts: Any, **options: Any) -> Any:
        asked.extend((name, list(of_set)) for name, of_set in posts.items())
        raise Caught

    lab.patch.setattr(evaluate, "load_checkpoint", lambda *a, **k: ({}, None))
    lab.patch.setattr(evaluate, "evaluate_posts", catch)
    lab.run_folder()
    with pytest.raises(Caught):
        evaluate.run(config)
    return asked


def verified_prompt(lab: Lab, config: ExperimentConfig) -> Any:
    """The prompt with which an export is verified. It ends there."""
    asked: list[Any] = []

    def catch(params: Any, prompts: Any, *rest: Any, **options: Any) -> Any:
        asked.append(np.asarray(prompts.prompt_ids).tolist())
        raise Caught

    lab.patch.setattr(verify, "_load_reference", lambda folder: (None, None))
    lab.patch.setattr(verify.hf_format, "load_params", lambda *a: {})
    lab.patch.setattr(verify, "sample_completions", catch)
    lab.patch.setattr(jax, "jit", lambda function: function)
    with pytest.raises(Caught):
        verify.verify_export(lab.tmp, open_model(config.model.path, config), config)
    return asked


def sampled_prompt(lab: Lab, config: ExperimentConfig) -> Any:
    """The prompt that `mental-r1 sample` makes of a post, and the labels. It ends there."""
    asked: list[Any] = []
    real = sample.predict

    def keep_labels(predictor: Any, params: Any, posts: Any, labels: Any) -> Any:
        asked.append(labels)
        return real(predictor, params, posts, labels)

    def stop(params: Any, prompts: Any, *randomness: Any) -> Any:
        before = [] if prompts.prefix_ids is None else np.asarray(prompts.prefix_ids).tolist()
        asked.append([before, np.asarray(prompts.prompt_ids).tolist()])
        raise Caught

    lab.patch.setattr(sample, "load_weights", lambda *a, **k: {})
    lab.patch.setattr(sample, "predict", keep_labels)
    lab.patch.setattr(predict, "bind_sampler", lambda *a: stop)
    lab.run_folder()
    with pytest.raises(Caught):
        sample.run(config, post="tea " * 400, set_name=None)
    return asked
