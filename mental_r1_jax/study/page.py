"""`study.html`: the numbers of `study.json` as one page without scripts or external resources."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from mental_r1_jax.evaluation.charts import (
    BEHIND,
    PLAIN,
    Line,
    Look,
    common_ranges,
    legend,
    look,
    panel,
)
from mental_r1_jax.evaluation.report_page import (
    RESPONSIBLE_USE,
    html_page,
    percent,
    scroll_card,
    table_head,
)
from mental_r1_jax.study.charts import (
    STYLE,
    Difference,
    SensitivePoint,
    difference_chart,
    sensitivity_chart,
    sensitivity_frame,
)

# Columns of the table: score, heading, and whether it is a fraction to show in percent.
_COLUMNS = (
    ("weighted_f1", "weighted F1", True),
    ("macro_f1", "macro F1", True),
    ("balanced_accuracy", "balanced acc.", True),
    ("accuracy", "accuracy", True),
    ("hard_weighted_f1", "hard F1", True),
    ("well_formed", "well formed", True),
    ("reward", "reward", False),
    ("completion_tokens", "tokens", False),
    ("seconds", "seconds", False),
)
# Lines over steps have at most so many points; each is the mean over its share of the steps.
_MOST_POINTS = 60

Document = Mapping[str, Any]


def study_page(document: Document, *, title: str) -> str:
    """The whole page; every name in it is escaped."""
    study, arms = document["study"], document["arms"]
    missing = document["missing"]
    note = f"Not finished: {', '.join(missing)}." if missing else ""
    facts = {
        "recipe": Path(study["recipe"]).name,
        "seeds": ", ".join(map(str, study["seeds"])),
        "baseline": ", ".join(study["baseline"]),
        "split": study["split"],
        "cells": f"{len(document['cells'])} finished, {len(missing)} not",
    }
    listed = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in facts.items())
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<div class="card"><dl class="facts">{listed}</dl></div>',
        f'<div class="card note"><strong>{escape(note)}</strong></div>' if note else "",
        f'<div class="card note"><strong>Responsible use.</strong> {RESPONSIBLE_USE}</div>',
        "<h2>Scores</h2>",
        scroll_card("Scores", _table(arms)),
        *(part for name in study["baseline"] for part in _differences(arms, name)),
        *_section(
            "Learning curves: reward",
            "Mean over seeds, with the band from the lowest to the highest seed; the first "
            "baseline is dashed and grey. Steps of training.",
            _curve_panels(document, "curves", "reward"),
        ),
        *_section(
            "Learning curves: validation",
            "Weighted F1 in % on the validation posts, drawn as above.",
            _curve_panels(document, "validation", "eval/average/weighted_f1", factor=100.0),
        ),
        *_section(
            "Stage entropies",
            "Nats a token inside each stage, mean over seeds, by step of training.",
            _stage_panels(document),
        ),
        *_section(
            "Sensitivity",
            "Weighted F1 in % over a varied key: mean with 95% t interval, cut at the edge, and "
            "the seeds; all on one scale. The range is the largest mean minus the smallest; that "
            "of a seed has a 95% t interval.",
            _sensitivity_cards(document),
        ),
        "<h2>Measures</h2>",
        f'<div class="card"><dl class="facts">{_measures()}</dl></div>',
    ]
    return html_page(title, body, STYLE)


def _section(heading: str, explanation: str, content: str) -> list[str]:
    """Heading, explanation and panels; nothing where there are no panels."""
    return [f"<h2>{heading}</h2>", f'<p class="soft">{explanation}</p>', content] if content else []


def _table(arms: Document) -> str:
    """One row an arm: mean, and below it spread and interval."""
    rows = []
    there = {name for arm in arms.values() for name in arm["scores"]}
    columns_shown = [column for column in _COLUMNS if column[0] in there]
    for arm in arms.values():
        cells = [str(len(arm["seeds"]))]
        for name, _, fraction in columns_shown:
            score = arm["scores"].get(name)
            cells.append("" if score is None else _score_cell(score, fraction))
        columns = "".join(f"<td>{cell}</td>" for cell in cells)
        label = escape(arm["label"]).replace("=", "=<wbr>")  # not inside of a number
        rows.append(f'<tr><th class="arm" scope="row">{label}</th>{columns}</tr>')
    head = table_head(["method", "seeds", *(heading for _, heading, _ in columns_shown)])
    return (
        '<table class="wide"><caption>Mean over seeds, &#177; the standard deviation over seeds, '
        "[95% t interval of the mean]. Scores and rates in %.</caption>"
        f"{head}<tbody>{''.join(rows)}</tbody></table>"
    )


def _score_cell(score: Document, fraction: bool) -> str:
    digits = 2 if abs(score["mean"]) < 10 else 0

    def shown(value: float) -> str:
        if fraction:
            return percent(value)
        return f"{value:.{digits}f}"

    text = shown(score["mean"])
    if score["interval"] is not None:
        low, high = score["interval"]
        text += f"<small>&#177; {shown(score['spread'])}</small>"
        text += f"<small>[{shown(low)}, {shown(high)}]</small>"
    return text


def _differences(arms: Document, baseline: str) -> list[str]:
    """Charts of the differences in weighted and macro F1 to the method `baseline`."""
    parts: list[str] = []
    for name, heading in (("weighted_f1", "weighted F1"), ("macro_f1", "macro F1")):
        rows = []
        for arm in arms.values():
            score = arm["differences"].get(baseline, {"scores": {}})["scores"].get(name)
            if score is not None:
                rows.append(
                    Difference(
                        label=arm["label"],
                        mean=100 * score["mean"],
                        over_seeds=_hundredfold(score["interval_over_seeds"]),
                        over_seeds_and_posts=_hundredfold(score["interval_over_seeds_and_posts"]),
                        by_seed=[100 * value for value in score["by_seed"].values()],
                    )
                )
        if rows:
            unit = f"points of {heading} above {baseline}, paired by seed"
            title = f"Differences in {heading} to {baseline}"
            parts.append(scroll_card(title, difference_chart(rows, unit)))
    explanation = (
        '<p class="soft">Thick: 95% bootstrap interval over seeds and posts; thin: 95% t interval '
        "over seeds, cut at the edge; small dots: seeds. With few seeds the thick one is too "
        "narrow. A difference whose thin line crosses 0 is none that this study can tell.</p>"
    )
    heading = f"<h2>Differences to {escape(baseline)}</h2>"
    return [heading, explanation, *parts] if parts else []


def _curves(document: Document, arm: str, group: str, name: str) -> list[dict[int, float]]:
    """Step -> value, for every seed of an arm that has the curve."""
    found = []
    for cell in document["cells"].values():
        columns = cell[group]
        if cell["arm"] == arm and name in columns:
            pairs = zip(columns["step"], columns[name], strict=True)
            found.append({int(step): value for step, value in pairs if value is not None})
    return [curve for curve in found if curve]


def _mean_line(curves: Sequence[Mapping[int, float]], *, factor: float, look: Look) -> Line:
    """Mean over seeds with a band from lowest to highest, both in bins of steps."""
    steps = sorted(set.intersection(*(set(curve) for curve in curves)))
    points, band = [], []
    for share in np.array_split(np.array(steps), min(len(steps), _MOST_POINTS) or 1):
        values = [factor * float(np.mean([curve[int(s)] for s in share])) for curve in curves]
        at = float(np.mean(share))
        points.append((at, float(np.mean(values))))
        band.append((at, min(values), max(values)))
    return Line(points, band if len(curves) > 1 else (), look)


def _curve_panels(document: Document, group: str, name: str, factor: float = 1.0) -> str:
    """A panel for every arm that has the curve, the first baseline in grey behind it."""
    lines: dict[str, Line] = {}
    for arm in document["arms"]:
        curves = _curves(document, arm, group, name)
        if curves and max(len(curve) for curve in curves) > 1:
            lines[arm] = _mean_line(curves, factor=factor, look=PLAIN)
    panels = []
    ranges = common_ranges(lines.values())
    for arm, line in lines.items():
        behind = lines.get(_first_baseline(document, arm))
        grey = [] if behind is None else [Line(behind.points, (), BEHIND, "baseline")]
        label = document["arms"][arm]["label"]
        panels.append(panel(label, [*grey, line] if behind is not line else [line], *ranges))
    return f'<div class="panels">{"".join(panels)}</div>' if panels else ""


def _first_baseline(document: Document, arm: str) -> str:
    """The arm that is drawn behind `arm`; itself if it is that one."""
    name = document["study"]["baseline"][0]
    difference = document["arms"][arm]["differences"].get(name)
    return arm if difference is None else difference["baseline"]


def _stage_panels(document: Document) -> str:
    """A panel for every arm with its stage entropies."""
    names = {name: None for cell in document["cells"].values() for name in cell["stage_entropies"]}
    by_arm: dict[str, list[Line]] = {}
    key = [Line((), (), look(i), name.replace("_", " ")) for i, name in enumerate(names)]
    for arm in document["arms"]:
        for stage, entry in zip(names, key, strict=True):
            curves = _curves(document, arm, "curves", f"entropy/stage/{stage}")
            if curves and max(len(curve) for curve in curves) > 1:
                line = _mean_line(curves, factor=1.0, look=entry.look)
                by_arm.setdefault(arm, []).append(Line(line.points, (), entry.look, entry.name))
    if not by_arm:
        return ""
    ranges = common_ranges([line for lines in by_arm.values() for line in lines])
    panels = [panel(document["arms"][arm]["label"], by_arm[arm], *ranges) for arm in by_arm]
    return f'{legend(key)}<div class="panels">{"".join(panels)}</div>'


def _sensitivity_cards(document: Document) -> str:
    """A card for each varied key and method."""
    charts: list[tuple[str, list[SensitivePoint], str]] = []
    for row in document["sensitivity"]:
        if row["score"] != "weighted_f1":
            continue
        points = []
        for arm, value in zip(row["arms"], row["values"], strict=True):
            score = document["arms"][arm]["scores"]["weighted_f1"]
            seeds = [c for c in document["cells"].values() if c["arm"] == arm]
            points.append(
                SensitivePoint(
                    value=value,
                    mean=100 * score["mean"],
                    interval=_hundredfold(score["interval"]),
                    by_seed=[100 * cell["scores"]["weighted_f1"] for cell in seeds],
                )
            )
        fixed = "".join(f", {key}={value}" for key, value in row["fixed"].items())
        title = f"{row['method']}{fixed}: range {100 * row['range']:.1f}{_of_seeds(row)}"
        charts.append((title, points, row["key"]))
    if not charts:
        return ""
    frame = sensitivity_frame(point for _, points, _ in charts for point in points)
    cards = [sensitivity_chart(*chart, frame) for chart in charts]
    return f'<div class="panels large">{"".join(cards)}</div>'


def _of_seeds(row: Mapping[str, Any]) -> str:
    """The range inside of single seeds, with its interval where there is one."""
    ranges = row["range_over_seeds"]
    interval = None if ranges is None else _hundredfold(ranges["interval_over_seeds"])
    if interval is None:
        return ""
    return f"; of a seed {100 * ranges['mean']:.1f} [{interval[0]:.1f}, {interval[1]:.1f}]"


def _hundredfold(interval: Sequence[float] | None) -> list[float] | None:
    return None if interval is None else [100 * end for end in interval]


def _measures() -> str:
    """What the columns mean."""
    measures = (
        ("weighted F1", "mean F1 of the labels, weighted by how often they occur; mean over sets"),
        ("macro F1", "plain mean F1 of the labels: rare ones count as much as common ones"),
        ("balanced acc.", "mean recall of the labels; a constant answer gets 1 / labels"),
        ("accuracy", "share of right answers; one that cannot be read is wrong"),
        (
            "hard F1",
            "weighted F1 on the hard subset, the posts that samples of the first seed's start got "
            "wrong most often; for comparing methods with each other, not with that start",
        ),
        (
            "well formed",
            "evaluated completions with every stage and an answer, in the form of the grammar",
        ),
        ("reward", "mean reward of the last tenth of the training steps"),
        ("tokens", "mean length of the evaluated completions"),
        ("seconds", "training, without opening, validation and evaluation"),
    )
    return "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in measures)
