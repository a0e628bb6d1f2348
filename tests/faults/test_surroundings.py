"""Disks, permissions and paths: one error that says what and where, and nothing foreign touched."""

from __future__ import annotations

import errno
import importlib
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mental_r1_jax import cli
from mental_r1_jax.errors import UserError, mistake_of_surroundings
from mental_r1_jax.evaluation.report import REPORT_FILE, check_report_folder
from mental_r1_jax.private_files import check_writable
from mental_r1_jax.recipe import parse_config
from mental_r1_jax.release.hf_folder import MARKER, put_in_place
from mental_r1_jax.runs.run_folder import check_run_folder
from mental_r1_jax.training import checkpoint
from tests.faults.runs import LIKE, make_checkpoints
from tests.faults.test_recipes import GOOD


def below_a_file(folder: Path) -> Path:
    (folder / "file").write_text("mine")
    return folder / "file" / "run"


def a_file(folder: Path) -> Path:
    (folder / "file").write_text("mine")
    return folder / "file"


def a_broken_link(folder: Path) -> Path:
    (folder / "link").symlink_to(folder / "nowhere" / "else")
    return folder / "link"


PATHS: dict[str, Callable[[Path], Path]] = {
    "a file": a_file,
    "below a file": below_a_file,
    "a broken link": a_broken_link,
    "300 characters": lambda folder: folder / ("x" * 300),
    "5000 characters": lambda folder: folder / ("y" * 5000),
    "NUL": lambda folder: folder / "a\0b",
}


def error_of_a_command(work: Callable[[], object], monkeypatch, capsys) -> str:
    """What the command line prints where its verb does `work`; the status must be 2."""
    monkeypatch.setattr(cli, "_run", lambda **arguments: work())
    assert cli.main(["train", "recipe.yaml"]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: ") and errors.count("\n") == 1
    return errors


@pytest.mark.parametrize("kind", PATHS)
def test_what_the_system_refuses_is_one_error_with_the_path(
    kind: str, tmp_path: Path, monkeypatch, capsys
) -> None:
    path = PATHS[kind](tmp_path)
    message = error_of_a_command(
        lambda: path.mkdir(parents=True, exist_ok=True), monkeypatch, capsys
    )
    assert "NUL" in message if kind == "NUL" else str(path)[:60] in message
    assert len(message) < 600


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/run/metrics.jsonl"),
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        ValueError("RESOURCE_EXHAUSTED: Error writing: No space left on device"),
        RuntimeError("[Errno 122] Disk quota exceeded"),
        PermissionError(errno.EACCES, "Permission denied", "/run"),
        OSError(errno.EROFS, "Read-only file system", "/run"),
    ],
    ids=str,
)
def test_a_full_disk_is_one_error_whoever_reports_it(error, monkeypatch, capsys) -> None:
    def work() -> None:
        raise error

    message = error_of_a_command(work, monkeypatch, capsys)
    assert (error.strerror if isinstance(error, OSError) else "on device") in message or (
        "quota" in message
    )


FULL_DISK = """
import resource, sys
from pathlib import Path
from mental_r1_jax import cli

def work(**arguments):
    cli.quiet_writers()
    import jax.numpy as jnp, numpy as np
    from mental_r1_jax.training import checkpoint
    from mental_r1_jax.training.train_step import TrainState
    values = np.random.default_rng(0).standard_normal((6, 40_000)).astype(np.float32)
    weights = {f"w{i}": jnp.asarray(value) for i, value in enumerate(values)}
    state = TrainState(jnp.int32(1), weights, {"mu": weights})
    with checkpoint.open_checkpoints(Path(sys.argv[1])) as manager:
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, resource.RLIM_INFINITY))
        checkpoint.save(manager, 1, state, {"step": 1})

cli._run = work
sys.exit(cli.main(["train", "recipe.yaml"]))
"""


def test_a_disk_that_fills_while_a_checkpoint_is_written_is_one_line(tmp_path: Path) -> None:
    """No file may grow beyond 30,000 bytes; Orbax and tensorstore write in threads of their own.

    In a process of its own, for what is printed depends on who has imported absl before, and some
    of it comes when the process ends.
    """
    folder = tmp_path / "checkpoints"
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, folder],
        capture_output=True,
        text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        timeout=300,
    )
    assert done.returncode == 2
    assert "File too large" in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert not (folder / "1").exists()


