"""The whole objective: hand values, invariances, micro-batches, gradients, metrics."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import Array

from mental_r1_jax.config import STAGE_NAMES, CrpoConfig
from mental_r1_jax.models.head import token_stats
from mental_r1_jax.rl.loss_terms import (
    aggregate,
    clipped_surrogate,
    kl_penalty,
    probability_ratio,
)
from mental_r1_jax.rl.losses import crpo_loss, loss_denominators
from mental_r1_jax.rl.masking import Max, Min, SumWeight
from mental_r1_jax.types import Batch
from tests.rl.batches import Step, random_step
from tests.rl.objective import LIMIT, VARIANTS, loss_and_gradients, run


def test_hand_computed_loss_of_two_completions() -> None:
    """Two completions of 2 and 1 tokens, ratio 1, one stage of the last token of each."""
    config = CrpoConfig(
        stage_entropy_rule="explicit",
        stage_entropy_coefs=(0.5, -0.25, 0.0, 0.0, 0.0),
        kl_coef=0.1,
        entropy_bonus_coef=0.2,
    )
    nobody = [[False, False]] * 3
    batch = Batch(
        prompt_ids=jnp.ones((1, 1), jnp.int32),
        prompt_mask=jnp.ones((1, 1), bool),
        completion_ids=jnp.zeros((1, 2, 2), jnp.int32),
        completion_mask=jnp.array([[[True, True], [True, False]]]),
        stage_mask=jnp.array(
            [[[[True, True], [False, True], *nobody], [[True, False], [False, False], *nobody]]]
        ),
        rewards=jnp.zeros((1, 2)),
        sampler_logprobs=None,
        decode_logprobs=jnp.zeros((1, 2, 2)),
        ref_logprobs=jnp.array([[[-1.0, -2.0 + np.log(2.0)], [-2.0, 0.0]]]),
    )
    logprobs = jnp.array([[[-1.0, -2.0], [-2.0, jnp.nan]]])
    entropies = jnp.array([[[1.0, 2.0], [4.0, jnp.nan]]])
    loss, metrics = crpo_loss(
        logprobs,
        entropies,
        batch,
        jnp.array([[2.0, -1.0]]),
        loss_denominators(batch, config, LIMIT),
        config,
        LIMIT,
    )
    policy = -(2.0 + 2.0 - 1.0) / 3
    kl = (2.0 - np.log(2.0) - 1.0) / 3  # k3 of one token, whose reference is twice as likely
    stage = 0.5 * (1.5 + 4.0) / 2 - 0.25 * (2.0 + 0.0) / 2
    expected = policy + 0.1 * kl + stage - 0.2 * 7.0 / 3
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    values = {name: float(metric.value) for name, metric in metrics.items()}
    np.testing.assert_allclose(values["loss/policy"], policy, rtol=1e-6)
    np.testing.assert_allclose(values["loss/kl"], 0.1 * kl, rtol=1e-5)
    np.testing.assert_allclose(values["kl"], kl, rtol=1e-5)
    np.testing.assert_allclose(values["loss/stage_entropy"], stage, rtol=1e-6)
    np.testing.assert_allclose(values["entropy"], 7 / 3, rtol=1e-6)
    # The readable stage entropy leaves out the completion that lacks the second stage.
    assert values["entropy/stage/stimulus"] == 2.75
    assert values["entropy/stage/primary_appraisal"] == 2.0
    assert values["coverage/stage/primary_appraisal"] == 0.5


@pytest.mark.parametrize("name", VARIANTS)
def test_the_terms_of_the_loss_add_up_to_it(name: str) -> None:
    loss, metrics, _ = run(random_step(1), VARIANTS[name])
    terms = [metric.value for key, metric in metrics.items() if key.startswith("loss/")]
    np.testing.assert_allclose(sum(terms), loss, rtol=1e-6)
    assert len(terms) == 4


@pytest.mark.parametrize("name", VARIANTS)
def test_four_micro_batches_equal_one_batch(name: str) -> None:
    """Sums over global weights: the same loss, gradient and metrics for any micro-batches."""
    step, config = random_step(2), VARIANTS[name]
    denominators = loss_denominators(step.batch, config, LIMIT)
    loss, metrics, gradients = run(step, config)
    arguments = (step.logprobs, step.entropies, step.batch, step.advantages)
    parts = []
    for row in range(4):
        one = jax.tree.map(lambda x, row=row: x[row : row + 1], arguments)
        parts.append(loss_and_gradients(one, denominators, config))
    np.testing.assert_allclose(sum(part[0][0] for part in parts), loss, atol=1e-6)
    for index, gradient in enumerate(gradients):
        joined = jnp.concatenate([part[1][index] for part in parts])
        np.testing.assert_allclose(joined, gradient, atol=1e-6)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(part[0][1] for part in parts))
    for key, metric in stacked.items():
        np.testing.assert_allclose(
            metric.reduce().value, metrics[key].value, atol=1e-6, err_msg=key
        )


def test_metrics_of_maxima_are_typed_and_survive_micro_batches() -> None:
    _, metrics, _ = run(random_step(3), CrpoConfig(sampler_correction="tis"))
    assert isinstance(metrics["importance_ratio/max"], Max)
    assert isinstance(metrics["sampler_mismatch/max"], Max)
    assert isinstance(metrics["importance_ratio/min"], Min)
    assert isinstance(metrics["kl"], SumWeight)
    assert {f"entropy/stage/{stage}" for stage in STAGE_NAMES} <= metrics.keys()


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("garbage", [1e4, jnp.inf, jnp.nan])
def test_garbage_at_padding_leaves_loss_and_gradients_alone(name: str, garbage: float) -> None:
    """Log-ratios of 1e4 overflow `exp`; masking after it would give gradients 0 * inf = NaN."""
    step, config = random_step(4), VARIANTS[name]
    mask = step.batch.completion_mask

    def spoil(x: Array, value: float) -> Array:
        return jnp.where(mask, x, value)

    batch = step.batch.replace(
        old_logprobs=spoil(step.batch.old_logprobs, -garbage),
        ref_logprobs=spoil(step.batch.ref_logprobs, garbage),
        sampler_logprobs=spoil(step.batch.sampler_logprobs, -garbage),
        stage_mask=step.batch.stage_mask | ~mask[:, :, None, :],
    )
    spoilt = dataclasses.replace(
        step,
        batch=batch,
        logprobs=spoil(step.logprobs, garbage),
        entropies=spoil(step.entropies, garbage),
    )
    loss, metrics, gradients = run(step, config)
    spoilt_loss, spoilt_metrics, spoilt_gradients = run(spoilt, config)
    assert jnp.isfinite(loss)
    assert loss == spoilt_loss
    for clean, dirty in zip(gradients, spoilt_gradients, strict=True):
        np.testing.assert_array_equal(dirty, clean)
        np.testing.assert_array_equal(dirty[~mask], 0.0)
    for key in metrics:
        np.testing.assert_array_equal(spoilt_metrics[key].value, metrics[key].value, err_msg=key)


def padded(step: Step, columns: int) -> Step:
    """The step with further columns of padding."""
    length = step.logprobs.shape[-1]

    def pad(x: Array) -> Array:
        if x.ndim < 3:
            return x
        return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, columns)])

    padded_step = jax.tree.map(pad, (step.batch, step.logprobs, step.entropies))
    assert padded_step[1].shape[-1] == length + columns
    return Step(*padded_step, step.advantages)


@pytest.mark.parametrize("name", VARIANTS)
@settings(max_examples=8)
@given(seed=st.integers(0, 2**16))
def test_padding_columns_change_nothing(name: str, seed: int) -> None:
    step, config = random_step(seed), VARIANTS[name]
    loss, metrics, gradients = run(step, config)
    wide_loss, wide_metrics, wide_gradients = run(padded(step, 3), config)
    np.testing.assert_allclose(wide_loss, loss, rtol=1e-6, atol=1e-6)
    for narrow, wide in zip(gradients, wide_gradients, strict=True):
        np.testing.assert_allclose(wide[..., :-3], narrow, rtol=1e-6, atol=1e-7)
        np.testing.assert_array_equal(wide[..., -3:], 0.0)
    for key in metrics:
        np.testing.assert_allclose(
            wide_metrics[key].value, metrics[key].value, rtol=1e-6, atol=1e-6, err_msg=key
        )


@settings(max_examples=8)
@given(seed=st.integers(0, 2**16))
def test_the_order_of_prompts_and_completions_does_not_matter(seed: int) -> None:
    step, config = random_step(seed), VARIANTS["sequence"]
    rng = np.random.default_rng(seed)
    rows, columns = rng.permutation(4), rng.permutation(3)
    completion_axes = (step.logprobs, step.entropies, step.batch, step.advantages)

    def shuffle(x: Array) -> Array:
        return x[rows][:, columns] if x.shape[:2] == (4, 3) else x

    logprobs, entropies, batch, advantages = jax.tree.map(shuffle, completion_axes)
    loss, _, gradients = run(step, config)
    shuffled = run(Step(batch, logprobs, entropies, advantages), config)
    np.testing.assert_allclose(shuffled[0], loss, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(shuffled[2][0], shuffle(gradients[0]), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("aggregation", ["token", "dr_grpo"])
def test_completions_without_tokens_add_nothing_to_sums_over_tokens(aggregation: str) -> None:
    step = random_step(5)
    config = CrpoConfig(aggregation=aggregation)
    _, _, gradients = run(step, config)
    np.testing.assert_array_equal(gradients[0][0, 1], 0.0)
    nobody = step.batch.replace(completion_mask=jnp.zeros_like(step.batch.completion_mask))
    loss, _, gradients = run(dataclasses.replace(step, batch=nobody), config)
    assert loss == 0.0
    assert not any(bool(gradient.any()) for gradient in gradients)


def test_the_last_token_of_a_completion_is_trained() -> None:
    """The EOS is inside the mask, so it has a gradient; the first place after it has none."""
    step = random_step(6)
    _, _, (gradient, _) = run(step, CrpoConfig())
    lengths = step.batch.completion_mask.sum(axis=-1)
    for (b, g), length in np.ndenumerate(np.asarray(lengths)):
        np.testing.assert_array_equal(gradient[b, g, length:], 0.0)
    on_policy = dataclasses.replace(step, batch=step.batch.replace(old_logprobs=None))
    _, _, (gradient, _) = run(on_policy, CrpoConfig())
    np.testing.assert_array_equal(gradient != 0, step.batch.completion_mask)


def test_advantages_old_and_reference_policy_are_constants() -> None:
    """Only the policy's own log-probs and entropies are trained."""
    step, config = random_step(10), CrpoConfig()
    denominators = loss_denominators(step.batch, config, LIMIT)

    @jax.jit
    @functools.partial(jax.grad, argnums=(0, 1, 2))
    def gradients(advantages: Array, old: Array, ref: Array) -> Array:
        batch = step.batch.replace(old_logprobs=old, ref_logprobs=ref)
        weights = (advantages, denominators, config, LIMIT)
        return crpo_loss(step.logprobs, step.entropies, batch, *weights)[0]

    constants = (step.advantages, step.batch.old_logprobs, step.batch.ref_logprobs)
    assert not any(bool(gradient.any()) for gradient in gradients(*constants))


