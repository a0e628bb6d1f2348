"""Line charts as inline SVG, for every page of the project: no scripts, readable in light and dark.

Series differ in colour, in dash and in marker, so that they are told apart without colours, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

# In light and in dark. Each has a contrast of 3 to 1 or more with a card (WCAG 2.2, 1.4.11).
COLOURS = {
    "--s1": ("#8a3ffc", "#b58cff"),
    "--s2": ("#2f6fde", "#6ea2ff"),
    "--s3": ("#0e8a7d", "#4fc3b4"),
    "--s4": ("#a86a12", "#e0ac55"),
    "--s5": ("#c2334d", "#ff7b8f"),
    "--s6": ("#5b7f14", "#a9cf62"),
    "--s7": ("#b0259c", "#f08ae0"),
    "--s8": ("#4b5563", "#c6ccd8"),
    "--grey": ("#7b8698", "#848fa3"),
}
DASHES = ("", "8 3", "2 3", "10 3 2 3")
MARKERS = ("circle", "square", "triangle", "diamond", "ring", "cross")

_LIGHT = ";".join(f"{name}:{light}" for name, (light, _) in COLOURS.items())
_DARK = ";".join(f"{name}:{dark}" for name, (_, dark) in COLOURS.items())
STYLE = f"""
:root{{{_LIGHT}}}
@media(prefers-color-scheme:dark){{:root{{{_DARK}}}}}
.panels{{display:grid;gap:.75rem;grid-template-columns:repeat(auto-fill,minmax(min(290px,100%),1fr))}}
.panels.large{{grid-template-columns:repeat(auto-fill,minmax(min(430px,100%),1fr))}}
.panels .card{{margin:0}}.panels svg{{min-width:240px}}
.panels svg+*{{margin-top:.5rem}}
.line,.axis{{fill:none}}.line{{stroke-width:2;stroke-linejoin:round}}.band{{opacity:.18}}
.axis{{stroke:var(--soft)}}
.legend{{list-style:none;margin:.2rem 0 .6rem;padding:0;font-size:.9rem}}
.legend li{{display:inline-block;margin-right:1.1rem;overflow-wrap:anywhere}}
svg.sample,.panels svg.sample{{display:inline-block;width:34px;min-width:0;height:12px;
vertical-align:middle;margin-right:.4em}}
"""

Number = float | int

# Beyond so many lines a description in words would be longer than anybody listens to.
_DESCRIBED = 6
# A line with more points than this has markers at some of them only.
_MARKED = 12


@dataclass(frozen=True)
class Look:
    """How a series is drawn: CSS variable of its colour, dash pattern, and marker or none."""

    colour: str
    dash: str = ""
    marker: str = ""


# A line that has its panel for itself, and one behind the others.
PLAIN, BEHIND = Look("--s2"), Look("--grey", "5 4")


def look(number: int) -> Look:
    """How the series of this number (from 0) is drawn.

    The first 24 differ in dash and marker together, neighbours in both and in colour.
    """
    marker = MARKERS[(number + number // len(DASHES)) % len(MARKERS)]
    colour = tuple(COLOURS)[number % 8]
    return Look(colour, DASHES[number % len(DASHES)], marker)


@dataclass(frozen=True)
class Line:
    """A series of a chart.

    Attributes:
        points: (x, y), ascending in x; the line has a gap where y is None or not finite.
        band: (x, low, high) of the band around it; empty for none.
        look: how it is drawn.
        name: what it is called where the chart is described.
        kind: CSS class of the drawing, by which a page may hide it; or none.
    """

    points: Sequence[tuple[Number, Number | None]]
    band: Sequence[tuple[Number, Number, Number]] = ()
    look: Look = PLAIN
    name: str = ""
    kind: str = ""


@dataclass(frozen=True)
class Frame:
    """Size of a drawing and of its margins, in its own units, and ticks an axis should have."""

    width: int = 300
    height: int = 180
    left: int = 40
    right: int = 8
    top: int = 8
    bottom: int = 24
    ticks: int = 4


SMALL, LARGE = Frame(), Frame(460, 270, left=56, right=14, top=12, bottom=46, ticks=6)
Range = tuple[Number, Number]


def ticks(low: Number, high: Number, count: int = 5) -> list[Number]:
    """About `count` round numbers (1, 2 or 5 times a power of ten apart) from `low` to `high`."""
    if not high > low:
        return [low]
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def legend(lines: Iterable[Line]) -> str:
    """The names of lines, each with a sample of how it is drawn; the names are escaped."""
    items = (f"<li>{sample(line.look)}{escape(line.name)}</li>" for line in lines)
    return f'<ul class="legend">{"".join(items)}</ul>'


def sample(look: Look) -> str:
    """A short stroke with its marker, beside a name."""
    line = Line([(0.0, 0.0), (1.0, 0.0)], look=look)
    drawn = stroke(line, lambda x: 1 + 32 * x, lambda y: 6.0 + y) + _mark(look, 17.0, 6.0)
    return f'<svg class="sample" viewBox="0 0 34 12" aria-hidden="true">{drawn}</svg>'


def common_ranges(lines: Iterable[Line], *, start: Number | None = 0) -> tuple[Range, Range]:
    """Ranges that hold all lines: of x, from `start` if that is smaller, and of y with a margin."""
    xs, ys = [] if start is None else [start], []
    for line in lines:
        xs += [x for x, y in line.points if _is_number(y)]
        ys += [y for _, y in line.points if y is not None and _is_number(y)]
        ys += [y for _, *ends in line.band for y in ends]
    low, high = (min(ys), max(ys)) if ys else (0.0, 1.0)
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 0.5
    return (min(xs, default=0.0), max(xs, default=1.0)), (low - margin, high + margin)


def panel(
    title: str,
    lines: Sequence[Line],
    x_range: Range,
    y_range: Range,
    *,
    frame: Frame = SMALL,
    x_name: str = "",
    y_name: str = "",
    with_legend: bool = False,
) -> str:
    """A card with a chart; panels of one grid may share their ranges. All names are escaped."""
    drawing = chart(title, lines, x_range, y_range, frame=frame, x_name=x_name, y_name=y_name)
    names = legend([line for line in lines if line.name]) if with_legend else ""
    return f'<div class="card"><h3>{escape(title)}</h3>{names}{drawing}</div>'


def chart(
    title: str,
    lines: Sequence[Line],
    x_range: Range,
    y_range: Range,
    *,
    frame: Frame = SMALL,
    x_name: str = "",
    y_name: str = "",
    above: str = "",
) -> str:
    """The drawing alone: axes with round ticks, then the lines; `above` is drawn over all.

    Screen readers are told in words what it shows.
    """
    x = scale(x_range, frame.left, frame.width - frame.right)
    y = scale(y_range, frame.height - frame.bottom, frame.top)
    label = escape(_described(title, lines, x_name), quote=True)
    parts = [f'<svg viewBox="0 0 {frame.width} {frame.height}" role="img" aria-label="{label}">']
    parts.append(_axes(frame, x_range, y_range, x_name, y_name))
    for number, line in enumerate(lines):
        drawn = _band(line, x, y) + stroke(line, x, y)
        drawn += _marks(line, x, y, number / len(lines))
        parts.append(f'<g class="{line.kind}">{drawn}</g>' if line.kind else drawn)
    return "".join(parts) + f"{above}</svg>"


def scale(values: Range, start: Number, end: Number) -> Callable[[float], float]:
    """The linear map from `values` to a drawing's units."""
    low, high = values
    length = (high - low) or 1.0
    return lambda value: start + (value - low) / length * (end - start)


