"""Whether confidence can be trusted, drawn: reliability diagrams and risk-coverage curves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from mental_r1_jax.evaluation.charts import (
    BEHIND,
    LARGE,
    Line,
    Number,
    chart,
    legend,
    look,
    scale,
    shown,
)
from mental_r1_jax.evaluation.report_page import scroll_card

_UNIT = (0.0, 1.0)
_EXPLANATION = (
    "Reliability: posts in bins of confidence; a point is a bin, its size the number of its posts. "
    "On the dashed diagonal, answers are right as often as the model is confident; below it the "
    "model is overconfident. Risk and coverage: if only the most confident answers are kept, which "
    "share of all posts is answered, and which share of these answers is wrong. A useful "
    "confidence makes the curve rise to the right; a flat curve says that it tells nothing."
)


def calibration_section(sets: Mapping[str, Mapping[str, Any]]) -> str:
    """The part of a report on confidence; empty where no set has any.

    Args:
        sets: set name -> what `metrics.json` holds of it. Drawn are `reliability`, bins with
            `confidence` and `accuracy` (0 to 1) and `n` posts, and `risk_coverage`, the columns
            `coverage` and `risk` (0 to 1) with `aurc` and `accuracy_at_80`.
    """
    cards = []
    for name, scores in sets.items():
        drawings = []
        if scores.get("reliability"):
            drawings.append(reliability_diagram(name, scores["reliability"]))
        if scores.get("risk_coverage"):
            drawings.append(risk_coverage_plot(name, scores["risk_coverage"]))
        cards += [drawing for drawing in drawings if drawing]
    if not cards:
        return ""
    return (
        f'<h2>Confidence</h2><p class="soft">{_EXPLANATION}</p>'
        f'<div class="panels large">{"".join(cards)}</div>'
    )


def reliability_diagram(name: str, bins: Sequence[Mapping[str, Number]]) -> str:
    """Accuracy of each bin over its mean confidence, beside the diagonal; empty without posts."""
    filled = [one for one in bins if one["n"] > 0]
    if not filled:
        return ""
    filled.sort(key=lambda one: one["confidence"])
    points = [(one["confidence"], one["accuracy"]) for one in filled]
    diagonal = Line([(0.0, 0.0), (1.0, 1.0)], look=BEHIND, name="confidence = accuracy")
    of_bins = Line(points, look=look(1), name="bins")
    title = f"{name}: reliability"
    drawing = chart(
        title,
        [diagonal, of_bins],
        _UNIT,
        _UNIT,
        frame=LARGE,
        x_name="confidence",
        y_name="accuracy",
        above=_bubbles(filled),
    )
    rows = [
        (f"{one['confidence']:.3f}", f"{one['accuracy']:.3f}", f"{one['n']:.0f}") for one in filled
    ]
    table = _numbers(f"Bins of {name}", ("confidence", "accuracy", "posts"), rows)
    return (
        f'<div class="card"><h3>{escape(title)}</h3>{legend([diagonal, of_bins])}{drawing}'
        f"{table}</div>"
    )


def risk_coverage_plot(name: str, curve: Mapping[str, Any]) -> str:
    """Share of wrong answers over the share of posts answered, the most confident ones first."""
    pairs = zip(curve["coverage"], curve["risk"], strict=True)
    points = sorted((float(coverage), float(risk)) for coverage, risk in pairs)
    if not points:
        return ""
    overall = points[-1][1]
    top = min(1.0, 1.15 * max(*(risk for _, risk in points), 0.05))
    flat = Line(
        [(0.0, overall), (1.0, overall)], look=BEHIND, name="risk of answering as many as possible"
    )
    kept = Line(_spaced(points, 200), look=look(4), name="risk of the answers kept")
    title = f"{name}: risk and coverage"
    drawing = chart(
        title,
        [flat, kept],
        _UNIT,
        (0.0, top),
        frame=LARGE,
        x_name="coverage",
        y_name="risk",
    )
    facts = [
        ("area under the curve (AURC)", _fraction(curve.get("aurc"))),
        ("accuracy at 80% coverage", _fraction(curve.get("accuracy_at_80"))),
        (f"accuracy at coverage {shown(points[-1][0])}", _fraction(1.0 - overall)),
    ]
    listed = "".join(f"<dt>{escape(k)}</dt><dd>{v}</dd>" for k, v in facts)
    return (
        f'<div class="card"><h3>{escape(title)}</h3>{legend([flat, kept])}{drawing}'
        f'<dl class="facts">{listed}</dl></div>'
    )


def _bubbles(bins: Sequence[Mapping[str, Number]]) -> str:
    """A translucent circle behind each bin, its area in proportion to the posts in it."""
    x = scale(_UNIT, LARGE.left, LARGE.width - LARGE.right)
    y = scale(_UNIT, LARGE.height - LARGE.bottom, LARGE.top)
    most = max(one["n"] for one in bins)
    return "".join(
        f'<circle class="band" style="fill:var({look(1).colour})" '
        f'cx="{x(one["confidence"]):.1f}" cy="{y(one["accuracy"]):.1f}" '
        f'r="{5 + 7 * math.sqrt(one["n"] / most):.1f}"><title>'
        f"confidence {shown(one['confidence'])}, accuracy {shown(one['accuracy'])}, "
        f"{one['n']:.0f} posts</title></circle>"
        for one in bins
    )


def _spaced(
    points: Sequence[tuple[Number, Number]], most: int
) -> Sequence[tuple[Number, Number | None]]:
    """At most `most` points of a curve, evenly chosen, its first and last among them."""
    if len(points) <= most:
        return points
    return [points[round(i * (len(points) - 1) / (most - 1))] for i in range(most)]


def _numbers(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of a drawing's numbers, folded away; the keyboard opens it."""
    headings = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    lines = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    table = (
        f"<table><caption>{escape(caption)}</caption><thead><tr>{headings}</tr></thead>"
        f"<tbody>{lines}</tbody></table>"
    )
    summary = f"<summary>{escape(caption)} as numbers</summary>"
    return f"<details>{summary}{scroll_card(caption, table)}</details>"


def _fraction(value: Number | None) -> str:
    """A fraction from 0 to 1 with three digits; a dash where there is none."""
    return "-" if value is None or not math.isfinite(value) else f"{value:.3f}"