def test_the_stage_term_has_a_gradient_by_the_parameters() -> None:
    """Entropies taken as a metric, without gradient, would train nothing."""
    step = random_step(7)
    rng = np.random.default_rng(7)
    hidden = jnp.asarray(rng.standard_normal((*step.logprobs.shape, 6)), jnp.float32)
    matrix = jnp.asarray(rng.standard_normal((6, 11)), jnp.float32)
    config = CrpoConfig(kl_coef=0.0)
    denominators = loss_denominators(step.batch, config, LIMIT)

    @jax.jit
    def stage_term_alone(matrix: Array) -> Array:
        logprobs, entropies = token_stats(
            hidden, step.batch.completion_ids, matrix, temperature=0.85, chunk_size=4
        )
        weights = (jnp.zeros_like(step.advantages), denominators, config, LIMIT)
        return crpo_loss(logprobs, entropies, step.batch, *weights)[0]

    value, gradient = jax.value_and_grad(stage_term_alone)(matrix)
    assert jnp.all(gradient != 0)
    # A small step along the gradient lowers the term by about |gradient|^2 times the step.
    lower = stage_term_alone(matrix - 1e-2 * gradient / jnp.linalg.norm(gradient))
    np.testing.assert_allclose(value - lower, 1e-2 * jnp.linalg.norm(gradient), rtol=0.05)


