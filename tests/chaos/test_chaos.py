"""Two minutes of `make chaos`, and its own parts: damage is damage, and a difference is seen."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tests.chaos import damage
from tests.chaos.runs import differences, steps_of
from tests.faults.runs import make_checkpoints
from tests.hosts.cluster import ROOT


@pytest.mark.slow
def test_two_minutes_of_chaos(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.chaos", "--seconds", "120", "--seed", "5"]
    command += ["--only", "train", "--folder", str(tmp_path)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert '"train: runs that ended bit-equal"' in ended.stdout


@pytest.mark.parametrize("kind", sorted(set(damage.KINDS), key=lambda kind: kind.__name__))
def test_damage_changes_a_file(kind, tmp_path: Path) -> None:
    make_checkpoints(tmp_path, {1: None, 2: 0.5})
    step = tmp_path / "checkpoints" / "2"

    def content() -> dict[str, bytes]:
        files = (path for path in step.rglob("*") if path.is_file())
        return {str(path.relative_to(step)): path.read_bytes() for path in files}

    before = content()
    kind(step, random.Random(3))
    assert content() != before
    assert steps_of(tmp_path) == [1, 2]


def test_a_sound_checkpoint_always_remains(tmp_path: Path) -> None:
    make_checkpoints(tmp_path, {1: None, 2: None, 3: None})
    for seed in range(5):
        assert 1 not in damage.damage_newest(tmp_path, random.Random(seed))


def test_every_difference_is_seen() -> None:
    def result(**changes) -> dict:
        line = {"step": 1, "loss": float("nan"), "reward": 0.5}
        table = {"1.parquet": pa.table({"row": [1]})}
        values = {"params": _arrays(0.0), "optimizer": _arrays(1.0), "step": 1, "score": "{}"}
        values |= {"progress": "{}", "metrics": [line], "completions": table}
        return values | changes

    assert differences(result(), result()) == []
    for changes in (
        {"params": _arrays(-0.0)},  # equal as numbers, other bits
        {"optimizer": {}},
        {"step": 2},
        {"score": "{ }"},
        {"progress": ""},
        {"metrics": []},
        {"metrics": [{"step": 1, "loss": 0.0, "reward": 0.5}]},
        {"completions": {"1.parquet": pa.table({"row": [2]})}},
    ):
        assert len(differences(result(), result(**changes))) == 1, changes


def _arrays(value: float) -> dict:
    return {"['w']": np.full(3, value, np.float32)}
