"""Two evaluations of the same posts: how far apart they are, and on which posts they differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int

from mental_r1_jax.errors import UserError
from mental_r1_jax.evaluation.finished import FinishedSet
from mental_r1_jax.evaluation.groups import group_rates
from mental_r1_jax.evaluation.metrics import macro_f1
from mental_r1_jax.evaluation.resampling import estimate, resampled_counts

# What is averaged over sets: the scores that every set has.
AVERAGED = ("weighted_f1", "macro_f1", "accuracy")


@dataclass(frozen=True)
class Flip:
    """A post that the two evaluations answered differently."""

    set_name: str
    row: int
    label: str
    first: str | None
    second: str | None


def check_same_posts(first: Mapping[str, FinishedSet], second: Mapping[str, FinishedSet]) -> None:
    """Refuse to pair evaluations of different posts.

    Raises:
        UserError: sets, labels, rows, true labels or posts differ; names the first set that does.
    """

    def refuse(what: str, got: str) -> None:
        raise UserError(
            what="the two evaluations are not of the same posts",
            expected=f"the same {what} in both",
            got=got,
            remedy="evaluate both on the same sets, split and evaluate.limit_per_set",
        )

    if first.keys() != second.keys():
        refuse("sets", f"{sorted(first)} and {sorted(second)}")
    for name, one in first.items():
        other = second[name]
        if one.labels != other.labels:
            refuse("labels", f"other ones in the set {name!r}")
        if one.answers.keys() != other.answers.keys():
            only = len(one.answers.keys() ^ other.answers.keys())
            refuse("rows", f"{only} rows of the set {name!r} in one of them only")
        wrong = [row for row, (label, _) in one.answers.items() if other.answers[row][0] != label]
        if wrong:
            refuse("true labels", f"other ones in {len(wrong)} rows of the set {name!r}")
        if None not in (one.posts, other.posts) and one.posts != other.posts:
            refuse("posts", f"other texts in the set {name!r}")


def compare(
    first: Mapping[str, FinishedSet],
    second: Mapping[str, FinishedSet],
    *,
    samples: int,
    seed: int,
) -> dict[str, Any]:
    """Differences first - second of every set and of their unweighted mean, as JSON types.

    Both are scored on the same resamples of the posts, so that what makes posts easy or hard for
    both cancels. McNemar's test is exact: of the posts that one alone answers rightly, is each side
    equally likely? Its p-values are not corrected for the number of sets.

    Args:
        first: evaluations of the same posts, see `check_same_posts`.
        second: the one to compare with.

    Source: McNemar 1947; Efron & Tibshirani 1993.
    """
    sets, gaps, draws = {}, [], []
    for place, (name, one) in enumerate(first.items()):
        joint = _joint_counts(one, second[name])
        value = _scores(joint, one)
        resampled = _scores(resampled_counts(joint, samples=samples, seed=seed + place), one)
        gap, drawn = _difference(value), _difference(resampled)
        gaps.append(gap)
        draws.append(drawn)
        sets[name] = {
            "n": len(one.answers),
            "scores": {
                key: {
                    "first": estimate(float(value[0][key]), resampled[0][key]),
                    "second": estimate(float(value[1][key]), resampled[1][key]),
                    "difference": estimate(float(gap[key]), drawn[key]),
                }
                for key in gap
            },
            "mcnemar": _mcnemar(joint),
            "flips": int(joint.sum() - np.trace(joint, axis1=1, axis2=2).sum()),
        }
    average = {
        key: estimate(
            float(np.mean([one[key] for one in gaps])), np.mean([one[key] for one in draws], axis=0)
        )
        for key in AVERAGED
    }
    return {"sets": sets, "average_difference": average}


def flips(first: Mapping[str, FinishedSet], second: Mapping[str, FinishedSet]) -> list[Flip]:
    """The posts that were answered differently, by set and row."""
    return [
        Flip(name, row, label, guess, second[name].answers[row][1])
        for name, one in first.items()
        for row, (label, guess) in sorted(one.answers.items())
        if guess != second[name].answers[row][1]
    ]


def _joint_counts(one: FinishedSet, other: FinishedSet) -> Int[np.ndarray, "L L1 L1"]:
    """Posts by true label, first and second answer; the last answer is unreadable."""
    code: dict[str | None, int] = {label: i for i, label in enumerate(one.labels)}
    code[None] = len(one.labels)
    counts = np.zeros((len(one.labels), len(code), len(code)), int)
    for row, (label, guess) in one.answers.items():
        counts[code[label], code[guess], code[other.answers[row][1]]] += 1
    return counts


def _scores(joint: Int[np.ndarray, "*batch L L1 L1"], facts: FinishedSet) -> list[Any]:
    """Scores of both sides of joint counts."""
    positive = np.array([label in facts.positive for label in facts.labels])
    sides = (joint.sum(axis=-1), joint.sum(axis=-2))
    return [group_rates(side, positive) | {"macro_f1": macro_f1(side)} for side in sides]


def _difference(sides: list[Any]) -> dict[str, Any]:
    return {key: sides[0][key] - sides[1][key] for key in sides[0]}


def _mcnemar(joint: Int[np.ndarray, "L L1 L1"]) -> dict[str, Any]:
    """Posts that one side alone answers rightly, and the two-sided exact p-value."""
    from scipy.stats import binomtest

    codes = np.arange(len(joint))
    both = joint[codes, codes, codes].sum()
    only_first = int(joint[codes, codes].sum() - both)
    only_second = int(joint[codes, :, codes].sum() - both)
    total = only_first + only_second
    p = float(binomtest(only_first, total, 0.5).pvalue) if total else 1.0
    return {"only_first_right": only_first, "only_second_right": only_second, "p_value": p}
