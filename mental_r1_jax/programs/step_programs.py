"""The three compiled programs of a CRPO step, and the shapes that a run feeds them.

    sample    prompts -> completions
    score     prompts and completions -> log-probs, of the reference or of the policy that sampled
    update    state and batch -> next state, metrics, advantages

A run binds and calls them; planning compiles the very same ones for other chips.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from mental_r1_jax import sharding
from mental_r1_jax.config import STAGE_NAMES, CrpoConfig, ExperimentConfig
from mental_r1_jax.footprint import compute_weights
from mental_r1_jax.models import decoder as network
from mental_r1_jax.models.decoder import DecoderConfig
from mental_r1_jax.programs.program import Program, compile_in_background
from mental_r1_jax.rollout.join import join_groups
from mental_r1_jax.rollout.sampler import (
    SamplerSettings,
    sample_completions,
    sampler_settings,
    step_key,
)
from mental_r1_jax.training.checkpoint import abstract_like
from mental_r1_jax.training.optimizer import make_optimizer
from mental_r1_jax.training.train_step import (
    TrainState,
    init_state,
    jit_train_step,
    state_shardings,
)
from mental_r1_jax.types import Batch, Completions, PromptBatch, TraceBatch

PHASES = ("rollout", "reference", "update")


@dataclass(frozen=True)
class StepPrograms:
    """The programs of a step.

    Attributes:
        sample: `(params, prompts, seed, step) -> Completions`; seed and step from `as_word`.
        score: `(params, traces) -> log-probs [B, G, C]`, nats.
        update: `(state, batch) -> (state, metrics, advantages)`; donates the state.
        join: `(two batches, rows) -> batch`, where a step draws in rounds.
    """

    sample: Program
    score: Program
    update: Program
    join: Program

    def compiled(self) -> int:
        """Number of programs and shapes compiled so far."""
        programs = (self.sample, self.score, self.update, self.join)
        return sum(program.compiled() for program in programs)


@dataclass(frozen=True)
class ProgramCall:
    """A program of a step, and what a run calls it with.

    Attributes:
        phase: one of `PHASES`.
        program: the very object that a run calls.
        arguments: shapes, dtypes and shardings of its arguments.
    """

    phase: str
    program: Program
    arguments: tuple[Any, ...]

    def compile(self) -> Any:
        """Compile for the devices of the arguments' shardings."""
        return self.program.compile(*self.arguments)


def bind_programs(
    config: ExperimentConfig,
    decoder: DecoderConfig,
    settings: SamplerSettings,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
) -> StepPrograms:
    """Bind everything static; each program compiles at its first call for a prompt length."""
    score = functools.partial(
        network.completion_logprobs,
        config=decoder,
        temperature=config.rollout.temperature,
        chunk_size=config.model.logprob_chunk_size,
    )
    return StepPrograms(
        sample=bind_sampler(decoder, settings, mesh),
        score=Program(jax.jit(score, out_shardings=sharding.batch_sharding(mesh, 3))),
        update=Program(
            jit_train_step(config=config, decoder=decoder, optimizer=optimizer, mesh=mesh)
        ),
        join=Program(jax.jit(join_groups, out_shardings=_joined_shardings(config, mesh))),
    )


def _joined_shardings(config: ExperimentConfig, mesh: Mesh) -> Batch:
    """Where the arrays of a joined batch live: where those of any batch do."""
    rows = _rows(mesh, bool, config.rollout.prompts_per_step)
    shapes = dataclasses.replace(abstract_batch(config, mesh), group_mask=rows)
    where: Batch = jax.tree.map(lambda leaf: leaf.sharding, shapes)
    return where


def bind_sampler(decoder: DecoderConfig, settings: SamplerSettings, mesh: Mesh) -> Program:
    """The sampler as a program, `(params, prompts, seed, step) -> Completions`.

    Its outputs are sharded over prompts, so that each process finds its own rows on its own
    devices. The random key is made inside, from two numbers: made outside, it would take programs
    of its own, and every process would have to agree on where it lives.
    """

    def sample(params: Any, prompts: PromptBatch, seed: jax.Array, step: jax.Array) -> Completions:
        key = step_key(seed, step)
        return sample_completions(params, prompts, key, config=decoder, settings=settings)

    def rows(ndim: int) -> Any:
        return sharding.batch_sharding(mesh, ndim)

    where = Completions(rows(3), rows(3), rows(3), rows(3), rows(2))
    if settings.entropies:
        where = dataclasses.replace(where, entropies=rows(3))
    if settings.greedy_row:
        where = dataclasses.replace(where, greedy=where)
    return Program(jax.jit(sample, out_shardings=where))


def as_word(number: int) -> np.uint32:
    """A seed or a step number as compiled functions take it; seeds count modulo 2**32."""
    return np.uint32(number & 0xFFFFFFFF)


def traces_of(prompts: PromptBatch | Batch, completions: Completions | Batch) -> TraceBatch:
    """Prompts and completions as the program `score` takes them: tokens, and no rewards."""
    return TraceBatch(
        prompt_ids=prompts.prompt_ids,
        prompt_mask=prompts.prompt_mask,
        completion_ids=completions.completion_ids,
        completion_mask=completions.completion_mask,
    )


