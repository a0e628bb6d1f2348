"""Probes of compiled programs: what JAX would compile for a recipe, as text.

Each verb that samples or scores has its own probe, so that a key which one of them forgets shows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from mental_r1_jax.config import ExperimentConfig
from mental_r1_jax.errors import UserError
from mental_r1_jax.jobs import evaluate, sample
from mental_r1_jax.models import decoder
from mental_r1_jax.models.decoder import DecoderConfig
from mental_r1_jax.opening.devices import open_mesh
from mental_r1_jax.opening.model_source import open_model
from mental_r1_jax.prediction import validation
from mental_r1_jax.prediction.predictor import Predictor
from mental_r1_jax.programs.step_programs import as_word, program_calls
from mental_r1_jax.release import verify
from mental_r1_jax.rollout.sampler import sample_completions
from mental_r1_jax.runs.training_run import open_training_run
from mental_r1_jax.training.metrics import Writers
from mental_r1_jax.types import PromptBatch
from tests.every_field.lab import Lab


class Caught(Exception):
    """Ends a verb once it has handed over what a probe wants."""


def _of_training(config: ExperimentConfig, phase: str) -> list[Any]:
    """Jaxprs of a phase of training: of the programs that a run binds, as it calls them."""
    run = open_training_run(config)
    calls = program_calls(run.programs, config, run.model.decoder, run.optimizer, run.mesh)
    return [
        jax.make_jaxpr(call.program.jitted)(*call.arguments)
        for call in calls
        if call.phase == phase
    ]


def training_sampler(lab: Lab, config: ExperimentConfig) -> str:
    """The sampler of training."""
    return str(_of_training(config, "rollout"))


def training_scorer(lab: Lab, config: ExperimentConfig) -> str:
    """What gives the log-probs of the reference, and of the policy that sampled."""
    return str(_of_training(config, "reference"))


def training_update(lab: Lab, config: ExperimentConfig) -> str:
    """The update of training."""
    return str(_of_training(config, "update"))


def predictor_of_validation(lab: Lab, config: ExperimentConfig) -> Predictor:
    """The one that training validates with."""
    model = open_model(config.model.path, config)
    nobody: Any = _Nobody()
    check = validation.Validator(config, model, open_mesh(config, rows={}), Writers([]), nobody)
    return _caught(lab, validation, "evaluate_posts", lambda: check.validate(1, {}))


def predictor_of_evaluation(lab: Lab, config: ExperimentConfig) -> Predictor:
    """The one of `mental-r1 evaluate`."""
    lab.run_folder()
    lab.patch.setattr(evaluate, "load_checkpoint", lambda *a, **k: ({}, None))
    return _caught(lab, evaluate, "evaluate_posts", lambda: evaluate.run(config))


def predictor_of_sample(lab: Lab, config: ExperimentConfig) -> Predictor:
    """The one of `mental-r1 sample`."""
    lab.run_folder()
    lab.patch.setattr(sample, "load_weights", lambda *a, **k: {})
    asked = {"post": "tea", "set_name": None}
    return _caught(lab, sample, "predict", lambda: sample.run(config, **asked))


def sample_confidence(lab: Lab, config: ExperimentConfig) -> str:
    """Whence `mental-r1 sample` has the probabilities that it shows."""
    return predictor_of_sample(lab, config).confidence


def validation_sampler(lab: Lab, config: ExperimentConfig) -> str:
    """The sampler of a validation while training."""
    return str(_sampler_of(predictor_of_validation(lab, config)))


def evaluation_sampler(lab: Lab, config: ExperimentConfig) -> str:
    """The sampler of `mental-r1 evaluate`."""
    return str(_sampler_of(predictor_of_evaluation(lab, config)))


def sample_sampler(lab: Lab, config: ExperimentConfig) -> str:
    """The sampler of `mental-r1 sample`."""
    return str(_sampler_of(predictor_of_sample(lab, config)))


def verification_sampler(lab: Lab, config: ExperimentConfig) -> str:
    """The sampler with which an export is verified."""
    return str(_of_verification(lab, config))


def evaluation_mesh(lab: Lab, config: ExperimentConfig) -> Any:
    """How the devices are laid out in `mental-r1 evaluate`."""
    try:
        return dict(predictor_of_evaluation(lab, config).mesh.shape)
    except UserError as error:
        return str(error)


def loops_of_training(lab: Lab, config: ExperimentConfig) -> list[list[int]]:
    """Rows and cache slots of every decoding loop of training."""
    return _loops(_of_training(config, "rollout")[0])


def loops_of_validation(lab: Lab, config: ExperimentConfig) -> list[list[int]]:
    """Those of a validation."""
    return _loops(_sampler_of(predictor_of_validation(lab, config)))


def loops_of_evaluation(lab: Lab, config: ExperimentConfig) -> list[list[int]]:
    """Those of `mental-r1 evaluate`."""
    return _loops(_sampler_of(predictor_of_evaluation(lab, config)))


def loops_of_verification(lab: Lab, config: ExperimentConfig) -> list[list[int]]:
    """Those of the verification of an export."""
    return _loops(_of_verification(lab, config))


@dataclasses.dataclass
class _Nobody:
    """A display that shows nothing."""

    def phase(self, name: str) -> None:
        """Show nothing."""


def _caught(lab: Lab, module: Any, name: str, run: Callable[[], Any]) -> Any:
    """The first argument that `run` hands to the function `name` of `module`."""
    caught: list[Any] = []

    def catch(first: Any, *rest: Any, **options: Any) -> Any:
        caught.append(first)
        raise Caught

    lab.patch.setattr(module, name, catch)
    with pytest.raises(Caught):
        run()
    return caught[0]


def _prompts(rows: int) -> PromptBatch:
    """Shapes of prompts."""
    words = jax.ShapeDtypeStruct((rows, 16), jnp.int32)
    return PromptBatch(
        prompt_ids=words,
        prompt_mask=words.update(dtype=bool),
        prompt_index=words.update(shape=(rows,)),
    )


def _sampler_of(predictor: Predictor) -> Any:
    """Jaxpr of a predictor's sampler."""
    params, word = decoder.abstract_params(predictor.model.decoder), as_word(0)
    return jax.make_jaxpr(predictor.sample.jitted)(params, _prompts(8), word, word)


