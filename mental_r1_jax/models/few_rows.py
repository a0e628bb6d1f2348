"""Products of a few rows with a matrix on CPUs, as a decoding loop has them at every token.

XLA's library for CPUs copies the right operand of a product into an order of its own, at every
call, and reads the left one as it stands. With a few rows the copy of a layer's weights takes
longer than the product itself. So here a matrix has its outputs first and is the left operand,
which saves a tenth to a third of the time for 2 to 64 rows (`benchmarks/few_rows.py`). A single row
is not copied for, a hundred rows take longer this way, and in bfloat16 it made no difference.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mental_r1_jax.sharding import chip_of

FEWEST_ROWS, MOST_ROWS = 2, 64


def takes_few_rows(matrix: Float[Array, "..."], dtype: jnp.dtype, num_rows: int) -> bool:
    """Whether a product of `num_rows` rows is better made by `few_rows_product`.

    Args:
        matrix: its mesh, or without one the default device, tells the chip.
        dtype: of the product.
        num_rows: on all devices together.
    """
    few = FEWEST_ROWS <= num_rows <= MOST_ROWS
    return few and dtype == jnp.float32 and chip_of(matrix).platform == "cpu"


def outputs_first(
    kernel: Float[Array, "*inputs_and_outputs"], num_inputs: int
) -> Float[Array, "*outputs N"]:
    """Lay out a kernel ``[*inputs, *outputs]``, whose inputs have N numbers, for the product."""
    inputs, outputs = kernel.shape[:num_inputs], kernel.shape[num_inputs:]
    return jnp.moveaxis(kernel.reshape(math.prod(inputs), *outputs), 0, -1)


def few_rows_product(
    rows: Float[Array, "M N"], matrix: Float[Array, "*outputs N"]
) -> Float[Array, "M *outputs"]:
    """Return ``sum_n rows[m, n] matrix[..., n]`` in float32."""
    left = matrix.reshape(-1, matrix.shape[-1])
    product = jnp.einsum("on,mn->om", left, rows, preferred_element_type=jnp.float32)
    # Without the barrier XLA turns the product round again.
    product = jax.lax.optimization_barrier(product)
    return product.T.reshape(len(rows), *matrix.shape[:-1])
