"""Drawing one token, against sorting and cumulative sums in NumPy."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mental_r1_jax.rl.loss_terms import sampler_weight
from mental_r1_jax.rollout import sampling

ROWS, VOCAB = 300, 149  # two blocks of 128, the second one partly filled
LARGE = 8219  # summed in strips; no multiple of a strip or block


@functools.cache
def drawer(top_p: float, top_k: int | None, temperature: float = 1.0):
    """`sample_token`, jitted."""
    return jax.jit(
        functools.partial(
            sampling.sample_token,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            sampler_logprobs=True,
        )
    )


def draw(logits, uniform, top_p=1.0, top_k=None, temperature=1.0):
    """`sample_token` on rows [N, V] and [N] as the group of one prompt, in NumPy.

    Returns:
        ids, log-probs of the truncated distribution, and of the whole one.
    """
    count = len(uniform)
    extra = max(512, 1 << (count - 1).bit_length()) - count  # few compiled shapes
    logits = np.pad(np.asarray(logits, np.float32), [(0, extra), (0, 0)])
    uniform = np.pad(np.asarray(uniform, np.float32), (0, extra))
    drawn = drawer(top_p, top_k, temperature)(jnp.asarray(logits)[None], jnp.asarray(uniform)[None])
    ids, decode, sampler = (np.asarray(values)[0, :count] for values in drawn)
    return ids, sampler, decode


def random_logits(seed: int, ties: bool = False, rows: int = ROWS, size: int = VOCAB) -> np.ndarray:
    """Peaked and flat rows; with `ties` only a few different values occur in a row."""
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal((rows, size)) * rng.choice([0.1, 1.0, 5.0], (rows, 1))
    return (np.round(2 * logits) / 2 if ties else logits).astype(np.float32)


def softmax64(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    scaled = logits.astype(np.float64) / temperature
    scaled = np.exp(scaled - scaled.max(-1, keepdims=True))
    return scaled / scaled.sum(-1, keepdims=True)


def kept_by_sorting(probs: np.ndarray, top_p: float, top_k: int | None) -> list[set[int]]:
    """The admissible sets of tokens by an explicit sort, ties with the last one kept included.

    Where the share is within rounding of `top_p`, one tie class more or less is right too; then the
    set with one class more is given as second.
    """
    levels = sorted(set(probs.tolist()), reverse=True)
    if top_k is not None:
        counts = np.cumsum([(probs == level).sum() for level in levels])
        levels = levels[: int(np.searchsorted(counts, min(top_k, len(probs)))) + 1]
    total = probs[probs >= levels[-1]].sum()
    shares = np.cumsum([probs[probs == level].sum() / total for level in levels])

    def tokens(last: int) -> set[int]:
        return set(np.flatnonzero(probs >= levels[min(last, len(levels) - 1)]).tolist())

    first = int(np.searchsorted(shares, top_p)) if top_p < 1 else len(levels) - 1
    close = top_p < 1 and np.abs(shares[[max(first - 1, 0), first]] - top_p).min() < 1e-6
    return [tokens(first), tokens(first + 1), tokens(first - 1)] if close else [tokens(first)]


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(
    ("top_p", "top_k"), [(0.95, None), (0.3, None), (1.0, 7), (0.7, 20), (1e-6, None), (1.0, 1)]
)
def test_truncation_keeps_what_an_explicit_sort_keeps(top_p, top_k, ties):
    logits = random_logits(0, ties)
    probs = jnp.exp(jnp.asarray(logits) - logits.max(axis=-1, keepdims=True))[None]
    kept = sampling.truncate(probs, probs.sum(axis=-1), top_p=top_p, top_k=top_k)
    for row, left in zip(np.asarray(probs)[0], np.asarray(kept)[0], strict=True):
        admissible = kept_by_sorting(row.astype(np.float64), top_p, top_k)
        assert set(np.flatnonzero(left).tolist()) in admissible
        np.testing.assert_array_equal(left[left > 0], row[left > 0])


@pytest.mark.parametrize(
    ("top_p", "top_k", "temperature"), [(1.0, None, 0.85), (0.9, None, 1.0), (1.0, 12, 1.0)]
)
def test_token_is_where_numpys_cumulative_sum_passes_the_uniform_number(top_p, top_k, temperature):
    logits = random_logits(3)
    uniform = np.random.default_rng(4).random(ROWS)
    ids, _, _ = draw(logits, uniform, top_p, top_k, temperature)
    for row, u, token in zip(softmax64(logits, temperature), uniform, ids, strict=True):
        kept = kept_by_sorting(row, top_p, top_k)[0]
        weights = np.where(np.isin(np.arange(VOCAB), list(kept)), row, 0)
        edges = np.cumsum(weights) / weights.sum()
        # float32 sums round: u may lie on the other side of an edge that is closer than 2e-6.
        allowed = {int(np.searchsorted(edges, u + shift, side="right")) for shift in (-2e-6, 2e-6)}
        assert int(token) in allowed | {int(np.searchsorted(edges, u, side="right"))}


@pytest.mark.parametrize("top_p", [1.0, 0.95])
def test_log_probs_of_a_large_vocabulary(top_p):
    logits, temperature = random_logits(8, rows=6, size=LARGE), 0.85
    uniform = np.random.default_rng(9).random(6)
    ids, sampler, decode = draw(logits, uniform, top_p, None, temperature)
    probs = softmax64(logits, temperature)
    drawn = np.take_along_axis(probs, ids[:, None], axis=1)[:, 0]
    kept = [row[list(kept_by_sorting(row, top_p, None)[0])].sum() for row in probs]
    np.testing.assert_allclose(decode, np.log(drawn), atol=5e-6)
    np.testing.assert_allclose(sampler, np.log(drawn / kept), atol=5e-6)


@pytest.mark.parametrize("size", [VOCAB, LARGE])
def test_entropy_of_rows_with_impossible_tokens(size):
    logits = random_logits(10, rows=12, size=size)
    logits[::2, 1::3] = -np.inf
    probs = softmax64(logits, 0.85)
    expected = -np.where(probs > 0, probs * np.log(np.maximum(probs, 1e-300)), 0.0).sum(-1)
    entropies = jax.jit(functools.partial(sampling.entropy, temperature=0.85))(logits[None])
    np.testing.assert_allclose(np.asarray(entropies)[0], expected, atol=5e-6)


def test_frequencies_over_many_uniforms_fit_the_probabilities():
    logits = np.random.default_rng(5).standard_normal(VOCAB).astype(np.float32) * 2
    count = 32_768
    uniform = np.random.default_rng(6).random(count)
    ids, _, _ = draw(np.broadcast_to(logits, (count, VOCAB)), uniform, 0.98, None, 0.85)
    probs = softmax64(logits[None], 0.85)[0]
    kept = sorted(kept_by_sorting(probs, 0.98, None)[0])
    expected = probs[kept] / probs[kept].sum() * count
    observed = np.bincount(ids, minlength=VOCAB)
    assert observed.sum() == observed[kept].sum()
    large = expected >= 5
    chi2 = ((observed[kept] - expected)[large] ** 2 / expected[large]).sum()
    freedom = large.sum() - 1
    # 5 standard deviations of the chi-square distribution (mean n, variance 2 n).
    assert chi2 < freedom + 5 * np.sqrt(2 * freedom)


@pytest.mark.parametrize(("top_p", "top_k"), [(1.0, None), (0.9, None), (1.0, 5), (0.5, 9)])
def test_sampler_logprobs_sum_to_one_over_the_support(top_p, top_k):
    logits = random_logits(7, rows=3)
    uniform = np.linspace(0, 1, 4096, endpoint=False)
    for row in logits:
        ids, sampler, decode = draw(
            np.broadcast_to(row, (len(uniform), VOCAB)), uniform, top_p, top_k
        )
        tokens, first = np.unique(ids, return_index=True)
        kept = kept_by_sorting(softmax64(row[None])[0], top_p, top_k)[0]
        missed = sum(softmax64(row[None])[0][list(kept - set(tokens.tolist()))])
        # Tokens with less mass than the grid's step may be missed; their mass is added by hand.
        mass = softmax64(row[None])[0][list(kept)].sum()
        assert np.exp(sampler[first].astype(np.float64)).sum() + missed / mass == pytest.approx(
            1, abs=1e-5
        )
        np.testing.assert_allclose(
            decode, np.log(softmax64(row[None])[0])[ids], rtol=1e-5, atol=2e-6
        )
        np.testing.assert_allclose(decode - sampler, np.log(mass), atol=2e-6)


def test_uniform_zero_and_just_below_one_take_first_and_last_kept_token():
    rows = 40
    below_one = np.nextafter(np.float32(1), np.float32(0))
    for top_p, top_k in [(1.0, None), (0.8, None), (1.0, 6)]:
        logits = random_logits(8, rows=rows)
        logits[:, [0, 130, 148]] = -np.inf
        for u, pick in [(0.0, min), (below_one, max)]:
            ids, sampler, _ = draw(logits, np.full(rows, u), top_p, top_k)
            for row, token in zip(softmax64(logits), ids, strict=True):
                possible = kept_by_sorting(row, top_p, top_k)[0] - {0, 130, 148}
                if row[pick(possible)] > 1e-6:  # a smaller one may fall to rounding
                    assert token == pick(possible)
                assert int(token) in possible
            assert np.isfinite(sampler).all()


def test_a_token_of_probability_zero_is_never_drawn():
    # Hostile uniform numbers: every edge of the cumulative sum and its neighbours in float32.
    rng = np.random.default_rng(9)
    for _ in range(4):
        logits = random_logits(int(rng.integers(1 << 30)), rows=1)[0]
        dead = rng.random(VOCAB) < 0.7
        dead[rng.integers(VOCAB)] = False
        logits[dead] = -np.inf
        edges = np.cumsum(softmax64(logits[None])[0]).astype(np.float32)
        shifts = np.arange(-6, 7, dtype=np.float32) * np.float32(2**-24)
        uniform = np.unique(np.clip(edges[:, None] + shifts, 0, 1 - 2**-24))
        ids, sampler, _ = draw(np.broadcast_to(logits, (len(uniform), VOCAB)), uniform)
        assert not dead[ids].any()
        assert np.isfinite(sampler).all()


def test_one_certain_token_is_drawn_whatever_the_number():
    logits = np.full((5, VOCAB), -np.inf, np.float32)
    logits[:, 131] = 0.0
    ids, sampler, decode = draw(logits, [0.0, 1e-8, 0.5, 0.9, 0.9999999], 0.95, 3)
    assert ids.tolist() == [131] * 5
    np.testing.assert_array_equal(sampler, 0.0)
    np.testing.assert_array_equal(decode, 0.0)


def test_top_k_beyond_the_vocabulary_changes_nothing():
    logits, uniform = random_logits(10), np.random.default_rng(11).random(ROWS)
    for ours, plain in zip(
        draw(logits, uniform, 1.0, VOCAB + 5), draw(logits, uniform), strict=True
    ):
        np.testing.assert_allclose(ours, plain, atol=1e-6)


@pytest.mark.parametrize("size", [VOCAB, LARGE])
def test_greedy_takes_the_first_of_the_likeliest_at_temperature_one(size):
    logits = random_logits(12, rows=6, size=size)
    logits[0, [5, 140]] = 50.0
    ids, logprobs = (np.asarray(x)[0] for x in sampling.greedy_token(jnp.asarray(logits)[None]))
    assert ids[0] == 5
    np.testing.assert_array_equal(ids, logits.argmax(-1))
    np.testing.assert_allclose(logprobs, np.log(softmax64(logits)).max(-1), atol=2e-6)


def test_the_sampler_correction_of_a_truncated_draw_is_the_kept_mass():
    """Elsewhere top-p was left out of account, and the weight was 1."""
    logits, top_p = random_logits(11), 0.7
    uniform = np.random.default_rng(12).random(ROWS)
    _, sampler, decode = draw(logits, uniform, top_p)
    weight = sampler_weight(*(jnp.asarray(x)[None, None] for x in (decode, sampler)), "icepop")
    # By an explicit sort: what the likeliest tokens hold once they reach 0.7, in float64.
    descending = -np.sort(-softmax64(logits), axis=-1)
    cumulative = descending.cumsum(axis=-1)
    mass = np.take_along_axis(cumulative, (cumulative >= top_p).argmax(-1)[:, None], -1)[:, 0]
    np.testing.assert_allclose(weight[0, 0], mass, atol=2e-6)
    assert mass.max() > 0.95 and mass.min() < 0.705
    _, sampler, decode = draw(logits, uniform, 1.0)
    np.testing.assert_array_equal(sampler, decode)  # so that the weight is exactly 1
