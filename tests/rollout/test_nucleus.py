"""The threshold of the nucleus: against halving on every bit, and against a sort in float64."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mental_r1_jax.rollout.nucleus import nucleus_threshold, row_sums

CLOSE = 2e-6  # float32 sums of a vocabulary round; nearer shares may fall on either side
LARGE = 8219  # no multiple of any strip or block


@functools.cache
def search(top_p: float):
    return jax.jit(lambda weights: nucleus_threshold(weights, row_sums(weights), top_p))


@functools.partial(jax.jit, static_argnums=1)
def by_halving(probs, top_p):
    """Which tokens are kept, by 31 halvings of the threshold's bits: the definition."""
    bits, wanted = jax.lax.bitcast_convert_type(probs, jnp.int32), top_p * probs.sum(axis=-1)

    def halve(_, bounds):
        low, high = bounds
        middle = low + (high - low) // 2
        holds = jnp.where(bits >= middle[..., None], probs, 0.0).sum(axis=-1) >= wanted
        return jnp.where(holds, middle, low), jnp.where(holds, high, middle)

    start = jnp.zeros(probs.shape[:-1], jnp.int32), jnp.full(probs.shape[:-1], 0x3F800002)
    return bits >= jax.lax.fori_loop(0, 31, halve, start)[0][..., None]


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities times a factor: the largest of a row is 1."""
    logits = np.asarray(logits, np.float32)
    return np.array(jnp.exp(logits - logits.max(axis=-1, keepdims=True)))


def kept(probs: np.ndarray, top_p: float) -> tuple[np.ndarray, int]:
    """Which tokens of rows [N, V] are kept, and in how many passes over them."""
    threshold, turns = search(top_p)(jnp.asarray(probs)[None])
    return probs >= np.asarray(threshold)[0][:, None], int(turns)


def assert_nucleus(probs: np.ndarray, found: np.ndarray, top_p: float) -> None:
    """By a sort in float64: whole classes of ties, enough mass, and not without the last class."""
    for row, inside, halved in zip(
        probs, found, np.asarray(by_halving(jnp.asarray(probs)[None], top_p))[0], strict=True
    ):
        levels, place = np.unique(row, return_inverse=True)  # ascending
        mass = np.bincount(place, weights=row.astype(np.float64))[::-1].cumsum() / row.sum(
            dtype=np.float64
        )
        first = min(int(np.searchsorted(mass, top_p)), len(levels) - 1)
        least = levels[::-1][first]
        if np.abs(mass - top_p).min() > CLOSE:
            np.testing.assert_array_equal(inside, row >= least)
            np.testing.assert_array_equal(inside, halved)
        else:
            share = row[inside].sum(dtype=np.float64) / row.sum(dtype=np.float64)
            last = row[row == row[inside].min()].sum(dtype=np.float64)
            assert share >= top_p - CLOSE and share - last < top_p + CLOSE
            np.testing.assert_array_equal(inside, row >= row[inside].min())


def made_up(kind: str, size: int, rows: int = 8) -> np.ndarray:
    """Logits as they occur, and as they should not."""
    rng = np.random.default_rng(len(kind) + size)
    logits = rng.standard_normal((rows, size))
    if kind == "random weights":
        logits *= 0.1
    elif kind == "trained":
        logits *= 4
    elif kind == "one sure token":
        logits[np.arange(rows), rng.integers(0, size, rows)] += 14
    elif kind == "some likely tokens":
        logits[:, :20] += rng.uniform(6, 14, (rows, 20))
    elif kind == "zipf":
        logits = 0.5 * logits - 1.2 * np.log1p(
            rng.permuted(np.tile(np.arange(size), (rows, 1)), axis=1)
        )
    elif kind == "ties":
        logits = np.round(4 * logits) / 2
    elif kind == "equal":
        logits[:] = 3.0
    elif kind == "one-hot":
        logits[:] = -np.inf
        logits[np.arange(rows), rng.integers(0, size, rows)] = 0.0
    elif kind == "mostly impossible":
        logits[:, rng.random(size) < 0.9] = -np.inf
    return logits


KINDS = [
    *("random weights", "normal", "trained", "one sure token", "some likely tokens", "zipf"),
    *("ties", "equal", "one-hot", "mostly impossible"),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("size", "top_p"), [(149, 0.95), (LARGE, 0.95), (LARGE, 0.3)])
def test_the_kept_set_is_that_of_halving_and_of_a_sort(kind, size, top_p):
    probs = softmax(made_up(kind, size))
    found, turns = kept(probs, top_p)
    assert_nucleus(probs, found, top_p)
    # One more pass collects; only ties need that many.
    assert turns <= (4 if kind in ("ties", "equal") or top_p < 0.9 else 3)


@pytest.mark.parametrize(
    ("top_p", "seed", "row"), [(0.9, 31, 297), (0.9, 37, 253), (0.95, 8, 422), (0.7, 3, 51)]
)
def test_a_bound_is_the_threshold_that_its_mass_was_summed_at(top_p, seed, row):
    """Four rows of 61,440: their threshold was computed twice, rounded otherwise, and in between
    lay a token, which was then missing from the nucleus.
    """
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal((512, 149)) * rng.choice([0.1, 1.0, 5.0], (512, 1))
    probs = softmax(logits)[[row]]
    assert_nucleus(probs, kept(probs.repeat(512, 0), top_p)[0][:1], top_p)


@settings(deadline=None, max_examples=40)
@given(
    st.integers(0, 2**32 - 1),
    st.floats(0.01, 20),
    st.sampled_from([0, 1, 2, 8]),
    st.floats(0, 0.95),
    st.sampled_from([0.3, 0.95]),
)
def test_any_row_is_truncated_as_a_sort_does(seed, spread, steps, impossible, top_p):
    """Spread, ties (logits on a grid), impossible tokens and share as hypothesis likes."""
    rng = np.random.default_rng(seed)
    logits = spread * rng.standard_normal((8, LARGE))
    logits = np.round(steps * logits) / steps if steps else logits
    logits[:, 1:][rng.random((8, LARGE - 1)) < impossible] = -np.inf
    probs = softmax(logits)
    assert_nucleus(probs, kept(probs, top_p)[0], top_p)


def test_a_row_is_truncated_alike_in_any_company():
    rows = np.concatenate([softmax(made_up(kind, LARGE, 1)) for kind in KINDS[:8]])
    together, _ = search(0.95)(jnp.asarray(rows)[None])
    for i, row in enumerate(rows):
        alike = np.broadcast_to(row, rows.shape)  # the same program, so that sums round alike
        alone, _ = search(0.95)(jnp.asarray(alike)[None])
        assert np.asarray(alone)[0, 0] == np.asarray(together)[0, i]


def test_numbers_that_are_none_end_the_search():
    probs = softmax(made_up("normal", LARGE))
    probs[1] = np.nan
    found, turns = kept(probs, 0.95)
    assert_nucleus(probs[2:], found[2:], 0.95)
    assert turns <= 80
