"""The clinical part of the report and the console: the numbers, dashes, and nothing unescaped."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

from rich.console import Console

from mental_r1_jax.evaluation.clinical import LabelFacts, clinical_document
from mental_r1_jax.evaluation.clinical_report import clinical_section, clinical_table
from mental_r1_jax.evaluation.metrics import set_metrics
from mental_r1_jax.evaluation.report import write_evaluation
from tests.evaluation.test_clinical import prediction
from tests.evaluation.test_report import Balance

LABELS = ("<i>No</i>", "Yes & more", "Most")
ROWS = [
    prediction(LABELS[0], LABELS[0], 0, group="<b>old</b>"),
    prediction(LABELS[1], LABELS[2], 1, group="young"),
    prediction(LABELS[2], LABELS[0], 2, group="young"),
    prediction(LABELS[2], LABELS[2], 3, group="young"),
] * 5


def made(rows=ROWS):
    facts = LabelFacts(LABELS, LABELS[1:], ordered=True)
    return {"Made-Up": clinical_document(rows, facts, samples=20, seed=0)}


def cell_after(page: str, heading: str) -> str:
    found = re.search(rf'scope="row">{re.escape(heading)}</th><td>([^<]*)</td>', page)
    assert found, heading
    return found[1]


def test_the_section_shows_numbers_and_dashes() -> None:
    page = clinical_section(made())
    assert cell_after(page, "sensitivity %") == "66.7"
    assert cell_after(page, "specificity %") == "100.0"
    assert cell_after(page, "AUROC %") == "-"
    assert cell_after(page, "mean absolute error, steps") == "0.750"
    # Young: 1 of 3 right; old is too small a group to be shown.
    assert cell_after(page, "young") == "15"
    assert "&lt;b&gt;" not in page and "1 groups with 5 posts" in page


def test_every_string_is_escaped_and_every_tag_closed(tmp_path: Path) -> None:
    rows = [*ROWS, *ROWS]
    clinical = made(rows)
    metrics = {"Made-Up": set_metrics(rows, LABELS, bootstrap_samples=20, seed=0)}
    sections = [clinical_section(clinical)]
    write_evaluation(
        tmp_path,
        metrics,
        rows,
        include_text=False,
        title="t",
        context={},
        sections=sections,
        further=clinical,
    )
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    parser = Balance()
    parser.feed(page)
    assert parser.open == []
    assert "&lt;b&gt;old&lt;/b&gt;" in page and "<b>" not in page and "<i>" not in page
    one = json.loads((tmp_path / "metrics.json").read_text())["sets"]["Made-Up"]
    assert one["clinical"] == clinical["Made-Up"]["clinical"] and one["n"] == len(rows)


def test_the_console_has_a_line_a_set() -> None:
    buffer = io.StringIO()
    Console(file=buffer, width=160).print(clinical_table(made()))
    (line,) = [line for line in buffer.getvalue().splitlines() if "Made-Up" in line]
    cells = [cell.strip() for cell in line.split("│")[1:-1]]
    assert cells[:6] == ["Made-Up", "66.7", "100.0", "100.0", "50.0", "-"]
