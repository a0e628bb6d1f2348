"""Several processes are one run: the same text and losses, one voice, a clean stop, a known end."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hosts.cluster import Cluster, assert_same_metrics, assert_same_run
from tests.hosts.conftest import STEPS

CALLS_A_STEP = 8 * 2  # completions of a step, over all processes


def saved_steps(folder: Path) -> list[int]:
    return sorted(int(path.name) for path in (folder / "checkpoints").iterdir())


def test_two_processes_sample_and_learn_what_one_does(cluster: Cluster, alone: Path) -> None:
    ended = cluster.run("train", "two", 2, 4)
    assert [one.status for one in ended] == [0, 0], ended
    assert_same_run(cluster, "two", "alone")
    # The first process speaks for all; files come from it alone.
    assert f"step {STEPS}/{STEPS}" in ended[0].out
    assert "process 1 of 2, 4 devices" in ended[1].out
    assert not any(word in ended[1].out for word in ("step ", "reward", "batch arithmetic"))
    assert sorted(path.name for path in (cluster.folder / "two").iterdir()) == sorted(
        path.name for path in alone.iterdir()
    )


@pytest.mark.slow
def test_a_stop_of_one_process_stops_all_and_others_go_on(cluster: Cluster, alone: Path) -> None:
    """SIGTERM to the second of two; then one process on another mesh finishes the run."""
    trial = f"1 SIGTERM {CALLS_A_STEP // 2 + 3}"  # in the middle of step 2
    ended = cluster.run("train", "stopped", 2, 4, trial=trial)
    assert [one.status for one in ended] == [143, 143], ended
    assert "run the same command to resume" in ended[0].out
    (step, *_) = reversed(saved_steps(cluster.folder / "stopped"))
    assert 2 <= step < STEPS and f"after step {step};" in ended[0].out
    (resumed,) = cluster.run("train", "stopped", 1, 8, "mesh.fsdp=4", "mesh.tensor=2")
    assert resumed.status == 0, resumed.err
    assert f"resuming after step {step}" in resumed.out
    assert_same_run(cluster, "stopped", "alone")


@pytest.mark.slow
def test_four_processes_with_every_axis_of_the_mesh(cluster: Cluster, alone: Path) -> None:
    axes = ("mesh.fsdp=2", "mesh.tensor=2")
    ended = cluster.run("train", "four", 4, 2, *axes)
    assert [one.status for one in ended] == [0] * 4, ended
    assert_same_run(cluster, "four", "alone")
    # An axis that leaves the process: its rows are held, and scored, by two processes each.
    ended = cluster.run("train", "wide", 4, 2, "mesh.fsdp=2", "mesh.tensor=4")
    assert [one.status for one in ended] == [0] * 4, ended
    assert_same_run(cluster, "wide", "alone")


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_the_end_of_one_process_ends_the_others_and_a_rerun_resumes(
    cluster: Cluster, alone: Path, victim: int
) -> None:
    name = f"killed_{victim}"
    trial = f"{victim} SIGKILL {CALLS_A_STEP + 3}"  # in the middle of step 3
    ended = cluster.run("train", name, 2, 4, trial=trial)
    assert ended[victim].status == -9
    survivor = ended[1 - victim]
    assert survivor.status not in (0, 143)
    assert survivor.seconds < 60
    # Which of them notices first, JAX's heartbeat or a step that fails, is a matter of luck.
    said = ("This most likely indicates that another task died", "cannot go on. Expected all")
    assert any(words in survivor.err for words in said), survivor.err
    ended = cluster.run("train", name, 4, 2)
    assert [one.status for one in ended] == [0] * 4, ended
    assert "resuming after step" in ended[0].out
    assert_same_run(cluster, name, "alone")


@pytest.mark.slow
def test_a_cold_start_by_several_processes_learns_what_one_learns(cluster: Cluster) -> None:
    """Each holds the traces of its own devices only; two micro-batches an update."""
    keys = (
        *("rollout.max_completion_length=320", "sft.traces_per_set=20", "sft.batch_size=16"),
        *(f"sft.num_steps={STEPS}", "run.micro_batches=2"),
    )
    for name, processes, axes in (
        ("sft_alone", 1, ()),
        ("sft_two", 2, ()),
        ("sft_four", 4, ("mesh.fsdp=2", "mesh.tensor=2")),
    ):
        ended = cluster.run("sft", name, processes, 8 // processes, *keys, *axes)
        assert [one.status for one in ended] == [0] * processes, ended
        assert len(cluster.metrics(name)) >= STEPS
        assert_same_metrics(cluster, name, "sft_alone")


@pytest.mark.slow
def test_an_evaluation_by_several_processes_gives_the_same_figures(
    cluster: Cluster, alone: Path
) -> None:
    shown = "evaluate.reading_room=2"
    (ended,) = cluster.run("evaluate", "alone", 1, 8, shown)
    assert ended.status == 0, ended.err
    expected = cluster.scores("alone")
    folder = alone / "evaluation" / "test"
    predictions = (folder / "predictions.csv").read_text()
    report = (folder / "report.html").read_text()
    assert report.count("<details") >= 2
    several = cluster.run("evaluate", "alone", 2, 4, shown)
    assert [one.status for one in several] == [0, 0], several
    assert cluster.scores("alone") == expected
    assert (folder / "predictions.csv").read_text() == predictions
    assert (folder / "report.html").read_text() == report


@pytest.mark.slow
def test_a_mistake_is_reported_and_ends_all(cluster: Cluster) -> None:
    ended = cluster.run("train", "mistake", 2, 4, "rollout.prompts_per_step=12")
    assert ended[0].status == 2, ended
    assert all(one.status != 0 and one.seconds < 60 for one in ended)
    assert "does not split over the mesh" in "".join(one.err for one in ended)
    assert not (cluster.folder / "mistake").exists()


@pytest.mark.slow
def test_a_failure_while_a_checkpoint_is_written_ends_all(cluster: Cluster) -> None:
    """The checkpoint cannot be finished without the others, who wait for this one's step."""
    reward = "tests.hosts.rewards:fails_while_a_checkpoint_is_written"
    ended = cluster.run("train", "failing", 2, 4, f"rewards.custom={{'{reward}': 1.0}}")
    assert ended[0].status == 2 and "fails while a checkpoint is written" in ended[0].err, ended
    assert ended[1].status != 0 and ended[1].seconds < 60
    assert "Traceback" not in "".join(one.err for one in ended)
    # The folder is not left locked.
    assert not (cluster.folder / "failing" / "run.lock").exists()
