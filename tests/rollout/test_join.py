"""Groups of several rollouts in one batch: against NumPy, whole, and on any number of devices."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mental_r1_jax import sharding
from mental_r1_jax.objective import CrpoConfig
from mental_r1_jax.rl.advantages import advantages
from mental_r1_jax.rl.losses import crpo_loss, loss_denominators
from mental_r1_jax.rollout.join import join_groups
from mental_r1_jax.types import Batch
from tests.tiny_decoder import COMPLETION, GROUP, NUM_PROMPTS, PROMPT, random_batch

ROWS = np.array([17, 0, 3, 8, 23, 8, 5, 16])


def rollouts() -> list[Batch]:
    """Three batches, the second with narrower prompts; every number tells where it comes from."""
    batches = []
    for number, width in enumerate((PROMPT, PROMPT - 2, PROMPT)):
        batch = random_batch(number)
        batches.append(
            batch.replace(
                prompt_ids=batch.prompt_ids[:, :width],
                prompt_mask=batch.prompt_mask[:, :width],
                baseline_rewards=batch.rewards[:, 0] + 1,
            )
        )
    return batches


def by_numpy(batches: list[Batch], rows: np.ndarray) -> dict[str, np.ndarray]:
    """The same, one row at a time."""
    expected = {}
    for field in dataclasses.fields(Batch):
        parts = [getattr(batch, field.name) for batch in batches]
        if parts[0] is None:
            continue
        taken = [np.asarray(parts[row // NUM_PROMPTS])[row % NUM_PROMPTS] for row in rows]
        if field.name.startswith("prompt"):
            taken = [np.pad(row, (0, PROMPT - len(row))) for row in taken]
        expected[field.name] = np.stack(taken)
    return expected


@pytest.mark.parametrize("devices", [1, 8])
def test_rows_of_several_rollouts_as_numpy_takes_them(devices: int) -> None:
    mesh = sharding.make_mesh(devices, 1, 1, jax.devices()[:devices])

    def place(leaf: jax.Array) -> jax.Array:
        return jax.device_put(leaf, sharding.batch_sharding(mesh, leaf.ndim))

    batches = jax.tree.map(place, rollouts())
    joined = jax.jit(join_groups)(batches, ROWS)
    expected = by_numpy(batches, ROWS)
    assert joined.old_logprobs is None and "old_logprobs" not in expected
    for name, value in expected.items():
        ours = getattr(joined, name)
        np.testing.assert_array_equal(ours, value, err_msg=name)
        assert ours.dtype == value.dtype
        assert ours.sharding.is_equivalent_to(sharding.batch_sharding(mesh, ours.ndim), ours.ndim)


def test_groups_stay_whole() -> None:
    """A group's completions arrive together, in order, beside their own prompt."""
    batches = []
    for number, batch in enumerate(rollouts()):
        prompt = NUM_PROMPTS * number + np.arange(NUM_PROMPTS)
        member = 100 * prompt[:, None] + np.arange(GROUP)
        batches.append(
            batch.replace(
                prompt_ids=jnp.asarray(prompt[:, None] + 0 * np.asarray(batch.prompt_ids)),
                rewards=jnp.asarray(member, jnp.float32),
                completion_ids=jnp.asarray(np.repeat(member[..., None], COMPLETION, axis=-1)),
            )
        )
    joined = join_groups(batches, ROWS)
    np.testing.assert_array_equal(joined.prompt_ids[:, 0], ROWS)
    np.testing.assert_array_equal(joined.rewards, 100 * ROWS[:, None] + np.arange(GROUP))
    np.testing.assert_array_equal(joined.completion_ids[..., -1], joined.rewards)


@pytest.mark.parametrize("missing", [-1, 3 * NUM_PROMPTS])
def test_a_row_that_does_not_exist_becomes_an_empty_group(missing: int) -> None:
    joined = join_groups(rollouts(), np.array([0, missing]))
    first = rollouts()[0]
    assert np.asarray(joined.group_mask).tolist() == [True, False]
    for name in ("completion_mask", "stage_mask", "rewards", "baseline_rewards"):
        ours, theirs = getattr(joined, name), getattr(first, name)
        np.testing.assert_array_equal(ours[0], theirs[0])
        assert not np.asarray(ours[1]).any() and ours.dtype == theirs.dtype


@pytest.mark.parametrize("aggregation", ["token", "sequence", "dr_grpo"])
def test_an_empty_group_changes_neither_loss_nor_gradient_of_the_others(aggregation: Any) -> None:
    """Any mean over six groups is the same whether two empty rows stand beside them or not."""
    crpo = CrpoConfig(kl_coef=0.05, aggregation=aggregation)
    whole = join_groups(rollouts(), np.array([0, -1, 3, 8, -1, 23, 5, 16]))
    alone = join_groups(rollouts(), np.array([0, 3, 8, 23, 5, 16]))

    def loss_of(scale: jax.Array, batch: Batch) -> jax.Array:
        logprobs = batch.decode_logprobs * scale
        entropies = -batch.sampler_logprobs * scale
        denominators = loss_denominators(batch, crpo, COMPLETION)
        found = advantages(batch, crpo)
        return crpo_loss(logprobs, entropies, batch, found, denominators, crpo, COMPLETION)[0]

    graded = jax.jit(jax.value_and_grad(loss_of))
    ours, theirs = (graded(1.1, batch) for batch in (whole, alone))
    np.testing.assert_allclose(ours, theirs, rtol=2e-6)
    assert abs(float(theirs[1])) > 1e-3


def test_batches_of_different_recipes_are_refused() -> None:
    first, second, _ = rollouts()
    with pytest.raises(ValueError, match="optional field"):
        join_groups([first, second.replace(ref_logprobs=None)], ROWS)
    shorter = second.replace(rewards=second.rewards[:, :-1])
    with pytest.raises(TypeError, match="concatenate"):
        join_groups([first, shorter], ROWS)
