"""Numbers of the audits of stages and of groups, from answers to changed inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from mental_r1_jax.evaluation.resampling import Estimate, estimate, post_weights, ratio


def mean_estimate(
    values: Float[np.ndarray, " n"] | Bool[np.ndarray, " n"], *, samples: int, seed: int
) -> Estimate:
    """The mean over posts with its interval; not defined without posts."""
    if not len(values):
        return Estimate(value=None, interval=None)
    numbers = np.asarray(values, float)
    draws = [
        w @ numbers / len(numbers) for w in post_weights(len(numbers), samples=samples, seed=seed)
    ]
    return estimate(float(numbers.mean()), np.concatenate(draws))


def effect(
    before: Float[np.ndarray, "n L"],
    after: Float[np.ndarray, "n L"],
    answer: Int[np.ndarray, " n"],
    *,
    samples: int,
    seed: int,
) -> dict[str, Any]:
    """What a change of the reasoning does to the likeliest label.

    `flip_rate` is the share of posts whose likeliest label changes, `p_change` the mean of
    |p_after(y) - p_before(y)|, y being `answer`.

    Args:
        before: p(label) of each post before the change.
        after: the same after it.
        answer: the likeliest label on the whole reasoning.
    """
    flipped = before.argmax(axis=1) != after.argmax(axis=1)
    rows = np.arange(len(answer))
    moved = np.abs(after[rows, answer] - before[rows, answer])
    return {
        "n": len(answer),
        "flip_rate": mean_estimate(flipped, samples=samples, seed=seed),
        "p_change": mean_estimate(moved, samples=samples, seed=seed),
    }


def counterfactual_document(
    truth: Int[np.ndarray, " n"],
    plain: Int[np.ndarray, " n"],
    answers: Mapping[str, Int[np.ndarray, " n"]],
    positive: Bool[np.ndarray, " L"],
    *,
    samples: int,
    seed: int,
) -> dict[str, Any]:
    """Answers to the same posts under each value of an attribute, as JSON types.

    `flip_rate` is the share of posts whose answer differs from that to the plain post;
    `equalised_odds` the larger of the largest differences of sensitivity and of specificity between
    two values. All values are scored on the same resamples of posts.

    Args:
        truth: code of each true label.
        plain: code of the answer to each post as it is, the number of labels where unreadable.
        answers: value -> codes of the answers to the posts that say it.
        positive: which labels are positive; none leaves out sensitivity and specificity.

    Source: Wang et al., 2024 (arXiv 2406.12033); Hardt, Price & Srebro, NeurIPS 2016.
    """
    called = np.append(positive, False)
    kinds: dict[str, np.ndarray] = {"accuracy": np.ones(len(truth), bool)}
    if positive.any():
        kinds |= {"sensitivity": positive[truth], "specificity": ~positive[truth]}
    hits = {
        name: np.stack(
            [_hit(name, truth, guess, called, len(positive)) for guess in answers.values()]
        )
        for name in kinds
    }
    values = {
        name: ratio((hits[name] & inside).sum(axis=1), inside.sum())
        for name, inside in kinds.items()
    }
    blocks: dict[str, list[np.ndarray]] = {name: [] for name in kinds}
    for weights in post_weights(len(truth), samples=samples, seed=seed):
        for name, inside in kinds.items():
            inner = (weights * inside).astype(float)
            blocks[name].append(ratio(inner @ hits[name].T, inner.sum(axis=1)[:, None]))
    draws = {name: np.concatenate(found) for name, found in blocks.items()}
    shown = {
        value: {"flip_rate": mean_estimate(guess != plain, samples=samples, seed=seed)}
        | {name: estimate(float(values[name][i]), draws[name][:, i]) for name in kinds}
        for i, (value, guess) in enumerate(answers.items())
    }
    return {"values": shown, "gaps": _gaps(values, draws)}


def _hit(
    name: str,
    truth: Int[np.ndarray, " n"],
    guess: Int[np.ndarray, " n"],
    called: Bool[np.ndarray, " L1"],
    unreadable: int,
) -> Bool[np.ndarray, " n"]:
    """Whether each answer is right, a positive call, or a negative call."""
    if name == "accuracy":
        return np.asarray(guess == truth)
    if name == "sensitivity":
        return np.asarray(called[guess])
    return np.asarray(~called[guess] & (guess != unreadable))


def _gaps(values: Mapping[str, np.ndarray], draws: Mapping[str, np.ndarray]) -> dict[str, Estimate]:
    """Largest difference of each rate between two values."""
    points = {name: np.ptp(found) for name, found in values.items()}
    spreads = {name: np.ptp(found, axis=1) for name, found in draws.items()}
    if "sensitivity" in points:
        for both in (points, spreads):
            both["equalised_odds"] = np.maximum(both["sensitivity"], both["specificity"])
    return {name: estimate(float(points[name]), spreads[name]) for name in points}


def codes_of(answers: Sequence[str | None], labels: Sequence[str]) -> Int[np.ndarray, " n"]:
    """Codes of labels, the number of labels for None."""
    code: dict[str | None, int] = {label: i for i, label in enumerate(labels)}
    return np.array([code[one] if one is not None else len(labels) for one in answers], int)
