"""The update: the same on any number of micro-batches and devices, compiled once, finite."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mental_r1_jax import sharding
from mental_r1_jax.runs.step_log import StepRecord, read_record
from mental_r1_jax.training.accumulation import interleave
from mental_r1_jax.training.train_step import with_policy_mask
from mental_r1_jax.types import Batch
from tests.tiny_decoder import (
    COMPLETION,
    CONFIG,
    random_batch,
    random_params,
    tiny_recipe,
)
from tests.training.updates import (
    RATE,
    Updated,
    assert_equal,
    assert_same,
    compiled,
    mesh_of,
    numpy_entropies,
    place,
    score,
    start,
    two_updates,
)


@pytest.fixture(scope="module")
def batch() -> Batch:
    return random_batch()


@pytest.fixture(scope="module")
def reference(batch: Batch) -> Updated:
    """Two updates on one device in one micro-batch."""
    return two_updates(batch)


# -- the same update, however it is computed -------------------------------------------------------


@pytest.mark.parametrize(
    ("mesh", "micro_batches"), [((1,), 4), ((8,), 1), ((2, 2, 2), 1), ((2, 2, 1), 2)]
)
def test_micro_batches_and_devices_give_the_same_update(batch, reference, mesh, micro_batches):
    assert_same(two_updates(batch, mesh, micro_batches=micro_batches), reference)


def test_the_update_moves_every_weight_matrix(reference):
    before = random_params()
    for (path, old), new in zip(
        jax.tree_util.tree_flatten_with_path(before)[0],
        jax.tree.leaves(reference.params),
        strict=True,
    ):
        assert np.abs(new - old).max() > RATE / 2, jax.tree_util.keystr(path)


def test_padding_changes_nothing(batch, reference):
    def wider(leaf: jax.Array, places: int, fill: Any) -> jax.Array:
        widths = [(0, 0)] * (leaf.ndim - 1) + [(0, places)]
        return jnp.pad(leaf, widths, constant_values=fill)

    garbage = {"completion_ids": 11, "decode_logprobs": 1e4, "sampler_logprobs": jnp.nan}
    garbage |= {"ref_logprobs": -1e4, "prompt_ids": 17}
    padded = Batch(
        **{
            field.name: leaf
            if leaf is None or field.name == "rewards"
            else wider(leaf, 4 if "prompt" in field.name else 5, garbage.get(field.name, False))
            for field in dataclasses.fields(Batch)
            for leaf in [getattr(batch, field.name)]
        }
    )
    assert padded.completion_ids.shape[-1] == COMPLETION + 5
    assert_same(two_updates(padded), reference)


def test_interleaved_micro_batches_take_rows_of_every_device():
    rows = interleave({"x": jnp.arange(8)}, 4)["x"]
    np.testing.assert_array_equal(rows, [[0, 4], [1, 5], [2, 6], [3, 7]])


@pytest.mark.parametrize(("mesh", "micro_batches"), [((1,), 1), ((2, 2, 1), 2)])
def test_the_policy_mask_is_that_of_the_step(batch, mesh, micro_batches):
    """The highest third of all entropies, however the step is divided."""
    config = tiny_recipe(policy_entropy_share=1 / 3, micro_batches=micro_batches)
    find = jax.jit(functools.partial(with_policy_mask, config=config, decoder=CONFIG))
    kept = find(start(mesh).params, place(batch, mesh)).policy_mask
    entropies = numpy_entropies(start().params, batch)
    mask = np.asarray(batch.completion_mask)
    threshold = np.sort(entropies[mask])[-round(mask.sum() / 3)]
    np.testing.assert_array_equal(kept, mask & (entropies >= threshold - 1e-6))


def test_advantages_of_tokens_are_reported_one_a_completion(batch):
    """For tables and metrics, which know completions; traced only, for the shapes."""
    step = compiled(kl_in="reward", scale_rewards="tokens")
    _, metrics, advantages = jax.eval_shape(step, start(), batch)
    assert (
        advantages.shape == batch.rewards.shape and metrics["advantages/abs_mean"].sum.shape == ()
    )


def test_a_baseline_takes_the_place_of_the_groups_own(batch):
    baseline = np.linspace(-1, 1, len(batch.rewards), dtype=np.float32)
    step = compiled(scale_rewards="none", advantage_baseline="greedy")
    given = place(batch.replace(baseline_rewards=jnp.asarray(baseline)))
    state, metrics, advantages = step(start(), given)
    assert float(metrics["rewards/greedy_mean"].value) == pytest.approx(0, abs=1e-6)
    expected = np.asarray(batch.rewards) - baseline[:, None]
    np.testing.assert_allclose(advantages, expected, atol=1e-6)
    # Another baseline of these advantages, then their own: the same update.
    own = batch.replace(rewards=advantages, baseline_rewards=jnp.zeros_like(given.baseline_rewards))
    same, _, _ = step(start(), place(own))
    assert_equal(state.params, same.params)


# -- compilation, donation, placement --------------------------------------------------------------


def test_one_compile_donated_state_and_moments_beside_their_weights(batch):
    mesh = (2, 2, 2)
    step, state = compiled(mesh, micro_batches=1), start(mesh)
    for _ in range(3):
        before = state
        state, _, advantages = step(state, place(batch, mesh))
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before))
    assert step._cache_size() == 1
    assert int(state.num_updates) == 3
    assert advantages.sharding == sharding.batch_sharding(mesh_of(*mesh), 2)
    where = jax.tree.map(lambda leaf: leaf.sharding, state.params)
    moments = state.opt_state[1][0]
    for tree in (moments.mu, moments.nu):
        jax.tree.map(
            lambda leaf, place: leaf.sharding == place or pytest.fail(str(place)), tree, where
        )
    kernel = state.params["layers"]["gate"]["kernel"]
    assert kernel.sharding.spec == jax.sharding.PartitionSpec(None, "fsdp", "tensor")
    assert kernel.addressable_shards[0].data.size == kernel.size // 4


# -- updates that must not happen, and several an rollout ------------------------------------------


def test_kl_without_reference_logprobs_is_a_clear_error(batch):
    with pytest.raises(ValueError, match=r"kl_coef=0\.01 expected batch\.ref_logprobs"):
        compiled()(start(), batch.replace(ref_logprobs=None))


@pytest.mark.parametrize("bad", ["reward", "reference"])
def test_a_gradient_that_is_not_finite_is_skipped_and_counted(batch, reference, bad):
    step, state = compiled(), start()
    if bad == "reward":
        broken = batch.replace(rewards=batch.rewards.at[2, 1].set(jnp.inf))
    else:
        token = (0, 0, 0)
        assert bool(batch.completion_mask[token])
        broken = batch.replace(ref_logprobs=batch.ref_logprobs.at[token].set(jnp.nan))
    before = jax.tree.map(np.asarray, (state.params, state.opt_state))
    state, metrics, _ = step(state, place(broken))
    assert float(metrics["updates/skipped"].value) == 1
    assert int(state.num_updates) == 1
    assert_equal(before, jax.tree.map(np.asarray, (state.params, state.opt_state)))
    for _ in range(2):
        state, metrics, _ = step(state, place(batch))
    assert float(metrics["updates/skipped"].value) == 0
    assert_equal(jax.tree.map(np.asarray, state.params), reference.params)


def record_of(updates: list[Any]) -> dict[str, float]:
    """What is written about a step with these updates."""
    return read_record(StepRecord(1, updates, RATE, 0.0))[0]


def test_two_iterations_use_the_log_probs_of_the_policy_that_sampled(batch):
    """Which ones `train` hands over is shown in jobs/test_train_job.py; here, what they do."""
    frozen = jax.tree.map(lambda leaf: 1.1 * leaf, random_params())
    state, updates = start(), []
    old, ref = (score(params, batch) for params in (state.params, frozen))
    full = batch.replace(old_logprobs=old, ref_logprobs=ref)
    for iteration in range(2):
        # The ratio, recomputed from the weights before this update.
        logratio = np.asarray(score(state.params, batch) - old)[np.asarray(batch.completion_mask)]
        state, metrics, _ = compiled()(state, full)
        ratio = float(metrics["importance_ratio/max"].value)
        assert (ratio == pytest.approx(1, abs=1e-5)) == (iteration == 0)
        assert ratio == pytest.approx(np.exp(logratio.max()), rel=1e-5)
        updates.append(metrics)
    assert int(state.num_updates) == 2
    written = record_of(updates)
    assert written["importance_ratio/max"] == ratio
    assert written["updates/skipped"] == 0


def test_one_iteration_without_kl_needs_no_log_probs(batch):
    bare = batch.replace(ref_logprobs=None)
    assert bare.old_logprobs is None
    _, metrics, _ = compiled(kl_coef=0.0)(start(), bare)
    written = record_of([metrics])
    assert "kl" not in written and written["loss/kl"] == 0
    assert written["importance_ratio/max"] == written["importance_ratio/min"] == 1
