"""Training curves of a run: reward, validation, stage entropies, KL and lengths over its steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from mental_r1_jax.config import STAGE_NAMES
from mental_r1_jax.evaluation.charts import (
    LARGE,
    Line,
    common_ranges,
    look,
    panel,
    series,
    thinned,
)
from mental_r1_jax.evaluation.run_metrics import MetricLine

# A curve is drawn with at most so many points, each the mean over its share of the steps.
MOST_POINTS = 120


@dataclass(frozen=True)
class Curves:
    """A panel of curves.

    Attributes:
        title: its heading.
        unit: the name of the y axis.
        metrics: metric of `metrics.jsonl` -> what its line is called.
        factor: from the metric to the unit.
    """

    title: str
    unit: str
    metrics: dict[str, str]
    factor: float = 1.0


_FIRST = (
    Curves("Reward", "reward", {"reward": "mean of a step"}),
    Curves("Loss of the cold start", "nats a token", {"loss": "loss"}),
    Curves(
        "Validation F1",
        "F1 in %",
        {"eval/average/weighted_f1": "weighted", "eval/average/macro_f1": "macro"},
        100.0,
    ),
    Curves(
        "Share of completions",
        "%",
        {
            "accuracy": "right",
            "well_formed": "well formed",
            "completions/clipped_ratio": "cut at the length limit",
        },
        100.0,
    ),
)
_LAST = (
    Curves("KL to the start model", "nats a token", {"kl": "KL"}),
    Curves(
        "Completion length",
        "tokens",
        {
            "completions/mean_length": "mean",
            "completions/min_length": "shortest",
            "completions/max_length": "longest",
        },
    ),
)
STAGE_PREFIX = "entropy/stage/"
_EXPLANATION = (
    f"From the run's own metrics, over its training steps. A curve has at most {MOST_POINTS} "
    "points, each the mean of neighbouring steps, and a gap where a value is not finite. CRPO "
    "wants early stages to explore (high entropy) and late stages to decide (low)."
)


@dataclass(frozen=True)
class Panel:
    """A drawing over the steps of training: its heading, the name of its y axis, its lines."""

    title: str
    unit: str
    lines: Sequence[Line]


def stages_of(lines: Sequence[MetricLine]) -> list[str]:
    """The stages whose entropies the metrics have: the paper's in their order, then others."""
    named = dict.fromkeys(name for line in lines for name in line if name.startswith(STAGE_PREFIX))
    found = [name.removeprefix(STAGE_PREFIX) for name in named]
    # A file of metrics has them in the order of the alphabet.
    paper = [name for name in STAGE_NAMES if name in found]
    return paper + [name for name in found if name not in paper]


def run_panels(lines: Sequence[MetricLine]) -> list[Panel]:
    """The panels of one run; those without a curve are left out."""
    entropies = {f"{STAGE_PREFIX}{name}": name.replace("_", " ") for name in stages_of(lines)}
    supervised = not any("reward" in line for line in lines)
    panels = []
    for curves in (*_FIRST, Curves("Stage entropies", "nats a token", entropies), *_LAST):
        # The loss of reinforcement learning is no measure of progress; that of a cold start is.
        if "loss" in curves.metrics and not supervised:
            continue
        if drawn := _curves(lines, curves):
            panels.append(Panel(curves.title, curves.unit, drawn))
    return panels


def _curves(lines: Sequence[MetricLine], curves: Curves) -> list[Line]:
    """A line for each metric that has a number at two steps or more."""
    drawn = []
    for number, (metric, name) in enumerate(curves.metrics.items()):
        points = thinned(series(lines, metric, curves.factor), MOST_POINTS)
        if sum(y is not None for _, y in points) > 1:
            drawn.append(Line(points, (), look(number), name))
    return drawn


def drawn_panel(one: Panel, *, with_legend: bool) -> str:
    """A card with the panel."""
    return panel(
        one.title,
        one.lines,
        *common_ranges(one.lines),
        frame=LARGE,
        x_name="step",
        y_name=one.unit,
        with_legend=with_legend,
    )


def training_section(lines: Sequence[MetricLine], notes: Sequence[str] = ()) -> str:
    """The part of a report with a run's training curves; empty where there is nothing to show.

    Args:
        lines: of the run's `metrics.jsonl`, in order.
        notes: what could not be read of them.
    """
    panels = [drawn_panel(one, with_legend=len(one.lines) > 1) for one in run_panels(lines)]
    said = "".join(f'<p class="card note">{escape(note)}</p>' for note in notes)
    if not panels and not said:
        return ""
    explained = f'<p class="soft">{_EXPLANATION}</p>' if panels else ""
    grid = f'<div class="panels large">{"".join(panels)}</div>' if panels else ""
    return f"<h2>Training curves</h2>{explained}{said}{grid}"
