"""Everything a CRPO run needs, opened and bound but not yet compiled."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Float

from mental_r1_jax import hosts
from mental_r1_jax.config import STAGE_NAMES, CrpoConfig, ExperimentConfig
from mental_r1_jax.data.loading import label_counts, load_examples, set_spec
from mental_r1_jax.data.pipeline import PromptIterator, make_prompt_iterator, steps_per_epoch
from mental_r1_jax.models import decoder as network
from mental_r1_jax.opening.devices import open_mesh
from mental_r1_jax.opening.model_source import (
    ModelSource,
    load_adapters,
    load_frozen,
    load_weights,
    open_start_model,
)
from mental_r1_jax.programs.step_programs import StepPrograms, bind_programs, compile_ahead
from mental_r1_jax.rewards import (
    Reward,
    answer_function,
    balanced_weights,
    format_function,
    load_reward_function,
    overlong_reward,
)
from mental_r1_jax.rollout.collect import common_width, render_prompts
from mental_r1_jax.rollout.sampler import sampler_settings
from mental_r1_jax.text.answers import AnswerReader
from mental_r1_jax.text.wording import grammar_of
from mental_r1_jax.training.optimizer import learning_rates, make_optimizer, make_schedule
from mental_r1_jax.training.train_step import TrainState, init_state, state_shardings


@dataclasses.dataclass(frozen=True)
class TrainingRun:
    """The parts of a run.

    Attributes:
        config: the recipe.
        model: the start model without its weights.
        mesh: the devices.
        posts: training posts by set, random access.
        functions: reward functions with their weights.
        reader: reads labels out of answers.
        num_steps: rollouts of the whole run.
        optimizer: clipped AdamW.
        learning_rates: the rate of every update, for people to read.
        programs: the compiled functions of a step.
    """

    config: ExperimentConfig
    model: ModelSource
    mesh: Mesh
    posts: Mapping[str, Sequence[Any]]
    functions: tuple[Reward, ...]
    reader: AnswerReader
    num_steps: int
    optimizer: optax.GradientTransformation
    learning_rates: Float[np.ndarray, " updates"]
    programs: StepPrograms


def open_training_run(config: ExperimentConfig) -> TrainingRun:
    """Open model, mesh and data of a recipe and bind the compiled functions.

    Raises:
        UserError: any of them is not as the recipe says.
    """
    per_update = config.rollout.prompts_per_step // config.run.micro_batches
    model = open_start_model(config)
    mesh = open_mesh(
        config,
        rows={
            "rollout.prompts_per_step / run.micro_batches": per_update,
            "evaluate.batch_size": config.evaluate.batch_size,
        },
        model=model.decoder,
    )
    posts = load_examples(config, "train")
    labels = {name: set_spec(config.data, name).labels for name in posts}
    reader = AnswerReader(labels, config.rewards.answer_match)
    num_steps = count_steps(config, posts)
    num_updates = num_steps * config.crpo.num_iterations
    optimizer = make_optimizer(config.optimizer, num_updates)
    settings = sampler_settings(
        config, "train", eos_ids=model.tokenizer.eos_ids, pad_id=model.tokenizer.pad_id
    )
    return TrainingRun(
        config=config,
        model=model,
        mesh=mesh,
        posts=posts,
        functions=reward_functions(config, posts, reader),
        reader=reader,
        num_steps=num_steps,
        optimizer=optimizer,
        learning_rates=learning_rates(make_schedule(config.optimizer, num_updates), num_updates),
        programs=bind_programs(config, model.decoder, settings, optimizer, mesh),
    )


def count_steps(config: ExperimentConfig, posts: Mapping[str, Sequence[Any]]) -> int:
    """Rollouts of the run: `run.num_steps`, or `run.num_epochs` passes over the posts."""
    if config.run.num_steps is not None:
        return config.run.num_steps
    per_epoch = steps_per_epoch(list(posts.values()), config.rollout.prompts_per_step)
    return max(1, round(config.run.num_epochs * per_epoch))


def reward_functions(
    config: ExperimentConfig, posts: Mapping[str, Sequence[Any]], reader: AnswerReader
) -> tuple[Reward, ...]:
    """Format, answer, length and the user's own functions, weighted as the recipe says."""
    rewards = config.rewards
    weights = None
    if rewards.answer_weighting == "balanced":
        weights = balanced_weights(label_counts(posts))
    scales = {}
    if rewards.answer_scale == "ordinal":
        specs = {name: set_spec(config.data, name) for name in posts}
        scales = {name: spec.labels for name, spec in specs.items() if spec.ordered}
    limit, cushion = config.rollout.max_completion_length, rewards.overlong_cushion
    overlong = overlong_reward(rewards.overlong_weight, limit, cushion)
    return (
        format_function(rewards.format_weight),
        answer_function(rewards.answer_weight, weights, reader, scales, rewards.under_call),
        *((overlong,) if overlong.weight else ()),
        *(load_reward_function(path, w, rewards.timeout_s) for path, w in rewards.custom.items()),
    )


