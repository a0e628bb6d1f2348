"""Rows of a sharded table: those of one device, their gradient too, and nothing gathered."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from mental_r1_jax import sharding
from mental_r1_jax.models.embedding import look_up

V, D, TOKENS = 24, 16, (8, 3, 5)
MESHES = {
    "data": (8, 1, 1),
    "fsdp": (1, 8, 1),
    "tensor": (1, 1, 8),
    "data_fsdp": (2, 4, 1),
    "fsdp_tensor": (1, 4, 2),
    "all": (2, 2, 2),
}


def weighted_sum(table: jax.Array, ids: jax.Array) -> jax.Array:
    """A scalar in which every element of every row counts differently."""
    rows = look_up(table, ids, jnp.float32)
    return jnp.sum(jnp.sin(jnp.arange(rows.size, dtype=jnp.float32)).reshape(rows.shape) * rows)


def placed(name: str, rows: int) -> tuple[jax.Array, jax.Array]:
    """A table of different numbers and tokens with repeats, where training has them."""
    mesh = sharding.make_mesh(*MESHES[name])
    rng = np.random.default_rng(3)
    table = rng.standard_normal((V, D)).astype(np.float32)
    ids = rng.integers(0, V, (rows, *TOKENS[1:]), dtype=np.int32)
    where = sharding.logical_to_sharding(mesh, ("vocab", "embed"))
    batch = NamedSharding(mesh, PartitionSpec(sharding.BATCH_AXES if rows % 8 == 0 else None))
    return jax.device_put(table, where), jax.device_put(ids, batch)


@pytest.mark.parametrize("rows", [8, 6], ids=["divided", "not_divided"])
@pytest.mark.parametrize("name", MESHES)
def test_rows_and_gradient_are_those_of_numpy(name: str, rows: int) -> None:
    table, ids = placed(name, rows)
    found = jax.jit(look_up, static_argnums=2)(table, ids, jnp.float32)
    np.testing.assert_array_equal(found, np.asarray(table)[np.asarray(ids)])
    gradient = jax.jit(jax.grad(weighted_sum), out_shardings=table.sharding)(table, ids)
    weights = np.sin(np.arange(ids.size * D, dtype=np.float32)).reshape(-1, D)
    expected = np.zeros((V, D), np.float64)
    np.add.at(expected, np.asarray(ids).ravel(), weights)
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["fsdp", "data_fsdp", "fsdp_tensor", "all"])
def test_no_device_holds_the_whole_table_or_its_gradient(name: str) -> None:
    table, ids = placed(name, 8)
    value_and_grad = jax.jit(jax.value_and_grad(weighted_sum), out_shardings=(None, table.sharding))
    program = value_and_grad.lower(table, ids).compile().as_text()
    assert f"f32[{V},{D}]" not in program
    shard = table.sharding.shard_shape(table.shape)
    assert re.search(rf"f32\[{shard[0]},{shard[1]}\]", program)


def test_rows_come_in_the_dtype_asked_for() -> None:
    table, ids = placed("all", 8)
    found = jax.jit(look_up, static_argnums=2)(table, ids, jnp.bfloat16)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(found, np.asarray(table)[np.asarray(ids)].astype(jnp.bfloat16))
