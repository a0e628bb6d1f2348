"""The files of an evaluation: `metrics.json`, `predictions.csv` and `report.html`.

1. `metrics.json` holds every number, as fractions from 0 to 1 and nats.
2. `predictions.csv` holds one line a post; posts, completions and raw answers (which may quote the
   post) only on request.
3. `report.html` shows the numbers; completions only where a reading room is asked for, and posts
   in it only where they are asked for, too.

Each file appears whole or not at all.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from mental_r1_jax.errors import UserError
from mental_r1_jax.evaluation.kept_batches import UNFINISHED_FOLDER
from mental_r1_jax.evaluation.metrics import (
    Prediction,
    SetMetrics,
    average_metrics,
    metrics_document,
)
from mental_r1_jax.evaluation.reading_room import STYLE, reading_room
from mental_r1_jax.evaluation.report_page import percent, report_page
from mental_r1_jax.private_files import make_private_folder, write_private

METRICS_FILE = "metrics.json"
PREDICTIONS_FILE = "predictions.csv"
REPORT_FILE = "report.html"
_LOCK_FILE = "run.lock"  # that of `runs/run_lock.py`, a layer above

_FORMULA_SIGNS = tuple("=+-@\t\r\n＝＋－＠")
_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?")


def check_report_folder(folder: Path) -> None:
    """Refuse a folder that holds something else than an evaluation.

    Raises:
        UserError: `folder` is such a folder; nothing is touched.
    """
    if not folder.is_dir() or (folder / REPORT_FILE).is_file():
        return
    ours = {METRICS_FILE, PREDICTIONS_FILE, UNFINISHED_FOLDER}
    foreign = sorted(
        path.name
        for path in folder.iterdir()
        if path.name.removesuffix(".tmp") not in ours and not path.name.startswith(_LOCK_FILE)
    )
    if foreign:
        raise UserError(
            what=f"{folder} is not empty and holds no evaluation",
            expected="a new or empty folder, or an earlier evaluation to replace",
            got=f"{foreign[:5]}",
            remedy="choose another evaluate.output_dir; nothing was touched",
        )


def write_evaluation(
    folder: Path,
    metrics: Mapping[str, SetMetrics],
    predictions: Sequence[Prediction],
    *,
    include_text: bool,
    title: str,
    context: Mapping[str, str],
    checkpoint: int | None = None,
    sections: Sequence[str] = (),
    further: Mapping[str, Mapping[str, Any]] | None = None,
    shown_answers: int = 0,
) -> None:
    """Write the three files into `folder`, which is made if missing; older ones are replaced.

    A folder that is made, `predictions.csv` always, and a report with a reading room can be read by
    their owner only.

    Args:
        include_text: add posts, completions and raw answers to `predictions.csv`, and posts to the
            reading room.
        title: heading of the report.
        context: facts shown on top of the report, such as model, split and decoding.
        checkpoint: step of the checkpoint that was evaluated, for `metrics.json`; None if no run's.
        sections: further parts of the report, see `report_page`.
        further: set -> keys that `metrics.json` has of it beside those of `SetMetrics`.
        shown_answers: right, and as many wrong, answers of each set in the report's reading room;
            0 leaves it out. The predictions must hold their tokens.
    """
    make_private_folder(folder)
    document = metrics_document(metrics) | {"checkpoint": checkpoint}
    for name, keys in (further or {}).items():
        document["sets"][name] |= keys
    text = json.dumps(document, indent=2, allow_nan=False, ensure_ascii=False)
    _write(folder / METRICS_FILE, text + "\n")
    stages = next(iter(metrics.values())).stages
    table = _predictions_csv(predictions, stages, include_text=include_text)
    # Broken UTF-8 of a completion is kept as lone surrogates, which only "replace" can write.
    write_private(folder / PREDICTIONS_FILE, table.encode("utf-8", errors="replace"))
    if not shown_answers:
        page = report_page(metrics, title=title, context=context, sections=sections)
        _write(folder / REPORT_FILE, page)
        return
    room = reading_room(predictions, number=shown_answers, stages=stages, include_text=include_text)
    sections = [*sections, room]
    page = report_page(metrics, title=title, context=context, sections=sections, style=STYLE)
    write_private(folder / REPORT_FILE, page.encode("utf-8", errors="replace"))


def console_table(metrics: Mapping[str, SetMetrics]) -> Table:
    """One line a data set and one for their unweighted mean; scores in percent."""
    table = Table(title="evaluation (scores in %)", title_justify="left")
    table.add_column("set")
    headings = ("n", "weighted F1", "95% interval", "macro F1", "balanced acc.", "accuracy")
    for heading in (*headings, "well formed", "truncated"):
        table.add_column(heading, justify="right")
    for name, one in metrics.items():
        interval = one.weighted_f1_interval
        shown = "-" if interval is None else " - ".join(percent(end) for end in interval)
        numbers = (one.macro_f1, one.balanced_accuracy, one.accuracy, one.well_formed)
        cells = [percent(number) for number in (*numbers, one.truncated)]
        table.add_row(Text(name), str(one.n), percent(one.weighted_f1), shown, *cells)
    table.add_section()
    average = average_metrics(metrics)
    names = ("macro_f1", "balanced_accuracy", "accuracy", "well_formed", "truncated")
    cells = [percent(average[name]) for name in names]
    table.add_row("average", "", percent(average["weighted_f1"]), "", *cells, style="bold")
    return table


def _predictions_csv(
    predictions: Sequence[Prediction], stages: Sequence[str], *, include_text: bool
) -> str:
    """One line a post; an unreadable prediction and a missing stage are empty cells.

    Groups, and probabilities of labels with that of the answer, have columns where there are any.

    A text that a spreadsheet would take for a formula begins with an apostrophe here.
    """
    header = ["set_name", "row", "label", "prediction", "correct", "well_formed", "truncated"]
    header += ["num_tokens", *(f"entropy_{stage}" for stage in stages)]
    grouped = any(p.group is not None for p in predictions)
    scored = any(p.probabilities is not None for p in predictions)
    header += ["group"] if grouped else []
    header += ["confidence", "probabilities"] if scored else []
    header += ["answer", "completion", "text"] if include_text else []
    buffer = io.StringIO()
    # All texts in quotes: Python 3.11 leaves a lone carriage return bare otherwise.
    writer = csv.writer(buffer, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    writer.writerow(header)
    for p in predictions:
        entropies = ["" if e is None else f"{e:.6f}" for e in p.stage_entropies]
        correct = p.prediction == p.label
        line = [p.set_name, p.row, p.label, p.prediction, correct, p.well_formed, p.truncated]
        line += [p.num_tokens, *entropies]
        line += [p.group] if grouped else []
        line += _confidence_cells(p) if scored else []
        line += [p.answer, p.completion, p.text] if include_text else []
        writer.writerow([spreadsheet_cell(cell) for cell in line])
    return buffer.getvalue()


def _confidence_cells(p: Prediction) -> list[str]:
    """Probability of the answer, and a JSON object of those of all labels."""
    shares = p.probabilities or {}
    rounded = {label: round(share, 6) for label, share in shares.items()}
    sure = 0.0 if p.prediction is None else shares.get(p.prediction, 0.0)
    return [f"{sure:.6f}", json.dumps(rounded, ensure_ascii=False) if shares else ""]


def spreadsheet_cell(cell: object) -> object:
    """`cell`, or a text cell that spreadsheets only show, where they would compute it.

    Source: OWASP, "CSV Injection". A plain number is no formula, whatever its sign.
    """
    if not isinstance(cell, str) or _NUMBER.fullmatch(cell):
        return cell
    return f"'{cell}" if cell.lstrip(" ")[:1] in _FORMULA_SIGNS else cell


def _write(path: Path, text: str) -> None:
    """Write the whole file or nothing."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(text.encode("utf-8", errors="replace"))
    os.replace(temporary, path)
