"""Looking tokens up in an embedding table that is cut over the mesh, every exchange written out.

The table is cut over the vocabulary by `tensor` and over the model width by `fsdp`; tokens are cut
over the batch by `data` and `fsdp`. Left to the compiler, the way between the two depends on sizes:
at 512 chips it gathered the whole table, and summed its whole gradient, in every micro-batch.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec
from jaxtyping import Array, Float, Int

from mental_r1_jax.sharding import BATCH_AXES, LOGICAL_RULES, constrain_batch


def look_up(
    table: Float[Array, "V D"], ids: Int[Array, "B *tokens"], dtype: Any
) -> Float[Array, "B *tokens D"]:
    """Return the rows of the tokens in `dtype`, cut like a batch.

    On a mesh: the devices of an `fsdp` group exchange their tokens' ids, each looks up its columns
    for all of them (and, with a `tensor` axis, its part of the vocabulary), and one exchange within
    the group gives every device all columns of its own tokens. The gradient goes the same way back,
    so that a device only ever holds its own part of the table's gradient.

    Where an axis does not divide the batch, the compiler chooses the way.
    """
    mesh: Any = jax.typeof(table).sharding.mesh
    # Axes of other types belong to a function around this one, which has cut by them already.
    sizes = {
        name: mesh.shape[name]
        for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True)
        if kind == AxisType.Auto and mesh.shape[name] > 1
    }
    batch = tuple(name for name in BATCH_AXES if name in sizes)
    parts = 1
    for name in batch:
        parts *= sizes[name]
    if not sizes or ids.shape[0] % parts:
        return constrain_batch(jnp.take(table, ids, axis=0).astype(dtype))

    def fits(axis: str | None, size: int) -> str | None:
        return axis if axis in sizes and size % sizes[axis] == 0 else None

    vocabulary = fits(LOGICAL_RULES["vocab"], table.shape[0])
    width = fits(LOGICAL_RULES["embed"], table.shape[1])
    mapped = jax.shard_map(
        partial(_look_up_part, vocabulary=vocabulary, width=width, dtype=dtype),
        mesh=mesh,
        in_specs=(PartitionSpec(vocabulary, width), PartitionSpec(batch or None)),
        out_specs=PartitionSpec(batch or None),
    )
    return mapped(table, ids)


def _look_up_part(
    table: Float[Array, "v d"],
    ids: Int[Array, "b *tokens"],
    *,
    vocabulary: str | None,
    width: str | None,
    dtype: Any,
) -> Float[Array, "b *tokens D"]:
    """What one device does with its part of the table, see `look_up`."""
    if width is not None:
        ids = jax.lax.all_gather(ids, width, axis=0, tiled=True)
    if vocabulary is None:
        rows = jnp.take(table, ids, axis=0).astype(dtype)
    else:
        index = ids - jax.lax.axis_index(vocabulary) * len(table)
        here = (index >= 0) & (index < len(table))
        rows = jnp.take(table, jnp.where(here, index, 0), axis=0).astype(dtype)
        rows = jax.lax.psum(jnp.where(here[..., None], rows, 0), vocabulary)
    if width is not None:
        rows = jax.lax.all_to_all(rows, width, split_axis=0, concat_axis=rows.ndim - 1, tiled=True)
    return rows
