"""Whether confidence means anything: calibration error, Brier score and risk by coverage.

The confidence of an answer is the probability of the label that it names (a share of votes, or the
probability that the model gives to the label); an unreadable answer has confidence 0 and is wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from mental_r1_jax.evaluation.resampling import Draws

NUM_BINS = 10
KEPT_SHARE = 0.8  # coverage of "accuracy at 80% coverage"
_MAX_POINTS = 200


def bins_of(confidence: Float[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """The equal-mass bin of each answer, from 0 to `NUM_BINS` - 1; some may be empty.

    Edges are the deciles, and answers of one confidence share a bin, so ties do not depend on the
    order of posts; bins of few distinct confidences are then of unequal mass. As in scikit-learn's
    calibration curve with the strategy "quantile".
    """
    edges = np.quantile(confidence, np.linspace(0, 1, NUM_BINS + 1))
    return np.asarray(np.searchsorted(edges[1:-1], confidence))


def reliability(
    confidence: Float[np.ndarray, " n"], correct: Bool[np.ndarray, " n"]
) -> list[dict[str, float]]:
    """Mean confidence, accuracy and number of answers of every bin that has any."""
    places = bins_of(confidence)
    return [
        {
            "confidence": float(confidence[places == place].mean()),
            "accuracy": float(correct[places == place].mean()),
            "n": int((places == place).sum()),
        }
        for place in np.unique(places)
    ]


def calibration_values(
    confidence: Float[np.ndarray, " n"], correct: Bool[np.ndarray, " n"]
) -> dict[str, float]:
    """ECE = sum over bins of n_b / n |accuracy_b - confidence_b|, and the Brier score.

    The Brier score is the mean of (confidence - correct)^2.

    Source: Guo et al., ICML 2017, with bins of equal mass (Nixon et al., 2019).
    """
    from sklearn.metrics import brier_score_loss

    bins = reliability(confidence, correct)
    off = sum(one["n"] * abs(one["accuracy"] - one["confidence"]) for one in bins)
    return {
        "ece": off / len(confidence),
        "brier": float(brier_score_loss(correct, confidence, pos_label=True)),
    }


def resampled_calibration(
    confidence: Float[np.ndarray, " n"], correct: Bool[np.ndarray, " n"]
) -> Callable[[Int[np.ndarray, "s n"]], Draws]:
    """`calibration_values` for many resamples at once; the bins are those of all answers."""
    n, places = len(confidence), bins_of(confidence)
    inside = places[:, None] == np.arange(NUM_BINS)
    gaps = inside * (correct - confidence)[:, None]
    squares = (confidence - correct) ** 2

    def values(weights: Int[np.ndarray, "s n"]) -> Draws:
        as_floats = weights.astype(np.float64)
        return {
            "ece": np.abs(as_floats @ gaps).sum(axis=1) / n,
            "brier": as_floats @ squares / n,
        }

    return values


def risk_coverage(
    confidence: Float[np.ndarray, " n"], correct: Bool[np.ndarray, " n"]
) -> dict[str, Any]:
    """Share of wrong answers among the k most confident ones, for every k = coverage * n.

    AURC is the mean risk over k = 1 .. n. Answers of one confidence are kept in no particular
    order: each counts as their mean. At most 200 points of the curve are kept.

    Source: Geifman & El-Yaniv, NeurIPS 2017.
    """
    n = len(confidence)
    order, starts = _thresholds(confidence)
    sizes = np.diff(starts, append=n)
    wrong = np.add.reduceat((~correct)[order].astype(np.float64), starts)
    risk = _risks(wrong, sizes)
    shown = np.unique(np.linspace(1, n, min(n, _MAX_POINTS)).round().astype(int))
    return {
        "coverage": [float(k / n) for k in shown],
        "risk": [float(risk[k - 1]) for k in shown],
        "aurc": float(risk.mean()),
        "accuracy_at_80": float(1 - risk[_kept(n) - 1]),
    }


def resampled_risks(
    confidence: Float[np.ndarray, " n"], correct: Bool[np.ndarray, " n"]
) -> Callable[[Int[np.ndarray, "s n"]], Draws]:
    """AURC and accuracy at 80% coverage for many resamples at once."""
    order, starts = _thresholds(confidence)
    wrong_first = (~correct)[order]

    def values(weights: Int[np.ndarray, "s n"]) -> Draws:
        ordered = weights[:, order]
        sizes = np.add.reduceat(ordered, starts, axis=1)
        wrong = np.add.reduceat(ordered * wrong_first, starts, axis=1)
        risks = [_risks(*one) for one in zip(wrong, sizes, strict=True)]
        kept = _kept(len(order)) - 1
        return {
            "aurc": np.array([risk.mean() for risk in risks]),
            "accuracy_at_80": np.array([1 - risk[kept] for risk in risks]),
        }

    return values


def _thresholds(
    confidence: Float[np.ndarray, " n"],
) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " T"]]:
    """Answers, most confident first, and where in them each distinct confidence begins."""
    order = np.argsort(-confidence, kind="stable")
    return order, np.flatnonzero(np.diff(confidence[order], prepend=np.nan) != 0)


def _risks(wrong: np.ndarray, sizes: Int[np.ndarray, " T"]) -> Float[np.ndarray, " n"]:
    """Risk among the k most confident answers, k from 1, from counts at each confidence."""
    rates = wrong / np.maximum(sizes, 1)
    errors = np.cumsum(np.repeat(rates, sizes))
    return np.asarray(errors / np.arange(1, len(errors) + 1))


def _kept(n: int) -> int:
    """How many of n answers 80% of them are, rounded up."""
    # 0.8 * 5 must be 4 in floating point, too.
    return int(np.ceil(round(KEPT_SHARE * n, 6)))
