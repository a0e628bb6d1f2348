"""The update: the same on any number of micro-batches and devices, compiled once, finite."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mental_r1_jax.jobs.train import scalars_of_updates, update
from mental_r1_jax.training.train_step import (
    interleave,
)
from mental_r1_jax.types import Batch
from tests.tiny_decoder import (
    COMPLETION,
    random_batch,
    random_params,
)
from tests.training.updates import (
    RATE,
    Updated,
    assert_equal,
    assert_same,
    compiled,
    place,
    roll_out,
    start,
    stub_trainer,
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


# -- compilation, donation, placement --------------------------------------------------------------


def test_one_compile_donated_state_and_moments_beside_their_weights(batch):
    mesh = (2, 2, 2)
    step, state = compiled(mesh, micro_batches=1), start(mesh)
    for _ in range(3):
        before = state
        state, _ = step(state, place(batch, mesh))
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before))
    assert step._cache_size() == 1
    assert int(state.num_updates) == 3
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
    state, metrics = step(state, place(broken))
    assert float(metrics["updates/skipped"].value) == 1
    assert int(state.num_updates) == 1
    assert_equal(before, jax.tree.map(np.asarray, (state.params, state.opt_state)))
    for _ in range(2):
        state, metrics = step(state, place(batch))
    assert float(metrics["updates/skipped"].value) == 0
    assert_equal(jax.tree.map(np.asarray, state.params), reference.params)


def test_two_iterations_use_the_log_probs_of_the_policy_that_sampled(batch):
    trainer = stub_trainer(2, compiled())
    frozen = jax.tree.map(lambda leaf: 1.1 * leaf, random_params())
    state = start()
    rolled_out = roll_out(trainer, state.params, frozen, batch.replace(ref_logprobs=None))
    state, device_metrics = update(trainer, state, rolled_out)
    metrics = scalars_of_updates(device_metrics)
    assert int(state.num_updates) == 2
    assert metrics["updates/skipped"] == 0
    # By hand: both updates see the log-probs from before the first one.
    by_hand = start()
    old, ref = (trainer.programs.logprobs(params, batch) for params in (by_hand.params, frozen))
    full = batch.replace(old_logprobs=old, ref_logprobs=ref)
    for iteration in range(2):
        by_hand, expected = compiled()(by_hand, full)
        ratio = float(expected["importance_ratio/max"].value)
        assert (ratio == pytest.approx(1, abs=1e-5)) == (iteration == 0)
    assert_equal(jax.tree.map(np.asarray, state.params), jax.tree.map(np.asarray, by_hand.params))
    assert metrics["importance_ratio/max"] == ratio


def test_one_iteration_without_kl_asks_for_no_log_probs(batch):
    def never(*_: Any) -> None:
        raise AssertionError("log-probs were computed")

    trainer = stub_trainer(1, compiled(kl_coef=0.0))
    trainer.programs.logprobs = never
    state = start()
    rolled_out = roll_out(trainer, state.params, None, batch.replace(ref_logprobs=None))
    metrics = scalars_of_updates(update(trainer, state, rolled_out)[1])
    assert "kl" not in metrics and metrics["loss/kl"] == 0
    assert metrics["importance_ratio/max"] == metrics["importance_ratio/min"] == 1
