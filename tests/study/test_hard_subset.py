"""The hard subset: which posts are in it, that it stays what it was, and scores on it by hand."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import pytest

from mental_r1_jax.errors import UserError
from mental_r1_jax.evaluation.metrics import set_metrics
from mental_r1_jax.evaluation.report import write_evaluation
from mental_r1_jax.jobs import study as job
from mental_r1_jax.study.cells import plan_study
from mental_r1_jax.study.hard_subset import (
    HardSubset,
    add_hard_scores,
    choose_posts,
    read_hard_subset,
    write_hard_subset,
)
from mental_r1_jax.study.page import study_page
from mental_r1_jax.study.parts import without_answers
from mental_r1_jax.study.reading import read_cell
from mental_r1_jax.study.results import resample, study_document
from mental_r1_jax.study.schema import Study, load_study
from tests.study.fakes import write_study
from tests.study.made_up import LABELS, answer, write_cell

STUDY = """
output_dir: OUT
recipe: recipe.yaml
seeds: [3, 4]
baseline: grpo
bootstrap_samples: 50
start_model: tiny
hard_subset: {share: 0.4, samples: 4}
methods:
  grpo: {crpo.stage_entropy_rule: off}
  crpo: {}
"""
TRUTH = {"S": ["Yes", "Yes", "No", "No", "No"]}
# Share of the samples that name the true label, None: none can be read. Hardest: rows 3 and 1.
NAMED = [1.0, 0.25, 0.75, None, 0.5]


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return load_study(write_study(tmp_path, STUDY))


def write_votes(folder: Path, named: list[float | None]) -> Path:
    """An evaluation whose votes name the true labels so often; returns its `predictions.csv`."""
    posts = []
    for row, (label, share) in enumerate(zip(TRUTH["S"], named, strict=True)):
        other = LABELS[label == LABELS[0]]
        shares = None if share is None else {label: share, other: 1 - share}
        won = None if share is None else (label if share > 0.5 else other)
        posts.append(dataclasses.replace(answer("S", row, label, won), probabilities=shares))
    metrics = {"S": set_metrics(posts, LABELS, bootstrap_samples=0, seed=0)}
    write_evaluation(folder, metrics, posts, include_text=False, title="votes", context={})
    return folder / "predictions.csv"


def test_the_posts_that_samples_get_wrong_most_often_are_chosen(tmp_path: Path) -> None:
    """Two of five; half of five is three, and then comes the post with half of the samples."""
    predictions = write_votes(tmp_path, NAMED)
    assert choose_posts(predictions, 0.4, 4).rows == {"S": (1, 3)}
    assert choose_posts(predictions, 0.5, 4).rows == {"S": (1, 3, 4)}


def test_posts_that_are_equally_hard_come_in_the_order_of_a_hash(tmp_path: Path) -> None:
    """Not in that of their rows, which may be sorted by label."""
    order = sorted(range(5), key=lambda row: hashlib.sha256(f"S/{row}".encode()).hexdigest())
    chosen = choose_posts(write_votes(tmp_path, [0.5] * 5), 0.4, 4)
    assert chosen.rows == {"S": tuple(sorted(order[:2]))}
    assert order[:2] != [0, 1]


def test_the_file_is_frozen(tmp_path: Path) -> None:
    subset = choose_posts(write_votes(tmp_path, NAMED), 0.4, 4)
    file = tmp_path / "hard_subset.json"
    write_hard_subset(subset, file)
    assert read_hard_subset(file) == subset
    changed = json.loads(file.read_text(encoding="utf-8"))
    changed["rows"]["S"][0] = 0
    file.write_text(json.dumps(changed), encoding="utf-8")
    with pytest.raises(UserError, match="were changed"):
        read_hard_subset(file)
    with pytest.raises(UserError, match="is no hard subset"):
        read_hard_subset(tmp_path / "predictions.csv")


def finished(study: Study) -> HardSubset:
    """All four cells, and the evaluation with votes; returns the subset, rows 1 and 3."""
    guesses = {
        "grpo": ["Yes", "No", "No", "No", "No"],  # on the subset: Yes wrong, No right
        "crpo": ["No", "Yes", "Yes", "No", "Yes"],  # on the subset: both right
    }
    for cell in plan_study(study).cells:
        write_cell(cell, TRUTH, {"S": guesses[cell.arm.method]}, [0.0, 1.0])
    plan = plan_study(study)
    votes = plan.tasks[plan.hard_subset[-1]]
    return choose_posts(write_votes(votes.product.parent, NAMED), 0.4, 4)


def test_scores_on_the_subset(study: Study) -> None:
    """GRPO answers No twice: F1 of No 2/3, of Yes 0, each label once, so both means are 1/3."""
    subset = finished(study)
    results = [read_cell(cell) for cell in plan_study(study).cells]
    document = study_document(study, results, [], subset)
    arms = document["arms"]
    assert arms["grpo"]["scores"]["hard_weighted_f1"]["mean"] == pytest.approx(1 / 3)
    assert arms["grpo"]["scores"]["hard_macro_f1"]["mean"] == pytest.approx(1 / 3)
    assert arms["crpo"]["scores"]["hard_weighted_f1"]["mean"] == 1.0
    difference = arms["crpo"]["differences"]["grpo"]["scores"]["hard_weighted_f1"]
    assert difference["by_seed"] == pytest.approx({"3": 2 / 3, "4": 2 / 3})
    assert document["hard_subset"]["rows"] == {"S": [1, 3]}
    assert "hard F1" in study_page(document, title="t").partition("<h2>Measures")[0]
    without = study_document(study, results, [])
    assert "hard_weighted_f1" not in without["arms"]["grpo"]["scores"]
    assert "hard F1" not in study_page(without, title="t").partition("<h2>Measures")[0]


def test_a_subset_of_other_posts_is_refused(study: Study) -> None:
    subset = finished(study).model_copy(update={"posts_sha256": "of others"})
    results = [read_cell(cell) for cell in plan_study(study).cells]
    with pytest.raises(UserError, match="chosen from other posts"):
        add_hard_scores(results, subset)


def test_published_cells_keep_their_scores_on_the_same_subset_only(study: Study) -> None:
    subset = finished(study)
    scored = add_hard_scores([read_cell(cell) for cell in plan_study(study).cells], subset)
    public = without_answers(scored, resample(study, scored), subset)
    assert not any(one.answers for one in public)
    again = add_hard_scores(public, subset)
    assert [one.scores for one in again] == [one.scores for one in scored]
    other = subset.model_copy(update={"rows_sha256": "0"})
    with pytest.raises(UserError, match="has no scores on this hard subset"):
        add_hard_scores(public, other)


def test_the_start_of_the_first_seed_is_asked_several_times(study: Study) -> None:
    """It is the shared cold start, made anyway, and its evaluation judges as all others do."""
    plan = plan_study(study)
    names = ("start_model-seed3", "cold_start-seed3", "hard_subset")
    assert plan.hard_subset == names
    asked, other = plan.tasks["hard_subset"], plan.tasks["evaluate-grpo-seed3"]
    assert asked.config.evaluate.num_votes == 4
    assert asked.config.evaluate.confidence == "votes"
    assert asked.config.evaluate.model == plan.tasks["train-grpo-seed3"].config.model.path
    assert (asked.config.data, asked.config.rewards) == (other.config.data, other.config.rewards)
    given = study.model_copy(
        update={"hard_subset": study.hard_subset.model_copy(update={"file": Path("f.json")})}
    )
    assert plan_study(given).hard_subset == ()


def test_the_study_chooses_once_and_takes_what_is_frozen(
    study: Study, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    subset = finished(study)
    plan = plan_study(study)
    monkeypatch.setattr(job, "is_done", lambda folder, task: task.verb == "evaluate")
    job.write_results(study, plan, {})
    file = study.output_dir / "hard_subset.json"
    assert read_hard_subset(file) == subset
    frozen = subset.model_copy(update={"samples": 99})
    write_hard_subset(frozen, file)
    job.write_results(study, plan, {})
    written = json.loads((study.output_dir / "study.json").read_text(encoding="utf-8"))
    assert written["hard_subset"]["samples"] == 99
    # Without the evaluation with votes there are no such scores, and that is said.
    file.unlink()
    monkeypatch.setattr(job, "is_done", lambda folder, task: task.name.startswith("evaluate"))
    job.write_results(study, plan, {})
    assert "no scores on the hard subset" in capsys.readouterr().out
    assert not file.exists()


def test_a_part_with_other_seeds_leaves_the_choice_to_the_first(study: Study) -> None:
    plan = plan_study(study)
    assert "hard_subset" in job._tasks_to_run(study, plan, None, {})
    assert "hard_subset" in job._tasks_to_run(study, plan, [3], {})
    assert "hard_subset" not in job._tasks_to_run(study, plan, [4], {})
