"""Classification metrics of read-out labels, independent of the reward they were trained with.

All rates and scores are fractions from 0 to 1; entropies are in nats. A completion from which no
label could be read counts as a wrong answer: it is never dropped.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from mental_r1_jax.config import STAGE_NAMES
from mental_r1_jax.evaluation.completion_tokens import CompletionTokens

UNREADABLE = "unreadable"

AVERAGED = (
    "weighted_f1",
    "macro_f1",
    "balanced_accuracy",
    "accuracy",
    "well_formed",
    "truncated",
    "unreadable",
    "mean_tokens",
)


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What the model answered to one post.

    Attributes:
        set_name: data set of the post.
        row: row of the post in its split.
        label: the gold label.
        prediction: the label read from the answer, or None when none could be read.
        well_formed: the completion follows the grammar.
        truncated: the completion hit the length limit.
        num_tokens: number of sampled tokens, the end-of-sequence token included.
        answer: the raw text of the answer, or None without one.
        stage_entropies: mean entropy (nats) of each stage's tokens; None where it is missing.
        completion: what the model wrote.
        text: the post.
        group: whom or what the post belongs to, where the set says so.
        probabilities: of every label of the set, from where `evaluate.confidence` says; None where
            they were not asked for, or come from votes none of which is readable.
        tokens: of the completion; None where no reading room is made.
    """

    set_name: str
    row: int
    label: str
    prediction: str | None
    well_formed: bool
    truncated: bool
    num_tokens: int
    answer: str | None
    stage_entropies: tuple[float | None, ...]
    completion: str
    text: str
    group: str | None = None
    probabilities: Mapping[str, float] | None = None
    tokens: CompletionTokens | None = None


@dataclasses.dataclass(frozen=True)
class ClassMetrics:
    """Scores of one label; `support` is how often it is the true one."""

    label: str
    precision: float
    recall: float
    f1: float
    support: int


@dataclasses.dataclass(frozen=True)
class SetMetrics:
    """Scores of one data set.

    Attributes:
        weighted_f1: mean F1 of the labels, weighted by support.
        macro_f1: plain mean F1 of the labels that occur, as truth or as prediction.
        balanced_accuracy: mean recall of the labels that occur as truth.
        accuracy: share of right answers.
        well_formed: share of completions that follow the grammar.
        truncated: share of completions that hit the length limit.
        unreadable: share of completions without a readable label.
        n: number of posts.
        per_class: one entry a label, in the order of the set's labels.
        confusion: `[true label][predicted label]` counts; the last column is for the unreadable.
        weighted_f1_interval: 95% percentile bootstrap over posts; None if none was asked for.
        stage_entropies: mean over the completions that have the stage, nats; None if none has it.
        mean_tokens: mean completion length.
        stages: names of the grammar's, in the order of `stage_entropies`.
    """

    weighted_f1: float
    macro_f1: float
    balanced_accuracy: float
    accuracy: float
    well_formed: float
    truncated: float
    unreadable: float
    n: int
    per_class: tuple[ClassMetrics, ...]
    confusion: tuple[tuple[int, ...], ...]
    weighted_f1_interval: tuple[float, float] | None
    stage_entropies: tuple[float | None, ...]
    mean_tokens: float
    stages: tuple[str, ...] = STAGE_NAMES


