"""Masked reductions, and metrics whose reduction is their type."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mental_r1_jax.rl.masking import (
    Max,
    Min,
    Sum,
    SumWeight,
    masked_mean,
    masked_sum,
    max_over,
    mean_over,
    min_over,
)

X = jnp.array([1.0, jnp.nan, 3.0, jnp.inf])
WHERE = jnp.array([True, False, True, False])


def test_nan_and_inf_at_padding_reach_neither_value_nor_gradient() -> None:
    assert masked_sum(X, WHERE) == 4.0
    assert masked_mean(X, WHERE) == 2.0
    np.testing.assert_array_equal(jax.grad(lambda x: masked_mean(x, WHERE))(X), [0.5, 0, 0.5, 0])
    assert mean_over(X, WHERE).value == 2.0
    assert max_over(X, WHERE).value == 3.0
    assert min_over(X, WHERE).value == 1.0


def test_masked_mean_of_nothing_is_zero_but_the_metric_is_not_a_number() -> None:
    nothing = jnp.zeros(4, bool)
    assert masked_mean(X, nothing) == 0.0
    assert np.isnan(mean_over(X, nothing).value)
    assert max_over(X, nothing).value == -np.inf


def test_masked_reductions_along_an_axis() -> None:
    x = jnp.arange(6.0).reshape(2, 3)
    where = jnp.array([[True, True, False], [False, False, True]])
    np.testing.assert_array_equal(masked_sum(x, where, axis=-1), [1.0, 5.0])
    np.testing.assert_array_equal(masked_mean(x, where, axis=0), [0.0, 1.0, 5.0])


def test_means_are_reduced_by_weight_not_by_mean_of_means() -> None:
    assert SumWeight(jnp.array([2.0, 3.0]), jnp.array([1.0, 9.0])).reduce().value == 0.5


@pytest.mark.parametrize(
    ("metric", "expected"),
    [(Max, 7.0), (Min, -2.0), (Sum, 8.0)],
)
def test_reductions_are_types_not_names(metric: type, expected: float) -> None:
    """A maximum stays a maximum under any key."""
    assert metric(jnp.array([3.0, 7.0, -2.0])).reduce().value == expected


def test_metrics_stacked_by_a_scan_are_reduced_over_all_parts() -> None:
    x = jnp.arange(8.0).reshape(4, 2)
    where = jnp.array([[True, True], [True, False], [False, False], [True, True]])
    _, stacked = jax.lax.scan(
        lambda _, xw: (None, {"a": mean_over(*xw), "b": max_over(*xw)}), None, (x, where)
    )
    assert stacked["a"].reduce().value == np.mean([0, 1, 2, 6, 7])
    assert stacked["b"].reduce().value == 7.0
