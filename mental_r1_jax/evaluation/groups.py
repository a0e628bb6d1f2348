"""Scores of each group of writers, and how far apart the groups are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from mental_r1_jax.evaluation.metrics import weighted_f1
from mental_r1_jax.evaluation.resampling import estimate, ratio, resampled_counts
from mental_r1_jax.evaluation.screening import call_rates

# A smaller group says little, and would say it about few people.
SMALLEST_GROUP = 10
# More groups than this are names of writers rather than kinds of writers.
MOST_GROUPS = 20


def group_rates(
    confusion: Int[np.ndarray, "*batch L L1"], positive: Bool[np.ndarray, " L"]
) -> dict[str, Float[np.ndarray, "*batch"]]:
    """Accuracy and weighted F1 and, where some labels are positive, sensitivity and specificity."""
    right = np.trace(confusion, axis1=-2, axis2=-1)
    total = confusion.sum(axis=(-2, -1))
    rates = {"accuracy": ratio(right, total), "weighted_f1": weighted_f1(confusion)}
    if positive.any():
        calls = call_rates(confusion, positive)
        rates |= {name: calls[name] for name in ("sensitivity", "specificity")}
    return rates


def largest_gaps(
    rates: Sequence[Mapping[str, Float[np.ndarray, "*batch"]]],
) -> dict[str, Float[np.ndarray, "*batch"]]:
    """Of each rate the largest difference between two groups; NaN where one group has no rate.

    `equalised_odds` is the larger of the gaps of sensitivity and specificity, that is, of the
    true-positive and the false-positive rate.

    Source: Hardt, Price & Srebro, NeurIPS 2016.
    """
    gaps = {}
    for name in rates[0]:
        stacked = np.stack([one[name] for one in rates])
        gaps[name] = np.asarray(stacked.max(axis=0) - stacked.min(axis=0))
    if "sensitivity" in gaps:
        gaps["equalised_odds"] = np.asarray(np.maximum(gaps["sensitivity"], gaps["specificity"]))
    return gaps


def group_document(
    confusions: Mapping[str, Int[np.ndarray, "L L1"]],
    positive: Bool[np.ndarray, " L"],
    *,
    samples: int,
    seed: int,
) -> dict[str, Any]:
    """Rates of each group and their gaps, as JSON types.

    Posts are drawn again within each group, so intervals of gaps hold the sizes of the groups. A
    gap is never negative: with many small groups it is large by chance alone.

    Args:
        confusions: group -> counts `[true, answer]`, the last column unreadable.
    """
    large = {name: c for name, c in confusions.items() if c.sum() >= SMALLEST_GROUP}
    named = large if len(large) <= MOST_GROUPS else {}
    document: dict[str, Any] = {
        "groups": {},
        "gaps": {},
        "not_shown": {
            "groups": len(confusions) - len(named),
            "posts": int(sum(c.sum() for name, c in confusions.items() if name not in named)),
        },
    }
    values, draws = [], []
    for place, (name, confusion) in enumerate(sorted(named.items())):
        resampled = resampled_counts(confusion, samples=samples, seed=seed + place)
        values.append(group_rates(confusion, positive))
        draws.append(group_rates(resampled, positive))
        document["groups"][name] = {"n": int(confusion.sum())} | {
            key: estimate(float(value), draws[-1][key]) for key, value in values[-1].items()
        }
    if len(named) > 1:
        gaps = largest_gaps(draws)
        document["gaps"] = {
            name: estimate(float(value), gaps[name]) for name, value in largest_gaps(values).items()
        }
    return document
