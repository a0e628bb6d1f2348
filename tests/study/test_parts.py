"""A study made in parts: what is joined equals what one machine would have written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from mental_r1_jax.cli import main
from mental_r1_jax.errors import UserError
from mental_r1_jax.jobs import study as job
from mental_r1_jax.study import running
from mental_r1_jax.study.cells import plan_study
from mental_r1_jax.study.parts import CELLS_FILE, join_cells
from mental_r1_jax.study.schema import Study, load_study
from tests.study.fakes import calls, fake_command, write_study
from tests.study.made_up import write_cell
from tests.study.test_results import ONE_WRONG, RIGHT, TRUTH, TWO_ARMS

DONE = running.is_done


def make_part(
    folder: Path, seeds: tuple[int, ...], monkeypatch: pytest.MonkeyPatch, *, rewards: float = 1.0
) -> Study:
    """A study in `folder` whose cells of these seeds are finished."""
    folder.mkdir()
    study = load_study(write_study(folder, TWO_ARMS))
    cells = [cell for cell in plan_study(study).cells if cell.seed in seeds]
    for cell in cells:
        guesses = RIGHT if cell.arm.method == "crpo" else ONE_WRONG
        write_cell(cell, TRUTH, guesses, [0.0, rewards, float("nan")])
    finished = {f"evaluate-{cell.name}" for cell in cells}
    monkeypatch.setattr(job, "is_done", lambda folder, task: task.name in finished)
    job.write_results(study, plan_study(study), {})
    return study


def numbers(study: Study) -> dict[str, object]:
    """`study.json` without the places of its files."""
    text = (study.output_dir / "study.json").read_text(encoding="utf-8")
    document = json.loads(text.replace(str(study.output_dir.parent), ""))
    return dict(document)


def test_parts_that_are_joined_equal_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = make_part(tmp_path / "other", (0,), monkeypatch)
    whole = make_part(tmp_path / "whole", (0, 1), monkeypatch)
    part = make_part(tmp_path / "part", (1,), monkeypatch)
    plan = plan_study(part)
    joined = join_cells([other.output_dir / CELLS_FILE], plan, part.output_dir)
    assert {one.cell.seed for one in joined.values()} == {0} and len(joined) == 3
    job.write_results(part, plan, joined)
    assert numbers(part) == numbers(whole)
    assert numbers(whole)["missing"] == []
    # And again from the parts alone, on a third machine.
    third = make_part(tmp_path / "third", (), monkeypatch)
    files = [part.output_dir / CELLS_FILE, other.output_dir / CELLS_FILE]
    again = join_cells(files, plan_study(third), third.output_dir)
    third.output_dir.mkdir()
    job.write_results(third, plan_study(third), again)
    assert numbers(third) == numbers(whole)


def test_joined_cells_are_not_run_and_seeds_choose(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    other = make_part(tmp_path / "other", (0,), monkeypatch)
    monkeypatch.setattr(job, "is_done", DONE)
    here = tmp_path / "here"
    here.mkdir()
    file = write_study(here, TWO_ARMS)
    command = ["study", str(file), "--dry-run"]
    assert main(command) == 0
    # A cold start a seed; training and evaluation of three arms with two seeds.
    assert "6 cells (2 seeds), 14 tasks" in capsys.readouterr().out
    assert main([*command, "--seeds", "1"]) == 0
    chosen = capsys.readouterr().out
    assert "7 tasks" in chosen and "seed0" not in chosen
    joined = ["--join", str(other.output_dir / CELLS_FILE)]
    assert main([*command, *joined]) == 0
    assert capsys.readouterr().out == chosen
    assert main([*command, *joined, "--seeds", "0"]) == 0
    assert "0 tasks" in capsys.readouterr().out
    assert main([*command, "--seeds", "5"]) == 2
    assert "the study has no seed 5" in capsys.readouterr().err


def test_published_cells_give_the_same_numbers_and_have_no_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = make_part(tmp_path / "whole", (0, 1), monkeypatch)
    other = make_part(tmp_path / "other", (0,), monkeypatch)
    public = tmp_path / "public.jsonl"
    job.write_results(other, plan_study(other), {}, public)
    for line in map(json.loads, public.read_text(encoding="utf-8").splitlines()):
        assert line["answers"] == {} and len(line["resampled"]["scores"]["accuracy"]) == 200
        assert not {"Yes", "No"} & set(json.dumps(line).split('"'))
    part = make_part(tmp_path / "part", (1,), monkeypatch)
    plan = plan_study(part)
    joined = join_cells([public], plan, part.output_dir)
    again = tmp_path / "again.jsonl"
    job.write_results(part, plan, joined, again)
    assert near(numbers(part), numbers(whole))
    # What was published is passed on as it is, beside what has its answers here.
    assert set(public.read_text().splitlines()) < set(again.read_text().splitlines())
    kept = (part.output_dir / CELLS_FILE).read_text(encoding="utf-8").splitlines()
    assert [bool(json.loads(line)["answers"]) for line in kept] == [False] * 3 + [True] * 3


def near(ours: object, theirs: object) -> bool:
    """Equal but for the rounding of published scores, half a thousandth of a point."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return ours.keys() == theirs.keys() and all(near(ours[k], theirs[k]) for k in ours)
    if isinstance(ours, list) and isinstance(theirs, list):
        return len(ours) == len(theirs) and all(map(near, ours, theirs))
    return ours == (pytest.approx(theirs, abs=6e-6) if isinstance(theirs, float) else theirs)