def set_metrics(
    predictions: Sequence[Prediction],
    labels: tuple[str, ...],
    *,
    bootstrap_samples: int,
    seed: int,
    stages: tuple[str, ...] = STAGE_NAMES,
) -> SetMetrics:
    """Score the predictions of one data set.

    Args:
        labels: every label of the set; fixes the order of `per_class` and `confusion`.
        bootstrap_samples: resamples behind the interval; 0 leaves it out.
        seed: seed of the resampling; the same seed gives the same interval.
        stages: names of the grammar's.

    Raises:
        ValueError: no predictions, predictions of several sets, or a label outside `labels`.
    """
    _check(predictions, labels, stages)
    truth = np.array([labels.index(p.label) for p in predictions])
    # Code L stands for "unreadable": a predicted class that is never the true one.
    guess = np.array(
        [len(labels) if p.prediction is None else labels.index(p.prediction) for p in predictions]
    )
    (precision, recall, f1, support), confusion = _count(truth, guess, len(labels))
    occurs = (support > 0) | (confusion[:, :-1].sum(axis=0) > 0)
    interval = None
    if bootstrap_samples:
        interval = bootstrap_interval(confusion, samples=bootstrap_samples, seed=seed)
    return SetMetrics(
        weighted_f1=float(np.average(f1, weights=support)),
        macro_f1=float(f1[occurs].mean()),
        balanced_accuracy=float(recall[support > 0].mean()),
        accuracy=float((truth == guess).mean()),
        well_formed=_share(p.well_formed for p in predictions),
        truncated=_share(p.truncated for p in predictions),
        unreadable=_share(p.prediction is None for p in predictions),
        n=len(predictions),
        per_class=tuple(
            ClassMetrics(
                label, float(precision[i]), float(recall[i]), float(f1[i]), int(support[i])
            )
            for i, label in enumerate(labels)
        ),
        confusion=tuple(tuple(int(count) for count in row) for row in confusion),
        weighted_f1_interval=interval,
        stage_entropies=_stage_means(predictions),
        mean_tokens=float(np.mean([p.num_tokens for p in predictions])),
        stages=stages,
    )


def weighted_f1(confusion: Int[np.ndarray, "*batch L L1"]) -> Float[np.ndarray, "*batch"]:
    """Support-weighted F1 of confusion counts `[true, predicted]`, for many matrices at once.

    F1_c = 2 TP_c / (support_c + predicted_c), weighted_f1 = sum_c support_c F1_c / n; a label that
    neither occurs nor is predicted has F1 0 and weight 0. The last column is "unreadable".
    """
    right = np.diagonal(confusion, axis1=-2, axis2=-1)
    support = confusion.sum(axis=-1)
    predicted = confusion[..., :-1].sum(axis=-2)
    f1 = 2 * right / np.maximum(support + predicted, 1)
    return np.asarray((support * f1).sum(axis=-1) / support.sum(axis=-1))


def macro_f1(confusion: Int[np.ndarray, "*batch L L1"]) -> Float[np.ndarray, "*batch"]:
    """Plain mean F1 over the labels that occur, as truth or as prediction; see `weighted_f1`."""
    right = np.diagonal(confusion, axis1=-2, axis2=-1)
    seen = confusion.sum(axis=-1) + confusion[..., :-1].sum(axis=-2)
    f1 = 2 * right / np.maximum(seen, 1)
    return np.asarray(f1.sum(axis=-1) / np.maximum((seen > 0).sum(axis=-1), 1))


def balanced_accuracy(confusion: Int[np.ndarray, "*batch L L1"]) -> Float[np.ndarray, "*batch"]:
    """Mean recall over the labels that occur as truth; see `weighted_f1`."""
    right = np.diagonal(confusion, axis1=-2, axis2=-1)
    support = confusion.sum(axis=-1)
    recall = right / np.maximum(support, 1)
    return np.asarray(recall.sum(axis=-1) / np.maximum((support > 0).sum(axis=-1), 1))


def bootstrap_interval(
    confusion: Int[np.ndarray, "L L1"], *, samples: int, seed: int
) -> tuple[float, float]:
    """95% percentile bootstrap interval of the weighted F1.

    Weighted F1 depends on the posts only through the confusion counts, and drawing n posts with
    replacement draws those counts from Multinomial(n, counts / n): one draw gives all resamples.
    """
    counts = confusion.reshape(-1)
    total = int(counts.sum())
    draws = np.random.default_rng(seed).multinomial(total, counts / total, size=samples)
    low, high = np.percentile(weighted_f1(draws.reshape(samples, *confusion.shape)), [2.5, 97.5])
    return float(low), float(high)


