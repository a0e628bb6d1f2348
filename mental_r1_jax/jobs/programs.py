"""The programs of a step as the trainer compiles them, with the shapes that it feeds them.

Planning compiles these very functions for chips that are not there.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from mental_r1_jax import sharding
from mental_r1_jax.config import ExperimentConfig
from mental_r1_jax.jobs.compiled import (
    Programs,
    abstract_state,
    as_word,
    bind_programs,
    trace_batch,
)
from mental_r1_jax.jobs.policy import BASE_MODEL, Policy
from mental_r1_jax.jobs.trainer import sampling_config, step_config
from mental_r1_jax.models import decoder, hf_format
from mental_r1_jax.planning.known_models import KNOWN_CONFIGS
from mental_r1_jax.text.stages import STAGE_NAMES
from mental_r1_jax.text.tokenizer import Tokenizer
from mental_r1_jax.training.checkpoint import abstract_like
from mental_r1_jax.training.optimizer import make_optimizer
from mental_r1_jax.training.train_step import param_shardings
from mental_r1_jax.types import Batch, PromptBatch

PHASES = ("rollout", "reference", "update")


@dataclasses.dataclass(frozen=True)
class StepProgram:
    """One compiled function of a step, and what it is called with.

    Attributes:
        phase: one of `PHASES`.
        function: jitted, as the trainer has it.
        arguments: shapes, dtypes and shardings of its arguments.
    """

    phase: str
    function: Any
    arguments: tuple[Any, ...]

    def compile(self) -> Any:
        """Compile for the devices of the arguments' shardings."""
        return self.function.lower(*self.arguments).compile()


def open_shape(config: ExperimentConfig) -> Policy:
    """The recipe's model by its configuration alone: no weights, and a stand-in for the tokenizer.

    A folder needs nothing but `config.json`; the models of our own recipes need not be there.

    Raises:
        UserError: no such model, or one that the decoder would compute wrongly.
    """
    name = config.model.path
    if name in KNOWN_CONFIGS and not Path(name).is_dir():
        hf_config = KNOWN_CONFIGS[name]
    else:
        run = Path(name) / BASE_MODEL
        hf_config = hf_format.read_hf_config(run if run.is_dir() else hf_format.resolve_model(name))
    return Policy(
        folder=Path(name),
        run_folder=None,
        hf_config=hf_config,
        tokenizer=cast(Tokenizer, SimpleNamespace(eos_ids=(2,), pad_id=0)),
        config=hf_format.decoder_config_from_hf(
            hf_config, compute_dtype=config.model.compute_dtype, remat=config.model.remat
        ),
    )


def step_programs(
    config: ExperimentConfig,
    policy: Policy,
    mesh: Mesh,
    num_updates: int,
    *,
    bound: Programs | None = None,
    width: int | None = None,
) -> list[StepProgram]:
    """The programs of one step on `mesh`, in the order in which a step runs them.

    Args:
        config: the recipe.
        policy: from `open_shape`, or a whole model.
        mesh: of devices to compile for.
        num_updates: of the run; the learning rate's schedule is compiled in.
        bound: the functions of a run, to be compiled for it; new ones when None.
        width: P, tokens; the greatest length when None.
    """
    optimizer = make_optimizer(config.optimizer, num_updates)
    if bound is None:
        sampling, step = sampling_config(config, policy), step_config(config, policy)
        bound = bind_programs(sampling, step, optimizer, mesh)
    state = abstract_state(policy.config, optimizer, mesh)
    batch = abstract_batch(config, mesh, width)
    traces = trace_batch(batch, batch)
    asked = (state.params, abstract_prompts(config, mesh, width), as_word(0), as_word(0))
    programs = [StepProgram("rollout", bound.sample, asked)]
    scored_by = [abstract_reference(policy, mesh)] if config.crpo.kl_coef > 0 else []
    # In the dtype of the master weights, the reference shares the sampling policy's program.
    if config.crpo.num_iterations > 1 and state.params not in scored_by:
        scored_by.append(state.params)
    programs += [StepProgram("reference", bound.logprobs, (by, traces)) for by in scored_by]
    return [*programs, StepProgram("update", bound.update, (state, batch))]


def abstract_reference(policy: Policy, mesh: Mesh) -> Any:
    """Shapes and shardings of the reference weights, see `trainer.reference_weights`."""
    rounded = functools.partial(decoder.cast_matrices, config=policy.config)
    shapes = jax.eval_shape(rounded, decoder.abstract_params(policy.config))
    return abstract_like(shapes, param_shardings(policy.config, mesh))


def abstract_prompts(config: ExperimentConfig, mesh: Mesh, width: int | None = None) -> PromptBatch:
    """Shapes and shardings of a step's prompts, as `put_batch` places them."""
    rows, length = config.rollout.prompts_per_step, width or config.rollout.max_prompt_length
    return PromptBatch(
        prompt_ids=_rows(mesh, jnp.int32, rows, length),
        prompt_mask=_rows(mesh, bool, rows, length),
        prompt_index=_rows(mesh, jnp.int32, rows),
    )


def abstract_batch(config: ExperimentConfig, mesh: Mesh, width: int | None = None) -> Batch:
    """Shapes and shardings of a step's training batch, as `assemble_batch` makes it."""
    rollout, crpo = config.rollout, config.crpo
    groups = rollout.prompts_per_step, rollout.num_generations
    tokens = *groups, rollout.max_completion_length
    prompts = abstract_prompts(config, mesh, width)
    of_tokens = _rows(mesh, jnp.float32, *tokens)
    return Batch(
        prompt_ids=prompts.prompt_ids,
        prompt_mask=prompts.prompt_mask,
        completion_ids=_rows(mesh, jnp.int32, *tokens),
        completion_mask=_rows(mesh, bool, *tokens),
        stage_mask=_rows(mesh, bool, *groups, len(STAGE_NAMES), tokens[-1]),
        rewards=_rows(mesh, jnp.float32, *groups),
        sampler_logprobs=of_tokens,
        decode_logprobs=of_tokens,
        old_logprobs=of_tokens if crpo.num_iterations > 1 else None,
        ref_logprobs=of_tokens if crpo.kl_coef > 0 else None,
    )


def _rows(mesh: Mesh, dtype: Any, *shape: int) -> Any:
    """An array of prompts' rows, cut as batches are."""
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding.batch_sharding(mesh, len(shape)))