def test_published_cells_of_other_posts_or_draws_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = make_part(tmp_path / "other", (0,), monkeypatch)
    public = tmp_path / "public.jsonl"
    job.write_results(other, plan_study(other), {}, public)
    part = make_part(tmp_path / "part", (1,), monkeypatch)
    plan = plan_study(part)
    text = public.read_text(encoding="utf-8")
    digest = json.loads(text.splitlines()[0])["resampled"]["posts_sha256"]
    public.write_text(text.replace(digest, digest[::-1]), encoding="utf-8")
    with pytest.raises(UserError, match="answered different posts"):
        job.write_results(part, plan, join_cells([public], plan, part.output_dir))
    public.write_text(text, encoding="utf-8")
    more = part.model_copy(update={"bootstrap_samples": 300})
    with pytest.raises(UserError, match="resampled otherwise"):
        job.write_results(more, plan, join_cells([public], plan, part.output_dir))


def test_the_place_of_published_cells_is_looked_at_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_study(tmp_path, TWO_ARMS)
    command = ["study", str(file), "--publish", str(tmp_path / "nowhere" / "public.jsonl")]
    assert main(command) == 2
    assert "no folder" in capsys.readouterr().err
    assert not (tmp_path / "study").exists()


def test_only_the_tasks_of_the_seeds_are_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_study(tmp_path, TWO_ARMS)
    command = fake_command(tmp_path)
    monkeypatch.setattr(
        job, "run_tasks", lambda *given, **how: running.run_tasks(*given, **how, command=command)
    )
    with pytest.raises(SystemExit):  # the fake makes no product
        job.run(load_study(file), seeds=(1,))
    assert calls(tmp_path) == ["cold_start-seed1"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("grpo-seed0", "ppo-seed0"), "the cell ppo-seed0"),
        (lambda text: text[:40], "Invalid JSON"),
        (lambda text: text.replace('"scores"', '"marks"'), "Field required"),
        (lambda text: text.replace('"recipes_sha256": "', '"recipes_sha256": "0'), "others"),
        (lambda text: text + text.replace('"accuracy": 0.75', '"accuracy": 0.5'), "again"),
        (lambda text: text.replace('"accuracy": 0.75', '"accuracy": NaN'), "finite"),
        (lambda text: "[" * 100_000, "Invalid JSON"),
    ],
)
def test_a_file_that_cannot_be_right_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: object, message: str
) -> None:
    assert callable(change)
    study = make_part(tmp_path / "other", (0,), monkeypatch)
    file = study.output_dir / CELLS_FILE
    file.write_text(change(file.read_text(encoding="utf-8")), encoding="utf-8")
    with pytest.raises(UserError, match="cannot be joined") as refused:
        join_cells([file], plan_study(study), study.output_dir)
    assert message in refused.value.got or message in str(refused.value)
    shutil.rmtree(study.output_dir)
    with pytest.raises(UserError, match="No such file"):
        join_cells([file], plan_study(study), study.output_dir)


def test_the_data_may_lie_elsewhere_but_not_be_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = make_part(tmp_path / "other", (0,), monkeypatch)
    file, recipe = other.output_dir / CELLS_FILE, tmp_path / "other" / "a_study.yaml"
    elsewhere = load_study(recipe, [f"data.root={tmp_path}"])
    joined = join_cells([file], plan_study(elsewhere), elsewhere.output_dir)
    assert {one.cell.seed for one in joined.values()} == {0} and len(joined) == 3
    fewer = load_study(recipe, [f"data.root={tmp_path}", "data.sets=[Stress-Synthetic]"])
    with pytest.raises(UserError, match="others behind grpo-seed0"):
        join_cells([file], plan_study(fewer), fewer.output_dir)


def test_cells_of_other_recipes_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = make_part(tmp_path / "other", (0,), monkeypatch)
    longer = load_study(tmp_path / "other" / "a_study.yaml", ["run.num_steps=7"])
    file = other.output_dir / CELLS_FILE
    with pytest.raises(UserError, match="others behind grpo-seed0"):
        join_cells([file], plan_study(longer), longer.output_dir)
