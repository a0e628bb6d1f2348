"""How well positive posts are told from the rest: what a clinical reader asks of a screening.

A post is positive where its true label is one of the set's positive labels, and it is called
positive where the answer is one of them. An unreadable answer is neither a positive nor a negative
call, so it lowers sensitivity and specificity and is in no predictive value.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float, Int

from mental_r1_jax.evaluation.resampling import Draws, Estimate, estimate, ratio

CALLS = ("sensitivity", "specificity", "ppv", "npv")
RANKINGS = ("auroc", "auprc")


def call_rates(
    confusion: Int[np.ndarray, "*batch L L1"], positive: Bool[np.ndarray, " L"]
) -> dict[str, Float[np.ndarray, "*batch"]]:
    """Rates of confusion counts `[true, answer]`, the last column unreadable; NaN if undefined.

    sensitivity = TP / positive, specificity = TN / negative, ppv = TP / called positive,
    npv = TN / called negative.
    """
    called = confusion[..., :-1]
    true_positive = called[..., positive, :][..., positive].sum(axis=(-2, -1))
    true_negative = called[..., ~positive, :][..., ~positive].sum(axis=(-2, -1))
    return {
        "sensitivity": ratio(true_positive, confusion[..., positive, :].sum(axis=(-2, -1))),
        "specificity": ratio(true_negative, confusion[..., ~positive, :].sum(axis=(-2, -1))),
        "ppv": ratio(true_positive, called[..., positive].sum(axis=(-2, -1))),
        "npv": ratio(true_negative, called[..., ~positive].sum(axis=(-2, -1))),
    }


def call_estimates(
    truth: Int[np.ndarray, " n"],
    guess: Int[np.ndarray, " n"],
    positive: Bool[np.ndarray, " L"],
    draws: Int[np.ndarray, "S L L1"],
) -> dict[str, Estimate]:
    """The four rates of `call_rates`, by scikit-learn, with the intervals of resampled counts."""
    # Imported here because it takes a second, which a run that only trains need not wait for.
    from sklearn.metrics import precision_score, recall_score

    is_positive = np.append(positive, False)[truth]
    called_positive = np.append(positive, False)[guess]
    called_negative = np.append(~positive, False)[guess]
    values = {
        "sensitivity": recall_score(is_positive, called_positive, zero_division=np.nan),
        "specificity": recall_score(~is_positive, called_negative, zero_division=np.nan),
        "ppv": precision_score(is_positive, called_positive, zero_division=np.nan),
        "npv": precision_score(~is_positive, called_negative, zero_division=np.nan),
    }
    resampled = call_rates(draws, positive)
    return {name: estimate(values[name], resampled[name]) for name in CALLS}


def ranking_values(
    is_positive: Bool[np.ndarray, " n"], score: Float[np.ndarray, " n"]
) -> dict[str, float | None]:
    """Areas under the ROC and the precision-recall curve; None where one kind of post is missing.

    AUPRC is the average precision, sum over thresholds of (R_k - R_(k-1)) P_k, without
    interpolation.
    """
    from sklearn.metrics import average_precision_score, roc_auc_score

    if is_positive.all() or not is_positive.any():
        return dict.fromkeys(RANKINGS)
    return {
        "auroc": float(roc_auc_score(is_positive, score)),
        "auprc": float(average_precision_score(is_positive, score)),
    }


def resampled_rankings(
    is_positive: Bool[np.ndarray, " n"], score: Float[np.ndarray, " n"]
) -> Callable[[Int[np.ndarray, "s n"]], Draws]:
    """`ranking_values` as a function of how often each post occurs, for many resamples at once.

    Posts of one score are one threshold. AUROC = sum_g P_g (N_below_g + N_g / 2) / (P N) with P_g
    and N_g the positive and negative posts that have score g.
    """
    order = np.argsort(score, kind="stable")
    starts = np.flatnonzero(np.diff(score[order], prepend=np.nan) != 0)
    kinds = is_positive[order]

    def areas(weights: Int[np.ndarray, "s n"]) -> Draws:
        weights = weights[:, order]
        every = np.add.reduceat(weights, starts, axis=1)
        positive = np.add.reduceat(weights * kinds, starts, axis=1)
        negative = every - positive
        of_positive, of_negative = positive.sum(axis=1), negative.sum(axis=1)
        below = np.cumsum(negative, axis=1) - negative
        pairs = (positive * (below + negative / 2)).sum(axis=1)
        found = np.cumsum(positive[:, ::-1], axis=1)
        precision = ratio(found, np.cumsum(every[:, ::-1], axis=1))
        area = (positive[:, ::-1] * np.nan_to_num(precision)).sum(axis=1)
        both = (of_positive > 0) & (of_negative > 0)
        return {
            "auroc": ratio(pairs, of_positive * of_negative),
            "auprc": np.where(both, ratio(area, of_positive), np.nan),
        }

    return areas
