"""Built sets: the same posts, never stale or half-built; no TensorFlow, no network, no noise."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from mental_r1_jax.data import tfds_builder
from mental_r1_jax.data.benchmarks import SPLITS
from mental_r1_jax.data.checked_sets import check_set
from mental_r1_jax.data.records import CheckedSet
from mental_r1_jax.data.tfds_builder import build_set, built_folder, open_set
from mental_r1_jax.errors import UserError
from tests.data.folders import MOOD, write_set

PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture
def checked(tmp_path: Path) -> CheckedSet:
    """A small valid set."""
    write_set(tmp_path / "csv", count=11)
    return check_set(tmp_path / "csv", MOOD)


def test_built_set_holds_the_posts_in_order(tmp_path: Path, checked: CheckedSet) -> None:
    folder = build_set(checked, tmp_path / "tfds")
    assert list(folder.glob("*.array_record*"))
    for split in SPLITS:
        source = open_set(folder, split)
        assert tuple(source) == checked.examples[split]
        assert source[-1] == checked.examples[split][-1]
        assert source[2:9:3] == list(checked.examples[split][2:9:3])
        with pytest.raises(IndexError, match="post 11 of 11"):
            source[11]


def test_groups_come_back_and_none_stays_none(tmp_path: Path, checked: CheckedSet) -> None:
    """An empty name is a group, too, and is not taken for none."""
    groups = ("tea drinkers", None, "", "café ☕")
    train = tuple(
        dataclasses.replace(example, group=group)
        for example, group in zip(checked.examples["train"], groups, strict=False)
    )
    grouped = dataclasses.replace(checked, examples={**checked.examples, "train": train})
    posts = open_set(build_set(grouped, tmp_path / "tfds"), "train")
    assert tuple(posts) == train
    assert [post.group for post in posts] == [*groups]


def test_built_set_is_reused_and_a_changed_one_is_not(tmp_path: Path, checked: CheckedSet) -> None:
    tfds_dir = tmp_path / "tfds"
    first = build_set(checked, tfds_dir)
    stamp = {path: path.stat().st_mtime_ns for path in first.iterdir()}
    assert build_set(checked, tfds_dir) == first
    assert {path: path.stat().st_mtime_ns for path in first.iterdir()} == stamp

    file = tmp_path / "csv" / "Mood" / "train_clean.csv"
    file.write_bytes(file.read_bytes().replace(b"tea", b"pie"))
    changed = check_set(tmp_path / "csv", MOOD)
    second = build_set(changed, tfds_dir)
    assert second != first
    assert tuple(open_set(second, "train")) == changed.examples["train"]
    assert tuple(open_set(first, "train")) == checked.examples["train"]
    assert changed.examples["train"] != checked.examples["train"]


def test_unbuilt_and_faulty_sets_are_refused(tmp_path: Path, checked: CheckedSet) -> None:
    with pytest.raises(UserError, match="has not been built"):
        open_set(built_folder(tmp_path, "Mood", checked.content_hash), "train")
    file = tmp_path / "csv" / "Mood" / "train_clean.csv"
    file.write_bytes(file.read_bytes().replace(b"Calm,", b"Clam,"))
    with pytest.raises(UserError, match="errors and cannot be built"):
        build_set(check_set(tmp_path / "csv", MOOD), tmp_path / "tfds")
    assert not (tmp_path / "tfds").exists()


def build_and_die(checked: CheckedSet, tfds_dir: Path) -> None:
    """Start to build and end the process, as a kill would, in the middle of the second split."""

    def dying(self, split):
        for index, example in enumerate(checked.examples[split]):
            if split == "validation" and index == 5:
                os._exit(9)
            record = {k: getattr(example, k) for k in ("row", "text", "label", "question")}
            yield index, record

    tfds_builder.LabelledPosts._generate_examples = dying
    build_set(checked, tfds_dir)


def test_a_killed_build_leaves_nothing_that_is_trusted(tmp_path: Path, checked: CheckedSet) -> None:
    tfds_dir = tmp_path / "tfds"
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=build_and_die, args=(checked, tfds_dir))
    process.start()
    process.join()
    assert process.exitcode == 9
    folder = built_folder(tfds_dir, "Mood", checked.content_hash)
    assert list(folder.parent.glob("incomplete.*"))
    assert not folder.exists()
    with pytest.raises(UserError, match="has not been built"):
        open_set(folder, "train")

    build_set(checked, tfds_dir)
    assert tuple(open_set(folder, "train")) == checked.examples["train"]
    assert not list(folder.parent.glob("incomplete.*"))


def test_two_processes_build_at_once(tmp_path: Path, checked: CheckedSet) -> None:
    context = multiprocessing.get_context("spawn")
    with context.Pool(2) as pool:
        folders = pool.starmap(build_set, [(checked, tmp_path / "tfds")] * 2)
    assert folders[0] == folders[1]
    assert tuple(open_set(folders[0], "test")) == checked.examples["test"]


def test_no_tensorflow_no_network_no_noise_and_a_closed_folder(
    tmp_path: Path, checked: CheckedSet
) -> None:
    script = f"""
        import socket, sys
        from pathlib import Path

        def refuse(*args, **kwargs):
            raise AssertionError("network use")

        socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
        from mental_r1_jax.data.checked_sets import check_set
        from mental_r1_jax.data.tfds_builder import build_set, open_set
        from tests.data.folders import MOOD

        root, tfds_dir = Path({str(tmp_path / "csv")!r}), Path({str(tmp_path / "tfds")!r})
        folder = build_set(check_set(root, MOOD), tfds_dir)
        assert len([e.text for e in open_set(folder, "train")]) == 11
        assert "tensorflow" not in sys.modules, "tensorflow was imported"
        assert "torch" not in sys.modules, "torch was imported"
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=PROJECT,
        env={**os.environ, "HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "tfds").stat().st_mode & 0o077 == 0
    assert not (tmp_path / "home").exists()
