"""How sure a mean over seeds is, and a difference between two arms.

Two sources of chance: the seed (weights, order, sampling) and the posts that happen to be in the
test split. The t interval knows the seeds only; the bootstrap draws both again. With few seeds the
bootstrap is too narrow, because few seeds cannot show how much seeds differ: read both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from mental_r1_jax.evaluation.metrics import balanced_accuracy, macro_f1, weighted_f1

Interval = tuple[float, float]

# Scores that follow from confusion counts, so that posts can be drawn again.
BOOTSTRAPPED = ("weighted_f1", "macro_f1", "balanced_accuracy", "accuracy")


@dataclass(frozen=True)
class SetAnswers:
    """Answers of one cell to the posts of one set, as codes of labels.

    Attributes:
        posts: row and label of each post; equal for all cells that can be paired.
        truth: code of the true label, 0 to L - 1.
        guess: code of the answer, L where it is unreadable.
        num_labels: L.
    """

    posts: tuple[tuple[int, str], ...]
    truth: Int[np.ndarray, " n"]
    guess: Int[np.ndarray, " n"]
    num_labels: int


Answers = Mapping[str, SetAnswers]


def spread(values: Sequence[float]) -> float | None:
    """Standard deviation over seeds (n - 1); None for a single one."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def t_interval(values: Sequence[float]) -> Interval | None:
    """95% interval of the mean, mean +- t s / sqrt(n), t the 97.5% quantile at n - 1 degrees.

    It takes the values of the seeds for normally distributed. None for a single seed.
    """
    deviation = spread(values)
    if deviation is None:
        return None
    # Imported here because it takes a while, and only the end of a study needs it.
    from scipy.special import stdtrit

    half = float(stdtrit(len(values) - 1, 0.975)) * deviation / math.sqrt(len(values))
    mean = float(np.mean(values))
    return mean - half, mean + half


def draw_posts(
    answers: Answers, samples: int, seed: int
) -> dict[str, Int[np.ndarray, "samples n"]]:
    """How often each post of each set is in each resample, drawn with replacement in its set."""
    draws = {}
    for place, (name, one) in enumerate(answers.items()):
        count = len(one.truth)
        generator = np.random.default_rng([seed, place])
        draws[name] = generator.multinomial(count, np.full(count, 1 / count), size=samples)
    return draws


def resampled_scores(
    answers: Answers, draws: Mapping[str, Int[np.ndarray, "samples n"]]
) -> dict[str, Float[np.ndarray, " samples"]]:
    """Each of `BOOTSTRAPPED` in every resample, averaged over the sets as in an evaluation."""
    by_set: dict[str, list[np.ndarray]] = {name: [] for name in BOOTSTRAPPED}
    for name, one in answers.items():
        size = one.num_labels
        cells = one.truth * (size + 1) + one.guess
        place = np.eye(size * (size + 1), dtype=np.float32)[cells]
        counts = (draws[name].astype(np.float32) @ place).astype(np.int64)
        confusion = counts.reshape(-1, size, size + 1)
        by_set["weighted_f1"].append(weighted_f1(confusion))
        by_set["macro_f1"].append(macro_f1(confusion))
        by_set["balanced_accuracy"].append(balanced_accuracy(confusion))
        right = np.trace(confusion, axis1=1, axis2=2)
        by_set["accuracy"].append(right / confusion.sum(axis=(1, 2)))
    return {name: np.mean(scores, axis=0) for name, scores in by_set.items()}


def bootstrap(scores: Sequence[Float[np.ndarray, " samples"]], seed: int) -> Interval:
    """95% percentile interval of a mean over seeds, over seeds and posts.

    Posts are crossed with seeds: all seeds and all arms meet the same posts. So a resample draws
    the posts once for all of them, and then the seeds (Owen, "The pigeonhole bootstrap", Annals of
    Applied Statistics 2007). The differences of two arms are those of each seed, so that both arms
    get the same posts and seeds.

    Args:
        scores: for each seed its score, or the difference of two arms' scores, in every resample of
            the posts; from `resampled_scores`.
        seed: of the draws of seeds.
    """
    by_seed = np.stack(scores)
    seeds, samples = by_seed.shape
    drawn = np.random.default_rng(seed).integers(seeds, size=(seeds, samples))
    means = np.take_along_axis(by_seed, drawn, axis=0).mean(axis=0)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)
