"""Intervals and paired differences against numbers worked out by hand and by other libraries."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom
from sklearn.metrics import accuracy_score, f1_score, recall_score

from mental_r1_jax.study.statistics import (
    SetAnswers,
    bootstrap,
    draw_posts,
    resampled_scores,
    spread,
    t_interval,
)


def answers(truth: list[int], guess: list[int], labels: int) -> SetAnswers:
    posts = tuple((row, str(label)) for row, label in enumerate(truth))
    return SetAnswers(posts, np.array(truth), np.array(guess), labels)


def test_spread_and_t_interval_by_hand() -> None:
    """Values 1, 2, 6: mean 3, s = sqrt((4 + 1 + 9) / 2) = 2.645751, t(2) = 4.302653."""
    assert spread([1.0, 2.0, 6.0]) == pytest.approx(7**0.5)
    half = 4.302653 * 7**0.5 / 3**0.5
    assert t_interval([1.0, 2.0, 6.0]) == pytest.approx((3 - half, 3 + half), rel=1e-6)
    assert spread([1.0]) is None and t_interval([1.0]) is None


def test_resampled_scores_are_those_of_scikit_learn() -> None:
    """Every resample is a list of posts; the last label code is an unreadable answer."""
    one = answers([0, 0, 1, 1, 2, 0], [0, 1, 1, 3, 2, 0], 3)
    two = answers([0, 1, 1], [1, 1, 2], 2)
    everything = {"one": one, "two": two}
    draws = draw_posts(everything, 20, seed=1)
    assert all(
        (counts.sum(axis=1) == len(everything[name].truth)).all() for name, counts in draws.items()
    )
    found = resampled_scores(everything, draws)
    for i in range(20):
        scores = {"weighted_f1": [], "macro_f1": [], "balanced_accuracy": [], "accuracy": []}
        for name, part in everything.items():
            posts = np.repeat(np.arange(len(part.truth)), draws[name][i])
            truth, guess = part.truth[posts], part.guess[posts]
            seen = sorted({*truth, *guess} - {part.num_labels})
            kind = {"labels": list(range(part.num_labels)), "zero_division": 0}
            scores["weighted_f1"].append(f1_score(truth, guess, average="weighted", **kind))
            kind["labels"] = seen
            scores["macro_f1"].append(f1_score(truth, guess, average="macro", **kind))
            occurring = {"labels": sorted({*truth}), "zero_division": 0}
            recall = recall_score(truth, guess, average="macro", **occurring)
            scores["balanced_accuracy"].append(recall)
            scores["accuracy"].append(accuracy_score(truth, guess))
        for name, values in scores.items():
            assert found[name][i] == pytest.approx(np.mean(values), abs=1e-6), name


def test_a_difference_that_every_seed_and_post_shares_has_no_interval() -> None:
    """All posts right against all posts wrong: 1 in every resample."""
    right = {"s": answers([0, 1, 0, 1], [0, 1, 0, 1], 2)}
    wrong = {"s": answers([0, 1, 0, 1], [1, 0, 1, 0], 2)}
    draws = draw_posts(right, 50, seed=0)
    best, worst = (resampled_scores(one, draws)["accuracy"] for one in (right, wrong))
    assert bootstrap([best - worst] * 2, seed=0) == (1.0, 1.0)


def test_the_bootstrap_over_three_seeds_by_hand() -> None:
    """No chance in the posts, differences 0.0, 0.3, 0.6 by seed.

    Of the 27 draws of three seeds one has the mean 0 and one 0.6: 3.7% each, more than 2.5%.
    """
    samples = 20_000
    differences = [np.full(samples, value) for value in (0.0, 0.3, 0.6)]
    assert bootstrap(differences, seed=3) == pytest.approx((0.0, 0.6))


def test_a_single_seed_has_the_interval_of_its_posts() -> None:
    """50 of 100 posts right: the accuracy of a resample is Binomial(100, 0.5) / 100."""
    one = {"s": answers([0] * 100, [0] * 50 + [1] * 50, 2)}
    accuracy = resampled_scores(one, draw_posts(one, 20_000, seed=0))["accuracy"]
    low, high = binom.ppf([0.025, 0.975], 100, 0.5) / 100
    assert bootstrap([accuracy], seed=0) == pytest.approx((low, high), abs=1e-6)