def test_stage_mean_over_those_that_have_the_stage() -> None:
    step = random_step(8)
    rule = {"stage_entropy_rule": "explicit", "stage_entropy_coefs": (0.0, 0.0, 1.0, 0.0, 0.0)}
    everyone = CrpoConfig(**rule)
    present_only = CrpoConfig(**rule, stage_entropy_mean="present_only")
    present = step.batch.stage_mask[:, :, 2].any(axis=-1).sum()
    assert 0 < present < 12
    terms = [
        run(step, config)[1]["loss/stage_entropy"].value for config in (everyone, present_only)
    ]
    np.testing.assert_allclose(terms[0] * 12 / present, terms[1], rtol=1e-6)


def grpo(hidden: Array, matrix: Array, step: Step) -> Array:
    """GRPO put together from its terms, with no entropy in it at all."""
    batch, mask = step.batch, step.batch.completion_mask
    logprobs, _ = token_stats(hidden, batch.completion_ids, matrix, temperature=0.85, chunk_size=4)
    logprobs = jnp.where(mask, logprobs, 0.0)
    ratio = probability_ratio(logprobs, batch.old_logprobs, "token", mask)
    policy = clipped_surrogate(ratio, step.advantages, 0.2, 0.2)
    kl = kl_penalty(logprobs, jnp.where(mask, batch.ref_logprobs, 0.0), "k3")
    parts = [aggregate(per_token, mask, "token", LIMIT) for per_token in (policy, kl)]
    return parts[0].sum / parts[0].weight + 0.01 * (parts[1].sum / parts[1].weight)


