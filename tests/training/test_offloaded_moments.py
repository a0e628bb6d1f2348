"""Moments in the memory of the hosts: the same numbers, kept and restored there."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mental_r1_jax.config import OptimizerConfig
from mental_r1_jax.footprint import footprint
from mental_r1_jax.programs.step_programs import abstract_state
from mental_r1_jax.training import checkpoint
from mental_r1_jax.training.optimizer import make_optimizer
from mental_r1_jax.training.train_step import (
    TrainState,
    init_state,
    jit_train_step,
    state_shardings,
)
from tests.tiny_decoder import CONFIG, random_batch, random_params, tiny_recipe
from tests.training.updates import assert_equal, mesh_of, place

MESH = (2, 2, 2)


def optimizer_of(offload: bool, name: str = "adamw") -> optax.GradientTransformation:
    config = OptimizerConfig(name=name, offload_moments=offload, learning_rate=1e-2)
    return make_optimizer(config, 10)


def start(optimizer: optax.GradientTransformation) -> TrainState:
    where = state_shardings(CONFIG, optimizer, mesh_of(*MESH))
    return jax.device_put(init_state(jax.tree.map(jnp.asarray, random_params()), optimizer), where)


@functools.cache
def two_updates(offload: bool, name: str = "adamw") -> list[TrainState]:
    """The states before, between and after; the program donates, so they are copied."""
    optimizer = optimizer_of(offload, name)
    step = jit_train_step(
        config=tiny_recipe(), decoder=CONFIG, optimizer=optimizer, mesh=mesh_of(*MESH)
    )
    states = [start(optimizer)]
    for _ in range(2):
        states.append(step(jax.tree.map(jnp.copy, states[-1]), place(random_batch(), MESH))[0])
    assert step._cache_size() == 1  # what comes out is laid out as what went in
    return states


def homes(state: TrainState) -> tuple[set[str], set[str]]:
    """Memory kinds of the moments, and of all else."""
    moments, others = set(), set()
    for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]:
        is_moment = path[0].name == "opt_state" and leaf.ndim > 0
        (moments if is_moment else others).add(leaf.sharding.memory_kind)
    return moments, others


@pytest.mark.parametrize("name", ["adamw", "adafactor"])
def test_an_update_gives_the_same_bits_and_leaves_moments_at_home(name: str) -> None:
    offloaded, usual = two_updates(True, name), two_updates(False, name)
    for mine, theirs in zip(offloaded, usual, strict=True):
        assert homes(mine) == ({"pinned_host"}, {"device"})
        assert homes(theirs)[0] == {"device"}
        assert_equal(mine, theirs)
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), usual[2].params, usual[0].params)
    assert min(jax.tree.leaves(moved)) > 0


@pytest.mark.parametrize("onto", [True, False])
def test_they_are_restored_where_the_recipe_wants_them(tmp_path: Path, onto: bool) -> None:
    *_, state = two_updates(True)
    with checkpoint.open_checkpoints(tmp_path) as manager:
        checkpoint.save(manager, 1, state, {})
        manager.wait_until_finished()
        shapes: Any = abstract_state(CONFIG, optimizer_of(onto), mesh_of(*MESH))
        restored = checkpoint.restore(manager, shapes)
    assert restored is not None
    assert homes(restored[1])[0] == {"pinned_host" if onto else "device"}
    assert_equal(jax.tree.map(np.asarray, restored[1]), jax.tree.map(np.asarray, state))


def test_devices_hold_none_of_them_between_updates() -> None:
    config = tiny_recipe()
    away = config.model_copy(
        update={"optimizer": config.optimizer.model_copy(update={"offload_moments": True})}
    )
    here, there = (footprint(recipe, CONFIG, mesh_of(*MESH)) for recipe in (config, away))
    assert here.moments == 2 * here.weights and there.moments == 0
    assert there.weights == here.weights