def open_posts(run: TrainingRun) -> PromptIterator:
    """This process's share of the endless, shuffled stream of training posts, from its start."""
    size = run.config.rollout.prompts_per_step
    rows = hosts.local_rows(run.mesh, size)
    return make_prompt_iterator(
        list(run.posts.values()), batch_size=size, seed=run.config.run.seed, rows=rows
    )


def compile_first_step(run: TrainingRun, posts: PromptIterator) -> None:
    """Start compiling for the length of the first step's prompts; `posts` stays where it is.

    A resumed run may begin with shorter prompts than the first step's; then that step compiles.
    """
    start, rollout = posts.get_state(), run.config.rollout
    grammar = grammar_of(run.config.text)
    rendered = render_prompts(run.model.tokenizer, next(posts), rollout.max_prompt_length, grammar)
    posts.set_state(start)
    width = common_width(rendered, rollout)
    model = run.model
    compile_ahead(
        *(run.programs, run.config, model.decoder, run.optimizer, run.mesh, width),
        continues=model.continues,
    )


def reference_weights(run: TrainingRun) -> Any:
    """Weights of the frozen start model, or None where the KL penalty is off.

    Matrices are kept in the compute dtype: the forward pass would round them there anyway. Of a
    model with adapters only what the state's frozen weights lack, see `TrainState.beside_frozen`:
    nothing where they are fresh, for the start model is then the base; and the adapters of the
    start model where it has some, for the start model is then a cold start.
    """
    if run.config.crpo.kl_coef == 0:
        return None
    if run.model.base is not None:
        return load_adapters(run.model, run.mesh) if run.model.continues else {}
    weights, decoder = load_weights(run.model, run.mesh), run.model.decoder
    if decoder.dtype == jnp.float32:
        return weights
    return jax.jit(network.cast_matrices, static_argnums=1)(weights, decoder)


def fresh_state(
    model: ModelSource,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    crpo: CrpoConfig | None = None,
    seed: int = 0,
    stages: tuple[str, ...] = STAGE_NAMES,
) -> TrainState:
    """The start model's weights with zero moments.

    Args:
        model: from `open_start_model`.
        optimizer: of the run.
        mesh: where the weights live.
        crpo: None in supervised runs.
        seed: draws adapters, where the model has none yet.
        stages: names of the grammar's.
    """
    where = state_shardings(model.decoder, optimizer, mesh, crpo, stages)
    create = jax.jit(
        functools.partial(init_state, optimizer=optimizer, crpo=crpo, stages=stages),
        out_shardings=dataclasses.replace(where, frozen=None),
        donate_argnums=0,
    )
    if model.base is None:
        return create(load_weights(model, mesh))
    if model.continues:
        adapters = load_adapters(model, mesh)
    else:
        draw = jax.jit(network.init_adapters, static_argnums=0, out_shardings=where.params)
        adapters = draw(model.decoder, jax.random.key(seed))
    return dataclasses.replace(create(adapters), frozen=load_frozen(model, mesh))
