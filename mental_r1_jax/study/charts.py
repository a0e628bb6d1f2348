"""Charts of a study as inline SVG: differences to the baseline and sensitivity; no scripts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from mental_r1_jax.evaluation import charts

STYLE = """
.dot{fill:var(--blue);opacity:.45}.zero{stroke:var(--soft);stroke-dasharray:4 4}
.thin{stroke:var(--blue);stroke-width:1.5}
th.arm{white-space:normal}td small{color:var(--soft);display:block}
"""


@dataclass(frozen=True)
class Difference:
    """A row of the chart of differences, in the unit of its axis."""

    label: str
    mean: float
    over_seeds: Sequence[float] | None
    over_seeds_and_posts: Sequence[float] | None
    by_seed: Sequence[float]


@dataclass(frozen=True)
class SensitivePoint:
    """One value of a varied key: mean and interval, and the seeds, in the unit of the axis."""

    value: Any
    mean: float
    interval: Sequence[float] | None
    by_seed: Sequence[float]


def difference_chart(rows: Sequence[Difference], unit: str) -> str:
    """One row an arm: mean, thick interval over seeds and posts, thin one over seeds, the seeds."""
    left, width, top, pitch = 300, 900, 12, 38
    height = top + pitch * len(rows) + 44
    values = "; ".join(f"{row.label} {_signed(row.mean, '+.1f')}" for row in rows)
    label = escape(f"{unit}: {values}", quote=True)
    ends = [0.0]
    for row in rows:
        ends += [row.mean, *row.by_seed, *(row.over_seeds_and_posts or ())]
    span = max(ends) - min(ends) or 1.0
    low, high = min(ends) - 0.15 * span, max(ends) + 0.15 * span
    x = charts.scale((low, high), left, width - 70)
    parts = [f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{label}">']
    for tick in charts.ticks(low, high, 6):
        kind = "zero" if abs(tick) < 1e-9 * span else "rule"
        parts.append(
            f'<line class="{kind}" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{top}" '
            f'y2="{height - 40}"/><text class="soft" x="{x(tick):.1f}" y="{height - 24}" '
            f'text-anchor="middle">{_signed(tick)}</text>'
        )
    middle = (left + width - 70) / 2
    parts.append(
        f'<text class="soft" x="{middle:.0f}" y="{height - 6}" text-anchor="middle">'
        f"{escape(unit)}</text>"
    )
    for i, row in enumerate(rows):
        parts.append(_difference_row(row, x, top + pitch * (i + 0.5), (left, width, low, high)))
    return "".join(parts) + "</svg>"


def sensitivity_frame(points: Iterable[SensitivePoint]) -> tuple[float, float]:
    """A range of values with room for all means and seeds, to be shared by several charts."""
    ends = [end for point in points for end in (point.mean, *point.by_seed)]
    margin = 0.1 * (max(ends) - min(ends) or 1.0)
    return min(ends) - margin, max(ends) + margin


def sensitivity_chart(
    title: str, points: Sequence[SensitivePoint], unit: str, y_range: tuple[float, float]
) -> str:
    """A card: one column a value of the key, in order; mean with interval, and the seeds.

    Args:
        title: above the chart.
        points: the columns.
        unit: of the key.
        y_range: lowest and highest value of the frame; intervals are cut at its edges.
    """
    width, height, left, top, bottom = 460, 250, 46, 12, 44
    y = charts.scale(y_range, height - bottom, top)
    pitch = (width - left - 10) / len(points)
    at = [left + pitch * (i + 0.5) for i in range(len(points))]
    values = "; ".join(f"{point.value} {point.mean:.3g}" for point in points)
    label = escape(f"{title}; {unit}: {values}", quote=True)
    parts = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{label}">']
    for tick in charts.ticks(*y_range):
        parts.append(
            f'<line class="rule" x1="{left}" x2="{width - 10}" y1="{y(tick):.1f}" '
            f'y2="{y(tick):.1f}"/><text class="soft" x="{left - 6}" y="{y(tick) + 4:.1f}" '
            f'text-anchor="end">{tick:g}</text>'
        )
    means = charts.Line([(i, p.mean) for i, p in enumerate(points)])
    parts.append(charts.stroke(means, lambda i: at[int(i)], y))
    for x, point in zip(at, points, strict=True):
        if point.interval is not None:
            low, high = (y(min(max(end, y_range[0]), y_range[1])) for end in point.interval)
            parts.append(
                f'<line class="thin" x1="{x:.1f}" x2="{x:.1f}" y1="{low:.1f}" y2="{high:.1f}"/>'
            )
        parts += [
            f'<circle class="dot" cx="{x + 8:.1f}" cy="{y(value):.1f}" r="3"/>'
            for value in point.by_seed
        ]
        parts.append(
            f'<circle class="bar" cx="{x:.1f}" cy="{y(point.mean):.1f}" r="5"/>'
            f'<text class="soft" x="{x:.1f}" y="{height - 24}" text-anchor="middle">'
            f"{escape(_short(str(point.value)))}</text>"
        )
    parts.append(
        f'<text class="soft" x="{(left + width) / 2:.0f}" y="{height - 6}" text-anchor="middle">'
        f"{escape(unit)}</text>"
    )
    return f'<div class="card"><h3>{escape(title)}</h3>{"".join(parts)}</svg></div>'


def _difference_row(
    row: Difference,
    x: Callable[[float], float],
    y: float,
    frame: tuple[float, float, float, float],
) -> str:
    """Intervals, seeds, mean and figures of one arm; what leaves the frame is cut at its edge."""
    left, width, low, high = frame
    parts = [
        f'<text x="{left - 14}" y="{y + 4:.1f}" text-anchor="end">'
        f"{escape(_short(row.label, 44))}</text>"
    ]
    for kind, interval in (("thin", row.over_seeds), ("reach", row.over_seeds_and_posts)):
        if interval is not None:
            a, b = (x(min(max(end, low), high)) for end in interval)
            parts.append(
                f'<line class="{kind}" x1="{a:.1f}" x2="{b:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>'
            )
    parts += [
        f'<circle class="dot" cx="{x(value):.1f}" cy="{y + 11:.1f}" r="3"/>'
        for value in row.by_seed
    ]
    parts.append(
        f'<circle class="bar" cx="{x(row.mean):.1f}" cy="{y:.1f}" r="6"/>'
        f'<text x="{width - 58}" y="{y + 4:.1f}">{_signed(row.mean, "+.1f")}</text>'
    )
    return "".join(parts)


def _signed(value: float, form: str = "+g") -> str:
    return "0" if abs(value) < 1e-9 else format(value, form).replace("-", "\u2212")


def _short(text: str, limit: int = 18) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "\u2026"
