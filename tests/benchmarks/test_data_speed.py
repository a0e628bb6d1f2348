"""Timing of `mental-r1 data`: in turns, by processor time, and of the checkout that is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import data_speed

# Stands for a checkout: notes how it was called, and keeps the processor busy for a while.
_PROGRAM = """
import importlib.util, sys, time
with open({log!r}, "a") as log:
    print({name!r}, importlib.util.find_spec("torch") is not None, *sys.argv[1:], file=log)
while time.process_time() < {seconds}:
    pass
sys.exit({status})
"""


def checkout(tmp_path: Path, name: str, seconds: float = 0.0, status: int = 0) -> str:
    """A folder whose package does what `_PROGRAM` says."""
    package = tmp_path / name / "mental_r1_jax"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    log = str(tmp_path / "log.txt")
    program = _PROGRAM.format(log=log, name=name, seconds=seconds, status=status)
    (package / "__main__.py").write_text(program, encoding="utf-8")
    return f"--checkout={name}={tmp_path / name}"


def test_checkouts_run_in_turns_and_their_processor_time_is_told(tmp_path: Path, capsys) -> None:
    old, new = checkout(tmp_path, "old", 0.6), checkout(tmp_path, "new")
    file = tmp_path / "report.json"
    places = ["--data=DATA", "--model=MODEL", "--recipe=R.yaml", "--rounds=2", f"--json={file}"]
    data_speed.main([old, new, *places, "--without-torch"])
    calls = [line.split() for line in (tmp_path / "log.txt").read_text().splitlines()]
    assert [call[0] for call in calls] == ["old", "new", "old", "new"]
    for call in calls:
        assert call[1:6] == ["False", "data", "R.yaml", "data.root=DATA", "model.path=MODEL"]
    assert len({call[6] for call in calls}) == 4  # each builds in a folder of its own
    figures = json.loads(file.read_text())
    assert all(run["busy"] >= 0.6 for run in figures["old"])
    assert all(run["busy"] < 0.6 and run["wall"] > 0 for run in figures["new"])
    assert "| old |" in capsys.readouterr().out


def test_the_table_shows_medians() -> None:
    runs = [{"busy": float(n), "wall": 10.0 * n, "load": 1.0} for n in (1, 9, 2)]
    assert data_speed.table({"mine": runs}).splitlines()[-1] == "| mine | 2.0 | 20.0 | 1.0 |"


def test_a_run_that_fails_ends_it(tmp_path: Path) -> None:
    broken = checkout(tmp_path, "broken", status=3)
    with pytest.raises(SystemExit, match="failed in"):
        data_speed.main([broken, "--data=D", "--model=M", "--rounds=1"])
