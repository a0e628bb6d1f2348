"""A run that is stopped and started again ends where an uninterrupted one ends, bit for bit."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import pyarrow.parquet as pq
import pytest

from mental_r1_jax.config import ExperimentConfig
from mental_r1_jax.errors import UserError
from mental_r1_jax.jobs import train
from mental_r1_jax.training.checkpoint import open_checkpoints
from mental_r1_jax.training.metrics import read_metrics
from tests.e2e import rewards

CALLS_A_STEP = 8 * 4
# Wall-clock times, and nothing else, may differ.
CLOCKS = ("time/", "tokens_per_second")


def run_until(config: ExperimentConfig, job: Any, calls: int | None) -> None:
    """Run a job; the custom reward sends SIGTERM at its call number `calls`."""
    rewards.CALLS, rewards.CALLS_BEFORE_STOP = 0, calls
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    if calls is None:
        job.run(config)
    else:
        with pytest.raises(SystemExit) as stopped:
            job.run(config)
        assert stopped.value.code == 143
    assert handlers == [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]


def everything(folder: Path) -> tuple[int, Any, Any]:
    """Step, weights and optimizer, and progress of the newest checkpoint."""
    with open_checkpoints(folder / "checkpoints", read_only=True) as manager:
        step = manager.latest_step()
        items = manager.restore(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardRestore(),
                optimizer=ocp.args.StandardRestore(),
                progress=ocp.args.JsonRestore(),
            ),
        )
    return step, (items["params"], items["optimizer"]), items["progress"]


def comparable_metrics(folder: Path) -> list[dict[str, float]]:
    return [
        {name: value for name, value in line.items() if not name.startswith(CLOCKS)}
        for line in read_metrics(folder / "metrics.jsonl")
    ]


def assert_same_metrics(lines: list[dict[str, float]], others: list[dict[str, float]]) -> None:
    assert len(lines) == len(others)
    for ours, theirs in zip(lines, others, strict=True):
        assert ours.keys() == theirs.keys()
        np.testing.assert_array_equal(list(ours.values()), list(theirs.values()))


def test_a_stopped_and_resumed_run_equals_an_uninterrupted_one(recipe, tmp_path):
    def config(name: str) -> ExperimentConfig:
        return recipe(
            tmp_path / name,
            crpo={"num_iterations": 2, "kl_coef": 0.05},
            rewards={"custom": {"tests.e2e.rewards:stop_after": 1.0}},
            run={"num_steps": 4},
        )

    run_until(config("whole"), train, None)
    run_until(config("parts"), train, CALLS_A_STEP + 5)  # in the middle of step 2
    assert everything(tmp_path / "parts")[0] == 2
    # The next session has no time for more than a step, and validates what it has made.
    short = config("parts")
    short = short.model_copy(update={"run": short.run.model_copy(update={"max_hours": 1e-6})})
    with pytest.raises(SystemExit) as stopped:
        train.run(short)
    assert stopped.value.code == 75 and everything(tmp_path / "parts")[0] == 3
    run_until(config("parts"), train, None)

    step, state, progress = everything(tmp_path / "whole")
    again_step, again_state, again_progress = everything(tmp_path / "parts")
    assert step == again_step == 4
    assert progress == again_progress and progress["next_batch"] == 4
    jax.tree.map(np.testing.assert_array_equal, state, again_state)
    assert int(state[1]["num_updates"]) == 8

    # One program each for sampling, log-probs (of two policies) and the update.
    assert {
        line["compiled_programs"]
        for line in read_metrics(tmp_path / "whole" / "metrics.jsonl")
        if "reward" in line
    } == {3}
    lines, again = (comparable_metrics(tmp_path / name) for name in ("whole", "parts"))
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 4]
    assert again.pop(3).keys() == lines[4].keys()  # the validation of the session that had no time
    assert_same_metrics(lines, again)

    files = [sorted((tmp_path / name / "completions").iterdir()) for name in ("whole", "parts")]
    tables = [[pq.read_table(file) for file in folder] for folder in files]
    assert len(tables[0]) == 4 and tables[0] == tables[1]
    # Four steps, four batches of other posts: nothing is skipped or repeated within an epoch.
    columns = (
        [value for t in tables[0] for value in t[c].to_pylist()] for c in ("set_name", "row")
    )
    rows = set(zip(*columns, strict=True))
    assert len(rows) == 4 * 8

    # Once finished, the same command changes nothing; another configuration is refused.
    before = (tmp_path / "whole" / "metrics.jsonl").read_bytes()
    run_until(config("whole"), train, None)
    assert (tmp_path / "whole" / "metrics.jsonl").read_bytes() == before
    other = config("whole")
    other = other.model_copy(update={"crpo": other.crpo.model_copy(update={"kl_coef": 0.1})})
    with pytest.raises(UserError, match=r"crpo\.kl_coef: 0\.05 -> 0\.1"):
        train.run(other)


def test_a_run_killed_between_two_rounds_of_a_step_goes_on_as_if_it_had_not_been(recipe, tmp_path):
    """Dynamic sampling: what the lost rounds had read is read again, and drawn alike."""

    def config(name: str) -> ExperimentConfig:
        return recipe(
            tmp_path / name,
            rollout={"num_generations": 2, "keep_groups": "reward", "max_rounds": 4},
            rewards={"answer_weight": 0.0, "custom": {"tests.e2e.rewards:fail_after": 1.0}},
            run={"num_steps": 3, "save_every": 1},
        )

    run_until(config("whole"), train, None)
    lines = [line for line in comparable_metrics(tmp_path / "whole") if "reward" in line]
    rounds = [int(line["rollout/rounds"]) for line in lines]
    assert max(rounds[1:]) > 1 and all(0 < line["rollout/kept"] < 1 for line in lines)
    killed = 1 + int(np.argmax(rounds[1:]))  # the step, from 0; in its second round
    rewards.CALLS, rewards.CALLS_BEFORE_STOP = 0, 8 * 2 * (sum(rounds[:killed]) + 1) + 3
    with pytest.raises(UserError, match="fail_after"):
        train.run(config("parts"))
    assert everything(tmp_path / "parts")[0] == killed
    run_until(config("parts"), train, None)

    (step, state, progress), again = (everything(tmp_path / name) for name in ("whole", "parts"))
    assert (step, progress) == (again[0], again[2]) and progress["next_batch"] == sum(rounds)
    jax.tree.map(np.testing.assert_array_equal, state, again[1])
    assert_same_metrics(*(comparable_metrics(tmp_path / name) for name in ("parts", "whole")))


def test_a_folder_that_is_no_run_is_refused_and_left_alone(recipe, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="holds no run"):
        train.run(recipe(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
