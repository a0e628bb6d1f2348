"""Checkpoints: bit-equal round trips, onto other meshes too, and which ones are kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from etils import epath

from mental_r1_jax import sharding
from mental_r1_jax.errors import UserError
from mental_r1_jax.models.decoder import param_shardings
from mental_r1_jax.objective import CrpoConfig
from mental_r1_jax.rl.entropy_control import MeasuredEntropies, next_control, start_control
from mental_r1_jax.training import checkpoint
from mental_r1_jax.training.damage import sound_steps
from mental_r1_jax.training.train_step import (
    TrainState,
    init_state,
    state_shardings,
)
from tests.tiny_decoder import CONFIG, random_params

OPTIMIZER = optax.adamw(1e-3)


def random_state(seed: int, mesh: jax.sharding.Mesh) -> TrainState:
    """A state whose moments are random too."""
    rng = np.random.default_rng(seed)
    state = init_state(jax.tree.map(jnp.asarray, random_params(seed)), OPTIMIZER)
    state = jax.tree.map(
        lambda x: x + (rng.standard_normal(x.shape).astype("f4") if x.ndim else seed), state
    )
    return jax.device_put(state, state_shardings(CONFIG, OPTIMIZER, mesh))


def abstract(state: TrainState, mesh: jax.sharding.Mesh) -> TrainState:
    return checkpoint.abstract_like(state, state_shardings(CONFIG, OPTIMIZER, mesh))


def tiny_state(step: int) -> TrainState:
    """A state of two numbers, to make many checkpoints quickly."""
    return TrainState(
        num_updates=jnp.int32(step), params={"w": jnp.full((2,), step, jnp.float32)}, opt_state={}
    )


def save_all(folder: Path, scores: dict[int, float | None], keep: int | None) -> None:
    with checkpoint.open_checkpoints(folder, keep=keep) as manager:
        for step, score in scores.items():
            checkpoint.save(manager, step, tiny_state(step), {"step": step}, score)


def kept_scores(folder: Path) -> dict[int, float | None]:
    """Validation score of each step that is left in `folder`."""
    path = epath.Path(folder)
    return checkpoint.validation_scores(path, sound_steps(path))


@pytest.mark.parametrize("onto", [(8, 1, 1), (2, 2, 2), (1, 8, 1)])
def test_a_restored_state_is_bit_equal_on_any_mesh(tmp_path, onto):
    saved_on, restored_on = sharding.make_mesh(8, 1, 1), sharding.make_mesh(*onto)
    state = random_state(1, saved_on)
    position = {"next_batch": 17, "sets": "ab", "nested": {"x": [1, 2.5]}}
    with checkpoint.open_checkpoints(tmp_path) as manager:
        assert checkpoint.restore(manager, abstract(state, restored_on)) is None
        checkpoint.save(manager, 12, state, position, 0.25)
    with checkpoint.open_checkpoints(tmp_path) as manager:
        step, restored, progress = checkpoint.restore(manager, abstract(state, restored_on))
    assert (step, progress) == (12, position)
    wanted = state_shardings(CONFIG, OPTIMIZER, restored_on)

    def same(new: jax.Array, old: jax.Array, where: Any) -> None:
        np.testing.assert_array_equal(new, old)
        assert new.dtype == old.dtype and new.sharding == where

    jax.tree.map(same, restored, state, wanted)


def test_steered_coefficients_go_on_as_if_nothing_had_been_saved(tmp_path):
    """After a resume in the middle of measuring the start, and a stage without a target yet."""
    crpo = CrpoConfig(
        stage_entropy_rule="target", stage_entropy_start_steps=2, entropy_bonus_rule="adaptive"
    )

    def steered(control: Any, steps: range) -> Any:
        for step in steps:
            entropies = jnp.array([1.0 + step, 0.3, 2.0 - step, jnp.nan, step % 3])
            control = next_control(control, MeasuredEntropies(entropies, 0.1 * entropies[0]), crpo)
        return control

    state = tiny_state(1).replace(entropy_control=steered(start_control(crpo), range(1)))
    with checkpoint.open_checkpoints(tmp_path) as manager:
        checkpoint.save(manager, 1, state, {})
        manager.wait_until_finished()
        like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)
        restored = checkpoint.restore(manager, like)[1]
    resumed = steered(restored.entropy_control, range(1, 6))
    uninterrupted = steered(start_control(crpo), range(6))
    jax.tree.map(np.testing.assert_array_equal, resumed, uninterrupted)
    assert np.isnan(resumed.stages.targets).tolist() == [False, False, False, True, False]
    assert np.count_nonzero(resumed.stages.betas) >= 2


def test_a_donated_state_may_be_overwritten_while_it_is_saved(tmp_path):
    state = random_state(2, sharding.make_mesh(8, 1, 1))
    before = jax.tree.map(np.asarray, state)
    with checkpoint.open_checkpoints(tmp_path) as manager:
        checkpoint.save(manager, 1, state, {})
        overwrite = jax.jit(lambda s: jax.tree.map(lambda x: x * 0 - 1, s), donate_argnums=0)
        overwrite(state)
        manager.wait_until_finished()
        restored = checkpoint.restore(manager, abstract(before, sharding.make_mesh(8, 1, 1)))[1]
    jax.tree.map(np.testing.assert_array_equal, restored, before)


def test_the_newest_and_the_best_are_kept(tmp_path):
    save_all(tmp_path, {1: 0.1, 2: 0.9, 3: None, 4: 0.5, 5: None, 6: 0.4}, keep=2)
    scores = kept_scores(tmp_path)
    assert scores == {2: 0.9, 5: None, 6: 0.4}
    assert checkpoint.choose_step(scores, "best") == 2
    assert checkpoint.choose_step(scores, "latest") == 6
    assert checkpoint.choose_step(scores, 5) == 5
    assert checkpoint.choose_step(scores, 4) is None


def test_the_best_is_still_known_and_kept_after_a_restart(tmp_path):
    save_all(tmp_path, {1: 0.9, 2: 0.1}, keep=1)
    save_all(tmp_path, {3: 0.5, 4: None, 5: None}, keep=1)
    scores = kept_scores(tmp_path)
    assert scores.keys() == {1, 5}
    assert checkpoint.choose_step(scores, "best") == 1


def test_best_is_the_newest_of_equals_and_the_latest_where_none_was_validated(tmp_path):
    save_all(tmp_path / "equal", {1: 0.5, 2: 0.5, 3: 0.1}, keep=3)
    save_all(tmp_path / "none", {1: None, 2: None}, keep=3)
    for folder in ("equal", "none"):
        assert checkpoint.choose_step(kept_scores(tmp_path / folder), "best") == 2


def test_weights_alone_and_a_step_that_is_not_there(tmp_path):
    save_all(tmp_path / "checkpoints", {1: 0.9, 4: 0.5}, keep=5)
    like = {"w": jax.ShapeDtypeStruct((2,), jnp.float32)}
    for which, expected in (("best", 1), ("latest", 4), (4, 4)):
        step, params = checkpoint.restore_params(tmp_path, which, like)
        assert step == expected
        np.testing.assert_array_equal(params["w"], [expected, expected])
    with pytest.raises(UserError, match=r"no checkpoint 3.*\[1, 4\]"):
        checkpoint.restore_params(tmp_path, 3, like)
    with pytest.raises(UserError, match="no checkpoint 'best'"):
        checkpoint.restore_params(tmp_path / "elsewhere", "best", like)


def test_weights_are_restored_onto_the_mesh_that_asks(tmp_path):
    state = random_state(3, sharding.make_mesh(8, 1, 1))
    with checkpoint.open_checkpoints(tmp_path / "checkpoints") as manager:
        checkpoint.save(manager, 1, state, {})
    mesh = sharding.make_mesh(2, 2, 2)
    like = checkpoint.abstract_like(state.params, param_shardings(CONFIG, mesh))
    params = checkpoint.restore_params(tmp_path, "latest", like)[1]
    jax.tree.map(np.testing.assert_array_equal, params, state.params)
    assert params["embedding"].sharding.spec == jax.sharding.PartitionSpec(None, "fsdp")