def compile_ahead(
    programs: StepPrograms,
    config: ExperimentConfig,
    decoder: DecoderConfig,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    width: int,
    *,
    continues: bool = False,
) -> None:
    """Start compiling the programs of a run for prompts of `width` tokens in the background."""

    @functools.cache
    def all_calls() -> list[ProgramCall]:
        return program_calls(programs, config, decoder, optimizer, mesh, width, continues=continues)

    compile_in_background(
        (programs.sample, programs.score, programs.update),
        lambda program: [call.arguments for call in all_calls() if call.program is program],
    )


def step_programs(
    config: ExperimentConfig,
    decoder: DecoderConfig,
    mesh: Mesh,
    num_updates: int,
    *,
    eos_ids: tuple[int, ...],
    pad_id: int,
    width: int | None = None,
) -> list[ProgramCall]:
    """The programs of one step of a recipe on `mesh`, in the order in which a step runs them.

    Args:
        config: the recipe.
        decoder: the architecture of its model.
        mesh: of devices to compile for; they need not be there.
        num_updates: of the run; the learning rate's schedule is compiled in.
        eos_ids: tokens that end a completion, constants of the sampler.
        pad_id: token that fills up short rows, a constant of the sampler.
        width: P, tokens; the greatest prompt length when None.
    """
    optimizer = make_optimizer(config.optimizer, num_updates)
    settings = sampler_settings(config, "train", eos_ids=eos_ids, pad_id=pad_id)
    programs = bind_programs(config, decoder, settings, optimizer, mesh)
    return program_calls(programs, config, decoder, optimizer, mesh, width)


def program_calls(
    programs: StepPrograms,
    config: ExperimentConfig,
    decoder: DecoderConfig,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    width: int | None = None,
    *,
    continues: bool = False,
) -> list[ProgramCall]:
    """What a step of the recipe calls `programs` with, in its order; see `step_programs`.

    `continues` says that the start model has adapters: the reference then has them, too.
    """
    stages = config.text.stage_names
    state = abstract_state(decoder, optimizer, mesh, config.crpo, stages)
    batch = abstract_batch(config, mesh, width)
    traces = traces_of(batch, batch)
    asked = (state.weights, abstract_prompts(config, mesh, width), as_word(0), as_word(0))
    calls = [ProgramCall("rollout", programs.sample, asked)]
    reference = state.weights if continues else compute_weights(decoder, mesh)
    scored_by = [reference] if config.crpo.kl_coef > 0 else []
    # In the dtype of the master weights, the reference shares the sampling policy's program.
    if config.crpo.num_iterations > 1 and state.weights not in scored_by:
        scored_by.append(state.weights)
    calls += [ProgramCall("reference", programs.score, (by, traces)) for by in scored_by]
    return [*calls, ProgramCall("update", programs.update, (state, batch))]


def abstract_state(
    decoder: DecoderConfig,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    crpo: CrpoConfig | None = None,
    stages: tuple[str, ...] = STAGE_NAMES,
) -> TrainState:
    """Shapes and shardings of the state, to compile for or to restore a checkpoint into.

    `crpo` is None in supervised runs; `stages` are the names of the grammar's.
    """
    create = functools.partial(init_state, optimizer=optimizer, crpo=crpo, stages=stages)
    shapes = jax.eval_shape(create, network.abstract_trained(decoder))
    where = state_shardings(decoder, optimizer, mesh, crpo, stages)
    state: TrainState = abstract_like(shapes, dataclasses.replace(where, frozen=None))
    if decoder.lora is None:
        return state
    return dataclasses.replace(state, frozen=compute_weights(decoder, mesh))


def abstract_prompts(config: ExperimentConfig, mesh: Mesh, width: int | None = None) -> PromptBatch:
    """Shapes and shardings of a step's prompts, as `next_prompts` places them."""
    rows, length = config.rollout.prompts_per_step, width or config.rollout.max_prompt_length
    return PromptBatch(
        prompt_ids=_rows(mesh, jnp.int32, rows, length),
        prompt_mask=_rows(mesh, bool, rows, length),
        prompt_index=_rows(mesh, jnp.int32, rows),
    )


def abstract_batch(config: ExperimentConfig, mesh: Mesh, width: int | None = None) -> Batch:
    """Shapes and shardings of a step's training batch, as `assemble_batch` makes it."""
    rollout, crpo, stages = config.rollout, config.crpo, config.text.stage_names
    groups = rollout.prompts_per_step, rollout.num_generations
    tokens = *groups, rollout.max_completion_length
    prompts = abstract_prompts(config, mesh, width)
    of_tokens = _rows(mesh, jnp.float32, *tokens)
    return Batch(
        prompt_ids=prompts.prompt_ids,
        prompt_mask=prompts.prompt_mask,
        completion_ids=_rows(mesh, jnp.int32, *tokens),
        completion_mask=_rows(mesh, bool, *tokens),
        stage_mask=_rows(mesh, bool, *groups, len(stages), tokens[-1]),
        rewards=_rows(mesh, jnp.float32, *groups),
        sampler_logprobs=of_tokens if crpo.sampler_correction != "off" else None,
        decode_logprobs=of_tokens,
        old_logprobs=of_tokens if crpo.num_iterations > 1 else None,
        ref_logprobs=of_tokens if crpo.kl_coef > 0 else None,
        baseline_rewards=_rows(mesh, jnp.float32, groups[0])
        if crpo.advantage_baseline == "greedy"
        else None,
        group_mask=_rows(mesh, bool, groups[0]) if rollout.keep_groups != "all" else None,
    )


def _rows(mesh: Mesh, dtype: Any, *shape: int) -> Any:
    """An array with a row a prompt, sharded as batches are."""
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding.batch_sharding(mesh, len(shape)))
