"""The sum of gradients: over micro-batches on a device, then once over copies of the model."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mental_r1_jax import sharding
from mental_r1_jax.footprint import shard_bytes
from mental_r1_jax.planning.hlo import Visit, parse_program
from mental_r1_jax.planning.traffic import device_groups
from mental_r1_jax.rl.masking import Sum, max_over, mean_over, min_over
from mental_r1_jax.training.accumulation import accumulate_gradient
from tests.tiny_decoder import random_batch
from tests.training.updates import assert_same, compiled, mesh_of, place, start, two_updates


def over_copies(visit: Visit, mesh: tuple[int, int, int]) -> bool:
    """Whether an instruction adds up numbers of several copies of the model."""
    line = visit.instruction
    if line.opcode.removesuffix("-start") not in ("all-reduce", "reduce-scatter"):
        return False
    data, fsdp, tensor = mesh
    copy = device_groups(line.rest, data * fsdp * tensor) // (fsdp * tensor)
    return bool((copy != copy[:, :1]).any())


def summed_bytes(program: Any, mesh: tuple[int, int, int]) -> dict[bool, int]:
    """Bytes summed over copies in one run of a compiled program: {in a loop: bytes}."""
    found = {True: 0, False: 0}
    for visit in parse_program(program.as_text()).visits():
        if over_copies(visit, mesh):
            size = sum(array.bytes for array in visit.instruction.arrays)
            found[bool(visit.loops)] += visit.times * size
    return found


@pytest.mark.parametrize("mesh", [(4, 2, 1), pytest.param((2, 1, 2), marks=pytest.mark.slow)])
def test_an_update_sums_its_gradient_over_copies_once(mesh: tuple[int, int, int]) -> None:
    """Each device sends its part of the gradient, and numbers for metrics; in loops, nothing."""
    state, batch = start(mesh), place(random_batch(), mesh)
    if mesh == (4, 2, 1):  # one prompt of each micro-batch on each device
        batch = jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf]), random_batch())
        batch = place(batch, mesh)
    program = compiled(mesh, micro_batches=2).lower(state, batch).compile()
    found, gradient = summed_bytes(program, mesh), shard_bytes(state.params)
    assert found[True] == 0
    assert gradient <= found[False] <= 1.05 * gradient


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [(2, 1, 2), (4, 1, 1), (2, 2, 2)])
def test_every_mesh_gives_the_same_update(mesh: tuple[int, int, int]) -> None:
    batch = random_batch()
    ours = two_updates(batch, mesh, micro_batches=8 // (mesh[0] * mesh[1]))
    assert_same(ours, two_updates(batch))


def toy_loss(
    weights: jax.Array, factor: jax.Array, rows: jax.Array
) -> tuple[jax.Array, dict[str, Any]]:
    """A sum over rows, and a metric of every type."""
    products = factor * (rows @ weights)
    everywhere = jnp.ones(products.shape, bool)
    metrics = {
        "sum": Sum(products.sum()),
        "mean": mean_over(products, everywhere),
        "max": max_over(products, everywhere),
        "min": min_over(products, everywhere),
    }
    return jnp.square(products).sum(), metrics


@pytest.mark.parametrize("rows", [16, 12])
def test_gradient_and_metrics_of_a_linear_map(rows: int) -> None:
    """In NumPy: the gradient of ``sum (x f v)^2`` is ``2 f x' x w`` at ``f v = w``.

    Of 12 rows a micro-batch has 6, which 4 copies cannot share evenly: they sum in every one.
    """
    x = np.random.default_rng(0).standard_normal((rows, 6)).astype(np.float32)
    w = np.linspace(-1, 1, 6, dtype=np.float32)
    mesh = mesh_of(4, 1, 1)
    where = sharding.replicated(mesh), sharding.replicated(mesh), sharding.batch_sharding(mesh, 2)
    placed = jax.device_put((w / 3, np.float32(3), x), where)
    run = jax.jit(lambda w, factor, x: accumulate_gradient(toy_loss, w, factor, (x,), 2))
    program = run.lower(*placed).compile()
    gradient, metrics = program(*placed)
    np.testing.assert_allclose(gradient, 3 * 2 * x.T @ (x @ w), rtol=1e-5)
    of_rows = x @ w
    expected = {"sum": of_rows.sum(), "mean": of_rows.mean()}
    expected |= {"max": of_rows.max(), "min": of_rows.min()}
    assert metrics.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name].value, value, rtol=1e-5, err_msg=name)
    assert (summed_bytes(program, (4, 1, 1))[True] == 0) == (rows == 16)
