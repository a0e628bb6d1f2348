"""Losses of recipes, with metrics and gradients, as tests of the objective compute them."""

from __future__ import annotations

import functools

import jax
from jax import Array

from mental_r1_jax.config import CrpoConfig
from mental_r1_jax.rl.losses import Denominators, crpo_loss, loss_denominators
from mental_r1_jax.rl.masking import Metric
from mental_r1_jax.types import Batch
from tests.rl.batches import Step

LIMIT = 9  # the longest completion that a rollout could have made

VARIANTS = {
    "paper": CrpoConfig(),
    "sequence": CrpoConfig(
        aggregation="sequence",
        importance_level="sequence",
        policy_loss="cispo",
        sampler_correction="icepop",
        kl_estimator="k3_corrected",
        stage_entropy_mean="present_only",
    ),
    "dr_grpo": CrpoConfig(
        aggregation="dr_grpo",
        dual_clip=1.5,
        clip_epsilon_high=0.28,
        kl_estimator="k2",
        entropy_bonus_coef=0.03,
    ),
}


@functools.partial(jax.jit, static_argnames="config")
def loss_and_gradients(
    step: tuple[Array, Array, Batch, Array], denominators: Denominators, config: CrpoConfig
) -> tuple[tuple[Array, dict[str, Metric]], tuple[Array, Array]]:
    logprobs, entropies, batch, advantages = step
    return jax.value_and_grad(crpo_loss, argnums=(0, 1), has_aux=True)(
        logprobs, entropies, batch, advantages, denominators, config, LIMIT
    )


def run(
    step: Step, config: CrpoConfig, denominators: Denominators | None = None
) -> tuple[Array, dict[str, Metric], tuple[Array, Array]]:
    """Loss, metrics and gradients by (logprobs, entropies) of a step."""
    denominators = denominators or loss_denominators(step.batch, config, LIMIT)
    arguments = (step.logprobs, step.entropies, step.batch, step.advantages)
    (loss, metrics), gradients = loss_and_gradients(arguments, denominators, config)
    return loss, metrics, gradients
