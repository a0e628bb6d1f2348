"""What an update follows: stage entropies, causality, and the numbers it reports."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mental_r1_jax.config import STAGE_NAMES
from mental_r1_jax.models.decoder import completion_stats
from mental_r1_jax.rl import losses
from mental_r1_jax.rl.losses import Denominators
from mental_r1_jax.training.train_step import (
    crpo_gradient,
    jit_sft_step,
)
from mental_r1_jax.types import Batch, TraceBatch
from tests.tiny_decoder import (
    COMPLETION,
    CONFIG,
    GROUP,
    NUM_PROMPTS,
    TEMPERATURE,
    random_batch,
    random_params,
    tiny_recipe,
)
from tests.training.updates import (
    OPTIMIZER,
    assert_close,
    assert_equal,
    compiled,
    full_logits,
    mesh_of,
    numpy_entropies,
    score,
    start,
    two_updates,
)


@pytest.fixture(scope="module")
def batch() -> Batch:
    return random_batch()


# -- what the gradient is --------------------------------------------------------------------------


def test_stage_entropy_trains_the_whole_model(batch):
    """Its gradient is not 0, and agrees with finite differences of a NumPy Hbar."""
    config = tiny_recipe(kl_coef=0.0)
    flat = batch.replace(rewards=jnp.zeros_like(batch.rewards), ref_logprobs=None)
    params = jax.tree.map(jnp.asarray, random_params())
    ones = jnp.ones((len(STAGE_NAMES),), jnp.float32)
    count = jnp.float32(NUM_PROMPTS * GROUP)
    denominators = Denominators(policy=count, tokens=count, stages=count * ones)
    gradient, _ = jax.jit(functools.partial(crpo_gradient, config=config, decoder=CONFIG))(
        params, flat, jnp.zeros_like(batch.rewards), denominators
    )
    for path, leaf in jax.tree_util.tree_flatten_with_path(gradient)[0]:
        assert np.abs(leaf).max() > 1e-6, jax.tree_util.keystr(path)

    betas = 0.06 * np.tanh(np.arange(1, 6) - 3.5)
    mask = np.asarray(batch.stage_mask)

    def stage_loss(params: Any) -> float:
        entropies = numpy_entropies(params, flat)[:, :, None]
        means = (entropies * mask).sum(-1) / np.maximum(mask.sum(-1), 1)
        return float((means.mean((0, 1)) * betas).sum())

    norm = float(optax.tree.norm(gradient))
    shift = 3e-3 / norm

    def moved(by: float) -> float:
        return stage_loss(jax.tree.map(lambda p, g: p + by * g, params, gradient))

    # Along the gradient the slope is its norm; the error is that of the third derivative.
    assert (moved(shift) - moved(-shift)) / (2 * shift) == pytest.approx(norm**2, rel=0.01)


def test_zero_stage_coefficients_are_grpo_bit_for_bit(batch, monkeypatch):
    off = {"stage_entropy_rule": "off"}
    with_masks = two_updates(batch, **off)
    without = two_updates(batch.replace(stage_mask=jnp.zeros_like(batch.stage_mask)), **off)
    assert_equal(with_masks[:2], without[:2])
    assert with_masks.metrics["loss/stage_entropy"] == 0

    def loss(logprobs: jax.Array, entropies: jax.Array) -> jax.Array:
        crpo, rewards = tiny_recipe(**off).crpo, batch.rewards
        weights = losses.loss_denominators(batch, crpo, COMPLETION)
        of_batch = batch, rewards, weights, crpo, COMPLETION
        return losses.crpo_loss(logprobs, entropies, *of_batch)[0]

    # Not compiled: XLA may round what is left of a program otherwise when a part of it is gone.
    inputs = batch.decode_logprobs - 0.1, -batch.decode_logprobs
    graded = jax.value_and_grad(loss, argnums=(0, 1))
    with_term = graded(*inputs)
    # GRPO: the objective with the stage term taken out of the program.
    monkeypatch.setattr(losses, "_stage_term", lambda *_: (jnp.float32(0), {}))
    assert_equal(with_term, graded(*inputs))
    step = compiled.__wrapped__(**off)
    state = start()
    for _ in range(2):
        state, _, _ = step(state, batch)
    assert_close(with_masks.params, jax.tree.map(np.asarray, state.params), atol=2e-7)


def test_advantages_of_tokens_travel_with_their_micro_batch(batch):
    """One a token, all alike: the gradient of one a completion; and each token's own is used."""
    config = tiny_recipe(micro_batches=2)
    gradient_of = jax.jit(functools.partial(crpo_gradient, config=config, decoder=CONFIG))
    params = jax.tree.map(jnp.asarray, random_params())
    weights = losses.loss_denominators(batch, config.crpo, COMPLETION)
    per_token = jnp.broadcast_to(batch.rewards[..., None], batch.completion_mask.shape)
    ours, theirs, other = (
        gradient_of(params, batch, advantages, weights)[0]
        for advantages in (batch.rewards, per_token, per_token.at[-1, :, 0].add(1.0))
    )
    assert_equal(ours, theirs)
    assert np.abs(other["embedding"] - ours["embedding"]).max() > 1e-4


