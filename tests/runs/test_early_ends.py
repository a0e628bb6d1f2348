"""When a session ends before its last step, by hand-made scores and clocks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mental_r1_jax.config import RunConfig
from mental_r1_jax.runs import early_ends
from mental_r1_jax.runs.early_ends import EarlyEnds, scores_before, stopped_rising


def section(**keys: object) -> RunConfig:
    return RunConfig(output_dir=Path("out"), **keys)


@pytest.mark.parametrize(
    ("values", "patience", "ended"),
    [
        ([0.2, 0.3, 0.25, 0.29], 2, True),
        ([0.2, 0.3, 0.25, 0.29], 3, False),
        ([0.2, 0.3, 0.25, 0.31], 1, False),
        ([0.3, 0.3, 0.3], 2, True),  # an equal one is no better one
        ([0.5], 1, False),
        ([], 1, False),
        ([0.5, 0.1, 0.1, 0.1], None, False),
    ],
)
def test_so_many_validations_without_a_new_best(values, patience, ended) -> None:
    scores = {10 * place: value for place, value in enumerate(values)}
    shuffled = dict(sorted(scores.items(), reverse=True))
    assert stopped_rising(shuffled, patience) is ended


def test_a_step_must_fit_with_all_that_comes_after_it(monkeypatch) -> None:
    """One hour; a step of 600 s, a validation of 300 s, a checkpoint and an export of 100 s."""
    ends = EarlyEnds(section(max_hours=1.0), {}, 1000.0, 600.0, 300.0, 100.0)
    for now, up in ((1000.0, False), (1000 + 3600 - 1101, False), (1000 + 3600 - 1099, True)):
        monkeypatch.setattr(early_ends.time, "monotonic", lambda now=now: now)
        assert ends.time_is_up() is up
    monkeypatch.setattr(early_ends.time, "monotonic", lambda: 1e9)
    assert EarlyEnds(section(), {}, 0.0).time_is_up() is False


def test_scores_of_earlier_sessions_count_where_they_were_due(tmp_path: Path) -> None:
    """Step 7 was validated because time was up, and step 20 is after the checkpoint."""
    name = "eval/average/weighted_f1"
    lines = [{"step": s, name: s / 100} for s in (0, 5, 7, 10, 20)] + [{"step": 5, "loss": 1.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run = section(patience=2, eval_every=5)
    assert scores_before(tmp_path, run, 10) == {0: 0.0, 5: 0.05, 10: 0.1}
    assert scores_before(tmp_path / "new", run, 0) == {}
    assert scores_before(tmp_path, section(), 10) == {}


def test_patience_without_validations_is_refused() -> None:
    with pytest.raises(ValueError, match=r"run\.eval_every"):
        section(patience=1, eval_every=0)