def series(
    lines: Sequence[Mapping[str, Number]], name: str, factor: Number = 1.0
) -> list[tuple[Number, Number | None]]:
    """(step, factor x metric) of the lines of a `metrics.jsonl` that have the metric."""
    found = [(float(line["step"]), factor * line[name]) for line in lines if name in line]
    return [(step, value if math.isfinite(value) else None) for step, value in found]


def thinned(
    points: Sequence[tuple[Number, Number | None]], most: int
) -> list[tuple[Number, Number | None]]:
    """At most `most` points, each the mean of neighbours; None where none of these has a number."""
    if len(points) <= most:
        return list(points)
    means: list[tuple[Number, Number | None]] = []
    for i in range(most):
        share = points[i * len(points) // most : (i + 1) * len(points) // most]
        values = [y for _, y in share if y is not None and _is_number(y)]
        mean = sum(values) / len(values) if values else None
        means.append((sum(x for x, _ in share) / len(share), mean))
    return means


def _axes(frame: Frame, x_range: Range, y_range: Range, x_name: str, y_name: str) -> str:
    """Rules with their numbers, and the names of both axes."""
    left, right, bottom = frame.left, frame.width - frame.right, frame.height - frame.bottom
    x, y = scale(x_range, left, right), scale(y_range, bottom, frame.top)
    edge = f"M{left} {frame.top}V{bottom}H{right}"
    parts = [f'<path class="axis" d="{edge}"/>']
    for tick in ticks(*y_range, frame.ticks):
        parts.append(
            f'<line class="rule" x1="{left}" x2="{right}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>'
            f'<text class="soft" x="{left - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">'
            f"{shown(tick)}</text>"
        )
    for tick in ticks(*x_range, frame.ticks):
        parts.append(
            f'<text class="soft" x="{x(tick):.1f}" y="{bottom + 18}" text-anchor="middle">'
            f"{shown(tick)}</text>"
        )
    if x_name:
        parts.append(
            f'<text class="soft" x="{(left + right) / 2:.0f}" y="{frame.height - 6}" '
            f'text-anchor="middle">{escape(x_name)}</text>'
        )
    if y_name:
        middle = (frame.top + bottom) / 2
        parts.append(
            f'<text class="soft" x="12" y="{middle:.0f}" text-anchor="middle" '
            f'transform="rotate(-90 12 {middle:.0f})">{escape(y_name)}</text>'
        )
    return "".join(parts)


def shown(value: Number) -> str:
    """A number of an axis or a description, short, with a true minus sign."""
    return format(0.0 if abs(value) < 1e-12 else value, ".4g").replace("-", "\u2212")


def _described(title: str, lines: Sequence[Line], x_name: str) -> str:
    """What a chart shows, in words: of each line its first and last value and its extremes."""
    sentences = [title]
    named = [line for line in lines if any(_is_number(y) for _, y in line.points)]
    for line in named[:_DESCRIBED]:
        points = [(x, y) for x, y in line.points if y is not None and _is_number(y)]
        (first_x, first), (last_x, last) = points[0], points[-1]
        values = [y for _, y in points]
        at = x_name or "x"
        sentences.append(
            f"{line.name + ': ' if line.name else ''}from {shown(first)} at {at} {shown(first_x)} "
            f"to {shown(last)} at {at} {shown(last_x)}, lowest {shown(min(values))}, "
            f"highest {shown(max(values))}"
        )
    if len(named) > _DESCRIBED:
        sentences.append(f"and {len(named) - _DESCRIBED} more lines")
    return ". ".join(sentences) + "."


def _band(line: Line, x: Callable[[float], float], y: Callable[[float], float]) -> str:
    if not line.band:
        return ""
    edge = [(a, high) for a, _, high in line.band]
    edge += [(a, low) for a, low, _ in reversed(line.band)]
    corners = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in edge)
    return f'<polygon class="band" style="fill:var({line.look.colour})" points="{corners}"/>'


