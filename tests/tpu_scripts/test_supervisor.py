"""`train.sh --supervise`: what brings the run back, and what does not."""

from __future__ import annotations

import json
import time

import pytest

from tests.tpu_scripts.conftest import Laptop

RECIPE = "configs/qwen3_0p6b_crpo.yaml"
TRAIN = ("train", "--supervise", "--run", "first", RECIPE)


def count(laptop: Laptop, word: str) -> int:
    return laptop.outline().count(word)


def test_a_job_that_died_is_started_again_on_the_same_machines(laptop: Laptop) -> None:
    laptop.make_ready()
    (laptop.cloud / "jobs").write_text("crash finish")
    done = laptop.run(*TRAIN)
    assert done.returncode == 0, done.stderr
    assert "restart 1: the job was 'failed 1' on the first worker" in done.stderr
    assert count(laptop, "ssh start.sh") == 2 and count(laptop, "create") == 0


def test_a_mistake_in_the_recipe_is_not_tried_again(laptop: Laptop) -> None:
    laptop.make_ready()
    (laptop.cloud / "jobs").write_text("mistake")
    done = laptop.run(*TRAIN)
    assert done.returncode == 1
    assert "a mistake in the recipe or its overrides; see logs.sh" in done.stderr
    assert count(laptop, "ssh start.sh") == 1


def test_it_gives_up_after_the_given_number_of_restarts(laptop: Laptop) -> None:
    laptop.make_ready()
    (laptop.cloud / "jobs").write_text("crash")
    done = laptop.run(*TRAIN, "--max-restarts=2")
    assert done.returncode == 1 and "gave up after 2 restarts" in done.stderr
    assert count(laptop, "ssh start.sh") == 3


def test_a_stopped_run_has_saved_and_is_left_stopped(laptop: Laptop) -> None:
    laptop.make_ready()
    (laptop.cloud / "jobs").write_text("wait")
    laptop.ok("train", "--run", "first", RECIPE)
    for host in ("s0-w0", "s0-w1"):
        while not (laptop.cloud / f"waiting-{host}").exists():
            time.sleep(0.02)
    assert "job on s0-w1: running" in laptop.ok("status")
    laptop.ok("stop")
    assert "job on s0-w0: stopped" in laptop.ok("status")
    assert (laptop.cloud / "bucket/runs/first/checkpoints/7").is_dir()
    (log,) = (laptop.cloud / "bucket/logs/first").glob("*/s0-w0.log")
    assert log.read_text().endswith("exit status 143\n")


def test_it_does_not_buy_again_what_somebody_deleted(laptop: Laptop) -> None:
    laptop.make_ready()
    (laptop.cloud / "jobs").write_text("wait")
    states = {"states": ["ACTIVE", "DELETING"], "slices": 1}  # then it is gone
    (laptop.cloud / "request.json").write_text(json.dumps(states))
    done = laptop.run(*TRAIN)
    assert done.returncode == 1
    assert "the request was deleted by somebody; not asking for a new one" in done.stderr
    assert count(laptop, "create") == 0 and count(laptop, "delete") == 0


def test_a_request_that_fails_is_made_again(laptop: Laptop) -> None:
    laptop.make_ready()
    states = {"states": ["ACTIVE", "FAILED"], "slices": 1}
    (laptop.cloud / "request.json").write_text(json.dumps(states))
    (laptop.cloud / "jobs").write_text("wait")
    (laptop.cloud / "states").write_text("FAILED")
    done = laptop.run(*TRAIN, "--max-restarts=3")
    assert done.returncode == 1
    assert "gave up after 3 restarts; last: the new request did not last" in done.stderr
    assert count(laptop, "create") == 3 and count(laptop, "delete") == 3


def test_workers_that_stay_silent_are_replaced(laptop: Laptop) -> None:
    laptop.make_ready()
    (laptop.cloud / "jobs").write_text("wait")
    (laptop.cloud / "silent").touch()
    done = laptop.run(*TRAIN, "--max-restarts=0")
    assert "gave up after 0 restarts; last: the workers did not answer 10 times" in done.stderr
    assert count(laptop, "ssh state.sh") == 10


@pytest.mark.parametrize("state", ["PERMISSION_DENIED: no", "connection reset"])
def test_an_answer_that_gcloud_cannot_give_changes_nothing(laptop: Laptop, state: str) -> None:
    laptop.make_ready()
    (laptop.cloud / "broken_once").write_text(state)
    done = laptop.run(*TRAIN)
    assert done.returncode == 0, done.stderr
    assert state in done.stderr
    assert count(laptop, "create") == 0 and count(laptop, "delete") == 0
