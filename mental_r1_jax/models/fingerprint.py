"""A number that tells weights from other weights, wherever they came from and however they lie."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import UInt32


def fingerprint(params: Any) -> str:
    """Hexadecimal digest of the bits, names and shapes of a tree of arrays.

    It is the same on every mesh: sums of 32-bit words, modulo 2^32, have no order. It shows that
    weights differ, not who made them: other weights with the same sums can be constructed.
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    sums = jax.device_get(jax.jit(lambda tree: jax.tree.map(_sums, tree))(params))
    digest = hashlib.sha256()
    for (path, leaf), found in zip(leaves, jax.tree.leaves(sums), strict=True):
        facts = (jax.tree_util.keystr(path), leaf.shape, str(leaf.dtype), found.tolist())
        digest.update(repr(facts).encode())
    return digest.hexdigest()


def _sums(leaf: jax.Array) -> UInt32[jax.Array, "2"]:
    """Sum of the words, and their sum weighted by odd numbers of their places."""
    bits = jax.lax.bitcast_convert_type(leaf, f"uint{8 * leaf.dtype.itemsize}").astype(jnp.uint32)
    place = jnp.zeros(leaf.shape, jnp.uint32)
    for axis in range(leaf.ndim):
        stride = math.prod(leaf.shape[axis + 1 :]) % 2**32
        place = place + jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis) * jnp.uint32(stride)
    # Of a word times an odd number nothing is lost.
    weighted = bits * (2 * place + 1)
    return jnp.stack([jnp.sum(bits, dtype=jnp.uint32), jnp.sum(weighted, dtype=jnp.uint32)])
