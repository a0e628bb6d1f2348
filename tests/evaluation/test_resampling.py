"""Formulas for many resamples at once, against scikit-learn on each resample."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn import metrics as sk

from mental_r1_jax.evaluation import calibration, ordinal, resampling, screening

N = 40


@pytest.fixture(scope="module")
def weights() -> np.ndarray:
    """How often each of 40 posts occurs in 25 resamples."""
    (found,) = resampling.post_weights(N, samples=25, seed=1)
    return found


def scores(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores with ties, and outcomes that go with them."""
    rng = np.random.default_rng(seed)
    score = rng.integers(0, 6, N) / 5
    return score, rng.random(N) < 0.2 + 0.6 * score


def test_every_resample_holds_as_many_posts(weights: np.ndarray) -> None:
    assert weights.shape == (25, N)
    assert (weights.sum(axis=1) == N).all() and (weights != weights[:1]).any()
    # The share of posts that a resample leaves out is (1 - 1/n)^n.
    assert (weights == 0).mean() == pytest.approx((1 - 1 / N) ** N, abs=0.05)


def test_blocks_of_resamples_are_the_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = np.concatenate([*resampling.post_weights(N, samples=7, seed=3)])
    monkeypatch.setattr(resampling, "_BLOCK", 2 * N)
    parts = [*resampling.post_weights(N, samples=7, seed=3)]
    assert [len(part) for part in parts] == [2, 2, 2, 1]
    assert np.concatenate(parts).shape == whole.shape


def test_areas_equal_sklearn_on_each_resample(weights: np.ndarray) -> None:
    score, positive = scores(2)
    found = screening.resampled_rankings(positive, score)(weights)
    for row, auroc, auprc in zip(weights, found["auroc"], found["auprc"], strict=True):
        drawn = np.repeat(np.arange(N), row)
        truth, shown = positive[drawn], score[drawn]
        assert auroc == pytest.approx(sk.roc_auc_score(truth, shown))
        assert auprc == pytest.approx(sk.average_precision_score(truth, shown))


def test_areas_of_a_resample_with_one_kind_are_not_defined() -> None:
    score, positive = scores(2)
    found = screening.resampled_rankings(positive, score)(np.array([positive, ~positive]) * 1)
    assert np.isnan(found["auroc"]).all() and np.isnan(found["auprc"]).all()


def test_calibration_and_risk_equal_those_of_the_drawn_posts(weights: np.ndarray) -> None:
    confidence, correct = scores(4)
    found = calibration.resampled_calibration(confidence, correct)(weights)
    risks = calibration.resampled_risks(confidence, correct)(weights)
    for i, row in enumerate(weights):
        drawn = np.repeat(np.arange(N), row)
        sure, right = confidence[drawn], correct[drawn]
        assert found["brier"][i] == pytest.approx(((sure - right) ** 2).mean())
        bins = calibration.bins_of(confidence)[drawn]
        ece = sum(abs((right - sure)[bins == b].sum()) for b in range(10)) / N
        assert found["ece"][i] == pytest.approx(ece)
        curve = calibration.risk_coverage(sure, right)
        assert risks["aurc"][i] == pytest.approx(curve["aurc"])
        assert risks["accuracy_at_80"][i] == pytest.approx(curve["accuracy_at_80"])


def test_rates_and_ordinal_scores_of_counts_equal_the_libraries() -> None:
    rng = np.random.default_rng(5)
    truth = rng.integers(0, 4, (20, N))
    guess = (truth + rng.integers(-1, 2, (20, N))).clip(0, 3)
    counts = np.zeros((20, 4, 5), int)
    np.add.at(counts, (np.arange(20)[:, None], truth, guess), 1)
    positive = np.array([False, False, True, True])
    rates = screening.call_rates(counts, positive)
    found = ordinal.ordinal_scores(counts[..., :-1])
    for i, (t, g) in enumerate(zip(truth, guess, strict=True)):
        is_, called = positive[t], positive[g]
        assert rates["sensitivity"][i] == pytest.approx(sk.recall_score(is_, called))
        assert rates["specificity"][i] == pytest.approx(sk.recall_score(~is_, ~called))
        assert rates["ppv"][i] == pytest.approx(sk.precision_score(is_, called))
        assert rates["npv"][i] == pytest.approx(sk.precision_score(~is_, ~called))
        kappa = sk.cohen_kappa_score(t, g, weights="quadratic")
        assert found["quadratic_weighted_kappa"][i] == pytest.approx(kappa)
        assert found["mae"][i] == pytest.approx(sk.mean_absolute_error(t, g))
        assert found["spearman"][i] == pytest.approx(spearmanr(t, g).statistic)


def test_the_interval_of_a_share_is_the_binomial_one() -> None:
    """Normal approximation: 0.3 +- 1.96 sqrt(0.3 * 0.7 / 400)."""
    draws = resampling.resampled_counts(np.array([120, 280]), samples=4000, seed=0)
    low, high = resampling.estimate(0.3, draws[:, 0] / 400)["interval"]
    half = 1.96 * np.sqrt(0.3 * 0.7 / 400)
    # Quantiles of 4000 draws scatter by some 0.001.
    assert [low, high] == pytest.approx([0.3 - half, 0.3 + half], abs=0.005)


def test_an_estimate_leaves_out_what_is_not_defined() -> None:
    nan = float("nan")
    assert resampling.estimate(nan, np.array([0.1])) == {"value": None, "interval": None}
    assert resampling.estimate(0.5, np.array([nan, nan])) == {"value": 0.5, "interval": None}
    assert resampling.estimate(0.5, np.array([nan, 0.5])) == {"value": 0.5, "interval": [0.5, 0.5]}
