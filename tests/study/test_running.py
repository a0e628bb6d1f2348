"""Tasks as processes: order, resuming, failures, stops, and the time they will take."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from mental_r1_jax.cli import main
from mental_r1_jax.jobs import study as job
from mental_r1_jax.study import running
from mental_r1_jax.study.cells import Task, plan_study
from mental_r1_jax.study.running import is_done, log_file, run_tasks, seconds_by_kind
from mental_r1_jax.study.schema import load_study
from tests.study.fakes import calls, fake_command, task, write_study


def by_name(*tasks: Task) -> dict[str, Task]:
    return {one.name: one for one in tasks}


def run(folder: Path, tasks: dict[str, Task], processes: int = 1) -> running.Outcome:
    return run_tasks(
        tasks, folder, processes=processes, command=fake_command(folder), report=lambda line: None
    )


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    tasks = by_name(task(tmp_path, "cold"), task(tmp_path, "train", "cold"))
    first = run(tmp_path, tasks)
    assert calls(tmp_path) == ["cold", "train"]
    assert not (first.failed or first.left_out or first.stopped)
    run(tmp_path, tasks)
    assert calls(tmp_path) == ["cold", "train"]


def test_another_recipe_or_a_lost_product_is_done_again(tmp_path: Path) -> None:
    tasks = by_name(task(tmp_path, "a"), task(tmp_path, "b"), task(tmp_path, "c"))
    run(tmp_path, tasks)
    (tmp_path / "products" / "a").unlink()
    changed = tasks | by_name(task(tmp_path, "b", seed=5))
    assert [is_done(tmp_path, one) for one in changed.values()] == [False, False, True]
    run(tmp_path, changed)
    assert calls(tmp_path)[3:] == ["a", "b"]


@pytest.mark.parametrize("processes", [1, 2])
def test_a_failed_task_is_named_with_its_log_and_the_rest_goes_on(
    tmp_path: Path, processes: int
) -> None:
    tasks = by_name(
        task(tmp_path, "cold"),
        task(tmp_path, "bad", "cold"),
        task(tmp_path, "judged", "bad"),
        task(tmp_path, "good", "cold"),
    )
    (tmp_path / "FAIL-bad").touch()
    outcome = run(tmp_path, tasks, processes)
    assert list(outcome.failed) == ["bad"] and outcome.left_out == ["judged"]
    assert "status 3" in outcome.failed["bad"] and "no luck" in outcome.failed["bad"]
    assert str(log_file(tmp_path, "bad")) in outcome.failed["bad"]
    assert is_done(tmp_path, tasks["good"]) and not is_done(tmp_path, tasks["bad"])

    (tmp_path / "FAIL-bad").unlink()
    assert run(tmp_path, tasks, processes).failed == {}
    assert calls(tmp_path)[-2:] == ["bad", "judged"]
    assert log_file(tmp_path, "bad").read_text(encoding="utf-8").count("$ sh") == 2


def test_a_verb_that_makes_nothing_has_failed(tmp_path: Path) -> None:
    one = task(tmp_path, "a")
    empty = Task("a", "train", "k", one.config, (), tmp_path / "nothing", one.options)
    assert "is not there" in run(tmp_path, by_name(empty)).failed["a"]


def test_a_signal_is_passed_on_and_the_rest_is_left_for_the_next_time(tmp_path: Path) -> None:
    tasks = by_name(task(tmp_path, "a"), task(tmp_path, "b"), task(tmp_path, "c"))
    (tmp_path / "HANG-b").touch()

    def stop_when_it_hangs() -> None:
        while not (tmp_path / "hanging-b").exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop_when_it_hangs)
    thread.start()
    outcome = run(tmp_path, tasks)
    thread.join()
    assert outcome.stopped and outcome.failed == {}
    assert calls(tmp_path) == ["a", "b"]
    (tmp_path / "HANG-b").unlink()
    assert not run(tmp_path, tasks).stopped
    assert calls(tmp_path) == ["a", "b", "b", "c"]


def test_times_are_means_over_the_finished_tasks_of_a_kind(tmp_path: Path) -> None:
    tasks = by_name(*(task(tmp_path, name) for name in ("a1", "a2", "b1")))
    (tmp_path / "FAIL-b1").touch()
    run(tmp_path, tasks)
    for name, seconds in (("a1", 60.0), ("a2", 180.0)):
        file = tmp_path / "records" / f"{name}.json"
        record = json.loads(file.read_text(encoding="utf-8"))
        file.write_text(json.dumps(record | {"seconds": seconds}), encoding="utf-8")
    assert seconds_by_kind(tmp_path, tasks) == {"kind a": 120.0}


def test_dry_run_prints_the_cells_and_touches_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["study", str(write_study(tmp_path)), "--dry-run", "run.num_steps=3"]) == 0
    text = capsys.readouterr().out
    assert "8 cells (2 seeds), 16 tasks, 0 of them done" in text
    assert "  train-crpo-stage_entropy_scale-0.01-seed1: not timed yet" in text
    assert "cold start, evaluate, train crpo, train grpo" in text
    assert not (tmp_path / "study").exists()


def test_predicted_time_counts_what_is_left_over_the_processes(tmp_path: Path) -> None:
    study = load_study(write_study(tmp_path)).model_copy(update={"processes": 2})
    plan, folder = plan_study(study), study.output_dir
    first = next(iter(plan.tasks.values()))
    first.product.parent.mkdir(parents=True)
    first.product.touch()
    (folder / "records").mkdir(parents=True)
    record = {"recipe_sha256": running._digest(first), "seconds": 240.0}
    (folder / "records" / f"{first.name}.json").write_text(json.dumps(record), encoding="utf-8")
    text = job.describe(study, plan, plan.tasks)
    assert "cold_start-seed0: done" in text
    assert "cold_start-seed1: about 4.0 min" in text
    assert "left: about 2.0 min with 2 process(es)" in text


def test_the_exit_status_tells_of_a_failed_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    popen = running.subprocess.Popen
    monkeypatch.setattr(
        running.subprocess, "Popen", lambda arguments, **options: popen(["false"], **options)
    )
    with pytest.raises(SystemExit) as ended:
        main(["study", str(write_study(tmp_path)), "run.num_steps=3"])
    assert ended.value.code == 1
    text = capsys.readouterr().out
    log = log_file(tmp_path / "study", "cold_start-seed0")
    assert f"failed: cold_start-seed0, see {log}" in text
    assert "left out, because they need a failed one" in text


def test_a_folder_that_holds_no_study_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "thesis.txt").touch()
    assert main(["study", str(write_study(tmp_path))]) == 2
    assert "nothing was touched" in capsys.readouterr().err