def stroke(line: Line, x: Callable[[float], float], y: Callable[[float], float]) -> str:
    """One polyline for each stretch without a gap."""
    stretches: list[list[str]] = [[]]
    for a, b in line.points:
        if b is not None and _is_number(b):
            stretches[-1].append(f"{x(a):.1f},{y(b):.1f}")
        elif stretches[-1]:
            stretches.append([])
    dash = f' stroke-dasharray="{line.look.dash}"' if line.look.dash else ""
    return "".join(
        f'<polyline class="line" style="stroke:var({line.look.colour})"{dash} '
        f'points="{" ".join(stretch)}"/>'
        for stretch in stretches
        if len(stretch) > 1
    )


def _marks(
    line: Line, x: Callable[[float], float], y: Callable[[float], float], shift: float
) -> str:
    """Markers at some points, `shift` of their distance further on, and at points between gaps."""
    pitch = 1 if len(line.points) <= _MARKED else max(1, len(line.points) // 7)
    first = int(shift * pitch)
    parts = []
    for i, (a, b) in enumerate(line.points):
        if b is None or not _is_number(b):
            continue
        before = line.points[i - 1][1] if i > 0 else None
        after = line.points[i + 1][1] if i + 1 < len(line.points) else None
        alone = not _is_number(before) and not _is_number(after)
        if alone or (line.look.marker and (i - first) % pitch == 0):
            parts.append(_mark(line.look, x(a), y(b), alone=alone))
    return "".join(parts)


def _mark(look: Look, x: float, y: float, *, alone: bool = False) -> str:
    """A marker around (x, y); `alone` draws a circle where the look has none."""
    colour, marker = f"var({look.colour})", look.marker or ("circle" if alone else "")
    filled = f'style="fill:{colour}"'
    outlined = f'style="fill:none;stroke:{colour};stroke-width:2"'
    match marker:
        case "circle":
            return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" {filled}/>'
        case "ring":
            return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" {outlined}/>'
        case "square":
            corner = f'x="{x - 3.2:.1f}" y="{y - 3.2:.1f}"'
            return f'<rect {corner} width="6.4" height="6.4" {filled}/>'
        case "triangle":
            path = f"M{x:.1f} {y - 4.2:.1f}l4.2 7.4h-8.4z"
        case "diamond":
            path = f"M{x:.1f} {y - 4.6:.1f}l4.6 4.6l-4.6 4.6l-4.6 -4.6z"
        case "cross":
            path = f"M{x - 3.4:.1f} {y - 3.4:.1f}l6.8 6.8m0 -6.8l-6.8 6.8"
            return f'<path d="{path}" {outlined}/>'
        case _:
            return ""
    return f'<path d="{path}" {filled}/>'


def _is_number(value: Number | None) -> bool:
    return value is not None and math.isfinite(value)
