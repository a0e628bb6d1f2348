"""Metrics of a made-up run, as `metrics.jsonl` holds them, and drawings found in a page."""

from __future__ import annotations

import re
from collections.abc import Iterator
from xml.etree import ElementTree

from mental_r1_jax.config import STAGE_NAMES


def metric_lines(num_steps: int, *, bonus: float = 0.0) -> list[dict[str, float]]:
    """Step k has reward k / 10 + bonus; validations of 0.4 and 0.5 + bonus / 10 around them."""
    lines: list[dict[str, float]] = [_validation(0, 0.4)]
    for step in range(1, num_steps + 1):
        lines.append(
            {
                "step": step,
                "loss": 0.01,
                "reward": step / 10 + bonus,
                "accuracy": 0.5,
                "well_formed": 0.75,
                "kl": 0.001 * step,
                "completions/mean_length": 60.0 + step,
                "completions/min_length": 40.0,
                "completions/max_length": 90.0,
                "completions/clipped_ratio": 0.125,
                "time/step": 30.0,
                **{f"entropy/stage/{name}": 1.0 / (i + 1) for i, name in enumerate(STAGE_NAMES)},
            }
        )
    return [*lines, _validation(num_steps, 0.5 + bonus / 10)]


def cold_start_lines(num_steps: int) -> list[dict[str, float]]:
    """A supervised run has no reward."""
    return [
        {"step": step, "loss": 3.0 / step, "time/step": 1.0} for step in range(1, num_steps + 1)
    ]


def drawings(page: str) -> dict[str, ElementTree.Element]:
    """Heading of a card -> its chart."""
    cards = re.findall(r"<h3>(.*?)</h3>.*?(<svg [^>]*role=\"img\".*?</svg>)", page, re.DOTALL)
    return {heading: ElementTree.fromstring(svg) for heading, svg in cards}


def numbered_points(drawing: ElementTree.Element) -> Iterator[list[tuple[float, float]]]:
    """The points of each polyline, in the drawing's units."""
    for line in drawing.iter("polyline"):
        pairs = [pair.split(",") for pair in line.attrib["points"].split()]
        yield [(float(x), float(y)) for x, y in pairs]


def _validation(step: int, score: float) -> dict[str, float]:
    return {
        "step": step,
        "eval/average/weighted_f1": score,
        "eval/average/macro_f1": score / 2,
    }