@pytest.mark.parametrize(
    "rule",
    [
        {"stage_entropy_rule": "off"},
        {"stage_entropy_rule": "explicit", "stage_entropy_coefs": (0.0,) * len(STAGE_NAMES)},
    ],
    ids=["off", "explicit"],
)
@pytest.mark.parametrize("off_policy", [False, True])
def test_zero_stage_coefficients_are_grpo_bit_for_bit(
    rule: dict[str, Any], off_policy: bool
) -> None:
    step = random_step(9, off_policy=off_policy)
    rng = np.random.default_rng(9)
    hidden = jnp.asarray(rng.standard_normal((*step.logprobs.shape, 6)), jnp.float32)
    matrix = jnp.asarray(rng.standard_normal((6, 11)), jnp.float32)
    config = CrpoConfig(**rule)
    denominators = loss_denominators(step.batch, config, LIMIT)

    def ours(hidden: Array, matrix: Array) -> Array:
        logprobs, entropies = token_stats(
            hidden, step.batch.completion_ids, matrix, temperature=0.85, chunk_size=4
        )
        arguments = (step.batch, step.advantages, denominators, config, LIMIT)
        return crpo_loss(logprobs, entropies, *arguments)[0]

    crpo = jax.jit(jax.value_and_grad(ours, argnums=(0, 1)))(hidden, matrix)
    plain = jax.jit(jax.value_and_grad(functools.partial(grpo, step=step), argnums=(0, 1)))(
        hidden, matrix
    )
    jax.tree.map(np.testing.assert_array_equal, crpo, plain)


def test_clip_ratios_count_only_tokens_whose_gradient_is_taken() -> None:
    batch = random_step(0, b=1, g=2, c=4).batch.replace(
        completion_mask=jnp.array([[[True] * 4, [True, True, True, False]]]),
        old_logprobs=-jnp.log(jnp.array([[[2.0, 0.5, 1.0, 2.0], [2.0, 0.5, 0.5, 0.5]]])),
    )
    zeros = jnp.zeros((1, 2, 4))
    step = Step(batch, zeros, zeros, jnp.array([[1.0, -1.0]]))
    _, metrics, _ = run(step, CrpoConfig())
    values = {key: metrics[f"clip_ratio/{key}_mean"].value for key in ("low", "high", "region")}
    assert values == {
        "low": np.float32(2 / 7),
        "high": np.float32(2 / 7),
        "region": np.float32(4 / 7),
    }
    assert metrics["importance_ratio/max"].value == 2.0
    assert metrics["importance_ratio/min"].value == 0.5


def test_a_kl_penalty_needs_reference_logprobs() -> None:
    step = random_step(1)
    step = dataclasses.replace(step, batch=step.batch.replace(ref_logprobs=None))
    with pytest.raises(ValueError, match="kl_coef=0.01 expected batch.ref_logprobs"):
        run(step, CrpoConfig())
    _, metrics, _ = run(step, CrpoConfig(kl_coef=0.0))
    assert metrics["loss/kl"].value == 0.0
    assert "kl" not in metrics
