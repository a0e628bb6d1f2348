"""From the cells of a study to `study.json`: every number, summaries by arm, paired differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mental_r1_jax.errors import UserError
from mental_r1_jax.study.cells import Arm, arms_of
from mental_r1_jax.study.hard_subset import HARD_SCORES, HardSubset, add_hard_scores
from mental_r1_jax.study.reading import SCORES, CellResult, code_answers
from mental_r1_jax.study.schema import Study
from mental_r1_jax.study.statistics import (
    BOOTSTRAPPED,
    bootstrap,
    draw_posts,
    resampled_scores,
    spread,
    t_interval,
)

# Scores whose spread over a varied key is told.
_SENSITIVE = ("weighted_f1", "macro_f1")
_SUMMED_UP = (*SCORES, *HARD_SCORES)

OfCells = Mapping[str, Mapping[str, np.ndarray]]


def study_document(
    study: Study,
    results: Sequence[CellResult],
    missing: Sequence[str],
    hard: HardSubset | None = None,
) -> dict[str, Any]:
    """The content of `study.json`, in JSON types.

    Args:
        study: the study.
        results: of the finished cells.
        missing: names of the other cells.
        hard: the hard subset; None where there is none.

    Raises:
        UserError: as `resample`, or the hard subset was chosen from other posts.
    """
    if hard is not None:
        results = add_hard_scores(results, hard)
    resampled = resample(study, results)
    arms = arms_of(study)
    summaries = {arm.name: _summary(arm, results, resampled) for arm in arms}
    for arm in arms:
        summaries[arm.name]["differences"] = {
            method: _difference(arm, baseline, results, resampled)
            for method, baseline in arm.baselines.items()
            if arm.name != baseline
        }
    return {
        "study": study.model_dump(mode="json"),
        "missing": list(missing),
        "arms": summaries,
        "hard_subset": None if hard is None else hard.model_dump(mode="json"),
        "sensitivity": _sensitivity(arms, summaries, results),
        "cells": {result.cell.name: _cell_document(result) for result in results},
    }


def resample(study: Study, results: Sequence[CellResult]) -> OfCells:
    """Cell -> score -> its value in each resample of the posts, drawn once for all cells.

    The draws follow from the number of posts alone, so that those of a cell without answers, made
    elsewhere, are the same ones.

    Raises:
        UserError: cells answered different posts, or were resampled another number of times.
    """
    answers, found = code_answers(results), {}
    if answers:
        draws = draw_posts(next(iter(answers.values())), study.bootstrap_samples, seed=0)
        found = {name: resampled_scores(one, draws) for name, one in answers.items()}
    for one in results:
        if one.resampled is None:
            continue
        scores = {name: np.asarray(values) for name, values in one.resampled.scores.items()}
        counts = {name: len(scores.get(name, ())) for name in BOOTSTRAPPED}
        if set(counts.values()) != {study.bootstrap_samples}:
            raise UserError(
                what=f"the cell {one.cell.name} was resampled otherwise",
                expected=f"{study.bootstrap_samples} resamples of each of {', '.join(counts)}",
                got=f"{', '.join(map(str, counts.values()))} of them",
                remedy="give the study the bootstrap_samples that the joined cells were made with",
            )
        found[one.cell.name] = scores
    return found


def _of_arm(arm: str, results: Sequence[CellResult]) -> dict[int, CellResult]:
    """Seed -> result of the arm's finished cells."""
    return {one.cell.seed: one for one in results if one.cell.arm.name == arm}


def _summary(arm: Arm, results: Sequence[CellResult], resampled: OfCells) -> dict[str, Any]:
    """Mean over seeds, spread and 95% intervals of every score that all finished cells have."""
    own = _of_arm(arm.name, results)
    scores = {}
    for name in _SUMMED_UP:
        values = [one.scores[name] for one in own.values() if name in one.scores]
        if values and len(values) == len(own):
            scores[name] = {
                "mean": float(np.mean(values)),
                "spread": spread(values),
                "interval": _listed(t_interval(values)),
            }
            if name in BOOTSTRAPPED:
                each = [resampled[one.cell.name][name] for one in own.values()]
                scores[name]["interval_over_seeds_and_posts"] = list(bootstrap(each, seed=0))
    return {
        "method": arm.method,
        "values": dict(arm.values),
        "label": arm.label,
        "seeds": sorted(own),
        "scores": scores,
    }


