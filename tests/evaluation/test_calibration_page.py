"""Reliability diagrams and risk-coverage plots of made-up numbers."""

from __future__ import annotations

import math
import re
from html.parser import HTMLParser

import pytest

from mental_r1_jax.evaluation.calibration_page import calibration_section
from mental_r1_jax.evaluation.charts import LARGE
from tests.evaluation.made_up_runs import drawings, numbered_points

BINS = [
    {"confidence": 0.9, "accuracy": 0.5, "n": 40},
    {"confidence": 0.5, "accuracy": 0.25, "n": 10},
    {"confidence": 0.7, "accuracy": 0.0, "n": 0},
]
CURVE = {
    "coverage": [0.25, 0.5, 0.75, 1.0],
    "risk": [0.0, 0.0, 1 / 3, 0.5],
    "aurc": 0.2083,
    "accuracy_at_80": 0.6667,
}
WIDTH = LARGE.width - LARGE.left - LARGE.right
HEIGHT = LARGE.height - LARGE.top - LARGE.bottom


def place(x: float, y: float, top: float = 1.0) -> tuple[float, float]:
    """Where (x, y) lies in a drawing whose axes go from 0 to 1 and from 0 to `top`."""
    return LARGE.left + WIDTH * x, LARGE.height - LARGE.bottom - HEIGHT * y / top


def test_bins_lie_at_confidence_and_accuracy_in_order_and_empty_ones_are_left_out() -> None:
    drawing = drawings(calibration_section({"A": {"reliability": BINS}}))["A: reliability"]
    diagonal, bins = numbered_points(drawing)
    assert diagonal == [pytest.approx(place(0, 0), abs=0.06), pytest.approx(place(1, 1), abs=0.06)]
    assert bins == [
        pytest.approx(place(0.5, 0.25), abs=0.06),
        pytest.approx(place(0.9, 0.5), abs=0.06),
    ]
    small, large = (float(one.attrib["r"]) for one in drawing.iter("circle"))
    # The area beyond the smallest circle grows with the posts: 4 times as many, twice the radius.
    assert (large - 5) / (small - 5) == pytest.approx(2.0, abs=0.05)
    titles = [one.text for one in drawing.iter("title")]
    assert titles[1] == "confidence 0.9, accuracy 0.5, 40 posts"


def test_the_numbers_of_the_bins_can_be_read() -> None:
    page = calibration_section({"A": {"reliability": BINS}})
    cells = re.findall(r"<td>(.*?)</td>", page)
    assert cells == ["0.500", "0.250", "10", "0.900", "0.500", "40"]
    assert '<th scope="col">confidence</th>' in page


def test_risk_lies_over_coverage() -> None:
    page = calibration_section({"A": {"risk_coverage": CURVE}})
    flat, risks = numbered_points(drawings(page)["A: risk and coverage"])
    top = 1.15 * 0.5
    assert flat[0] == pytest.approx(place(0, 0.5, top), abs=0.06)
    pairs = zip(CURVE["coverage"], CURVE["risk"], strict=True)
    assert risks == [pytest.approx(place(x, y, top), abs=0.06) for x, y in pairs]
    facts = re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", page)
    assert facts == [
        ("area under the curve (AURC)", "0.208"),
        ("accuracy at 80% coverage", "0.667"),
        ("accuracy at coverage 1", "0.500"),
    ]


def test_a_curve_over_many_posts_keeps_its_ends() -> None:
    coverage = [(i + 1) / 5000 for i in range(5000)]
    curve = {"coverage": coverage, "risk": [c / 2 for c in coverage]}
    page = calibration_section({"A": {"risk_coverage": curve}})
    _, risks = numbered_points(drawings(page)["A: risk and coverage"])
    assert len(risks) == 200
    assert risks[0] == pytest.approx(place(0.0002, 0.0001, 0.575), abs=0.06)
    assert risks[-1] == pytest.approx(place(1, 0.5, 0.575), abs=0.06)
    assert "<dd>-</dd>" in page  # neither area nor accuracy is given


@pytest.mark.parametrize(
    "scores",
    [
        {},
        {"reliability": [], "risk_coverage": None},
        {"reliability": [{"confidence": 0.0, "accuracy": 0.0, "n": 0}]},
        {"risk_coverage": {"coverage": [], "risk": [], "aurc": math.nan, "accuracy_at_80": None}},
    ],
)
def test_a_set_without_confidence_has_no_part(scores: dict) -> None:
    assert calibration_section({"A": scores}) == ""


def test_a_model_that_is_never_wrong_and_one_bin_are_drawn() -> None:
    curve = {"coverage": [0.5, 1.0], "risk": [0.0, 0.0], "aurc": 0.0, "accuracy_at_80": 1.0}
    one = [{"confidence": 1.0, "accuracy": 1.0, "n": 7}]
    page = calibration_section({"A": {"reliability": one, "risk_coverage": curve}})
    assert len(drawings(page)) == 2
    _, risks = numbered_points(drawings(page)["A: risk and coverage"])
    assert all(y == LARGE.height - LARGE.bottom for _, y in risks)


def test_names_are_escaped_and_every_tag_is_closed() -> None:
    scores = {"reliability": BINS, "risk_coverage": CURVE}
    page = calibration_section({"<i>A": scores, "B": scores})

    class Balance(HTMLParser):
        open: list[str] = []

        def handle_starttag(self, tag: str, attrs: list) -> None:
            self.open.append(tag)

        def handle_startendtag(self, tag: str, attrs: list) -> None:
            assert tag in ("circle", "line", "path", "polyline", "rect")

        def handle_endtag(self, tag: str) -> None:
            assert self.open.pop() == tag

    parser = Balance()
    parser.feed(page)
    assert parser.open == []
    assert "<i>" not in page and page.count("&lt;i&gt;A: reliability") == 2
