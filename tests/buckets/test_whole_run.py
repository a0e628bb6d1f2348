"""A run in a bucket that is killed, and goes on elsewhere, ends as an undisturbed local one."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.buckets.runs import ADDRESS, start, write_out
from tests.buckets.stand_in import serving
from tests.chaos.runs import differences, prepare, result

pytest.importorskip("gcsfs")
OVERRIDES = ["run.num_steps=8", "run.eval_every=4", "run.tensorboard=true"]


def finish(command: subprocess.Popen[str], status: int = 0) -> str:
    output, _ = command.communicate(timeout=600)
    assert command.returncode == status, output
    return output


@pytest.mark.slow
def test_a_killed_run_goes_on_elsewhere_and_ends_as_a_local_one(tmp_path: Path) -> None:
    recipe, local = prepare(tmp_path), tmp_path / "local"
    train = ["train", str(recipe), *OVERRIDES]
    with serving() as (url, bucket):
        finish(start([*train, f"run.output_dir={local}"], url, tmp_path / "cache"))
        assert not bucket.names()

        # The first kill is in the middle of a checkpoint's arrays, the second before its commit.
        for number, deadly in enumerate(("checkpoints/4/optimizer/", "checkpoints/6/commit_")):
            cache = tmp_path / f"machine {number}"
            command = start([*train, f"run.output_dir={ADDRESS}"], url, cache)

            def kill(name: str, command=command, deadly=deadly) -> None:
                if f"first/{deadly}" in name:
                    command.kill()
                    raise ConnectionError

            bucket.on_write = kill
            finish(command, -9)
            bucket.on_write = lambda name: None
            del bucket.objects["runs/first/run.lock"]  # a minute of silence has passed
            shutil.rmtree(cache / "mental_r1_jax" / "buckets")
        output = finish(start([*train, f"run.output_dir={ADDRESS}"], url, tmp_path / "machine 2"))
        assert "resuming after step 4" in output
        assert not [name for name in bucket.names() if "run.lock" in name or ".partial" in name]

        there = write_out(bucket, ADDRESS, tmp_path / "there")
        assert differences(result(there), result(local)) == []

        # Any machine can evaluate and export it by its address alone.
        cache, reader = tmp_path / "machine 3", ["evaluate.limit_per_set=4"]
        finish(start(["evaluate", ADDRESS, *reader], url, cache))
        finish(start(["export", ADDRESS], url, cache))
        finish(start(["evaluate", str(local), *reader], url, cache))
        finish(start(["export", str(local)], url, cache))
        there = write_out(bucket, ADDRESS, tmp_path / "later")
        for name in ("evaluation/test/predictions.csv", "hf/model.safetensors"):
            assert (there / name).read_bytes() == (local / name).read_bytes()
