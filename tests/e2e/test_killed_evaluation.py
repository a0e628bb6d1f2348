"""An evaluation killed three times and given again ends as one left alone, byte for byte."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mental_r1_jax.evaluation.kept_batches import UNFINISHED_FOLDER
from mental_r1_jax.evaluation.report import METRICS_FILE, PREDICTIONS_FILE, REPORT_FILE
from mental_r1_jax.recipe import dump_config

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_it_goes_on_after_three_kills(recipe, tmp_path: Path) -> None:
    tiny = recipe(tmp_path).model.path
    section = {"model": tiny, "include_text": True, "batch_size": 4, "limit_per_set": 60}
    section |= {"num_votes": 3, "confidence": "labels", "output_dir": "out"}
    config = recipe(tmp_path / "run", evaluate=section)
    for place in ("whole", "killed"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "recipe.yaml").write_text(dump_config(config), encoding="utf-8")

    def start(place: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "mental_r1_jax", "evaluate", "recipe.yaml"]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
        return subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, cwd=tmp_path / place
        )

    assert start("whole").wait(timeout=900) == 0
    kept = tmp_path / "killed" / "out" / UNFINISHED_FOLDER
    for batches in (2, 9, 20):  # of 30
        process = start("killed")
        while not kept.is_dir() or len(list(kept.iterdir())) < batches:
            assert process.poll() is None, "it was done before it was killed"
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        assert process.wait(timeout=60) == -signal.SIGKILL
        assert not (tmp_path / "killed" / "out" / REPORT_FILE).exists()
    assert start("killed").wait(timeout=900) == 0
    for file in (METRICS_FILE, PREDICTIONS_FILE, REPORT_FILE):
        whole = (tmp_path / "whole" / "out" / file).read_bytes()
        assert (tmp_path / "killed" / "out" / file).read_bytes() == whole, file
    assert not kept.exists()