@pytest.mark.parametrize("logger", ["absl", "asyncio"])
@pytest.mark.parametrize("file", ["site-packages/orbax/checkpoint/path.py", "mine.py"])
def test_only_what_orbax_raises_again_is_not_logged(logger: str, file: str) -> None:
    """asyncio tells of a write that failed after another one, with the traceback of its thread."""
    try:
        exec(compile("raise OSError(28, 'No space left on device')", file, "exec"))
    except OSError as error:
        trace = error.with_traceback(error.__traceback__.tb_next)
    exc_info = (OSError, trace, trace.__traceback__)
    never = "Future exception was never retrieved"
    record = logging.LogRecord(logger, logging.ERROR, "events.py", 1, never, (), exc_info)
    assert cli._is_news(record) is (file == "mine.py")
    assert cli._is_news(logging.LogRecord(logger, logging.ERROR, file, 1, never, (), None))
    # What tensorstore sets on a future has never been raised in Python.
    unraised = (ValueError, ValueError("OUT_OF_RANGE: Error writing"), None)
    record = logging.LogRecord(logger, logging.ERROR, "events.py", 1, never, (), unraised)
    assert cli._is_news(record) is (logger == "absl")


def test_other_errors_keep_their_traceback(monkeypatch) -> None:
    for error in (FileNotFoundError(errno.ENOENT, "gone", "x"), ValueError("a bug"), KeyError("x")):
        assert mistake_of_surroundings(error) is None

    def work(**arguments: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(cli, "_run", work)
    with pytest.raises(ZeroDivisionError):
        cli.main(["train", "recipe.yaml"])


@pytest.mark.parametrize("kind", ["below a file", "a broken link", "300 characters"])
@pytest.mark.parametrize("verb", ["train", "sft", "evaluate", "export"])
def test_an_impossible_output_is_refused_before_any_work(
    verb: str, kind: str, tmp_path: Path, monkeypatch
) -> None:
    job = importlib.import_module(f"mental_r1_jax.jobs.{verb}")
    # What reads the model and the data is not there to be called.
    opens = {"train": "open_training_run", "sft": "open_start_model"}.get(verb, "open_model")
    monkeypatch.setattr(job, opens, None)
    path = PATHS[kind](tmp_path)
    key = f"{verb}.output_dir" if verb in ("evaluate", "export") else "run.output_dir"
    before = sorted(tmp_path.iterdir())
    with pytest.raises(OSError) as refused:
        job.run(parse_config(GOOD, [f"{key}={path}"], source="recipe.yaml"))
    assert mistake_of_surroundings(refused.value) is not None
    assert sorted(tmp_path.iterdir()) == before


def test_the_check_of_a_folder_leaves_nothing(tmp_path: Path) -> None:
    check_writable(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mine").write_text("mine")
    check_writable(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_an_evaluation_is_not_written_into_a_foreign_folder(tmp_path: Path) -> None:
    check_report_folder(tmp_path / "new")
    check_report_folder(tmp_path)
    (tmp_path / "metrics.json.tmp").write_text("{")  # what a kill may leave
    check_report_folder(tmp_path)
    (tmp_path / "model.safetensors").write_text("weights")
    with pytest.raises(UserError, match="holds no evaluation.*nothing was touched"):
        check_report_folder(tmp_path)
    (tmp_path / REPORT_FILE).write_text("ours")
    check_report_folder(tmp_path)


def test_only_what_an_export_left_is_removed(tmp_path: Path) -> None:
    new, retired = tmp_path / "new", tmp_path / ".hf.retired"
    new.mkdir()
    retired.mkdir()
    (retired / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="in the way.*nothing was touched"):
        put_in_place(new, tmp_path / "hf")
    assert (retired / "thesis.txt").exists() and new.exists()
    (retired / MARKER).write_text("{}")
    put_in_place(new, tmp_path / "hf")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf"]


@pytest.mark.parametrize("name", ["a b", "a'b", 'a"b', "a\nb", "a*b", "a?b", "a%20b#c"])
def test_checkpoints_are_read_from_folders_of_any_name(name: str, tmp_path: Path) -> None:
    run = tmp_path / name
    run.mkdir()
    make_checkpoints(run, {1: None})
    assert checkpoint.restore_params(run, "best", LIKE)[0] == 1


def test_a_bracket_in_the_path_of_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="bracket"):
        check_run_folder(tmp_path / "a [b]" / "run", None)
    assert list(tmp_path.iterdir()) == []
