"""Panels as SVG files of their own, for a paper or a README; light or dark as the browser."""

from __future__ import annotations

import math
import re
from html import escape

from mental_r1_jax.evaluation import charts
from mental_r1_jax.evaluation.charts import LARGE, chart, common_ranges, sample
from mental_r1_jax.evaluation.report_page import STYLE
from mental_r1_jax.evaluation.training_curves import Panel

# The role of a drawing, and what is said of it.
_LABEL = re.compile(r'role="img" aria-label="[^"]*"')
_MARGIN, _HEADING, _PITCH = 12, 30, 22
# Room for a sample of a line, and for a letter of its name.
_SAMPLE, _LETTER = 54, 7.5


def picture_name(panel: Panel) -> str:
    """The name of its file, made from its heading: small letters and underlines."""
    return re.sub(r"[^a-z0-9]+", "_", panel.title.lower()).strip("_") + ".svg"


def picture(panel: Panel, marker: str) -> str:
    """The file: heading, drawing, and beside it the names of its lines where there are several.

    Args:
        panel: what is drawn.
        marker: stands in a comment on top, and tells whose file it is.
    """
    named = list(panel.lines) if len(panel.lines) > 1 else []
    letters = max((len(line.name) for line in named), default=0)
    width = LARGE.width + 2 * _MARGIN
    width += _SAMPLE + math.ceil(_LETTER * letters) if named else 0
    drawing = _HEADING + LARGE.height + 2 * _MARGIN
    height = max(drawing, _HEADING + 2 * _MARGIN + _PITCH * len(named))
    inner = chart(
        panel.title,
        panel.lines,
        *common_ranges(panel.lines),
        frame=LARGE,
        x_name="step",
        y_name=panel.unit,
    )
    label = " ".join(_LABEL.findall(inner))
    parts = [
        f"<!-- {marker} -->\n"
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" {label}>'
        f"<style>{STYLE}{charts.STYLE}svg:root{{width:{width}px;height:{height}px}}</style>",
        f'<rect width="{width}" height="{height}" rx="10" style="fill:var(--card)"/>',
        f'<text x="{_MARGIN}" y="{_MARGIN + 16}" style="font-size:16px;font-weight:600">'
        f"{escape(panel.title)}</text>",
        _moved(inner, _MARGIN, _HEADING + _MARGIN),
    ]
    for row, line in enumerate(named):
        x, y = LARGE.width + 2 * _MARGIN, _HEADING + 2 * _MARGIN + _PITCH * row
        parts.append(_moved(sample(line.look), x, y))
        parts.append(f'<text x="{x + 42}" y="{y + 10}">{escape(line.name)}</text>')
    return "".join(parts) + "</svg>\n"


def _moved(drawing: str, x: int, y: int) -> str:
    """What is inside of a drawing, as a part of another one at (x, y)."""
    inside = drawing[drawing.index(">") + 1 : drawing.rindex("</svg>")]
    return f'<g transform="translate({x} {y})">{inside}</g>'
