"""`study.json` against numbers worked out by hand, from files that the program's writers wrote."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from mental_r1_jax.errors import UserError
from mental_r1_jax.jobs import study as job
from mental_r1_jax.study.cells import Cell, plan_study
from mental_r1_jax.study.reading import CellResult, code_answers, read_cell
from mental_r1_jax.study.results import study_document
from mental_r1_jax.study.schema import Study, load_study
from tests.study.fakes import write_study
from tests.study.made_up import write_answers, write_cell

TWO_ARMS = """
output_dir: OUT
recipe: recipe.yaml
seeds: [0, 1]
baseline: grpo
bootstrap_samples: 200
methods:
  grpo: {crpo.stage_entropy_rule: off}
  crpo: {vary: {crpo.stage_entropy_scale: [0.001, 0.01]}}
"""
TRUTH = {"S": ["Yes", "Yes", "No", "No"]}
RIGHT = {"S": ["Yes", "Yes", "No", "No"]}
# F1 of Yes: 2 * 1 / (2 + 1) = 2/3; of No: 2 * 2 / (2 + 3) = 4/5; weighted and macro 11/15.
ONE_WRONG = {"S": ["Yes", "No", "No", "No"]}
# F1 of Yes: 2 * 1 / (2 + 1) = 2/3; of No: 2 * 2 / (2 + 2) = 1; the unreadable one is no label.
UNREADABLE = {"S": ["Yes", None, "No", "No"]}


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return load_study(write_study(tmp_path, TWO_ARMS))


def cells(study: Study) -> dict[str, Cell]:
    return {cell.name: cell for cell in plan_study(study).cells}


def write_all(study: Study) -> list[Cell]:
    """GRPO: 11/15 and 5/6 by seed; CRPO: 1 and 1 at the first M, 11/15 and 11/15 at the second."""
    by_name = cells(study)
    rewards = [0.0] * 18 + [1.0, 2.0]
    for name, guesses in (
        ("grpo-seed0", ONE_WRONG),
        ("grpo-seed1", UNREADABLE),
        ("crpo-stage_entropy_scale-0.001-seed0", RIGHT),
        ("crpo-stage_entropy_scale-0.001-seed1", RIGHT),
        ("crpo-stage_entropy_scale-0.01-seed0", ONE_WRONG),
        ("crpo-stage_entropy_scale-0.01-seed1", ONE_WRONG),
    ):
        write_cell(by_name[name], TRUTH, guesses, rewards)
    return list(by_name.values())


def read_all(study: Study) -> list[CellResult]:
    return [read_cell(cell) for cell in write_all(study)]


def test_a_cell_is_read_as_it_was_written(study: Study) -> None:
    cell = next(one for one in write_all(study) if one.name == "grpo-seed1")
    result = read_cell(cell)
    assert result.scores == pytest.approx(
        {
            **{"weighted_f1": 5 / 6, "macro_f1": 5 / 6, "balanced_accuracy": 0.75},
            **{"accuracy": 0.75, "well_formed": 0.75, "completion_tokens": 11.5},
            # The last two of 20 steps; 20 steps of 2 seconds.
            **{"reward": 1.5, "seconds": 40.0},
        }
    )
    assert result.curves["step"] == list(range(1, 21))
    assert result.curves["reward"][-2:] == [1.0, 2.0]
    assert result.validation["step"] == [0, 20]
    assert result.validation["eval/average/weighted_f1"] == pytest.approx([0.4, 0.7])
    assert result.stage_entropies["stimulus"] == 1.0
    assert result.stage_entropies["secondary_appraisal"] is None


def test_summaries_and_paired_differences_by_hand(study: Study) -> None:
    document = study_document(study, read_all(study), [])
    grpo = document["arms"]["grpo"]
    assert grpo["differences"] == {}
    score = grpo["scores"]["weighted_f1"]
    # Mean of 22/30 and 25/30; s = (3/30) / sqrt(2); half = t(1) s / sqrt(2) = 12.7062 * 0.05.
    assert score["mean"] == pytest.approx(47 / 60)
    assert score["spread"] == pytest.approx(0.1 / 2**0.5)
    half = 12.706205 * 0.05
    assert score["interval"] == pytest.approx([47 / 60 - half, 47 / 60 + half], rel=1e-5)
    low, high = score["interval_over_seeds_and_posts"]
    # The resample of four right answers is drawn often enough; that of four wrong ones is not.
    assert 0.0 < low < 47 / 60 and high == 1.0

    crpo = document["arms"]["crpo-stage_entropy_scale-0.001"]
    assert crpo["seeds"] == [0, 1] and crpo["values"] == {"crpo.stage_entropy_scale": 0.001}
    assert crpo["scores"]["weighted_f1"]["spread"] == 0.0
    difference = crpo["differences"]["grpo"]["scores"]["weighted_f1"]
    assert difference["by_seed"] == pytest.approx({"0": 4 / 15, "1": 1 / 6})
    assert difference["mean"] == pytest.approx(13 / 60)
    low, high = difference["interval_over_seeds_and_posts"]
    # A resample without the second post has no difference; four of it have a difference of 1.
    assert low == 0.0 and 13 / 60 < high <= 1.0
    assert crpo["differences"]["grpo"]["scores"]["reward"]["mean"] == 0.0
    assert "interval_over_seeds_and_posts" not in crpo["differences"]["grpo"]["scores"]["reward"]


def test_every_baseline_gets_its_differences(tmp_path: Path) -> None:
    """Two arms that are both baselines: each is compared with the other only."""
    text = TWO_ARMS.replace("baseline: grpo", "baseline: [grpo, cold]")
    text = text.replace("methods:", "methods:\n  cold: {verb: none}")
    study = load_study(write_study(tmp_path, text))
    results = []
    for cell in plan_study(study).cells:
        guesses = {"cold": UNREADABLE, "grpo": ONE_WRONG}.get(cell.arm.name, RIGHT)
        write_cell(cell, TRUTH, guesses, [0.0] * 20)
        results.append(read_cell(cell))
    arms = study_document(study, results, [])["arms"]
    means = {
        arm: {
            name: one["scores"]["weighted_f1"]["mean"] for name, one in found["differences"].items()
        }
        for arm, found in arms.items()
    }
    assert means["cold"] == pytest.approx({"grpo": 5 / 6 - 11 / 15})
    assert means["grpo"] == pytest.approx({"cold": 11 / 15 - 5 / 6})
    both = pytest.approx({"grpo": 4 / 15, "cold": 1 / 6})
    assert means["crpo-stage_entropy_scale-0.01"] == both


def test_the_spread_over_a_varied_key_by_hand(study: Study) -> None:
    """Means 1 and 11/15: range 4/15, standard deviation 4/15 / sqrt(2)."""
    rows = study_document(study, read_all(study), [])["sensitivity"]
    row = next(one for one in rows if one["score"] == "weighted_f1")
    assert (row["key"], row["method"]) == ("crpo.stage_entropy_scale", "crpo")
    assert row["values"] == [0.001, 0.01]
    assert row["means"] == pytest.approx([1.0, 11 / 15])
    assert row["range"] == pytest.approx(4 / 15)
    assert row["spread"] == pytest.approx(4 / 15 / 2**0.5)


def test_the_range_inside_of_a_seed_by_hand(study: Study) -> None:
    """Seed 0: 1 and 22/30; seed 1: 1 and, put in here, 0.4. Ranges 4/15 and 0.6."""
    results = [
        dataclasses.replace(one, scores=one.scores | {"weighted_f1": 0.4})
        if one.cell.name == "crpo-stage_entropy_scale-0.01-seed1"
        else one
        for one in read_all(study)
    ]
    rows = study_document(study, results, [])["sensitivity"]
    ranges = next(one for one in rows if one["score"] == "weighted_f1")["range_over_seeds"]
    assert ranges["by_seed"] == pytest.approx({"0": 4 / 15, "1": 0.6})
    assert ranges["mean"] == pytest.approx(13 / 30)
    half = 12.706205 * (0.6 - 4 / 15) / 2  # t(1) s / sqrt(2), s = (0.6 - 4/15) / sqrt(2)
    low, high = ranges["interval_over_seeds"]
    assert (low, high) == pytest.approx((13 / 30 - half, 13 / 30 + half), rel=1e-5)
    # A seed that one value has not finished says nothing.
    rows = study_document(study, results[:-1], [results[-1].cell.name])["sensitivity"]
    ranges = next(one for one in rows if one["score"] == "weighted_f1")["range_over_seeds"]
    assert list(ranges["by_seed"]) == ["0"] and ranges["interval_over_seeds"] is None


def test_differences_are_over_the_seeds_that_both_have(study: Study) -> None:
    finished = [one for one in read_all(study) if one.cell.name != "grpo-seed1"]
    document = study_document(study, finished, ["grpo-seed1"])
    difference = document["arms"]["crpo-stage_entropy_scale-0.01"]["differences"]["grpo"]
    assert difference["seeds"] == [0]
    assert difference["scores"]["weighted_f1"]["mean"] == 0.0
    assert difference["scores"]["weighted_f1"]["interval_over_seeds"] is None
    assert document["missing"] == ["grpo-seed1"]


def test_cells_that_answered_other_posts_cannot_be_paired(study: Study) -> None:
    finished = write_all(study)
    write_answers(finished[2].evaluation, {"S": ["No"] * 4}, RIGHT)
    with pytest.raises(UserError, match="answered different posts"):
        code_answers([read_cell(cell) for cell in finished])


def test_numbers_that_are_not_finite_are_gaps(study: Study) -> None:
    cell = write_all(study)[0]
    file = cell.run / "metrics.jsonl"
    file.write_text(
        file.read_text(encoding="utf-8").replace('"reward": 2.0', '"reward": "NaN"'),
        encoding="utf-8",
    )
    result = read_cell(cell)
    assert result.curves["reward"][-1] is None
    assert "reward" not in result.scores
    json.dumps(study_document(study, [result], []), allow_nan=False)


def test_results_of_what_is_finished_are_written(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished = {f"evaluate-{cell.name}" for cell in write_all(study)[:4]}
    monkeypatch.setattr(job, "is_done", lambda folder, task: task.name in finished)
    job.write_results(study, plan_study(study), {})
    document = json.loads((study.output_dir / "study.json").read_text(encoding="utf-8"))
    assert len(document["cells"]) == 4 and len(document["missing"]) == 2
    assert (study.output_dir / "study.html").is_file()
