"""One process for a run folder; the lock of a killed one is recognised, here and from elsewhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mental_r1_jax.errors import UserError
from mental_r1_jax.runs import run_lock as locks
from mental_r1_jax.runs.run_lock import LOCK_FILE, describe_process, run_lock
from mental_r1_jax.training import damage


def leave(folder: Path, **changes: Any) -> None:
    """A lock as this process would leave it, with some things changed."""
    owner = describe_process() | {"token": "theirs", "beat": 3} | changes
    (folder / LOCK_FILE).write_text(json.dumps(owner), encoding="utf-8")


def no_wait(seconds: float) -> None:
    raise AssertionError("on one machine nobody needs to wait")


def test_a_second_process_gets_one_error_and_the_first_goes_on(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from mental_r1_jax.runs.run_lock import run_lock\n"
        "with run_lock(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(UserError, match=f"at work in .*process {other.pid} on"):
            with run_lock(tmp_path, no_wait):
                pass
        other.kill()
    assert (tmp_path / LOCK_FILE).exists()  # that is what a kill leaves
    with run_lock(tmp_path, no_wait):
        assert json.loads((tmp_path / LOCK_FILE).read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "changes", [{"started": "1"}, {"pid": 2**22 + 1}, {"started": ""}], ids=str
)
def test_a_reused_or_vanished_process_id_holds_nothing(tmp_path: Path, changes) -> None:
    leave(tmp_path, **changes)
    with run_lock(tmp_path, no_wait):
        pass
    assert list(tmp_path.iterdir()) == []


def test_an_owner_on_another_machine_is_alive_while_its_heart_beats(tmp_path: Path) -> None:
    leave(tmp_path, machine="another", host="far-away")
    waited: list[float] = []

    def beat_at_last(seconds: float) -> None:
        waited.append(seconds)
        leave(tmp_path, machine="another", host="far-away", beat=3 + len(waited) // 4)

    with pytest.raises(UserError, match="far-away.*remove .*run.lock"):
        with run_lock(tmp_path, beat_at_last):
            pass
    assert len(waited) == 4 and (tmp_path / LOCK_FILE).exists()


@pytest.mark.parametrize("content", ["far away", "", "[1]", '{"pid": "x"}'])
def test_a_silent_owner_on_another_machine_is_dead(tmp_path: Path, content: str) -> None:
    if content == "far away":
        leave(tmp_path, machine="another")
    else:
        (tmp_path / LOCK_FILE).write_text(content)
    waited: list[float] = []
    with run_lock(tmp_path, waited.append):
        pass
    assert sum(waited) == locks.SILENCE_SECONDS


def test_the_heart_beats_and_a_lock_of_another_is_never_removed(
    tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(locks, "BEAT_SECONDS", 0.01)
    beats: set[int] = set()
    with run_lock(tmp_path):
        while len(beats) < 3:
            beats.add(json.loads((tmp_path / LOCK_FILE).read_text())["beat"])
    with run_lock(tmp_path):
        monkeypatch.setattr(locks, "BEAT_SECONDS", 60.0)
        leave(tmp_path)
    assert json.loads((tmp_path / LOCK_FILE).read_text())["token"] == "theirs"


def test_readers_know_the_lock_by_its_name() -> None:
    assert damage._LOCK_FILE == LOCK_FILE


def test_the_lock_of_a_faster_process_is_put_back(tmp_path: Path) -> None:
    leave(tmp_path, token="faster")
    locks._FileLock(tmp_path / LOCK_FILE).retire(describe_process() | {"token": "dead", "beat": 0})
    assert json.loads((tmp_path / LOCK_FILE).read_text())["token"] == "faster"
