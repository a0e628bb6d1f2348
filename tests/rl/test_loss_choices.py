"""Choices inside the policy and the KL term: advantages of tokens, masks, corrections."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

from mental_r1_jax.config import CrpoConfig
from tests.rl.batches import Step, random_step
from tests.rl.objective import VARIANTS, run


def with_advantages(step: Step, advantages: Array) -> Any:
    """Loss, metrics and gradients of a step with other advantages."""
    return run(dataclasses.replace(step, advantages=advantages), VARIANTS["dr_grpo"])


def test_an_advantage_of_a_completion_is_that_of_each_of_its_tokens() -> None:
    step = random_step(11)
    per_token = jnp.broadcast_to(step.advantages[..., None], step.logprobs.shape)
    ours, theirs = (with_advantages(step, x) for x in (step.advantages, per_token))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_advantages_of_tokens_by_hand() -> None:
    """Ratio 1: the policy loss is the mean of -A over the 4 tokens, its gradient -A / 4."""
    step = random_step(12, b=1, g=2, c=3, off_policy=False)
    mask = jnp.array([[[True, True, True], [True, False, False]]])
    step = dataclasses.replace(
        step,
        batch=step.batch.replace(completion_mask=mask),
        advantages=jnp.array([[[1.0, -2.0, 4.0], [8.0, 100.0, jnp.nan]]]),
    )
    config = CrpoConfig(kl_coef=0.0, stage_entropy_rule="off")
    loss, metrics, (gradient, _) = run(step, config)
    assert loss == metrics["loss/policy"].value == -11 / 4
    np.testing.assert_array_equal(gradient, [[[-0.25, 0.5, -1.0], [-2.0, 0.0, 0.0]]])


def test_tokens_outside_the_policy_mask_keep_kl_and_entropy() -> None:
    """They lose their policy loss alone, and stay in what it is divided by."""
    step, config = random_step(13), VARIANTS["paper"]
    keep = step.batch.completion_mask & (step.entropies > 1.0)
    masked = dataclasses.replace(step, batch=step.batch.replace(policy_mask=keep))
    _, metrics, (gradient, by_entropy) = run(masked, config)
    _, plain, (full, full_by_entropy) = run(step, config)
    no_policy = dataclasses.replace(step, advantages=jnp.zeros_like(step.advantages))
    _, _, (kl_alone, _) = run(no_policy, config)
    np.testing.assert_allclose(gradient, jnp.where(keep, full, kl_alone), atol=1e-7)
    np.testing.assert_array_equal(by_entropy, full_by_entropy)
    np.testing.assert_allclose(
        metrics["policy_mask/share"].value, keep.sum() / step.batch.completion_mask.sum(), rtol=1e-6
    )
    for name in plain.keys() - {"loss/policy"}:
        np.testing.assert_array_equal(metrics[name].value, plain[name].value, err_msg=name)


def test_the_sampler_correction_is_that_of_the_policy_that_sampled() -> None:
    """With old log-probs the weight is theirs, whatever the policy has become since."""
    step = random_step(14)
    shifted = step.batch.replace(sampler_logprobs=step.batch.old_logprobs + jnp.log(1.25))
    step = dataclasses.replace(step, batch=shifted)
    loss, metrics, (gradient, _) = run(step, CrpoConfig(kl_coef=0.0, sampler_correction="tis"))
    _, plain, (full, _) = run(step, CrpoConfig(kl_coef=0.0))
    np.testing.assert_allclose(metrics["sampler_correction/mean"].value, 0.8, rtol=1e-5)
    np.testing.assert_allclose(
        metrics["loss/policy"].value, 0.8 * plain["loss/policy"].value, rtol=1e-5
    )
    np.testing.assert_allclose(gradient, 0.8 * full, rtol=1e-5, atol=1e-8)
    mask = step.batch.completion_mask
    mismatch = np.abs(step.logprobs - shifted.sampler_logprobs)[mask]
    np.testing.assert_allclose(metrics["sampler_mismatch/max"].value, mismatch.max(), rtol=1e-6)
    np.testing.assert_allclose(metrics["sampler_mismatch/mean"].value, mismatch.mean(), rtol=1e-5)


def test_a_correction_without_log_probs_of_the_sampler_is_refused() -> None:
    step = random_step(14)
    step = dataclasses.replace(step, batch=step.batch.replace(sampler_logprobs=None))
    with pytest.raises(ValueError, match="sampler_correction=tis expected batch.sampler_logprobs"):
        run(step, CrpoConfig(sampler_correction="tis"))
    loss, _, _ = run(step, CrpoConfig())
    assert jnp.isfinite(loss)


def test_a_kl_penalty_in_the_reward_is_measured_and_not_in_the_loss() -> None:
    step = random_step(15)
    _, metrics, gradients = run(step, CrpoConfig(kl_in="reward"))
    _, without, expected = run(step, CrpoConfig(kl_coef=0.0))
    jax.tree.map(np.testing.assert_array_equal, gradients, expected)
    assert metrics["loss/kl"].value == 0 and metrics["kl"].value == without["kl"].value > 0
