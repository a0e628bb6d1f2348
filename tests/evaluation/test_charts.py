"""Line charts: points where they belong, gaps, looks that can be told apart, contrast, words."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest

from mental_r1_jax.evaluation.charts import (
    COLOURS,
    LARGE,
    Line,
    chart,
    common_ranges,
    legend,
    look,
    panel,
    series,
    thinned,
    ticks,
)
from mental_r1_jax.evaluation.report_page import STYLE as PAGE_STYLE

UNIT = (0.0, 1.0)


def test_a_line_goes_through_its_points() -> None:
    """x from 0..10 to 40..292 units, y from 0..1 to 156..8 (upwards)."""
    text = panel("a", [Line([(0, 0.0), (5, 0.5), (10, 1.0)])], (0.0, 10.0), UNIT)
    assert 'points="40.0,156.0 166.0,82.0 292.0,8.0"' in text


@pytest.mark.parametrize("missing", [None, math.nan, math.inf])
def test_a_line_has_a_gap_where_there_is_no_number(missing: float | None) -> None:
    """Two stretches; the point between two gaps is a circle, or nobody would see it."""
    points = [(0, 0.0), (1, 0.5), (2, missing), (3, 1.0), (4, missing), (5, 0.5), (6, 0.5)]
    drawing = ElementTree.fromstring(chart("a", [Line(points)], (0.0, 6.0), UNIT))
    stretches = [one.attrib["points"].count(",") for one in drawing.iter("polyline")]
    assert stretches == [2, 2]
    (dot,) = drawing.iter("circle")
    assert (dot.attrib["cx"], dot.attrib["cy"]) == ("166.0", "8.0")
    assert "nan" not in ElementTree.tostring(drawing, encoding="unicode").lower()


def test_series_of_a_board_are_told_apart_without_colours() -> None:
    looks = [look(number) for number in range(24)]
    assert len({(one.dash, one.marker) for one in looks}) == 24
    for one, after in zip(looks, looks[1:], strict=False):
        assert one.dash != after.dash and one.marker != after.marker
        assert one.colour != after.colour
    names = {f"{one.dash}|{one.marker}": legend([Line((), (), one, "x")]) for one in looks[:8]}
    assert len(set(names.values())) == 8


def luminance(colour: str) -> float:
    """Relative luminance of #rrggbb, WCAG 2.2."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_is_measured_as_wcag_does() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21.0)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


def test_every_colour_can_be_seen_on_a_card_in_light_and_dark() -> None:
    cards = re.findall(r"--card:(#[0-9a-f]+)", PAGE_STYLE)
    white, dark = ("#ffffff" if card == "#fff" else card for card in cards)
    for name, (in_light, in_dark) in COLOURS.items():
        assert contrast(in_light, white) >= 3.0, name
        assert contrast(in_dark, dark) >= 3.0, name


def test_a_chart_says_in_words_what_it_shows() -> None:
    lines = [Line([(1, 0.5), (2, -1.25), (3, 0.75)], name="<a>"), Line([(1, None)], name="none")]
    text = chart("Reward", lines, (0.0, 3.0), (-2.0, 1.0), x_name="step")
    label = ElementTree.fromstring(text).attrib["aria-label"]
    assert label == (
        "Reward. <a>: from 0.5 at step 1 to 0.75 at step 3, lowest \u22121.25, highest 0.75."
    )
    many = chart("R", [Line([(0, 1.0)], name=f"run {i}") for i in range(20)], UNIT, UNIT)
    assert "and 14 more lines" in many


def test_everything_drawn_lies_inside() -> None:
    lines = [
        Line([(step, math.sin(step + i)) for step in range(100)], (), look(i)) for i in range(24)
    ]
    text = chart("a", lines, *common_ranges(lines), frame=LARGE, x_name="step", y_name="unit")
    drawing = ElementTree.fromstring(text)
    for one in drawing.iter("polyline"):
        for pair in one.attrib["points"].split():
            x, y = map(float, pair.split(","))
            assert LARGE.left <= x <= LARGE.width - LARGE.right
            assert LARGE.top <= y <= LARGE.height - LARGE.bottom
    shapes = [one.tag for one in drawing.iter()]
    assert {"circle", "rect", "path"} <= set(shapes)


def test_ranges_hold_all_lines_and_have_a_margin() -> None:
    lines = [Line([(2, 1.0), (9, None)]), Line([(4, 3.0)], [(4, 2.0, 5.0)])]
    assert common_ranges(lines) == ((0.0, 4.0), (pytest.approx(0.8), pytest.approx(5.2)))
    assert common_ranges([Line([(3, 2.0)])]) == ((0.0, 3.0), (1.9, 2.1))
    assert common_ranges([Line([(3, 0.0)])]) == ((0.0, 3.0), (-0.5, 0.5))
    assert common_ranges([Line([(3, None)])]) == ((0.0, 0.0), (-0.05, 1.05))


def test_thinning_keeps_the_mean_and_never_hides_a_gap() -> None:
    points = [(step, float(step)) for step in range(1, 13)]
    assert thinned(points, 12) == points
    assert thinned(points, 3) == [(2.5, 2.5), (6.5, 6.5), (10.5, 10.5)]
    gap = [(step, None if 5 <= step <= 8 else 1.0) for step in range(1, 13)]
    assert thinned(gap, 3) == [(2.5, 1.0), (6.5, None), (10.5, 1.0)]
    assert thinned([(1, None), (2, 4.0)], 1) == [(1.5, 4.0)]
    uneven = thinned([(step, 1.0) for step in range(1001)], 120)
    assert len(uneven) == 120 and all(y == 1.0 for _, y in uneven)


def test_a_series_is_what_the_lines_say() -> None:
    lines = [{"step": 0, "f1": 0.5}, {"step": 1, "loss": 2.0}, {"step": 1, "f1": math.nan}]
    assert series(lines, "f1", 100.0) == [(0.0, 50.0), (1.0, None)]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 1.0, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (-7.0, 12.0, [-5, 0, 5, 10]),
        (0.003, 0.008, [0.003, 0.004, 0.005, 0.006, 0.007, 0.008]),
        (2.0, 2.0, [2.0]),
    ],
)
def test_ticks_are_round_numbers(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(expected)
