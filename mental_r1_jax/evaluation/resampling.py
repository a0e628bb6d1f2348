"""Estimates with 95% intervals: percentile bootstrap over the posts of a set.

Source: Efron & Tibshirani, An Introduction to the Bootstrap (1993), chapter 13.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypedDict

import numpy as np
from jaxtyping import Float, Int

# Entries of one block of resamples: 4 MB of counts, whatever the number of posts.
_BLOCK = 500_000

Draws = Mapping[str, Float[np.ndarray, " S"]]


class Estimate(TypedDict):
    """A number and its 95% interval; None where it is not defined."""

    value: float | None
    interval: list[float] | None


def estimate(value: float | None, draws: Float[np.ndarray, " S"] | None) -> Estimate:
    """A number with the interval of its resamples.

    Args:
        value: on the posts as they are; None or NaN where it is not defined.
        draws: the same on every resample; those that are NaN, where a resample lost its last post
            of a kind, are left out. None leaves out the interval.
    """
    if value is None or np.isnan(value):
        return Estimate(value=None, interval=None)
    defined = np.empty(0) if draws is None else draws[~np.isnan(draws)]
    if not defined.size:
        return Estimate(value=float(value), interval=None)
    low, high = np.percentile(defined, [2.5, 97.5])
    return Estimate(value=float(value), interval=[float(low), float(high)])


def resampled_counts(
    counts: Int[np.ndarray, "*cells"], *, samples: int, seed: int
) -> Int[np.ndarray, "S *cells"]:
    """Counts of `samples` draws of the counted posts, with replacement.

    What depends on posts only through how many fall into each cell needs no more than this:
    drawing n of them draws the counts from Multinomial(n, counts / n).
    """
    flat = counts.reshape(-1)
    total = int(flat.sum())
    draws = np.random.default_rng(seed).multinomial(total, flat / max(total, 1), size=samples)
    return draws.reshape(samples, *counts.shape)


def post_weights(n: int, *, samples: int, seed: int) -> Iterator[Int[np.ndarray, "s {n}"]]:
    """How often each of `n` posts occurs in each resample, in blocks of resamples."""
    rng = np.random.default_rng(seed)
    rows = max(1, _BLOCK // n)
    for start in range(0, samples, rows):
        count = min(rows, samples - start)
        drawn = rng.integers(0, n, size=(count, n)) + n * np.arange(count)[:, None]
        yield np.bincount(drawn.reshape(-1), minlength=count * n).reshape(count, n)


def resampled_scores(
    functions: Mapping[str, Callable[[Int[np.ndarray, "s n"]], Draws]],
    n: int,
    *,
    samples: int,
    seed: int,
) -> dict[str, dict[str, Float[np.ndarray, " S"]]]:
    """Every function's numbers on every resample of `n` posts, all on the same resamples.

    Args:
        functions: each takes `post_weights` and returns its numbers by name, one a resample.
    """
    parts: dict[str, list[Draws]] = {name: [] for name in functions}
    for weights in post_weights(n, samples=samples, seed=seed):
        for name, function in functions.items():
            parts[name].append(function(weights))
    return {
        name: {key: np.concatenate([one[key] for one in found]) for key in found[0]}
        for name, found in parts.items()
    }


def ratio(part: Any, whole: Any) -> Float[np.ndarray, "*batch"]:
    """`part / whole` of numbers or arrays that broadcast, NaN where `whole` is 0."""
    return np.asarray(np.where(whole > 0, part / np.where(whole > 0, whole, 1), np.nan))
