"""The mesh, the strict table of axes, and equal results on one device and on eight."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from mental_r1_jax import sharding
from mental_r1_jax.errors import UserError
from mental_r1_jax.models import decoder


def test_mesh_takes_the_devices_that_are_left() -> None:
    mesh = sharding.make_mesh(data=None, fsdp=2, tensor=2)
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    assert set(mesh.axis_types) == {jax.sharding.AxisType.Auto}
    one = sharding.make_mesh(data=1, fsdp=1, tensor=1, devices=jax.devices()[:1])
    assert one.size == 1


@pytest.mark.parametrize("sizes", [(None, 3, 1), (2, 2, 1), (None, 16, 1), (0, 1, 8)])
def test_a_mesh_that_does_not_fit_is_refused(sizes: tuple) -> None:
    with pytest.raises(UserError, match="8 \\(the number of devices\\)"):
        sharding.make_mesh(*sizes)


def test_logical_axes_are_looked_up_strictly() -> None:
    mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
    found = sharding.logical_to_sharding(mesh, ("layers", "embed", "heads", "head_dim"))
    assert found.spec == PartitionSpec(None, "fsdp", "tensor", None)
    with pytest.raises(ValueError, match="unknown logical axes \\['embedding'\\]"):
        sharding.logical_to_sharding(mesh, ("layers", "embedding"))
    with pytest.raises(ValueError, match="one mesh axis"):
        sharding.logical_to_sharding(mesh, ("heads", "mlp"))
    with pytest.raises(ValueError, match="2 logical axes"):
        sharding.param_shardings(mesh, {"w": shape(4)}, {"w": ("embed", "mlp")})


def shape(*sizes: int) -> jax.ShapeDtypeStruct:
    """A float32 array that takes no memory."""
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


def test_large_parameters_must_be_sharded() -> None:
    mesh = sharding.make_mesh(data=2, fsdp=1, tensor=4)
    shapes = {
        "fine": shape(1024, 1024),
        "odd": shape(1024, 1023),
        "unsharded": shape(1024, 1024),
        "few_heads": shape(512, 32, 2, 64),
        "small": shape(6, 6),
    }
    axes = {
        "fine": ("embed", "mlp"),
        "odd": ("embed", "mlp"),
        "unsharded": ("embed", "norm"),
        "few_heads": ("layers", "heads", "kv_heads", "head_dim"),
        "small": ("embed", "mlp"),
    }
    axes["few_heads"] = ("mlp", "layers", "norm", "head_dim")
    with pytest.raises(UserError) as raised:
        sharding.param_shardings(mesh, shapes, axes)
    message = str(raised.value)
    assert "odd (1024, 1023): mlp=1023 is not a multiple of tensor=4" in message
    assert "unsharded (1024, 1024): 1,048,576 elements, and no axis shards it" in message
    assert "fine" not in message and "small" not in message and "few_heads" not in message


def test_small_parameters_and_few_kv_heads_may_be_replicated() -> None:
    mesh = sharding.make_mesh(data=1, fsdp=2, tensor=4)
    shapes = {"key": shape(64, 128, 2, 64), "small": shape(6, 6)}
    axes = {"key": ("layers", "embed", "kv_heads", "head_dim"), "small": ("embed", "mlp")}
    found = sharding.param_shardings(mesh, shapes, axes)
    assert found["key"].spec == PartitionSpec(None, "fsdp", None, None)
    assert found["small"].spec == PartitionSpec("fsdp", None)


def test_batches_are_sharded_over_data_and_fsdp() -> None:
    mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
    rows = jax.device_put(np.zeros((8, 3), np.float32), sharding.batch_sharding(mesh, 2))
    assert rows.addressable_shards[0].data.shape == (2, 3)
    copies = jax.device_put(np.zeros((8, 3), np.float32), sharding.replicated(mesh))
    assert copies.addressable_shards[0].data.shape == (8, 3)


def test_forward_and_gradient_on_eight_devices_equal_one_device() -> None:
    config = decoder.DecoderConfig(
        vocab_size=36,
        hidden_size=16,
        intermediate_size=24,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=6,
        qk_norm=True,
        init_scale=0.3,
    )
    rng = np.random.default_rng(0)
    shapes = decoder.abstract_params(config)
    params = jax.tree.map(lambda s: 0.3 * rng.standard_normal(s.shape, np.float32), shapes)
    prompt_ids, completion_ids = rng.integers(0, 36, (4, 5)), rng.integers(0, 36, (4, 3, 6))
    masks = np.arange(5)[None] < np.asarray([[5], [2], [3], [1]]), np.ones((4, 3, 6), bool)
    batch = (prompt_ids, masks[0], completion_ids, masks[1])

    def loss(params: dict, batch: tuple) -> tuple[jax.Array, jax.Array]:
        """A scalar that depends on every parameter, and the logits."""
        hidden = decoder.forward(params, config, *batch)
        logits = decoder.unembed(params, config, hidden)
        return jnp.sin(logits).mean(), logits

    run = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (expected_loss, expected), expected_grad = run(params, batch)

    mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
    where = sharding.param_shardings(mesh, shapes, decoder.param_logical_axes(config))
    sharded_batch = tuple(jax.device_put(x, sharding.batch_sharding(mesh, x.ndim)) for x in batch)
    arguments = (jax.device_put(params, where), sharded_batch)
    compiled = run.lower(*arguments).compile()
    (value, logits), grad = compiled(*arguments)
    assert len(logits.sharding.device_set) == 8
    # Tokens of all prompts: 4 x 5, of all completions: 4 x 3 x 5. Left alone, the compiler lets
    # every device multiply all of them; constrained, each has those of its own prompt.
    products = set(re.findall(r"= f32\[(\d+),\d+\]\S* dot\(", compiled.as_text()))
    assert {"5", "15"} <= products and not {"20", "60"} & products
    np.testing.assert_allclose(value, expected_loss, rtol=0, atol=1e-6)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6),
                 grad, expected_grad)  # fmt: skip


@pytest.mark.parametrize("group", [4, 3])
def test_each_device_loops_for_its_own_rows(group: int) -> None:
    """Halve every row until its sum is below 1; a group of 3 does not divide over `tensor`."""

    def turns(rows: jax.Array) -> jax.Array:
        def halve(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            left, count = state
            large = left >= 1.0
            return jnp.where(large, left / 2, left), count + large

        start = rows.sum(axis=-1), jnp.zeros(rows.shape[:-1])
        return jax.lax.while_loop(lambda state: (state[0] >= 1.0).any(), halve, start)[1]

    rows = np.exp2(np.arange(8.0 * group)).reshape(8, group, 1).astype(np.float32)
    mesh = sharding.make_mesh(2, 2, 2)
    placed = jax.device_put(rows, sharding.batch_sharding(mesh, 3))
    mapped = jax.jit(lambda rows: sharding.on_own_rows(turns, rows))
    np.testing.assert_array_equal(mapped(placed), 1 + np.arange(8 * group).reshape(8, group))
    assert "all-reduce" not in mapped.lower(placed).compile().as_text()
    plain = jax.jit(turns).lower(placed).compile().as_text()
    assert "all-reduce" in plain
