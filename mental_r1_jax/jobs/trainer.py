"""Everything a CRPO run needs, opened and bound but not yet compiled."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from mental_r1_jax.config import CrpoConfig, ExperimentConfig
from mental_r1_jax.data.loading import label_counts, load_examples
from mental_r1_jax.data.pipeline import steps_per_epoch
from mental_r1_jax.jobs.compiled import Programs, bind_programs
from mental_r1_jax.jobs.policy import Policy, load_weights, open_mesh, open_policy
from mental_r1_jax.models import decoder
from mental_r1_jax.rewards import (
    RewardFunction,
    answer_function,
    balanced_weights,
    format_function,
    load_reward_function,
)
from mental_r1_jax.rl.losses import LossConfig, stage_coefficients
from mental_r1_jax.rollout.sampler import SamplingConfig
from mental_r1_jax.text.stages import STAGE_NAMES
from mental_r1_jax.training.optimizer import make_optimizer, make_schedule
from mental_r1_jax.training.train_step import (
    StepConfig,
    TrainState,
    init_state,
    state_shardings,
)


@dataclasses.dataclass(frozen=True)
class Trainer:
    """The parts of a run.

    Attributes:
        config: the recipe.
        policy: the model without its weights.
        mesh: the devices.
        posts: training posts by set, random access.
        functions: reward functions with their weights.
        num_steps: rollouts of the whole run.
        optimizer: clipped AdamW.
        schedule: update number -> learning rate.
        programs: the three compiled functions of a step.
    """

    config: ExperimentConfig
    policy: Policy
    mesh: Mesh
    posts: Mapping[str, Sequence[Any]]
    functions: tuple[RewardFunction, ...]
    num_steps: int
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    programs: Programs


def make_trainer(config: ExperimentConfig) -> Trainer:
    """Open model, mesh and data of a recipe and bind the compiled functions.

    Raises:
        UserError: any of them is not as the recipe says.
    """
    per_update = config.rollout.prompts_per_step // config.run.micro_batches
    policy = open_policy(config.model.path, config)
    mesh = open_mesh(
        config,
        rows={
            "rollout.prompts_per_step / run.micro_batches": per_update,
            "evaluate.batch_size": config.evaluate.batch_size,
        },
        model=policy.config,
    )
    posts = load_examples(config, "train")
    num_steps = count_steps(config, posts)
    num_updates = num_steps * config.crpo.num_iterations
    optimizer = make_optimizer(config.optimizer, num_updates)
    return Trainer(
        config=config,
        policy=policy,
        mesh=mesh,
        posts=posts,
        functions=reward_functions(config, posts),
        num_steps=num_steps,
        optimizer=optimizer,
        schedule=make_schedule(config.optimizer, num_updates),
        programs=bind_programs(
            sampling_config(config, policy), step_config(config, policy), optimizer, mesh
        ),
    )


def count_steps(config: ExperimentConfig, posts: Mapping[str, Sequence[Any]]) -> int:
    """Rollouts of the run: `run.num_steps`, or `run.num_epochs` passes over the posts."""
    if config.run.num_steps is not None:
        return config.run.num_steps
    per_epoch = steps_per_epoch(list(posts.values()), config.rollout.prompts_per_step)
    return max(1, round(config.run.num_epochs * per_epoch))


def reward_functions(
    config: ExperimentConfig, posts: Mapping[str, Sequence[Any]]
) -> tuple[RewardFunction, ...]:
    """Format, answer and the user's own functions, weighted as the recipe says."""
    rewards = config.rewards
    weights = None
    if rewards.answer_weighting == "balanced":
        weights = balanced_weights(label_counts(posts))
    return (
        format_function(rewards.format_weight),
        answer_function(rewards.answer_weight, weights, rewards.answer_match),
        *(load_reward_function(path, weight) for path, weight in rewards.custom.items()),
    )


def sampling_config(config: ExperimentConfig, policy: Policy) -> SamplingConfig:
    """The sampler's static knobs."""
    rollout, tokenizer = config.rollout, policy.tokenizer
    return SamplingConfig(
        num_generations=rollout.num_generations,
        max_completion_length=rollout.max_completion_length,
        temperature=rollout.temperature,
        top_p=rollout.top_p,
        top_k=rollout.top_k,
        eos_ids=tokenizer.eos_ids,
        pad_id=tokenizer.pad_id,
        first_cache_length=rollout.first_cache_length,
        halvings=rollout.halvings,
    )


def step_config(config: ExperimentConfig, policy: Policy) -> StepConfig:
    """The update's static knobs."""
    return StepConfig(
        decoder=policy.config,
        loss=loss_config(config.crpo, config.rollout.max_completion_length),
        scale_rewards=config.crpo.scale_rewards,
        advantage_baseline=config.crpo.advantage_baseline,
        temperature=config.rollout.temperature,
        chunk_size=config.model.logprob_chunk_size,
        micro_batches=config.run.micro_batches,
    )


def loss_config(crpo: CrpoConfig, max_completion_length: int) -> LossConfig:
    """The objective's static knobs."""
    return LossConfig(
        stage_names=STAGE_NAMES,
        stage_entropy_coefs=stage_coefficients(
            crpo.stage_entropy_rule,
            crpo.stage_entropy_scale,
            crpo.stage_entropy_threshold,
            crpo.stage_entropy_coefs,
        ),
        stage_entropy_mean=crpo.stage_entropy_mean,
        clip_epsilon_low=crpo.clip_epsilon_low,
        clip_epsilon_high=crpo.clip_epsilon_high,
        dual_clip=crpo.dual_clip,
        importance_level=crpo.importance_level,
        kl_coef=crpo.kl_coef,
        kl_estimator=crpo.kl_estimator,
        aggregation=crpo.aggregation,
        max_completion_length=max_completion_length,
        entropy_bonus_coef=crpo.entropy_bonus_coef,
    )


def reference_weights(trainer: Trainer) -> Any:
    """Weights of the frozen start model, or None where the KL penalty is off.

    Matrices are kept in the compute dtype: the forward pass would round them there anyway.
    """
    if trainer.config.crpo.kl_coef == 0:
        return None
    weights, config = load_weights(trainer.policy, trainer.mesh), trainer.policy.config
    if config.dtype == jnp.float32:
        return weights
    return jax.jit(decoder.cast_matrices, static_argnums=1)(weights, config)


def fresh_state(policy: Policy, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """The start model's weights with zero moments."""
    create = jax.jit(
        functools.partial(init_state, optimizer=optimizer),
        out_shardings=state_shardings(policy.config, optimizer, mesh),
        donate_argnums=0,
    )
    return create(load_weights(policy, mesh))
