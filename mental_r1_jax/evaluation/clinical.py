"""What clinical readers ask of a set beside F1, with 95% intervals, as a part of `metrics.json`.

Screening rates, areas under curves, ordinal scores, calibration, risk by coverage, groups, and what
another scorer would have said. docs/evaluation.md defines every number.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from mental_r1_jax.evaluation.calibration import (
    calibration_values,
    reliability,
    resampled_calibration,
    resampled_risks,
    risk_coverage,
)
from mental_r1_jax.evaluation.groups import group_document, group_rates
from mental_r1_jax.evaluation.metrics import Prediction, macro_f1
from mental_r1_jax.evaluation.ordinal import ordinal_estimates, without_unreadable
from mental_r1_jax.evaluation.resampling import (
    Estimate,
    estimate,
    resampled_counts,
    resampled_scores,
)
from mental_r1_jax.evaluation.screening import (
    RANKINGS,
    call_estimates,
    ranking_values,
    resampled_rankings,
)


@dataclasses.dataclass(frozen=True)
class LabelFacts:
    """What is known of the labels of a set.

    Attributes:
        labels: every label, mildest first where they are ordered.
        positive: the labels of writers whom a clinical reader wants to find; may be empty.
        ordered: the labels are degrees of one thing.
    """

    labels: tuple[str, ...]
    positive: tuple[str, ...] = ()
    ordered: bool = False

    def is_positive(self) -> Bool[np.ndarray, " L"]:
        """Which labels are positive."""
        return np.array([label in self.positive for label in self.labels])

    def fallback(self) -> int:
        """The label that the scorer `imhi` takes for an unreadable answer, "class 0".

        MentalLLaMA's scorer takes the absence of the condition there, and for causes of stress the
        label for others: here the first label that is not positive or, in a set without positive
        labels, one that is called "Other", else the first.
        """
        if self.positive:
            return int(np.argmin(self.is_positive()))
        others = [i for i, label in enumerate(self.labels) if label.casefold() == "other"]
        return others[0] if others else 0


@dataclasses.dataclass(frozen=True)
class _Answers:
    """Predictions of a set as arrays.

    Attributes:
        truth: code of each true label.
        guess: code of each answer, the number of labels where it is unreadable.
        probabilities: of the labels, NaN where there are none; None where no confidence was asked.
    """

    truth: Int[np.ndarray, " n"]
    guess: Int[np.ndarray, " n"]
    probabilities: Float[np.ndarray, "n L"] | None

    def confusion(self, num_labels: int) -> Int[np.ndarray, "L L1"]:
        """Counts `[true, answer]`, the last column unreadable."""
        counts = np.zeros((num_labels, num_labels + 1), int)
        np.add.at(counts, (self.truth, self.guess), 1)
        return counts


def clinical_document(
    predictions: Sequence[Prediction], facts: LabelFacts, *, samples: int, seed: int
) -> dict[str, Any]:
    """All numbers of one set beside those of `SetMetrics`, as JSON types.

    What is not defined, for instance because no post is positive, is None.

    Args:
        predictions: of one set, at least one.
        samples: resamples behind every interval.
        seed: seed of the resampling; the same seed gives the same intervals.
    """
    answers, num_labels = _answers(predictions, facts.labels), len(facts.labels)
    draws = resampled_counts(answers.confusion(num_labels), samples=samples, seed=seed)
    positive = facts.is_positive()
    scored = _scored(answers, facts, samples=samples, seed=seed)
    ordinal = None
    if facts.ordered and num_labels > 2:
        ordinal = ordinal_estimates(answers.truth, answers.guess, draws)
    return {
        "posts_sha256": posts_digest(predictions),
        "positive_labels": list(facts.positive),
        "clinical": {**call_estimates(answers.truth, answers.guess, positive, draws)}
        | scored["clinical"]
        if positive.any()
        else None,
        "one_vs_rest": _one_vs_rest(answers, facts.labels, draws, scored),
        "ordinal": ordinal,
        "calibration": scored["calibration"],
        "reliability": scored["reliability"],
        "risk_coverage": scored["risk_coverage"],
        "groups": _groups(predictions, answers, facts, samples=samples, seed=seed),
        "scorers": _scorers(answers.confusion(num_labels), draws, facts),
    }


def posts_digest(predictions: Sequence[Prediction]) -> str:
    """SHA-256 (hex) over rows and posts, by which evaluations of the same posts are known."""
    digest = hashlib.sha256()
    for p in sorted(predictions, key=lambda one: one.row):
        digest.update(f"{p.row}\0{p.text}\0".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def answer_confidence(
    guess: Int[np.ndarray, " n"], probabilities: Float[np.ndarray, "n L"]
) -> Float[np.ndarray, " n"]:
    """Probability of the label that each answer names; 0 where it names none."""
    readable = guess < probabilities.shape[1]
    named = probabilities[np.arange(len(guess)), np.where(readable, guess, 0)]
    return np.where(readable, np.nan_to_num(named), 0.0)


def positive_scores(
    probabilities: Float[np.ndarray, "n L"],
    truth: Int[np.ndarray, " n"],
    positive: Bool[np.ndarray, " L"],
) -> Float[np.ndarray, " n"]:
    """Probability of the positive labels together.

    A post without probabilities, all of whose samples are unreadable, counts as ranked wrong: 0
    where it is positive, 1 where it is not.
    """
    scores = probabilities[:, positive].sum(axis=1)
    return np.where(np.isnan(scores), 1.0 - positive[truth], np.clip(scores, 0.0, 1.0))


def _answers(predictions: Sequence[Prediction], labels: tuple[str, ...]) -> _Answers:
    code = {label: i for i, label in enumerate(labels)} | {None: len(labels)}
    probabilities = None
    if any(p.probabilities is not None for p in predictions):
        missing = dict.fromkeys(labels, np.nan)
        shown = [p.probabilities or missing for p in predictions]
        probabilities = np.array([[one[label] for label in labels] for one in shown])
    return _Answers(
        truth=np.array([code[p.label] for p in predictions]),
        guess=np.array([code[p.prediction] for p in predictions]),
        probabilities=probabilities,
    )


def _scored(answers: _Answers, facts: LabelFacts, *, samples: int, seed: int) -> dict[str, Any]:
    """Everything that needs probabilities of labels; None, and rankings of None, without them."""
    empty: dict[str, Any] = {name: Estimate(value=None, interval=None) for name in RANKINGS}
    probabilities, truth = answers.probabilities, answers.truth
    if probabilities is None:
        nothing = dict.fromkeys(("calibration", "reliability", "risk_coverage"))
        return {"clinical": empty, "one_vs_rest": [empty] * len(facts.labels), **nothing}
    confidence = answer_confidence(answers.guess, probabilities)
    correct = answers.guess == truth
    risks = risk_coverage(confidence, correct)
    functions: dict[str, Callable[..., Any]] = {
        "calibration": resampled_calibration(confidence, correct),
        "risks": resampled_risks(confidence, correct),
    }
    kinds = [facts.is_positive(), *np.eye(len(facts.labels), dtype=bool)]
    ranked = []
    for place, positive in enumerate(kinds):
        score = positive_scores(probabilities, truth, positive)
        ranked.append(ranking_values(positive[truth], score))
        if ranked[-1]["auroc"] is not None and (place == 0 or len(facts.labels) > 2):
            functions[f"kind {place}"] = resampled_rankings(positive[truth], score)
    draws = resampled_scores(functions, len(truth), samples=samples, seed=seed)
    areas = [
        {name: estimate(one[name], draws.get(f"kind {place}", {}).get(name)) for name in RANKINGS}
        for place, one in enumerate(ranked)
    ]
    values = calibration_values(confidence, correct)
    values |= {name: risks[name] for name in ("aurc", "accuracy_at_80")}
    resampled = draws.get("calibration", {}) | draws.get("risks", {})
    return {
        "clinical": areas[0],
        "one_vs_rest": areas[1:],
        "calibration": {name: estimate(v, resampled.get(name)) for name, v in values.items()},
        "reliability": reliability(confidence, correct),
        "risk_coverage": risks,
    }


def _one_vs_rest(
    answers: _Answers, labels: tuple[str, ...], draws: Any, scored: dict[str, Any]
) -> dict[str, dict[str, Estimate]] | None:
    """Rates with each label in turn as the positive one; None for two labels, which mirror."""
    if len(labels) == 2:
        return None
    found = {}
    for place, label in enumerate(labels):
        alone = np.arange(len(labels)) == place
        rates = call_estimates(answers.truth, answers.guess, alone, draws)
        found[label] = rates | scored["one_vs_rest"][place]
    return found


def _groups(
    predictions: Sequence[Prediction],
    answers: _Answers,
    facts: LabelFacts,
    *,
    samples: int,
    seed: int,
) -> dict[str, Any] | None:
    """Rates by group; None where no post has one."""
    names = [p.group for p in predictions]
    confusions = {}
    for name in {name for name in names if name is not None}:
        inside = np.array([other == name for other in names])
        own = _Answers(answers.truth[inside], answers.guess[inside], None)
        confusions[name] = own.confusion(len(facts.labels))
    if not confusions:
        return None
    return group_document(confusions, facts.is_positive(), samples=samples, seed=seed)


def _scorers(
    confusion: Int[np.ndarray, "L L1"], draws: Int[np.ndarray, "S L L1"], facts: LabelFacts
) -> dict[str, Any]:
    """Scores with unreadable answers as wrong (`strict`) and as `LabelFacts.fallback` (`imhi`)."""
    instead = np.full(len(facts.labels), facts.fallback())
    positive = facts.is_positive()

    def rates(counts: np.ndarray) -> dict[str, np.ndarray]:
        return group_rates(counts, positive) | {"macro_f1": macro_f1(counts)}

    def read(counts: np.ndarray) -> np.ndarray:
        filled = without_unreadable(counts, instead)
        return np.concatenate([filled, np.zeros_like(filled[..., :1])], axis=-1)

    values = {"strict": rates(confusion), "imhi": rates(read(confusion))}
    resampled = {"strict": rates(draws), "imhi": rates(read(draws))}
    for found in (values, resampled):
        strict, imhi = found["strict"], found["imhi"]
        found["difference"] = {name: imhi[name] - strict[name] for name in strict}
    document: dict[str, Any] = {
        kind: {name: estimate(float(v), resampled[kind][name]) for name, v in found.items()}
        for kind, found in values.items()
    }
    return document | {"imhi_label": facts.labels[facts.fallback()]}
