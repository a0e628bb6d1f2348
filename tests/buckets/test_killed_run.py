"""A run in a bucket that is killed, and goes on elsewhere, ends as an undisturbed local one."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.buckets import toy_train
from tests.buckets.runs import ADDRESS, finish, start, write_out
from tests.buckets.stand_in import Bucket, serving
from tests.chaos.runs import differences, result

pytest.importorskip("gcsfs")
TRAIN = "tests.buckets.toy_train"


def kill_at(bucket: Bucket, url: str, shared: Path, cache: Path, deadly: str) -> None:
    """Train until an object of this name is to be written, and die there."""
    command = start(TRAIN, [str(shared), ADDRESS], url, cache)

    def kill(name: str) -> None:
        if name.startswith(f"runs/first/{deadly}"):
            command.kill()
            raise ConnectionError

    bucket.on_write = kill
    finish(command, -9)
    bucket.on_write = lambda name: None
    del bucket.objects["runs/first/run.lock"]  # as after a minute of silence
    shutil.rmtree(cache / "mental_r1_jax" / "buckets")


@pytest.mark.slow
def test_a_killed_run_goes_on_elsewhere_and_ends_as_a_local_one(tmp_path: Path) -> None:
    shared, local = toy_train.prepare(tmp_path), tmp_path / "local"
    with serving() as (url, bucket):
        finish(start(TRAIN, [str(shared), str(local)], url, tmp_path / "cache"))
        assert not bucket.names()
        # In the middle of a checkpoint's arrays; then between copying up and the commit.
        kill_at(bucket, url, shared, tmp_path / "first", "checkpoints/4/optimizer/")
        kill_at(bucket, url, shared, tmp_path / "second", "checkpoints/4/commit_")
        lines = bucket.objects["runs/first/metrics.jsonl"].content.splitlines()
        assert len(lines) > 3  # more than step 2, which is the newest that counts
        output = finish(start(TRAIN, [str(shared), ADDRESS], url, tmp_path / "third"))
        assert "resuming after step 2" in output
        assert not [name for name in bucket.names() if "run.lock" in name or ".partial" in name]
        there = write_out(bucket, ADDRESS, tmp_path / "there")
    assert differences(result(there), result(local)) == []
