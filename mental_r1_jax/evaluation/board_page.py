"""Several runs on one page: their figures, what differs in their recipes, their curves overlaid."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from mental_r1_jax.evaluation.charts import (
    Line,
    look,
    sample,
    series,
    thinned,
)
from mental_r1_jax.evaluation.report_page import (
    RESPONSIBLE_USE,
    html_page,
    percent,
    scroll_card,
    table_head,
)
from mental_r1_jax.evaluation.run_metrics import (
    MetricLine,
    duration,
    final_reward,
    training_seconds,
    training_steps,
    validations,
)
from mental_r1_jax.evaluation.training_curves import (
    MOST_POINTS,
    STAGE_PREFIX,
    Panel,
    drawn_panel,
    run_panels,
    stages_of,
)

# Tells our pages and pictures from other files, so that no other is overwritten.
MARKER = "mental-r1 board"
# So many series differ in dash and marker, see `look`.
MOST_RUNS = 24
# Curves lie over each other, so each has fewer points than in the report of one run.
_MOST_POINTS = 80
# With more runs than this, lines are thinner.
_MANY = 8

# Panel: heading, unit, metric of `metrics.jsonl`, factor from the metric to the unit.
_PANELS = (
    ("Reward", "reward", "reward", 1.0),
    ("Loss of cold starts", "nats a token", "loss", 1.0),
    ("Validation: weighted F1", "F1 in %", "eval/average/weighted_f1", 100.0),
    ("Validation: macro F1", "F1 in %", "eval/average/macro_f1", 100.0),
    ("Right answers", "% of completions", "accuracy", 100.0),
    ("Well formed", "% of completions", "well_formed", 100.0),
    ("KL to the start model", "nats a token", "kl", 1.0),
    ("Completion length", "tokens", "completions/mean_length", 1.0),
)


@dataclass(frozen=True)
class BoardRun:
    """A run as the board shows it; nothing in it tells where the run lies.

    Attributes:
        name: of the run's folder.
        lines: of its `metrics.jsonl`.
        settings: `section.key` -> value of its recipe, as text.
        tested: weighted F1 (0 to 1) on its test split, or None.
        notes: what could not be read of it, a sentence each.
    """

    name: str
    lines: Sequence[MetricLine]
    settings: Mapping[str, str]
    tested: float | None = None
    notes: Sequence[str] = ()


def board_page(runs: Sequence[BoardRun]) -> str:
    """The whole page; every name and value is escaped."""
    title = "1 run" if len(runs) == 1 else f"{len(runs)} runs compared"
    notes = "".join(
        f"<li>{escape(run.name)}: {escape(note)}</li>" for run in runs for note in run.notes
    )
    body = [
        f"<h1>{title}</h1>",
        f'<div class="card note"><strong>Not everything could be read.</strong><ul>{notes}</ul>'
        "</div>"
        if notes
        else "",
        "<h2>Runs</h2>",
        scroll_card("Figures of the runs", _run_table(runs)),
        _differences_part(runs),
        _curves_part(runs, board_panels(runs)),
        f'<div class="card note"><strong>Responsible use.</strong> {RESPONSIBLE_USE}</div>',
    ]
    return html_page(f"Board: {title}", body, _STYLE + _choice_style(len(runs))).replace(
        "<head>", f'<head><meta name="generator" content="{MARKER}">', 1
    )


_STYLE = """
td .soft{color:var(--soft)}.many .line{stroke-width:1.3}
.choice{border:1px solid var(--line);border-radius:10px;margin:.75rem 0;padding:.3rem .8rem .6rem}
.choice label{display:inline-block;margin:.15rem 1rem .15rem 0;overflow-wrap:anywhere}
.choice input{margin:0 .4rem 0 0}
.values td{white-space:normal;overflow-wrap:anywhere;max-width:14rem}
.values th{max-width:none}.values thead th{white-space:nowrap}
"""


def differing_settings(runs: Sequence[BoardRun]) -> list[tuple[str, list[str]]]:
    """Keys whose values are not the same in all runs with a recipe, and each run's value.

    A run without a recipe has a dash, one whose recipe lacks the key has "not set".
    """
    known = [run for run in runs if run.settings]
    keys = dict.fromkeys(key for run in known for key in run.settings)
    rows = []
    for key in keys:
        if len({run.settings.get(key) for run in known}) > 1:
            values = [run.settings.get(key, "not set") if run.settings else "-" for run in runs]
            rows.append((key, values))
    return rows


def _run_table(runs: Sequence[BoardRun]) -> str:
    """One row a run: how far it is, and its figures."""
    heads = ["run", "steps", "reward", "last validation", "best validation", "test", "time"]
    rows = []
    for number, run in enumerate(runs):
        cells = "".join(f"<td>{cell}</td>" for cell in _figures(run))
        name = f'<th scope="row">{sample(look(number))}{escape(run.name)}</th>'
        rows.append(f"<tr>{name}{cells}</tr>")
    caption = (
        "Reward: mean of the last tenth of the steps. Validation and test: weighted F1 in %, mean "
        "over the sets; of validations with the step. Time: of the training steps, without opening "
        "and validation."
    )
    return (
        f'<table class="wide"><caption>{caption}</caption>{table_head(heads)}'
        f"<tbody>{''.join(rows)}</tbody></table>"
    )


def _figures(run: BoardRun) -> list[str]:
    """The cells of a run's row; a dash where there is nothing to say."""
    steps, validated = training_steps(run.lines), validations(run.lines)
    reward, seconds = final_reward(steps), training_seconds(steps)
    last = best = "-"
    if validated:
        last = _at_step(*validated[-1])
        best = _at_step(*max(validated, key=lambda one: one[1]))
    return [
        f"{int(max(line['step'] for line in steps))}" if steps else "-",
        "-" if reward is None else f"{reward:.3f}" if math.isfinite(reward) else "not finite",
        last,
        best,
        "-" if run.tested is None else percent(run.tested),
        "-" if seconds is None else duration(seconds),
    ]