def test_stage_coefficients_change_the_update(batch):
    reference = two_updates(batch)
    grpo = two_updates(batch, stage_entropy_rule="off")
    assert np.abs(grpo.moments["embedding"] - reference.moments["embedding"]).max() > 1e-5


def test_later_tokens_do_not_reach_the_log_prob_of_an_earlier_one():
    rng = np.random.default_rng(3)
    ids = rng.permutation(CONFIG.vocab_size)[: 4 + COMPLETION].astype(np.int32)
    one = random_batch()
    one = one.replace(
        prompt_ids=jnp.asarray(ids[None, :4]),
        prompt_mask=jnp.ones((1, 4), bool),
        completion_ids=jnp.asarray(ids[None, None, 4:]),
        completion_mask=jnp.ones((1, 1, COMPLETION), bool),
    )
    params = jax.tree.map(jnp.asarray, random_params())

    @jax.jit
    def input_gradient(embedding: jax.Array, place: jax.Array) -> jax.Array:
        def logprob(embedding: jax.Array) -> jax.Array:
            logprobs, _ = completion_stats(
                params | {"embedding": embedding},
                one,
                config=CONFIG,
                temperature=TEMPERATURE,
                chunk_size=3,
            )
            return logprobs[0, 0, place]

        return jax.grad(logprob)(embedding)

    for place in (0, 3, COMPLETION - 1):
        by_token = np.abs(input_gradient(params["embedding"], place)).sum(-1)[ids]
        # The head is untied, so a token's row is touched through the input alone.
        assert (by_token[: 4 + place] > 0).all()
        assert (by_token[4 + place :] == 0).all()


# -- metrics and the cold start --------------------------------------------------------------------


def test_metrics_of_the_step(batch):
    _, metrics, used = compiled()(start(), batch)
    values = {name: float(metric.value) for name, metric in metrics.items()}
    mask = np.asarray(batch.completion_mask)
    assert values["tokens/completion"] == mask.sum()
    assert values["tokens/prompt"] == np.asarray(batch.prompt_mask).sum()
    rewards = np.asarray(batch.rewards, np.float64)
    std = rewards.std(1, ddof=1, keepdims=True)
    advantages = (rewards - rewards.mean(1, keepdims=True)) / (std + 1e-4)
    np.testing.assert_allclose(used, advantages, atol=1e-5)
    assert values["advantages/abs_mean"] == pytest.approx(np.abs(advantages).mean(), rel=1e-5)
    params = jax.tree.map(jnp.asarray, random_params())
    logprobs = np.asarray(score(params, batch))
    drift = np.abs(logprobs - np.asarray(batch.decode_logprobs))[mask]
    assert values["sampler_drift/max"] == pytest.approx(drift.max(), rel=1e-5)
    assert values["entropy"] == pytest.approx(numpy_entropies(params, batch)[mask].mean(), rel=1e-5)
    parts = ("policy", "kl", "stage_entropy", "entropy_bonus")
    assert values["loss"] == pytest.approx(sum(values[f"loss/{part}"] for part in parts), abs=1e-6)


def test_sft_loss_is_pytorchs_cross_entropy(batch):
    torch = pytest.importorskip("torch", reason="compares with PyTorch")
    traces = TraceBatch(
        prompt_ids=batch.prompt_ids,
        prompt_mask=batch.prompt_mask,
        completion_ids=batch.completion_ids[:, :1],
        completion_mask=batch.completion_mask[:, :1],
    )
    params = jax.tree.map(jnp.asarray, random_params())
    config = tiny_recipe(micro_batches=2)
    step = jit_sft_step(config=config, decoder=CONFIG, optimizer=OPTIMIZER, mesh=mesh_of())
    _, metrics = step(start(), traces)
    logits = torch.from_numpy(np.array(full_logits(params, traces)))
    mask = np.asarray(traces.completion_mask)
    targets = np.where(mask, np.asarray(traces.completion_ids), -100)
    expected = torch.nn.functional.cross_entropy(
        logits.reshape(-1, CONFIG.vocab_size), torch.from_numpy(targets).reshape(-1).long()
    )
    # At temperature 1, though the recipe samples at another one.
    assert float(metrics["loss"].value) == pytest.approx(float(expected), rel=1e-5)
