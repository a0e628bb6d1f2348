"""The fingerprint of weights: sums worked out by NumPy, on any mesh, moved by any bit."""

from __future__ import annotations

import hashlib

import jax
import jax.numpy as jnp
import numpy as np

from mental_r1_jax.models.fingerprint import fingerprint


def expected(name: str, value: np.ndarray) -> str:
    """By 64-bit integers on the host."""
    words = value.view(f"uint{8 * value.dtype.itemsize}").ravel().astype(np.uint64)
    places = 2 * np.arange(words.size, dtype=np.uint64) + 1
    with np.errstate(over="ignore"):
        sums = [int(words.sum() % 2**32), int((words * places).sum() % 2**32)]
    return hashlib.sha256(repr((name, value.shape, str(value.dtype), sums)).encode()).hexdigest()


def test_it_is_that_of_the_definition_on_any_mesh_and_every_bit_counts() -> None:
    value = np.random.default_rng(0).standard_normal((8, 3, 5)).astype(np.float32)
    assert fingerprint({"w": value}) == expected("['w']", value)
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    assert fingerprint({"w": jax.device_put(value, sharding)}) == expected("['w']", value)
    others = [value.copy() for _ in range(3)]
    others[0].view(np.uint32)[7, 2, 4] ^= 1 << 31  # a sign, whose weight is 2^31
    others[1][[0, 1]] = value[[1, 0]]  # two rows in each other's place
    others[2] = value.reshape(8, 5, 3)
    found = {fingerprint({"w": other}) for other in [value, *others]}
    assert len(found) == 4


def test_half_precision_and_no_weights_at_all() -> None:
    half = np.asarray(jnp.arange(6, dtype=jnp.float16))
    assert fingerprint({"w": half}) == expected("['w']", half)
    assert fingerprint({}) == hashlib.sha256().hexdigest()
