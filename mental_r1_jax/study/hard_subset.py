"""The hard subset of a study: the posts that samples of its start model get wrong most often.

It is found once, from several sampled answers to each post, and frozen in a file that holds row
numbers and no text. The same file makes another study, or another group, score the same posts.

The start model is at its worst on a subset chosen by its own errors, and any other model will look
better there. So methods are to be compared with each other on it, not with their start.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
from pydantic import NonNegativeInt

from mental_r1_jax.config import Section
from mental_r1_jax.errors import UserError
from mental_r1_jax.study.reading import CellResult, code_answers, digest_of, posts_digest
from mental_r1_jax.study.running import write_whole
from mental_r1_jax.study.statistics import Answers, SetAnswers, resampled_scores

HARD_FILE = "hard_subset.json"
# Scores of a cell on the subset, and what they are of all posts.
HARD_SCORES = {"hard_weighted_f1": "weighted_f1", "hard_macro_f1": "macro_f1"}


class HardSubset(Section):
    """The frozen file.

    Attributes:
        share: of each set's posts that are in it.
        samples: answers that were sampled for each post.
        posts_sha256: of rows and labels of all posts that it was chosen from.
        rows: data set -> rows of the posts in it, ascending.
        rows_sha256: of `rows`.
    """

    share: float
    samples: int
    posts_sha256: str
    rows: dict[str, tuple[NonNegativeInt, ...]]
    rows_sha256: str


def choose_posts(predictions: Path, share: float, samples: int) -> HardSubset:
    """Choose from an evaluation with votes the posts whose samples name the true label most rarely.

        wrong(post) = 1 - (samples that name its label) / (samples that can be read)

    A post without a readable sample counts as always wrong. Of each set ``ceil(share n)`` posts are
    taken; posts that are equally often wrong come in the order of a hash of set and row.

    Args:
        predictions: its `predictions.csv`, with probabilities.
        share: of the posts of each set.
        samples: how many were sampled for each post.
    """
    wrong: dict[str, list[tuple[float, str, int]]] = {}
    posts: dict[str, list[tuple[int, str]]] = {}
    with predictions.open(encoding="utf-8", newline="") as lines:
        for line in csv.DictReader(lines):
            name, row, label = line["set_name"], int(line["row"]), line["label"]
            shares: dict[str, float] = json.loads(line["probabilities"] or "{}")
            order = hashlib.sha256(f"{name}/{row}".encode()).hexdigest()
            wrong.setdefault(name, []).append((shares.get(label, 0.0), order, row))
            posts.setdefault(name, []).append((row, label))
    rows = {
        name: tuple(sorted(row for _, _, row in sorted(all_)[: math.ceil(share * len(all_))]))
        for name, all_ in wrong.items()
    }
    return HardSubset(
        share=share,
        samples=samples,
        posts_sha256=posts_digest(posts),
        rows=rows,
        rows_sha256=digest_of(rows),
    )


def write_hard_subset(subset: HardSubset, file: Path) -> None:
    """Write the file, whole or not at all."""
    write_whole(file, json.dumps(subset.model_dump(mode="json"), indent=1) + "\n")


def read_hard_subset(file: Path) -> HardSubset:
    """Read a frozen file.

    Raises:
        UserError: it is not there, is no such file, or its rows were changed.
    """
    try:
        subset = HardSubset.model_validate_json(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, pydantic.ValidationError) as error:
        raise _refused(f"{file} is no hard subset", type(error).__name__) from None
    if subset.rows_sha256 != digest_of(subset.rows):
        raise _refused(f"the rows of {file} were changed", "another SHA-256 than the file says")
    return subset


def add_hard_scores(results: Sequence[CellResult], subset: HardSubset) -> list[CellResult]:
    """Give every cell its scores on the subset, averaged over sets as those of all posts are.

    Raises:
        UserError: the subset was chosen from other posts than the cells answered, or a cell without
            answers has no scores on it.
    """
    answers = code_answers(results)
    for one in answers.values():
        if posts_digest({name: of_set.posts for name, of_set in one.items()}) != (
            subset.posts_sha256
        ):
            raise _refused("the hard subset was chosen from other posts", "other rows or labels")
    scored = []
    for result in results:
        if result.resampled is None:
            own = _scores(answers[result.cell.name], subset)
            result = dataclasses.replace(result, scores=result.scores | own)
        elif result.resampled.hard_rows_sha256 != subset.rows_sha256:
            cell = result.cell.name
            raise _refused(f"{cell} has no scores on this hard subset", "a cell without answers")
        scored.append(result)
    return scored


def _scores(answers: Answers, subset: HardSubset) -> dict[str, float]:
    """Scores of one cell on the subset: each of its posts counted once, the others not at all."""
    inside: dict[str, SetAnswers] = {}
    once: dict[str, Any] = {}
    for name, one in answers.items():
        wanted = set(subset.rows[name])
        places = [place for place, (row, _) in enumerate(one.posts) if row in wanted]
        inside[name] = dataclasses.replace(
            one,
            posts=tuple(one.posts[place] for place in places),
            truth=one.truth[places],
            guess=one.guess[places],
        )
        once[name] = np.ones((1, len(places)), np.int64)
    scores = resampled_scores(inside, once)
    return {name: float(scores[of_all][0]) for name, of_all in HARD_SCORES.items()}


def _refused(what: str, got: str) -> UserError:
    return UserError(
        what=what,
        expected=f"the {HARD_FILE} of a study on the same posts",
        got=got,
        remedy="give the file as it was written, or leave hard_subset.file out to choose anew",
    )
