"""`study.html`: well formed, self-contained, everything shown, names escaped, points in place."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from mental_r1_jax.study.cells import Cell, plan_study
from mental_r1_jax.study.charts import (
    Difference,
    SensitivePoint,
    difference_chart,
    sensitivity_chart,
    sensitivity_frame,
)
from mental_r1_jax.study.page import study_page
from mental_r1_jax.study.reading import read_cell
from mental_r1_jax.study.results import study_document
from mental_r1_jax.study.schema import load_study
from tests.study.fakes import write_study
from tests.study.made_up import write_cell
from tests.study.test_results import ONE_WRONG, RIGHT, TRUTH, TWO_ARMS


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    study = load_study(write_study(tmp_path_factory.mktemp("page"), TWO_ARMS))
    cells = plan_study(study).cells
    for i, cell in enumerate(cells):
        guesses = RIGHT if "scale-0.001" in cell.name else ONE_WRONG
        write_cell(cell, TRUTH, guesses, [0.1 * i, 0.2 * i, 0.5 + 0.1 * i])
    return study_page(
        study_document(study, [read_cell(cell) for cell in cells], ["a cell"]),
        title="<b>mine</b> & yours",
    )


def drawings(page: str) -> list[ElementTree.Element]:
    return [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL)]


def test_it_needs_nothing_from_outside(page: str) -> None:
    assert not re.search(r"<script|<link|<img|https?:|url\(|@import", page)
    assert "&lt;b&gt;mine&lt;/b&gt; &amp; yours" in page and "<b>mine" not in page


def test_every_part_is_there(page: str) -> None:
    headings = re.findall(r"<h2>(.*?)</h2>", page)
    assert headings == [
        *("Scores", "Differences to grpo", "Learning curves: reward"),
        *("Learning curves: validation", "Stage entropies", "Sensitivity", "Measures"),
    ]
    assert "Not finished: a cell." in page
    assert "crpo: range 26.7; of a seed 26.7 [26.7, 26.7]" in page
    # Two charts of differences, a panel an arm in three grids, one card of sensitivity.
    assert page.count('role="img"') == 2 + 3 * 3 + 1
    assert page.count("crpo, stage_entropy_scale=0.001") >= 5


def test_every_number_of_a_drawing_is_inside_it(page: str) -> None:
    for drawing in drawings(page):
        _, _, width, height = map(float, drawing.attrib["viewBox"].split())
        for element in drawing.iter():
            for name, limit in (("cx", width), ("x1", width), ("x2", width), ("cy", height)):
                if name in element.attrib:
                    assert -0.1 <= float(element.attrib[name]) <= limit + 0.1
            for pair in element.attrib.get("points", "").split():
                x, y = map(float, pair.split(","))
                assert -0.1 <= x <= width + 0.1 and -0.1 <= y <= height + 0.1


def test_an_interval_that_leaves_the_frame_is_cut_at_its_edge() -> None:
    """The frame goes from -0.15 to 1.15; a t interval over two seeds is far wider."""
    text = difference_chart([Difference("a", 0.5, (-50, 50), (0, 1), (0, 1))], "points")
    thin = ElementTree.fromstring(text).find(".//line[@class='thin']")
    assert thin is not None
    assert (thin.attrib["x1"], thin.attrib["x2"]) == ("300.0", "830.0")


def test_sensitivities_share_a_frame_that_holds_means_and_seeds() -> None:
    """Means 20 and 80, seeds from 10 to 90: 8 beyond them; an interval beyond that is cut."""
    wide = SensitivePoint(1, 20.0, (-50.0, 90.0), (10.0, 30.0))
    narrow = SensitivePoint(2, 80.0, (79.0, 81.0), (70.0, 90.0))
    frame = sensitivity_frame([wide, narrow])
    assert frame == pytest.approx((2.0, 98.0))
    card = ElementTree.fromstring(sensitivity_chart("a", [wide], "key", frame))
    thin = card.find(".//line[@class='thin']")
    assert thin is not None
    # The frame's edges are 12 from the top and 44 from the bottom of 250.
    assert float(thin.attrib["y1"]) == pytest.approx(206.0, abs=0.1)
    assert float(thin.attrib["y2"]) == pytest.approx(12 + 194 * 8 / 96, abs=0.1)


def rename_stages(cell: Cell, names: tuple[str, ...]) -> None:
    """Give the cell's evaluation and training other stages."""
    file = cell.evaluation / "metrics.json"
    document = json.loads(file.read_text(encoding="utf-8"))
    for scores in document["sets"].values():
        scores["stage_entropies"] = {name: 0.5 for name in names}
    file.write_text(json.dumps(document), encoding="utf-8")
    file = cell.run / "metrics.jsonl"
    lines = []
    for line in map(json.loads, file.read_text(encoding="utf-8").splitlines()):
        kept = {key: value for key, value in line.items() if "/stage/" not in key}
        stages = {f"entropy/stage/{name}": 1.0 + i for i, name in enumerate(names)}
        lines.append(json.dumps(kept | (stages if "loss" in kept else {})) + "\n")
    file.write_text("".join(lines), encoding="utf-8")


@pytest.mark.parametrize("number", [1, 7, 20])
def test_a_study_of_another_grammar_shows_its_stages(number: int, tmp_path: Path) -> None:
    names = tuple(f"part_{i}" for i in range(number))
    study = load_study(write_study(tmp_path, TWO_ARMS))
    cells = plan_study(study).cells
    for cell in cells:
        write_cell(cell, TRUTH, RIGHT, [0.1, 0.2, 0.3])
        rename_stages(cell, names)
    document = study_document(study, [read_cell(cell) for cell in cells], [])
    for cell in document["cells"].values():
        assert cell["stage_entropies"] == {name: 0.5 for name in names}
        assert cell["curves"][f"entropy/stage/{names[-1]}"] == [float(number)] * 3
    page = study_page(document, title="mine")
    shown = re.findall(r"</svg>(part \d+)</li>", page)
    assert shown == [f"part {i}" for i in range(number)]
    assert "stimulus" not in page
