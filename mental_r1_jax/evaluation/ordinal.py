"""Scores of labels that are degrees of one thing: how far an answer is off, and on which side.

An unreadable answer counts as the label farthest from the true one, the milder of two.
"""

from __future__ import annotations

import warnings

import numpy as np
from jaxtyping import Float, Int

from mental_r1_jax.evaluation.resampling import Estimate, estimate, ratio

MEASURES = (
    *("mae", "quadratic_weighted_kappa", "spearman"),
    *("graded_precision", "graded_recall", "graded_f1", "ordinal_error"),
)


def farthest_labels(num_labels: int) -> Int[np.ndarray, " L"]:
    """For each label, in order, the one farthest from it."""
    codes = np.arange(num_labels)
    return np.where(codes >= num_labels - 1 - codes, 0, num_labels - 1)


def without_unreadable(
    confusion: Int[np.ndarray, "*batch L L1"], instead: Int[np.ndarray, " L"]
) -> Int[np.ndarray, "*batch L L"]:
    """Confusion counts in which the unreadable answers to label i count as `instead[i]`."""
    counts = confusion[..., :-1].copy()
    rows = np.arange(len(instead))
    counts[..., rows, instead] += confusion[..., -1]
    return counts


def ordinal_scores(
    confusion: Int[np.ndarray, "*batch L L"],
) -> dict[str, Float[np.ndarray, "*batch"]]:
    """All `MEASURES` of confusion counts `[true, answer]`, labels in order; NaN if undefined.

    With d = answer - true in steps: MAE = mean |d|; ordinal error = share of |d| > 1;
    graded precision GP = 1 - share of d > 0, graded recall GR = 1 - share of d < 0, graded
    F1 = 2 GP GR / (GP + GR). kappa = 1 - sum O d^2 / sum E d^2, E the counts expected of
    independent margins. Spearman is Pearson's correlation of ranks, ties at their mean rank.

    Sources: Gaur et al., WWW 2019, and Sawhney et al., 2021, for graded scores and ordinal error.
    """
    codes = np.arange(confusion.shape[-1])
    off = codes[None, :] - codes[:, None]
    n = confusion.sum(axis=(-2, -1))
    share = ratio(confusion, n[..., None, None])

    def mean(values: np.ndarray) -> Float[np.ndarray, "*batch"]:
        return np.asarray((share * values).sum(axis=(-2, -1)))

    precision, recall = 1 - mean(off > 0), 1 - mean(off < 0)
    true, answer = share.sum(axis=-1), share.sum(axis=-2)
    expected = (true[..., :, None] * answer[..., None, :] * off**2).sum(axis=(-2, -1))
    found = {
        "mae": mean(np.abs(off)),
        "quadratic_weighted_kappa": 1 - ratio(mean(off**2), expected),
        "spearman": _rank_correlation(share, true, answer),
        "graded_precision": precision,
        "graded_recall": recall,
        "graded_f1": ratio(2 * precision * recall, precision + recall),
        "ordinal_error": mean(np.abs(off) > 1),
    }
    return {name: np.asarray(value) for name, value in found.items()}


def ordinal_estimates(
    truth: Int[np.ndarray, " n"], guess: Int[np.ndarray, " n"], draws: Int[np.ndarray, "S L L1"]
) -> dict[str, Estimate]:
    """Every one of `MEASURES`, with the intervals of resampled counts.

    Args:
        guess: code of each answer, the number of labels where it is unreadable.
        draws: resampled confusion counts, the last column unreadable.
    """
    num_labels = draws.shape[-2]
    instead = farthest_labels(num_labels)
    guess = np.where(guess == num_labels, instead[truth], guess)
    confusion = np.zeros((num_labels, num_labels), int)
    np.add.at(confusion, (truth, guess), 1)
    values = {name: float(value) for name, value in ordinal_scores(confusion).items()}
    values |= _library_scores(truth, guess, num_labels)
    resampled = ordinal_scores(without_unreadable(draws, instead))
    return {name: estimate(values[name], resampled[name]) for name in MEASURES}


def _library_scores(
    truth: Int[np.ndarray, " n"], guess: Int[np.ndarray, " n"], num_labels: int
) -> dict[str, float]:
    """Those that scikit-learn and SciPy have."""
    from scipy.stats import spearmanr
    from sklearn.metrics import cohen_kappa_score, mean_absolute_error

    varied = len(set(truth)) > 1 and len(set(guess)) > 1
    alike = len({*truth, *guess}) == 1
    with warnings.catch_warnings():
        # Only says that labels are many for so few posts, which is true of small samples.
        warnings.filterwarnings("ignore", message="The number of unique classes")
        # All labels by name: a label that no post has still lies between its neighbours.
        every = np.arange(num_labels)
        kappa = (
            np.nan if alike else cohen_kappa_score(truth, guess, labels=every, weights="quadratic")
        )
    return {
        "mae": float(mean_absolute_error(truth, guess)),
        "quadratic_weighted_kappa": float(kappa),
        "spearman": float(spearmanr(truth, guess).statistic) if varied else float("nan"),
    }


def _rank_correlation(
    share: Float[np.ndarray, "*batch L L"],
    true: Float[np.ndarray, "*batch L"],
    answer: Float[np.ndarray, "*batch L"],
) -> Float[np.ndarray, "*batch"]:
    """Pearson's correlation of mean ranks, which follow from the two margins."""

    def centred(margin: np.ndarray) -> np.ndarray:
        # The mean rank, as a share: what lies below, and half of the ties. Its mean is 1/2.
        return np.asarray(np.cumsum(margin, axis=-1) - margin / 2 - 0.5)

    x, y = centred(true), centred(answer)
    covariance = (share * x[..., :, None] * y[..., None, :]).sum(axis=(-2, -1))
    spread = (true * x**2).sum(axis=-1) * (answer * y**2).sum(axis=-1)
    # Rounding leaves a spread of some 1e-34 where all ranks are equal.
    found = np.where(spread > 1e-20, covariance / np.sqrt(np.maximum(spread, 1e-20)), np.nan)
    return np.asarray(found)
