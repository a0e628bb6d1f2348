"""The pages that are looked at in a browser, from made-up predictions and cells.

`python -m tests.browser.pages FOLDER` writes them.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np

from mental_r1_jax.evaluation.board_page import BoardRun, board_page
from mental_r1_jax.evaluation.calibration_page import calibration_section
from mental_r1_jax.evaluation.metrics import Prediction, set_metrics
from mental_r1_jax.evaluation.report import write_evaluation
from mental_r1_jax.evaluation.training_curves import training_section
from mental_r1_jax.study.cells import plan_study
from mental_r1_jax.study.page import study_page
from mental_r1_jax.study.reading import read_cell
from mental_r1_jax.study.results import study_document
from mental_r1_jax.study.schema import load_study
from tests.evaluation.completions import answered, packed
from tests.evaluation.made_up_runs import cold_start_lines, metric_lines
from tests.study.fakes import write_study
from tests.study.made_up import write_cell
from tests.study.test_results import ONE_WRONG, RIGHT, TRUTH, TWO_ARMS

SETS = {
    "Mood-Synthetic": ("Calm", "Low", "Very low"),
    "A-Set-With-A-Long-Name-Synthetic": ("Yes", "No"),
}
TEXTS = (
    "the kettle broke and the rain went on for the whole day, and the day after that as well",
    "it may matter to them, because tea is what begins their mornings",
    "a friend lives next door and owns a kettle",
    "a little cross at first and then they may laugh",
    "an ordinary mood of an ordinary day",
)
ARABIC = "انكسر الإبريق واستمر المطر طوال اليوم"
POST = "My kettle broke today."
CONFIDENCE = {
    "reliability": [
        {"confidence": 0.4, "accuracy": 0.25, "n": 8},
        {"confidence": 0.9, "accuracy": 0.75, "n": 4},
    ],
    "risk_coverage": {
        **{"coverage": [0.25, 0.5, 1.0], "risk": [0.0, 0.25, 0.5]},
        **{"aurc": 0.2, "accuracy_at_80": 0.6},
    },
}


def report_page_file(folder: Path) -> Path:
    """Write a report with a reading room: several sets, right, wrong, odd and right-to-left."""
    rng = np.random.default_rng(0)
    metrics, everything = {}, []
    for name, labels in SETS.items():
        of_set: list[Prediction] = []
        for row in range(12):
            label = labels[row % len(labels)]
            guess = label if rng.random() < 0.7 else labels[0]
            texts = list(TEXTS) if row % 5 else [ARABIC, *TEXTS[1:]]
            entropies = list(np.linspace(2.6, 0.1, 5) * rng.uniform(0.4, 1.0))
            of_set.append(answered(name, row, label, guess, texts, entropies, POST))
        of_set.append(_unreadable(of_set[-1]))
        metrics[name] = set_metrics(of_set, labels, bootstrap_samples=200, seed=0)
        everything += of_set
    context = {"model": "a made-up model", "split": "test", "max_completion_length": "512"}
    write_evaluation(
        folder,
        metrics,
        everything,
        include_text=True,
        title="made-up model: test split",
        context=context,
        shown_answers=4,
        sections=[
            calibration_section(dict.fromkeys(SETS, CONFIDENCE)),
            training_section(metric_lines(20), ["a note on what could not be read"]),
        ],
    )
    return folder / "report.html"


def board_page_file(folder: Path) -> Path:
    """Write the board of nine runs, one of them damaged and one a cold start."""
    runs = [
        BoardRun(f"run_{i}", metric_lines(20 + i, bonus=0.1 * i), {"run.seed": str(i)})
        for i in range(7)
    ]
    runs.append(BoardRun("damaged", metric_lines(3), {}, None, ["there is no config.yaml"]))
    runs.append(BoardRun("cold_start", cold_start_lines(9), {"run.seed": "0"}))
    folder.mkdir(parents=True, exist_ok=True)
    page = folder / "board.html"
    page.write_text(board_page(runs), encoding="utf-8")
    return page


def study_page_file(folder: Path) -> Path:
    """Write the page of a study."""
    place = folder / "study"
    place.mkdir(parents=True, exist_ok=True)
    study = load_study(write_study(place, TWO_ARMS))
    cells = plan_study(study).cells
    for i, cell in enumerate(cells):
        guesses = RIGHT if cell.arm.method == "crpo" else ONE_WRONG
        write_cell(cell, TRUTH, guesses, [0.1 * i, 0.2 * i, 0.5 + 0.1 * i])
    page = folder / "study.html"
    document = study_document(study, [read_cell(cell) for cell in cells], ["a cell"])
    page.write_text(study_page(document, title="a made-up study"), encoding="utf-8")
    return page


def _unreadable(like: Prediction) -> Prediction:
    """A completion of broken bytes without any stage or answer."""
    raw = [b"tea \xf0\x9f", b"\xab", b"\x96 and\x00", b" then nothing"]
    return dataclasses.replace(
        like,
        row=like.row + 1,
        prediction=None,
        answer=None,
        well_formed=False,
        truncated=True,
        stage_entropies=(None,) * 5,
        completion=b"".join(raw).decode("utf-8", "surrogateescape"),
        tokens=packed(raw, [0.3, 1.0, 2.0, 3.5]),
    )


if __name__ == "__main__":
    report_page_file(Path(sys.argv[1]))
    study_page_file(Path(sys.argv[1]))
    board_page_file(Path(sys.argv[1]))
