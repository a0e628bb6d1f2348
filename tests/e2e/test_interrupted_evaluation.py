"""An evaluation that is interrupted and given again ends as an uninterrupted one, byte for byte."""

from __future__ import annotations

import functools
import os
import signal
from pathlib import Path

import pytest

from mental_r1_jax.config import ExperimentConfig
from mental_r1_jax.evaluation.kept_batches import UNFINISHED_FOLDER
from mental_r1_jax.evaluation.report import METRICS_FILE, PREDICTIONS_FILE, REPORT_FILE
from mental_r1_jax.jobs import evaluate
from mental_r1_jax.prediction import predictor as prediction

BATCHES = 4  # of 2 sets x 8 posts in batches of 4; the mesh splits them four ways
KEPT = "finished batches are kept"


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of every batch that is generated; programs are compiled once for all evaluations."""
    generated: list[int] = []
    ask, make = prediction.ask, evaluate.make_predictor
    made: list[prediction.Predictor] = []

    def count(*arguments):
        result = ask(*arguments)
        generated.append(len(arguments[2]))
        return result

    @functools.wraps(make)
    def make_once(*arguments):
        made.append(make(*arguments) if not made else made[0])
        return made[-1]

    monkeypatch.setattr(prediction, "ask", count)
    monkeypatch.setattr(evaluate, "make_predictor", make_once)
    return generated


def test_it_goes_on_after_three_interruptions(recipe, tmp_path, counted, monkeypatch) -> None:
    def config(name: str, **changes) -> ExperimentConfig:
        tiny = recipe(tmp_path).model.path
        section = {"model": tiny, "output_dir": tmp_path / name, "include_text": True}
        section |= {"batch_size": 4, "limit_per_set": 8, "bootstrap_samples": 20}
        mesh = {"fsdp": 4, "tensor": 2}
        return recipe(tmp_path / "run", evaluate=section | changes, mesh=mesh)

    def files(name: str) -> list[bytes]:
        written = METRICS_FILE, PREDICTIONS_FILE, REPORT_FILE
        return [(tmp_path / name / file).read_bytes() for file in written]

    def interrupt_after(batches: int | None, name: str, number: signal.Signals) -> None:
        """Evaluate; after so many batches the process gets a signal."""
        done: list[int] = []
        answer_once = prediction._answer_once

        def answer(*arguments):
            result = answer_once(*arguments)
            done.append(1)
            if len(done) == batches:
                os.kill(os.getpid(), number)
            return result

        with monkeypatch.context() as patch:
            patch.setattr(prediction, "_answer_once", answer)
            with pytest.raises(evaluate.Interrupted, match=f"{number.name}.*{KEPT}") as ended:
                evaluate.run(config(name))
        assert ended.value.number == number

    handlers = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)]
    # Same folder name, as the recipe with it is part of what a kept batch is bound to.
    evaluate.run(config("out"))
    whole = files("out")
    # Completions are shown, token by token, and with `include_text` the posts.
    assert whole[-1].count(b"<details") == whole[-1].count(b"The post") >= 8
    assert (tmp_path / "out" / REPORT_FILE).stat().st_mode & 0o777 == 0o600
    assert len(counted) == BATCHES and not (tmp_path / "out" / UNFINISHED_FOLDER).exists()
    (tmp_path / "out").rename(tmp_path / "whole")

    counted.clear()
    for batches, number in enumerate((signal.SIGTERM, signal.SIGINT, signal.SIGHUP), start=1):
        interrupt_after(batches, "out", number)
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [UNFINISHED_FOLDER]
        kept = list((tmp_path / "out" / UNFINISHED_FOLDER).iterdir())
        assert len(kept) == batches and {path.stat().st_mode & 0o777 for path in kept} == {0o600}
    evaluate.run(config("out"))
    assert len(counted) == BATCHES  # no batch was generated twice
    assert files("out") == whole == files("whole")
    assert not (tmp_path / "out" / UNFINISHED_FOLDER).exists()
    assert handlers == [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)]

    # What was kept for another recipe is not used, and goes with the rest.
    counted.clear()
    interrupt_after(2, "out", signal.SIGTERM)
    evaluate.run(config("out", bootstrap_samples=21))
    assert len(counted) == 2 + BATCHES
    assert not (tmp_path / "out" / UNFINISHED_FOLDER).exists()


def test_a_path_that_cannot_be_written_is_refused_before_the_model_is_opened(
    recipe, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(evaluate, "open_model", None)
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path / "file" / "below", tmp_path / ("x" * 300)):
        config = recipe(tmp_path / "run", evaluate={"output_dir": folder})
        with pytest.raises(OSError):
            evaluate.run(config)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
