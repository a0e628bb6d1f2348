"""Finished cells as one file, so that a study can be made in parts, on several machines.

`cells.jsonl` has a line for each finished cell: its scores, curves and answers (labels only, never
a post), and a digest of the recipes behind it. Another start of the same study takes such cells for
done (`--join`), wherever they were made, and compares them with its own.

Labels may be as confidential as posts. So that results can be published, the same file can be
written without answers (`--publish`): in their place stand the scores in every resample of the
posts, from which the same intervals follow.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pydantic
from pydantic import FiniteFloat, NonNegativeInt

from mental_r1_jax.config import Section
from mental_r1_jax.errors import UserError
from mental_r1_jax.study.cells import Cell, Plan
from mental_r1_jax.study.hard_subset import HardSubset
from mental_r1_jax.study.reading import CellResult, Resampled, posts_of
from mental_r1_jax.study.results import OfCells

CELLS_FILE = "cells.jsonl"

_Curves = dict[str, list[FiniteFloat | None]]
_Answer = tuple[NonNegativeInt, str, str]

# What is published is rounded: scores of resamples to 0.001 points, curves to six digits.
_SCORE_DECIMALS, _CURVE_DIGITS = 5, 6


class _ResampledLine(Section):
    """See `Resampled`."""

    posts_sha256: str
    scores: dict[str, tuple[FiniteFloat, ...]]
    hard_rows_sha256: str | None


class _Line(Section):
    """A line of the file; see `CellResult` for the numbers."""

    name: str
    recipes_sha256: str
    scores: dict[str, FiniteFloat]
    sets: dict[str, dict[str, int | FiniteFloat]]
    stage_entropies: dict[str, FiniteFloat | None]
    curves: _Curves
    validation: _Curves
    answers: dict[str, tuple[_Answer, ...]]
    resampled: _ResampledLine | None = None


def cells_text(plan: Plan, study_folder: Path, results: Iterable[CellResult]) -> str:
    """The content of `cells.jsonl`."""
    lines = []
    for one in results:
        fields = {name: value for name, value in dataclasses.asdict(one).items() if name != "cell"}
        digest = recipes_digest(plan, study_folder, one.cell)
        line = _Line(name=one.cell.name, recipes_sha256=digest, **fields)
        lines.append(json.dumps(line.model_dump(mode="json"), ensure_ascii=False) + "\n")
    return "".join(lines)


def without_answers(
    results: Iterable[CellResult], resampled: OfCells, hard: HardSubset | None
) -> list[CellResult]:
    """The same cells, fit to be published: scores of every resample in place of the answers.

    Args:
        results: with their scores on the hard subset, if there is one.
        resampled: of these cells, see `results.resample`.
        hard: the hard subset.
    """
    published = []
    for one in results:
        stands_for = one.resampled or Resampled(
            posts_sha256=posts_of(one),
            scores={
                name: tuple(round(float(value), _SCORE_DECIMALS) for value in values)
                for name, values in resampled[one.cell.name].items()
            },
            hard_rows_sha256=None if hard is None else hard.rows_sha256,
        )
        published.append(
            dataclasses.replace(one, curves=_rounded(one.curves), answers={}, resampled=stands_for)
        )
    return published


def _rounded(curves: Mapping[str, Sequence[float | None]]) -> dict[str, list[float | None]]:
    def short(value: float | None) -> float | None:
        return None if value is None else float(f"{value:.{_CURVE_DIGITS}g}")

    return {name: [short(value) for value in values] for name, values in curves.items()}


def join_cells(files: Sequence[Path], plan: Plan, study_folder: Path) -> dict[str, CellResult]:
    """Read the cells of other parts of this study, by name.

    Raises:
        UserError: a file is not there or is no such file; a cell is none of this study, was made by
            other recipes, or comes twice with different numbers.
    """
    cells = {cell.name: cell for cell in plan.cells}
    found: dict[str, CellResult] = {}
    for file in files:
        for number, line in enumerate(_read(file), start=1):
            place, cell = f"{file}, line {number}", cells.get(line.name)
            if cell is None:
                raise _refused(place, "a cell of this study", f"the cell {line.name}")
            if line.recipes_sha256 != recipes_digest(plan, study_folder, cell):
                raise _refused(place, "the recipes of this study", f"others behind {line.name}")
            result = _result(cell, line)
            if found.setdefault(line.name, result) != result:
                raise _refused(place, "every cell once", f"{line.name} again, with other numbers")
    return found


def recipes_digest(plan: Plan, study_folder: Path, cell: Cell) -> str:
    """SHA-256 (hex) over the verbs and recipes behind a cell.

    The folders of the study and of the data sets are left out, so that they may differ between
    parts (that all cells answered the same posts is found out when they are compared), and so are
    defaults, so that a later version with more keys still joins what an earlier one has made.
    """
    texts = []
    for task in (plan.tasks[name] for name in cell.tasks):
        recipe = task.config.model_dump(mode="json", exclude_defaults=True)
        recipe.get("data", {}).pop("root", None)
        text = json.dumps(_without(recipe, str(study_folder)), sort_keys=True)
        texts.append("\n".join([task.verb, *task.options, text]))
    return hashlib.sha256("\n\n".join(texts).encode()).hexdigest()


def _without(value: Any, folder: str) -> Any:
    """`value` of a recipe, its paths in `folder` told from there."""
    if isinstance(value, dict):
        return {key: _without(one, folder) for key, one in value.items()}
    if isinstance(value, str) and (value == folder or value.startswith(folder + os.sep)):
        return value.removeprefix(folder)
    return value


def _result(cell: Cell, line: _Line) -> CellResult:
    fields: dict[str, Any] = line.model_dump(exclude={"name", "recipes_sha256"})
    if fields["resampled"] is not None:
        fields["resampled"] = Resampled(**fields["resampled"])
    return CellResult(cell=cell, **fields)


def _read(file: Path) -> list[_Line]:
    """The lines of a `cells.jsonl`."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise _refused(str(file), f"a {CELLS_FILE} of the same study", str(error)) from None
    read = []
    for number, line in enumerate(lines, start=1):
        try:
            read.append(_Line.model_validate_json(line))
        except pydantic.ValidationError as error:
            problem = error.errors(include_input=False, include_url=False)[0]
            got = f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}"
            raise _refused(f"{file}, line {number}", "a finished cell", got) from None
    return read


def _refused(place: str, expected: str, got: str) -> UserError:
    return UserError(
        what=f"{place} cannot be joined",
        expected=expected,
        got=got,
        remedy="run all parts with the same study file and recipe; nothing was changed",
    )
