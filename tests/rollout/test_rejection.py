"""Drawing from the nucleus by rejection, against a sort, exact shares, and the plain draw."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mental_r1_jax.rollout import rejection
from mental_r1_jax.rollout.cumulative import cumulative, invert
from mental_r1_jax.rollout.nucleus import in_nucleus, row_sums
from mental_r1_jax.rollout.rejection import LEAST_TOP_P
from mental_r1_jax.rollout.sampling import sample_token
from tests.rollout.test_nucleus import CLOSE, softmax

LARGE = 8219  # summed in strips; no multiple of a strip or block
T = 0.85


@functools.cache
def drawer(top_p: float, top_k: int | None, sampler_logprobs: bool):
    return jax.jit(
        functools.partial(
            sample_token,
            temperature=T,
            top_p=top_p,
            top_k=top_k,
            sampler_logprobs=sampler_logprobs,
        )
    )


def draw(logits, uniform, top_p, top_k=None, sampler_logprobs=False):
    """ids and log-probs of rows [N, V] and [N]."""
    rows = jnp.asarray(logits, jnp.float32)[None], jnp.asarray(uniform, jnp.float32)[None]
    found = drawer(top_p, top_k, sampler_logprobs)(*rows)
    return [None if x is None else np.asarray(x)[0] for x in found]


def likelier(probs: np.ndarray) -> np.ndarray:
    """For each token of rows [N, V] the share of those that are strictly likelier; float64."""
    shares = np.empty(probs.shape)
    for row, share in zip(probs.astype(np.float64), shares, strict=True):
        levels, place = np.unique(-row, return_inverse=True)
        mass = np.bincount(place, weights=row, minlength=len(levels))
        share[:] = ((mass.cumsum() - mass) / row.sum())[place]
    return shares


def logits_of(seed: int, rows: int, size: int, ties: bool = False) -> np.ndarray:
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal((rows, size)) * rng.choice([0.1, 1.0, 5.0], (rows, 1))
    return (np.round(2 * logits) / 2 if ties else logits).astype(np.float32)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(("size", "top_k"), [(149, None), (149, 40), (LARGE, None)])
def test_every_token_lies_in_the_nucleus_of_a_sort(size, top_k, ties):
    logits, rng = logits_of(0, 12, size, ties).repeat(60, 0), np.random.default_rng(1)
    uniform = rng.random(len(logits))
    probs = softmax(logits / np.float32(T))
    if top_k is not None:
        least = -np.sort(-probs, axis=-1)[:, [top_k - 1]]
        probs = np.where(probs >= least, probs, 0.0)
    for top_p in (LEAST_TOP_P, 0.95):
        ids, _, sampler = draw(logits, uniform, top_p, top_k)
        assert sampler is None
        before = np.take_along_axis(likelier(probs), ids[:, None], -1)
        assert before.max() < top_p + CLOSE
        assert (np.take_along_axis(probs, ids[:, None], -1) > 0).all()


@pytest.mark.parametrize("top_p", [LEAST_TOP_P, 0.95])
def test_shares_of_tokens_are_the_probabilities_renormalised(top_p):
    """Even numbers, so that first candidates have no chance; the rest is drawn again."""
    count, logits = 1 << 17, logits_of(2, 1, 149)[0] * 2
    uniform = (np.arange(count) + 0.5) / count
    ids, decode, _ = draw(np.broadcast_to(logits, (count, 149)), uniform, top_p)
    probs = softmax(logits[None] / np.float32(T))[0].astype(np.float64)
    probs /= probs.sum()
    inside = likelier(probs[None])[0] < top_p
    expected = np.where(inside, probs, 0) / probs[inside].sum() * count
    observed = np.bincount(ids, minlength=149)
    assert (observed[~inside] == 0).all() and 0.01 < 1 - probs[inside].sum() < 0.25
    # First candidates of the nucleus are kept whole.
    assert (observed - probs * count)[inside].min() > -3
    large = expected >= 5
    chi2 = ((observed - expected)[large] ** 2 / expected[large]).sum()
    # What is drawn again is at most a quarter, so chi2 is below that of independent draws; 5
    # standard deviations of it (mean n, variance 2 n).
    freedom = large.sum() - 1
    assert chi2 < freedom + 5 * np.sqrt(2 * freedom)
    np.testing.assert_allclose(decode, np.log(probs[ids]), atol=5e-6)


def test_numbers_of_rejected_candidates_tell_nothing_about_the_next_ones():
    """Half of the tokens' ids are even: so are half of those drawn again, for any rejected one."""
    size, top_p, count = 40, 0.8, 1 << 16
    probs = np.r_[np.full(32, 0.8 / 32 + 1e-4), np.full(8, 0.2 / 8 - 4e-4)]
    uniform = np.random.default_rng(3).random(count).astype(np.float32)
    logits = np.broadcast_to(T * np.log(probs / probs.sum()), (count, size))
    rejected, _, _ = draw(logits, uniform, 1.0)
    ids, _, _ = draw(logits, uniform, top_p)
    assert (ids < 32).all()
    kept = rejected < 32
    np.testing.assert_array_equal(ids[kept], rejected[kept])
    for token in range(32, 40):
        again = ids[rejected == token]
        assert len(again) > 1000
        observed = np.bincount(again, minlength=32)
        chi2 = ((observed - len(again) / 32) ** 2 / (len(again) / 32)).sum()
        assert chi2 < 31 + 5 * np.sqrt(62)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([0.5, 0.8, 0.95, 0.999]),
    st.booleans(),
    st.sampled_from([149, LARGE]),
)
def test_membership_is_that_of_a_sort(seed, top_p, ties, size):
    probs = softmax(logits_of(seed, 4, size, ties))
    probs[np.random.default_rng(seed).random(probs.shape) < 0.1] = 0.0
    probs /= probs.max(-1, keepdims=True)
    tokens = np.random.default_rng(seed).integers(0, size, (4, 6))
    tokens[:, 0] = probs.argmax(-1)
    drawn = np.take_along_axis(probs, tokens, -1)
    member = jax.jit(in_nucleus, static_argnums=3)
    rows = jnp.asarray(probs)[None]
    inside = np.asarray(member(rows, row_sums(rows), jnp.asarray(drawn)[None], top_p))[0]
    before = np.take_along_axis(likelier(probs), tokens, -1)
    clear = (np.abs(before - top_p) > CLOSE) & (drawn > 0)
    np.testing.assert_array_equal(inside[clear], (before < top_p)[clear])
    assert inside[:, 0].all()