def average_metrics(metrics: Mapping[str, SetMetrics]) -> dict[str, float]:
    """Unweighted mean over the data sets of every field named in `AVERAGED`.

    Raises:
        ValueError: no sets.
    """
    if not metrics:
        raise ValueError("expected the metrics of at least one data set, got none")
    return {
        name: float(np.mean([getattr(one, name) for one in metrics.values()])) for name in AVERAGED
    }


def metrics_document(metrics: Mapping[str, SetMetrics]) -> dict[str, Any]:
    """The content of `metrics.json`, `{"sets": {NAME: {...}}, "average": {...}}`; JSON types."""
    return {
        "sets": {name: _set_document(one) for name, one in metrics.items()},
        "average": average_metrics(metrics),
    }


def vote(predictions: Sequence[str | None]) -> str | None:
    """The most frequent label; ties go to the one seen first.

    Unreadable samples (None) abstain; the vote is None only when all of them are.
    """
    counts = Counter(prediction for prediction in predictions if prediction is not None)
    # Counter keeps the order of first sight and max() the first of equals.
    return max(counts, key=counts.__getitem__) if counts else None


def vote_shares(
    predictions: Sequence[str | None], labels: Sequence[str]
) -> dict[str, float] | None:
    """Of each label the share of the readable samples that name it; None where none is readable."""
    counts = Counter(prediction for prediction in predictions if prediction is not None)
    total = counts.total()
    return {label: counts[label] / total for label in labels} if total else None


def _set_document(metrics: SetMetrics) -> dict[str, Any]:
    labels = [one.label for one in metrics.per_class]
    fields, interval = dataclasses.asdict(metrics), metrics.weighted_f1_interval
    return {
        **{name: fields[name] for name in (*AVERAGED, "n")},
        "weighted_f1_interval": interval and list(interval),
        "per_class": {one.pop("label"): one for one in fields["per_class"]},
        "confusion": {
            "true": labels,
            "predicted": [*labels, UNREADABLE],
            "counts": [list(row) for row in metrics.confusion],
        },
        "stage_entropies": dict(zip(metrics.stages, metrics.stage_entropies, strict=True)),
    }


def _count(truth: np.ndarray, guess: np.ndarray, num_labels: int) -> tuple[Any, np.ndarray]:
    """Per label (precision, recall, F1, support), and the confusion counts."""
    # Imported here because it takes a second, which a run that only trains need not wait for.
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    with warnings.catch_warnings():
        # Only says that labels are many for so few posts, which is true of small samples.
        warnings.filterwarnings("ignore", message="The number of unique classes")
        scores = precision_recall_fscore_support(
            truth, guess, labels=np.arange(num_labels), zero_division=0
        )
        return scores, confusion_matrix(truth, guess, labels=np.arange(num_labels + 1))[:-1]


def _check(
    predictions: Sequence[Prediction], labels: tuple[str, ...], stages: tuple[str, ...]
) -> None:
    """Refuse input whose scores would be meaningless."""
    if not predictions:
        raise ValueError("expected at least one prediction, got none; is the split empty?")
    names = sorted({p.set_name for p in predictions})
    if len(names) > 1:
        raise ValueError(f"expected the predictions of one data set, got {names}; split them first")
    found = {p.label for p in predictions} | {p.prediction for p in predictions} - {None}
    unknown = sorted(found - set(labels), key=str)
    if unknown:
        raise ValueError(f"data set {names[0]}: expected labels in {list(labels)}, got {unknown}")
    lengths = {len(p.stage_entropies) for p in predictions}
    if lengths != {len(stages)}:
        raise ValueError(
            f"expected {len(stages)} stage entropies a prediction, got {sorted(lengths)}"
        )


def _share(flags: Any) -> float:
    return float(np.mean([bool(flag) for flag in flags]))


def _stage_means(predictions: Sequence[Prediction]) -> tuple[float | None, ...]:
    means: list[float | None] = []
    for stage in zip(*(p.stage_entropies for p in predictions), strict=True):
        present = [entropy for entropy in stage if entropy is not None]
        means.append(float(np.mean(present)) if present else None)
    return tuple(means)
