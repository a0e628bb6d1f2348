"""Evaluations that are done, read back from their folders."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mental_r1_jax.errors import UserError
from mental_r1_jax.evaluation.report import METRICS_FILE, PREDICTIONS_FILE, spreadsheet_cell

_NEEDED = ("set_name", "row", "label", "prediction")


@dataclass(frozen=True)
class FinishedSet:
    """Answers to the posts of one set.

    Attributes:
        labels: every label of the set, in order.
        positive: the labels that a clinical reader wants to find; may be empty.
        answers: row -> (true label, label answered or None).
        posts: digest of the posts; None in evaluations that are older than it.
    """

    labels: tuple[str, ...]
    positive: tuple[str, ...]
    answers: Mapping[int, tuple[str, str | None]]
    posts: str | None


def evaluation_folder(path: Path) -> Path:
    """Return the folder of an evaluation: `path`, or that of the one evaluation of a run folder.

    Raises:
        UserError: there is none, or there are several.
    """
    found = [path] if (path / PREDICTIONS_FILE).is_file() else []
    found = found or sorted(one.parent for one in path.glob(f"evaluation/*/{PREDICTIONS_FILE}"))
    if len(found) == 1:
        return found[0]
    raise UserError(
        what=f"{path} is not one finished evaluation",
        expected="the folder of an evaluation, or a run folder that holds one",
        got=f"{[str(one) for one in found]}" if found else f"no {PREDICTIONS_FILE} there",
        remedy="name one of them" if found else "evaluate it first: mental-r1 evaluate RUN",
    )


def read_evaluation(folder: Path) -> dict[str, FinishedSet]:
    """Read the answers of an evaluation, by set.

    Raises:
        UserError: a file is missing, damaged, or the two do not fit together.
    """
    try:
        document = json.loads((folder / METRICS_FILE).read_text(encoding="utf-8"))
        with (folder / PREDICTIONS_FILE).open(encoding="utf-8", newline="") as lines:
            rows = [tuple(line[column] for column in _NEEDED) for line in csv.DictReader(lines)]
        return {name: _finished(name, one, rows) for name, one in document["sets"].items()}
    except (OSError, ValueError, LookupError, TypeError, csv.Error) as error:
        raise UserError(
            what=f"the evaluation in {folder} cannot be read",
            expected=f"{METRICS_FILE} and {PREDICTIONS_FILE} of one evaluation",
            got=f"{type(error).__name__}",
            remedy="evaluate again into this folder",
        ) from error


def _finished(name: str, document: Any, rows: Sequence[tuple[str, ...]]) -> FinishedSet:
    """One set, from its part of `metrics.json` and the lines of `predictions.csv`."""
    labels = tuple(document["confusion"]["true"])
    # Labels that a spreadsheet would take for a formula are written with an apostrophe.
    known = {str(spreadsheet_cell(label)): label for label in labels}
    answers = {
        int(row): (known[label], known[guess] if guess else None)
        for of_set, row, label, guess in rows
        if of_set == name
    }
    if len(answers) != document["n"]:
        raise ValueError(f"{len(answers)} of {document['n']} answers")
    return FinishedSet(
        labels=labels,
        positive=tuple(document.get("positive_labels", ())),
        answers=answers,
        posts=document.get("posts_sha256"),
    )