def test_two_candidates_are_mostly_enough():
    """At most 0.05^2 of the rows have neither in the nucleus; `plan` counts one turn."""
    count = 1 << 15
    logits = np.broadcast_to(logits_of(7, 1, 149)[0], (count, 149))
    uniform = jnp.asarray(np.random.default_rng(8).random((1, count)), jnp.float32)
    table = cumulative(jnp.asarray(softmax(logits))[None])
    twice = jax.jit(lambda: invert(table, rejection._numbers(uniform, jnp.zeros((), jnp.int32))))
    candidates, drawn = (np.asarray(x)[0] for x in twice())
    outside = likelier(softmax(logits[:1]))[0][candidates] >= 0.95
    assert (drawn > 0).all() and 0.02 < outside[:, 0].mean() <= 0.05 + 0.004
    # Independent: the second one is outside as often after a first one that was.
    assert abs(outside[outside[:, 0], 1].mean() - outside[:, 1].mean()) < 0.03
    assert outside.all(axis=1).mean() < 0.05**2 + 0.0015


def test_a_row_draws_alone_what_it_draws_among_others():
    """A row that is done waits for others, which must not move it."""
    logits, uniform = logits_of(4, 64, 149), np.random.default_rng(5).random(64)
    together, _, _ = draw(logits, uniform, LEAST_TOP_P)
    plain, _, _ = draw(logits, uniform, 1.0)
    assert (together != plain).sum() > 5
    alone = [draw(logits[i : i + 1], uniform[i : i + 1], LEAST_TOP_P)[0][0] for i in range(64)]
    np.testing.assert_array_equal(together, alone)


def test_rows_that_are_not_finite_end():
    logits = logits_of(6, 4, 149)
    logits[1] = np.nan
    logits[2, 3] = np.inf
    ids, decode, _ = draw(logits, np.full(4, 0.4), 0.95)
    assert np.isfinite(decode[[0, 3]]).all() and not np.isfinite(decode[[1, 2]]).any()
    assert ((ids >= 0) & (ids < 256)).all()
    np.testing.assert_array_equal(ids[[0, 3]], draw(logits[[0, 3]], np.full(2, 0.4), 0.95)[0])
