"""Addresses, copies up and down, the lock object, and damaged steps, against the stand-in."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from etils import epath

from mental_r1_jax import addresses
from mental_r1_jax import bucket as buckets
from mental_r1_jax.errors import UserError
from mental_r1_jax.release.hf_folder import MARKER, check_target
from mental_r1_jax.runs.object_lock import object_lock
from mental_r1_jax.runs.run_lock import LOCK_FILE, describe_process
from mental_r1_jax.training import checkpoint
from mental_r1_jax.training.damage import sound_steps
from tests.buckets.runs import ADDRESS
from tests.buckets.stand_in import Bucket
from tests.faults.runs import LIKE, state_of

RUN = "runs/first"


def no_wait(seconds: float) -> None:
    raise AssertionError("on one machine nobody needs to wait")


def run_folder() -> Path:
    return addresses.training_folder(ADDRESS)


def test_an_address_is_read_off_its_folders_again() -> None:
    folder = run_folder()
    assert addresses.address_of(folder) == ADDRESS
    assert addresses.address_of(folder / "evaluation" / "test") == f"{ADDRESS}/evaluation/test"
    reader = addresses.reading_folder(folder)
    assert reader != folder and addresses.address_of(reader) == ADDRESS
    assert addresses.reading_folder(reader) == reader
    # A run inside another one's address has a folder outside.
    inner = addresses.training_folder(f"{ADDRESS}/inner")
    assert not inner.is_relative_to(folder)
    assert addresses.address_of(Path("runs/first")) is None


@pytest.mark.parametrize(
    "wrong", ["gs://", "gs://bucket", "gs://bucket/", "gs://b/x//y", "gs://b/../y", "gs://b/x[1]"]
)
def test_what_is_no_folder_in_a_bucket_is_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match="gs://BUCKET/RUN"):
        addresses.training_folder(wrong)


def test_files_go_up_where_they_changed_and_come_down_as_they_are(bucket: Bucket) -> None:
    folder, copies = run_folder(), buckets.Copies(run_folder())
    copies.fetch()
    for name in ("metrics.jsonl", "completions/a", "run.lock", "x.partial", ".hf.partial/w"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"first {name}")
    copies.push()
    assert bucket.names() == [f"{RUN}/completions/a", f"{RUN}/metrics.jsonl"]
    before = bucket.objects[f"{RUN}/completions/a"].generation
    with (folder / "metrics.jsonl").open("a") as stream:
        stream.write(", more")
    copies.push()
    assert bucket.objects[f"{RUN}/metrics.jsonl"].content == b"first metrics.jsonl, more"
    assert bucket.objects[f"{RUN}/completions/a"].generation == before

    bucket.put(f"{RUN}/checkpoints/1/params/w", b"stays there")
    bucket.put(f"{RUN}/config.yaml", b"newer")
    (folder / "metrics.jsonl").write_text("what no checkpoint knows of")
    (folder / "completions" / "b").write_text("the same")
    later = buckets.Copies(folder)
    later.fetch()
    assert (folder / "metrics.jsonl").read_text() == "first metrics.jsonl, more"
    assert (folder / "config.yaml").read_text() == "newer"
    assert not (folder / "completions" / "b").exists() and not (folder / "checkpoints").exists()
    assert (folder / "metrics.jsonl").stat().st_mode & 0o077 == 0
    generations = {name: stored.generation for name, stored in bucket.objects.items()}
    later.push()
    assert {name: stored.generation for name, stored in bucket.objects.items()} == generations
    (folder / "completions" / "a").unlink()
    later.push()
    assert f"{RUN}/completions/a" not in bucket.objects


def test_a_reader_leaves_alone_what_is_under_way(bucket: Bucket) -> None:
    bucket.put(f"{RUN}/config.yaml", b"x")
    folder = buckets.opened(ADDRESS)
    for name in ("evaluation/test/unfinished/batch.json", "evaluation/old/metrics.json"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text("{}")
    assert buckets.opened(ADDRESS) == folder
    assert (folder / "evaluation/test/unfinished/batch.json").exists()
    assert not (folder / "evaluation/old/metrics.json").exists()
    with pytest.raises(UserError, match="there is no run at gs://bucket/runs/other"):
        buckets.opened("gs://bucket/runs/other")


def test_an_export_replaces_nothing_in_a_bucket_but_an_export(bucket: Bucket) -> None:
    target = run_folder() / "hf"
    check_target(target)
    foreign = bucket.put(f"{RUN}/hf/thesis.txt", b"mine")
    with pytest.raises(UserError, match=f"{ADDRESS}/hf exists and was not made by"):
        check_target(target)
    assert bucket.objects[f"{RUN}/hf/thesis.txt"] == foreign
    bucket.put(f"{RUN}/hf/{MARKER}", b"{}")
    check_target(target)


def test_without_gcsfs_one_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(UserError, match=r"pip install 'mental-r1-jax\[gcs\]'"):
        buckets.opened(ADDRESS)


def test_a_second_process_gets_one_error_and_a_killed_one_holds_nothing(bucket: Bucket) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from mental_r1_jax.runs.object_lock import object_lock\n"
        "with object_lock(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(run_folder())]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(UserError, match=f"at work in {ADDRESS}.*process {other.pid} on"):
            with object_lock(run_folder(), no_wait):
                pass
        other.kill()
    assert bucket.names() == [f"{RUN}/{LOCK_FILE}"]
    with object_lock(run_folder(), no_wait):
        held = json.loads(bucket.objects[f"{RUN}/{LOCK_FILE}"].content)
        assert held["pid"] != other.pid
    assert bucket.names() == []


def test_an_owner_elsewhere_is_alive_while_its_heart_beats(bucket: Bucket) -> None:
    def leave(beat: int) -> None:
        owner = describe_process() | {"machine": "another", "host": "far-away", "token": "t"}
        bucket.put(f"{RUN}/{LOCK_FILE}", json.dumps(owner | {"beat": beat}).encode())

    leave(1)
    with pytest.raises(UserError, match=f"far-away.*remove {ADDRESS}/run.lock"):
        with object_lock(run_folder(), lambda seconds: leave(2)):
            pass
    waited: list[float] = []
    with object_lock(run_folder(), waited.append):
        assert sum(waited) == 60
    assert bucket.names() == []


def test_a_heartbeat_replaces_no_lock_but_its_own(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mental_r1_jax.runs import run_lock

    monkeypatch.setattr(run_lock, "BEAT_SECONDS", 0.05)
    # `capsys` loses what a thread prints while it is being read.
    err = io.StringIO()
    monkeypatch.setattr(sys, "stderr", err)
    name = f"{RUN}/{LOCK_FILE}"
    with object_lock(run_folder(), no_wait):
        beats: set[int] = set()
        until = time.monotonic() + 30
        while len(beats) < 3 and time.monotonic() < until:
            beats.add(json.loads(bucket.objects[name].content)["beat"])
        theirs = bucket.put(name, b'{"pid": 1, "token": "theirs"}')
        while "is not ours any more" not in err.getvalue() and time.monotonic() < until:
            time.sleep(0.01)
    assert len(beats) >= 3 and "is not ours any more" in err.getvalue()
    assert bucket.objects[name] == theirs


def save(steps: list[int]) -> epath.Path:
    place = buckets.checkpoints_of(run_folder())
    with checkpoint.open_checkpoints(place) as manager:
        for step in steps:
            checkpoint.save(manager, step, state_of(step), {"step": step}, None)
    return place


@pytest.mark.slow
def test_a_damaged_step_is_set_aside_and_the_one_before_is_used(
    bucket: Bucket, capsys: pytest.CaptureFixture[str]
) -> None:
    place = save([1, 2])
    assert str(place) == f"{ADDRESS}/checkpoints"
    name = f"{RUN}/checkpoints/2/params/_METADATA"
    bucket.put(name, bucket.objects[name].content[:-1] + b"x")
    there = [other.removeprefix(f"{RUN}/checkpoints/2/") for other in bucket.names(name[:-17])]
    step, params = checkpoint.restore_params(run_folder(), "latest", LIKE)
    assert (step, float(params["w"][0])) == (1, 1.0)
    assert f"set aside as {ADDRESS}/damaged_checkpoints/2" in capsys.readouterr().err
    assert not bucket.names(f"{RUN}/checkpoints/2/")
    aside = f"{RUN}/damaged_checkpoints/2/"
    assert [other.removeprefix(aside) for other in bucket.names(aside)] == there


@pytest.mark.slow
def test_a_step_that_was_half_removed_does_not_count(bucket: Bucket) -> None:
    place = save([1, 2])
    del bucket.objects[f"{RUN}/checkpoints/2/commit_success.txt"]
    assert sound_steps(place) == [1]


def test_a_failed_copy_is_a_failed_save(bucket: Bucket) -> None:
    """So a committed step is never newer than the files in the bucket."""

    def out_of_reach() -> None:
        assert not bucket.names(f"{RUN}/checkpoints/1/commit_success.txt")
        raise OSError("the network is gone")

    place = buckets.checkpoints_of(run_folder())
    with pytest.raises(OSError, match="the network is gone"):
        with checkpoint.open_checkpoints(place, before_commit=out_of_reach) as manager:
            checkpoint.save(manager, 1, state_of(1), {"step": 1}, None)
    assert sound_steps(place) == []