def _of_verification(lab: Lab, config: ExperimentConfig) -> Any:
    """Jaxpr of the sampler with which an export is verified."""
    caught: list[Any] = []

    def catch(params: Any, prompts: Any, key: Any, *, config: DecoderConfig, settings: Any) -> Any:
        caught.append((config, settings))
        raise Caught

    model = open_model(config.model.path, config)
    lab.patch.setattr(verify, "_load_reference", lambda folder: (None, None))
    lab.patch.setattr(verify.hf_format, "load_params", lambda *a: {})
    lab.patch.setattr(verify, "sample_completions", catch)
    with pytest.raises(Caught):
        verify.verify_export(lab.tmp, model, config)
    ((exact, settings),) = caught

    def sampler(params: Any, prompts: PromptBatch, key: Any) -> Any:
        return sample_completions(params, prompts, key, config=exact, settings=settings)

    key = jax.eval_shape(lambda: jax.random.key(0))
    return jax.make_jaxpr(sampler)(decoder.abstract_params(exact), _prompts(1), key)


def _loops(jaxpr: Any) -> list[list[int]]:
    """[rows, cache slots] of the carried cache of every outer loop, in order."""
    found = []
    for equation in jaxpr.eqns:
        if equation.primitive.name == "while":
            # Truth values are of finished completions alone, [B, g]; the last array is a cache of
            # values, [B, K, g, slots, h] without axes of length 1.
            finished, *_ = (v.aval for v in equation.outvars if v.aval.dtype == bool)
            found.append([finished.shape[1], equation.outvars[-1].aval.shape[-2]])
        elif "jaxpr" in equation.params:
            found += _loops(equation.params["jaxpr"])
    return found