def _difference(
    arm: Arm, baseline: str, results: Sequence[CellResult], resampled: OfCells
) -> dict[str, Any]:
    """Arm minus the arm `baseline` over the seeds that both have finished."""
    ours, theirs = _of_arm(arm.name, results), _of_arm(baseline, results)
    seeds = sorted(ours.keys() & theirs.keys())
    scores = {}
    for name in _SUMMED_UP if seeds else ():
        pairs = [(ours[seed].scores, theirs[seed].scores) for seed in seeds]
        if not all(name in a and name in b for a, b in pairs):
            continue
        values = [a[name] - b[name] for a, b in pairs]
        scores[name] = {
            "mean": float(np.mean(values)),
            "by_seed": dict(zip(map(str, seeds), values, strict=True)),
            "interval_over_seeds": _listed(t_interval(values)),
        }
        if name in BOOTSTRAPPED:
            each = [
                resampled[ours[seed].cell.name][name] - resampled[theirs[seed].cell.name][name]
                for seed in seeds
            ]
            scores[name]["interval_over_seeds_and_posts"] = list(bootstrap(each, seed=0))
    return {"baseline": baseline, "seeds": seeds, "scores": scores}


def _sensitivity(
    arms: Sequence[Arm], summaries: Mapping[str, Any], results: Sequence[CellResult]
) -> list[dict[str, Any]]:
    """For each varied key and method, how far the scores lie apart over the key's values.

    Arms that differ in this key only belong together. `range` is the largest mean minus the
    smallest, `spread` the standard deviation (n - 1) of the means, `range_over_seeds` what a single
    seed's scores say.
    """
    groups: dict[tuple[str, str, str], list[Arm]] = {}
    for arm in arms:
        for key, _ in arm.values:
            others = str([(k, v) for k, v in arm.values if k != key])
            groups.setdefault((key, arm.method, others), []).append(arm)
    rows = []
    for (key, method, _), members in groups.items():
        there = [arm for arm in members if summaries[arm.name]["scores"]]
        for score in _SENSITIVE if len(there) > 1 else ():
            means = [summaries[arm.name]["scores"][score]["mean"] for arm in there]
            rows.append(
                {
                    "key": key,
                    "method": method,
                    "score": score,
                    "fixed": {k: v for k, v in there[0].values if k != key},
                    "arms": [arm.name for arm in there],
                    "values": [dict(arm.values)[key] for arm in there],
                    "means": means,
                    "range": max(means) - min(means),
                    "spread": spread(means),
                    "range_over_seeds": _range_over_seeds(there, results, score),
                }
            )
    return rows


def _range_over_seeds(
    arms: Sequence[Arm], results: Sequence[CellResult], score: str
) -> dict[str, Any] | None:
    """Largest minus smallest score of these arms for each seed that all have; mean, t interval.

    Chance makes the range of single scores larger than that of their means: compare it with that of
    another method over as many values. None where no seed is finished in all arms.
    """
    cells = [_of_arm(arm.name, results) for arm in arms]
    ranges = {}
    for seed in sorted(set[int].intersection(*(set(one) for one in cells))):
        scores = [one[seed].scores[score] for one in cells]
        ranges[str(seed)] = max(scores) - min(scores)
    if not ranges:
        return None
    return {
        "mean": float(np.mean(list(ranges.values()))),
        "by_seed": ranges,
        "interval_over_seeds": _listed(t_interval(list(ranges.values()))),
    }


def _cell_document(result: CellResult) -> dict[str, Any]:
    cell = result.cell
    return {
        "arm": cell.arm.name,
        "seed": cell.seed,
        "run": str(cell.run),
        "scores": result.scores,
        "sets": result.sets,
        "stage_entropies": result.stage_entropies,
        "curves": result.curves,
        "validation": result.validation,
    }


def _listed(interval: tuple[float, float] | None) -> list[float] | None:
    return None if interval is None else list(interval)
