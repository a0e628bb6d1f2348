"""Masked reductions, and metrics that know how they are reduced.

A metric is a value of one of four types, `SumWeight`, `Sum`, `Max` or `Min`. Each has

* `reduce()`: the metric of all micro-batches together, of parts stacked along a leading axis, as
  `jax.lax.scan` returns them;
* `value`: the number to report.

How a metric is reduced is thus said by its type, never guessed from its name.
"""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped


def masked_sum(
    x: Shaped[Array, "*shape"], where: Bool[Array, "*shape"], axis: int | None = None
) -> Array:
    """Sum of `x` over the places where `where` is true: `sum_i m_i x_i`.

    Other places are replaced before the sum, not multiplied by 0, so a NaN or an infinity there
    reaches neither the sum nor its gradient.
    """
    return jnp.sum(jnp.where(where, x, jnp.zeros_like(x)), axis=axis)


def masked_mean(
    x: Float[Array, "*shape"], where: Bool[Array, "*shape"], axis: int | None = None
) -> Array:
    """Mean of `x` where `where` is true: `sum_i m_i x_i / max(1, sum_i m_i)`; 0 where none is."""
    return masked_sum(x, where, axis) / jnp.maximum(jnp.sum(where, axis=axis), 1).astype(x.dtype)


# The fields are `Any` because JAX also builds these containers of shapes, shardings and sentinels
# (`jax.eval_shape`, `jax.tree.map`), which a run-time type check of arrays would refuse.


@flax.struct.dataclass
class SumWeight:
    """A weighted mean in two parts, `sum / weight`, so that parts merge without bias.

    Attributes:
        sum: sum of the values, scalar float32.
        weight: what it is divided by in the end (tokens, completions, ...), scalar float32.
    """

    sum: Any
    weight: Any

    def reduce(self) -> SumWeight:
        """Merge the parts stacked along the leading axis."""
        return SumWeight(sum=self.sum.sum(axis=0), weight=self.weight.sum(axis=0))

    @property
    def value(self) -> jax.Array:
        """The mean; NaN where the weight is 0, since the mean of nothing is not a number."""
        return jnp.where(
            self.weight == 0, jnp.nan, self.sum / jnp.where(self.weight == 0, 1, self.weight)
        )


@flax.struct.dataclass
class Sum:
    """A total of shares already divided by global weights, such as the terms of the loss.

    Attributes:
        value: the sum so far, scalar float32.
    """

    value: Any

    def reduce(self) -> Sum:
        """Merge the parts stacked along the leading axis."""
        return Sum(self.value.sum(axis=0))


@flax.struct.dataclass
class Max:
    """A maximum.

    Attributes:
        value: the largest so far, scalar float32; -inf when there was none.
    """

    value: Any

    def reduce(self) -> Max:
        """Merge the parts stacked along the leading axis."""
        return Max(self.value.max(axis=0))


@flax.struct.dataclass
class Min:
    """A minimum.

    Attributes:
        value: the smallest so far, scalar float32; +inf when there was none.
    """

    value: Any

    def reduce(self) -> Min:
        """Merge the parts stacked along the leading axis."""
        return Min(self.value.min(axis=0))


Metric = SumWeight | Sum | Max | Min


def mean_over(x: Shaped[Array, "*shape"], where: Bool[Array, "*shape"]) -> SumWeight:
    """Mean of `x` over the true places of `where`, as a metric."""
    return SumWeight(
        sum=masked_sum(x.astype(jnp.float32), where), weight=jnp.sum(where).astype(jnp.float32)
    )


def max_over(x: Float[Array, "*shape"], where: Bool[Array, "*shape"]) -> Max:
    """Maximum of `x` over the true places of `where`, as a metric."""
    return Max(jnp.max(x, where=where, initial=-jnp.inf))


def min_over(x: Float[Array, "*shape"], where: Bool[Array, "*shape"]) -> Min:
    """Minimum of `x` over the true places of `where`, as a metric."""
    return Min(jnp.min(x, where=where, initial=jnp.inf))
