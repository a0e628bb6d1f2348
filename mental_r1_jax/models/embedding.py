"""Looking tokens up in an embedding table that is sharded over the mesh.

The table is sharded over the vocabulary by `tensor` and over the model width by `fsdp`; tokens are
sharded over the batch by `data` and `fsdp`. Left to the compiler, the way between the two depends
on sizes: at 512 chips it gathered the whole table, and summed its whole gradient, in every
micro-batch.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from mental_r1_jax.models.architecture import DecoderConfig
from mental_r1_jax.sharding import AutoAxes, constrain_batch


def embed(
    table: Float[Array, "V D"], config: DecoderConfig, ids: Int[Array, "B *tokens"]
) -> Float[Array, "B *tokens D"]:
    """Return the states of tokens that enter the first layer, in the compute dtype."""
    return scaled(look_up(table, ids, config.dtype), config)


def scaled(rows: Float[Array, "*tokens D"], config: DecoderConfig) -> Float[Array, "*tokens D"]:
    """Return ``sqrt(D) rows`` where the family scales embeddings, else the rows.

    The factor is rounded to the compute dtype before the product, as in transformers: in bfloat16
    the root of 1152 is 34 and not 33.94, and models were trained so.
    """
    if not config.scale_embedding:
        return rows
    return rows * jnp.asarray(config.hidden_size**0.5, config.dtype)


def look_up(
    table: Float[Array, "V D"], ids: Int[Array, "B *tokens"], dtype: Any
) -> Float[Array, "B *tokens D"]:
    """Return the rows of the tokens, ``table[ids]``, in `dtype` and sharded like a batch.

    Device (i, j) of fsdp x tensor stores columns i of rows j of the table, and a batch of tokens of
    its own. On such a mesh:

    1. the devices of an `fsdp` group gather their tokens' ids, which are small;
    2. each looks up its columns for all these tokens. With a `tensor` axis it finds only ids of its
       own part of the vocabulary, zeros for the others, and the sum over `tensor` is the row;
    3. an all-to-all within the `fsdp` group gives every device all columns of its own tokens.

    The gradient goes the same way back, so that a device only ever holds its own part of the
    table's gradient, and neither it nor the table is gathered.

    Where the batch axes do not divide B, the compiler chooses the way.

    Args:
        table: the embedding, in its stored dtype; an axis that the mesh does not divide is
            replicated.
        ids: the tokens to look up, sharded like a batch.
        dtype: of the result, and of what is exchanged in steps 2 and 3.
    """
    mesh: Any = jax.typeof(table).sharding.mesh
    axes = AutoAxes.of(mesh)
    batch = axes.of_batch(ids.shape[0])
    if not axes.sizes or batch is None:
        return constrain_batch(jnp.take(table, ids, axis=0).astype(dtype))
    vocabulary, width = (
        axes.of_logical("vocab", len(table)),
        axes.of_logical("embed", table.shape[1]),
    )
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
