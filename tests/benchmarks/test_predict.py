"""The comparison of `predict` with transformers, at toy size."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.benchmarks.test_step import FOLDER, run


@pytest.mark.slow
def test_both_answer_the_common_posts_and_ours_all(tmp_path: Path) -> None:
    sizes = ["--posts", "40", "--common", "12", "--rounds", "1", "--tokens", "3", "--batch", "4"]
    command = [sys.executable, FOLDER / "predict.py", *sizes, "--json", tmp_path / "out.json"]
    done = run(*command)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    (ours,), (unshared,), (theirs,) = report["runs"].values()
    assert (ours["batches"], theirs["batches"], report["all"]["batches"]) == (3, 3, 10)
    assert list(report["same_answers"].values()) == [12, 12]
    for one in (ours, unshared, theirs, report["all"]):
        assert 0 < one["bytes_at_quarters"][-1] <= one["peak_bytes"]
        assert one["rows_per_second"] > one["rows"] / one["whole_seconds"] > 0
    assert "| predict, all posts | 40 |" in done.stdout
