"""Batches kept for an interrupted evaluation: read as they were written, or not at all."""

from __future__ import annotations

from pathlib import Path

from mental_r1_jax.data.records import Example
from mental_r1_jax.evaluation.kept_batches import UNFINISHED_FOLDER, KeptBatches
from mental_r1_jax.evaluation.metrics import Prediction

POSTS = [Example("Mood", "test", row, f"tea {row}", "Calm", "Q", "old") for row in range(2)]
LAST = {"group": "old", "probabilities": {"Calm": 0.1 + 0.2, "é": 0.7}}
PREDICTIONS = [
    Prediction(
        "Mood", 0, "Calm", None, False, True, 7, None, (None, 0.1 + 0.2), "\udcff", "tea 0", "old"
    ),
    Prediction(
        "Mood", 1, "Calm", "Calm", True, False, 9, " Calm", (1e-17, 2.0), "é\n", "tea 1", **LAST
    ),
]


def test_what_is_kept_comes_back_and_the_post_is_not_in_it(tmp_path: Path) -> None:
    keep = KeptBatches(tmp_path / "out", "a")
    key = keep.key([1, "x"])
    keep.write(key, PREDICTIONS)
    assert keep.read(key, POSTS) == PREDICTIONS
    (file,) = (tmp_path / "out" / UNFINISHED_FOLDER).iterdir()
    assert b"tea" not in file.read_bytes() and file.stat().st_mode & 0o777 == 0o600


def test_another_identity_or_batch_is_not_found(tmp_path: Path) -> None:
    keep, other = KeptBatches(tmp_path, "a"), KeptBatches(tmp_path, "b")
    keep.write(keep.key([1, "x"]), PREDICTIONS)
    for key in (other.key([1, "x"]), keep.key([1, "y"]), keep.key([1]), keep.key(["1", "x"])):
        assert keep.read(key, POSTS) is None


def test_a_damaged_batch_is_named_and_not_believed(tmp_path: Path, capsys) -> None:
    keep = KeptBatches(tmp_path, "a")
    keep.write("f" * 64, PREDICTIONS)
    (file,) = (tmp_path / UNFINISHED_FOLDER).iterdir()
    whole = file.read_bytes()
    for damaged in (b"", whole[:-1], whole.replace(b"Calm", b"Cold"), b"\xff" + whole):
        file.write_bytes(damaged)
        assert keep.read("f" * 64, POSTS) is None
        assert str(file) in capsys.readouterr().err


def test_only_what_was_kept_is_removed(tmp_path: Path) -> None:
    keep = KeptBatches(tmp_path, "a")
    keep.remove()  # nothing there
    keep.write("f" * 64, PREDICTIONS)
    (tmp_path / UNFINISHED_FOLDER / "thesis.txt").write_text("mine")
    keep.remove()
    assert [path.name for path in (tmp_path / UNFINISHED_FOLDER).iterdir()] == ["thesis.txt"]
