"""Training curves in a report: what is drawn for which run, and what is said of damaged metrics."""

from __future__ import annotations

import math
import re

import pytest

from mental_r1_jax.evaluation.charts import LARGE
from mental_r1_jax.evaluation.run_metrics import (
    final_reward,
    training_seconds,
    training_steps,
    validations,
)
from mental_r1_jax.evaluation.training_curves import stages_of, training_section
from tests.evaluation.made_up_runs import (
    cold_start_lines,
    drawings,
    metric_lines,
    numbered_points,
)


def test_a_run_of_crpo_has_all_panels() -> None:
    found = drawings(training_section(metric_lines(5)))
    assert list(found) == [
        *("Reward", "Validation F1", "Share of completions", "Stage entropies"),
        *("KL to the start model", "Completion length"),
    ]
    lines = {heading: len(list(numbered_points(one))) for heading, one in found.items()}
    assert list(lines.values()) == [1, 2, 3, 5, 1, 3]


def test_the_curve_is_the_metric() -> None:
    """Rewards of 0.1 to 0.5: evenly spaced points from the left to the right edge of steps 0-5."""
    (points,) = numbered_points(drawings(training_section(metric_lines(5)))["Reward"])
    xs, ys = zip(*points, strict=True)
    assert len(points) == 5 and xs[-1] == LARGE.width - LARGE.right
    falls = [above - below for above, below in zip(ys, ys[1:], strict=False)]
    assert falls == pytest.approx([falls[0]] * 4, abs=0.11) and falls[0] > 0


def test_a_cold_start_has_its_loss_and_what_never_was_is_not_drawn() -> None:
    assert list(drawings(training_section(cold_start_lines(9)))) == ["Loss of the cold start"]
    without_kl = [
        {name: value for name, value in line.items() if name != "kl"} for line in metric_lines(4)
    ]
    assert "KL" not in training_section(without_kl)


def test_stages_come_in_the_papers_order_and_others_are_drawn_too() -> None:
    """A file of metrics has them in the order of the alphabet."""
    names = ["mental_state", "my_own", "reaction", "stimulus"]
    lines = [
        {"step": step, "reward": 0.0, **{f"entropy/stage/{name}": 1.0 for name in names}}
        for step in (1, 2)
    ]
    assert stages_of(lines) == ["stimulus", "reaction", "mental_state", "my_own"]
    page = training_section(lines)
    assert re.findall(r"</svg>([a-z ]+)</li>", page) == [
        *("stimulus", "reaction", "mental state", "my own")
    ]


def test_nothing_is_said_where_there_is_nothing_to_say() -> None:
    assert training_section([]) == ""
    assert training_section(metric_lines(1)[:1]) == ""  # one validation makes no curve


def test_what_could_not_be_read_is_said_and_escaped() -> None:
    page = training_section(metric_lines(3), ["metrics.jsonl: <b> 1 of 7 lines"])
    assert "&lt;b&gt; 1 of 7 lines" in page and "Reward" in page
    assert "is empty" in training_section([], ["metrics.jsonl is empty"])


def test_figures_of_a_run() -> None:
    """Of 20 steps the last tenth are 2: rewards 1.9 and 2.0."""
    lines = metric_lines(20, bonus=1.0)
    steps = training_steps(lines)
    assert len(steps) == 20
    assert final_reward(steps) == pytest.approx(2.95)
    assert training_seconds(steps) == pytest.approx(600.0)
    assert validations(lines) == [(0, 0.4), (20, pytest.approx(0.6))]
    assert final_reward(training_steps(cold_start_lines(3))) is None
    assert training_seconds([]) is None and final_reward([]) is None
    assert validations([{"step": 1, "eval/average/weighted_f1": math.nan}]) == []
