"""Processes: which rows of a batch this one holds, and how all of them come to the same numbers.

A batch is cut over the mesh, so every process holds the rows of its own devices. It reads, samples
and scores those rows and no others. What all must know (rewards for the metrics, the longest
prompt, a request to stop) is exchanged here; with one process every exchange is the identity.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from mental_r1_jax import sharding


def is_first() -> bool:
    """Whether this process is the one that writes files and talks to the user."""
    return jax.process_index() == 0


def local_rows(mesh: Mesh, total: int) -> np.ndarray:
    """Rows of a batch of `total` that this process's devices hold, ascending, [b].

    They need not follow each other: a mesh is laid out for the wires between the chips, not for
    the order of the hosts.
    """
    where = sharding.batch_sharding(mesh, 1).addressable_devices_indices_map((total,))
    rows = np.arange(total)
    return np.unique(np.concatenate([rows[index] for index in where.values() if index is not None]))


def put_batch(mesh: Mesh, tree: Any) -> Any:
    """Make global arrays, cut over axis 0, of this process's rows of `tree` (see `local_rows`)."""
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    held = len(local_rows(mesh, shards))

    def place(leaf: np.ndarray) -> jax.Array:
        total = leaf.shape[0] * shards // held
        rows = local_rows(mesh, total)

        def shard(index: Any) -> np.ndarray:
            start, stop, _ = index[0].indices(total)
            first = int(np.searchsorted(rows, start))
            return leaf[first : first + stop - start]

        return jax.make_array_from_callback(
            (total, *leaf.shape[1:]), sharding.batch_sharding(mesh, leaf.ndim), shard
        )

    return jax.tree.map(place, tree)


def fetch_rows(array: jax.Array) -> np.ndarray:
    """This process's rows of an array that is cut over axis 0 alone; waits for it.

    Devices that hold the same rows give them once.
    """
    shards = {
        shard.index[0].indices(array.shape[0])[0]: shard for shard in array.addressable_shards
    }
    return np.concatenate([np.asarray(shards[start].data) for start in sorted(shards)])


def all_rows(mesh: Mesh, local: np.ndarray) -> np.ndarray | jax.Array:
    """The rows of all processes, on every process; with several, a device array under way."""
    if jax.process_count() == 1:
        return local
    return _replicate(mesh)(put_batch(mesh, local))


@functools.lru_cache(maxsize=4)
def _replicate(mesh: Mesh) -> Any:
    """Compiled once a mesh: gather an array to every device."""
    return jax.jit(lambda array: array, out_shardings=sharding.replicated(mesh))


def largest(value: int) -> int:
    """The largest `value` of all processes; every process must call this, and all wait."""
    if jax.process_count() == 1:
        return value
    return int(multihost_utils.process_allgather(np.array([value], np.int32)).max())


def all_items(items: Sequence[Any]) -> list[Any]:
    """JSON-able items of all processes, one process after the other, on every process; all wait."""
    if jax.process_count() == 1:
        return list(items)
    encoded = np.frombuffer(json.dumps(list(items)).encode(), np.uint8)
    size = largest(len(encoded))
    # Sizes are rounded up to a power of two, so that few programs are compiled.
    padded = np.full(1 << max(0, size - 1).bit_length(), ord(" "), np.uint8)
    padded[: len(encoded)] = encoded
    texts = multihost_utils.process_allgather(padded)
    return [item for text in texts for item in json.loads(text.tobytes().decode())]