def _at_step(step: int, score: float | int) -> str:
    return f'{percent(score)} <span class="soft">({step})</span>'


def _differences_part(runs: Sequence[BoardRun]) -> str:
    """A table of the keys that differ; the longer side of it goes down the page."""
    if len(runs) < 2:
        return ""
    rows = differing_settings(runs)
    if not rows:
        return "<h2>What differs</h2><p>All recipes that could be read are the same.</p>"
    keys, names = [key for key, _ in rows], [run.name for run in runs]
    values = [list(of_key) for _, of_key in rows]
    corner, heads = "key", names
    if len(runs) > len(keys):
        values = [list(of_run) for of_run in zip(*values, strict=True)]
        corner, keys, heads = "run", names, keys
    lines = []
    for heading, cells in zip(keys, values, strict=True):
        columns = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        lines.append(f'<tr><th scope="row">{escape(heading)}</th>{columns}</tr>')
    head = table_head([corner, *heads])
    table = (
        f'<table class="values"><caption>Value in each run</caption>{head}'
        f"<tbody>{''.join(lines)}</tbody></table>"
    )
    return (
        '<h2>What differs</h2><p class="soft">Keys of the recipes that are not the same in all '
        "runs; folders and book-keeping are left out.</p>"
        + scroll_card("What differs in the recipes", table)
    )


def board_panels(runs: Sequence[BoardRun]) -> list[Panel]:
    """One panel a metric with all runs in it; of a single run, the panels of its report."""
    if len(runs) == 1:
        return run_panels(runs[0].lines)
    stages = dict.fromkeys(name for run in runs for name in stages_of(run.lines))
    entropies = [
        (f"Entropy: {name.replace('_', ' ')}", "nats a token", f"{STAGE_PREFIX}{name}", 1.0)
        for name in stages
    ]
    panels = []
    for title, unit, metric, factor in (*_PANELS, *entropies):
        drawn = []
        for number, run in enumerate(runs):
            # The loss is shown where it is what is trained: in runs without a reward.
            if metric == "loss" and any("reward" in line for line in run.lines):
                continue
            points = thinned(series(run.lines, metric, factor), _MOST_POINTS)
            if any(y is not None for _, y in points):
                drawn.append(Line(points, (), look(number), run.name, f"run{number}"))
        if drawn:
            panels.append(Panel(title, unit, drawn))
    return panels


def _curves_part(runs: Sequence[BoardRun], panels: Sequence[Panel]) -> str:
    """All panels, and boxes that say whose lines are shown."""
    if not panels:
        return ""
    alone = len(runs) == 1
    kind = "panels large many" if len(runs) > _MANY else "panels large"
    cards = [drawn_panel(one, with_legend=alone and len(one.lines) > 1) for one in panels]
    most = MOST_POINTS if alone else _MOST_POINTS
    return (
        f'<h2>Curves</h2><p class="soft">Over the steps of training; a curve has at most {most} '
        "points, each the mean of neighbouring steps, and a gap where a value is not finite.</p>"
        f'{"" if alone else _choice(runs)}<div class="{kind}">{"".join(cards)}</div>'
    )


def _choice(runs: Sequence[BoardRun]) -> str:
    """The key of the lines, with a box for each run that hides its lines; no script is needed."""
    boxes = "".join(
        f'<label class="pick{number}"><input type="checkbox" id="show{number}" checked>'
        f"{sample(look(number))}{escape(run.name)}</label>"
        for number, run in enumerate(runs)
    )
    return f'<fieldset class="choice"><legend>Runs shown</legend>{boxes}</fieldset>'


def _choice_style(count: int) -> str:
    """A run without its tick is hidden; one that is pointed at, or has the focus, stands out."""
    rules = []
    for number in range(count if count > 1 else 0):
        rules.append(f"body:has(#show{number}:not(:checked)) .run{number}{{display:none}}")
        for chosen in (f".pick{number}:hover #show{number}", f"#show{number}:focus-visible"):
            others = f".panels g:not(.run{number})"
            rules.append(f"body:has({chosen}:checked) {others}{{opacity:.12}}")
    return "\n".join(rules)
