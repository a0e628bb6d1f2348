"""Updates of adapters: what moves, on one device and on eight, and what a checkpoint holds."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mental_r1_jax.models import decoder
from mental_r1_jax.models.architecture import Lora
from mental_r1_jax.models.hf_config import decoder_config_from_hf
from mental_r1_jax.models.peft_format import TARGETS
from mental_r1_jax.planning.known_models import KNOWN_CONFIGS
from mental_r1_jax.programs.step_programs import abstract_state
from mental_r1_jax.training import checkpoint
from mental_r1_jax.training.train_step import (
    TrainState,
    init_state,
    jit_train_step,
    state_shardings,
)
from tests.tiny_decoder import CONFIG, random_batch, random_params, tiny_recipe
from tests.training.updates import OPTIMIZER, assert_close, assert_equal, mesh_of, place

ADAPTED = dataclasses.replace(CONFIG, lora=Lora(rank=4, alpha=8.0, targets=TARGETS))


def start(mesh: tuple[int, ...]) -> TrainState:
    """A frozen base and adapters of which none is zero, placed on a mesh."""
    rng = np.random.default_rng(9)
    draw = lambda leaf: jnp.asarray(0.2 * rng.standard_normal(leaf.shape, "f4"))  # noqa: E731
    adapters = jax.tree.map(draw, decoder.abstract_adapters(ADAPTED))
    base = jax.tree.map(jnp.asarray, random_params())
    state = init_state(adapters, OPTIMIZER, frozen=base)
    return jax.device_put(state, state_shardings(ADAPTED, OPTIMIZER, mesh_of(*mesh)))


def trained(mesh: tuple[int, ...], **changes: Any) -> tuple[list[TrainState], float]:
    """Host copies of the states before, between and after two updates, and the last loss."""
    step, state = compiled(mesh, **changes), start(mesh)
    states, loss = [jax.tree.map(np.asarray, state)], 0.0
    for _ in range(2):
        state, metrics, _ = step(state, place(random_batch(), mesh))
        states.append(jax.tree.map(np.asarray, state))
        loss = float(metrics["loss"].value)
    return states, loss


@functools.cache
def compiled(mesh: tuple[int, ...], **changes: Any) -> Any:
    config = tiny_recipe(**changes)
    where = mesh_of(*mesh)
    return jit_train_step(config=config, decoder=ADAPTED, optimizer=OPTIMIZER, mesh=where)


def test_only_adapters_move_and_are_kept_and_a_resumed_run_moves_them_alike(
    tmp_path: Path,
) -> None:
    one = (1,)
    (before, first, second), _ = trained(one)
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), first.params, before.params)
    assert min(jax.tree.leaves(moved)) > 0
    assert_equal(second.frozen, before.frozen)
    # A gradient, two moments and an update for each adapter, and for nothing else.
    adam = first.opt_state[1][0]
    for tree in (first.params, adam.mu, adam.nu):
        assert jax.tree.structure(tree) == jax.tree.structure(before.params)

    with checkpoint.open_checkpoints(tmp_path / "checkpoints") as manager:
        checkpoint.save(manager, 1, jax.tree.map(jnp.asarray, first), {})
        manager.wait_until_finished()
        abstract = abstract_state(ADAPTED, OPTIMIZER, mesh_of(*one))
        restored = checkpoint.restore(manager, abstract)
    assert restored is not None and restored[1].frozen is None
    names = (tmp_path / "checkpoints/1/params/_METADATA").read_text()
    assert "lora_a" in names and "kernel" not in names and "embedding" not in names
    resumed = dataclasses.replace(restored[1], frozen=start(one).frozen)
    again, _, _ = compiled(one)(resumed, place(random_batch(), one))
    assert_equal(jax.tree.map(np.asarray, again.params), second.params)


@pytest.mark.parametrize(
    "mesh",
    [(2, 1, 2), *(pytest.param(m, marks=pytest.mark.slow) for m in ((4, 1, 1), (2, 2, 2)))],
)
def test_several_devices_and_micro_batches_move_adapters_as_one_does(
    mesh: tuple[int, int, int],
) -> None:
    (*_, ours), loss = trained((1,))
    (start_of_all, _, theirs), same = trained(mesh, micro_batches=2)
    assert_close(theirs.params, ours.params)
    assert_equal(theirs.frozen, start_of_all.frozen)
    np.testing.assert_allclose(same, loss, rtol=2e-5, atol=1e-6)


def test_a_checkpoint_of_the_papers_model_is_under_two_percent_of_it() -> None:
    """Adapters and moments of rank 16, beside the float32 weights; a full one holds thrice them."""
    model = decoder_config_from_hf(KNOWN_CONFIGS["Qwen/Qwen3-8B"], compute_dtype="bfloat16")
    model = dataclasses.replace(model, lora=Lora(16, 32.0, TARGETS))
    state = abstract_state(model, OPTIMIZER, mesh_of(1))
    kept = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves((state.params, state.opt_state)))
    assert 0.01 < kept / (4 * decoder.parameter_count(model)) < 0.02
    # r (inputs + outputs) of the seven projections, in 36 layers.
    widths = (4096 + 4096) + 2 * (4096 + 1024) + (4096 + 4096) + 3 * (4096 + 12288)
    assert decoder.adapter_count(model) == 36 * 16 * widths
    frozen = {str(leaf.dtype) for leaf in jax.tree.leaves(state.frozen)}
    assert frozen == {"bfloat16", "float32"}
    assert state.frozen["layers"]["query"]["kernel"].dtype == jnp.bfloat16
