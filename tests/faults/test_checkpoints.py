"""A damaged checkpoint is named, set aside, and never believed; the newest sound one is used."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mental_r1_jax.errors import UserError
from mental_r1_jax.training import checkpoint
from mental_r1_jax.training.damage import sound_steps
from tests.faults.runs import LIKE, make_checkpoints, state_of


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with sound checkpoints 1 (the best), 2 and 3."""
    run = tmp_path_factory.mktemp("whole")
    make_checkpoints(run, {1: 0.9, 2: 0.5, 3: 0.1})
    return run


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    """A copy of it to damage."""
    return Path(shutil.copytree(whole, tmp_path / "run"))


def files_of(step: Path) -> list[Path]:
    return sorted(path for path in step.rglob("*") if path.is_file())


def largest(step: Path, item: str) -> Path:
    return max(files_of(step / item), key=lambda path: path.stat().st_size)


def flip(file: Path, bit: int) -> None:
    content = bytearray(file.read_bytes())
    content[bit // 8 % len(content)] ^= 1 << bit % 8
    file.write_bytes(content)


def latest(run: Path) -> tuple[int, float]:
    """Step that `evaluate`, `sample` and `export` would use, and its weights' value."""
    step, params = checkpoint.restore_params(run, "latest", LIKE)
    assert len(set(np.asarray(params["w"]).tolist())) == 1
    return step, float(params["w"][0])


def resumed(run: Path) -> int:
    """Step that `train` and `sft` would go on from."""
    sound_steps(checkpoint.absolute(run / "checkpoints"))
    with checkpoint.open_checkpoints(run / "checkpoints") as manager:
        step, state, progress = checkpoint.restore(manager, state_of(0))
    expected = state_of(step)
    np.testing.assert_array_equal(state.params["w"], expected.params["w"])
    np.testing.assert_array_equal(state.opt_state["mu"]["w"], expected.opt_state["mu"]["w"])
    assert progress == {"step": step} and int(state.num_updates) == step
    return step


DAMAGE: dict[str, Callable[[Path], None]] = {
    "bit of the weights": lambda step: flip(largest(step, "params"), 900),
    "bit of the moments": lambda step: flip(largest(step, "optimizer"), 900),
    "bit of the score": lambda step: flip(step / "metrics" / "metrics", 130),
    "bit of our manifest": lambda step: flip(step / "manifest.json", 4000),
    "truncated weights": lambda step: largest(step, "params").write_bytes(b"begin"),
    "emptied weights": lambda step: largest(step, "params").write_bytes(b""),
    "deleted moments": lambda step: largest(step, "optimizer").unlink(),
    "deleted ocdbt manifest": lambda step: (step / "params" / "manifest.ocdbt").unlink(),
    "deleted position": lambda step: shutil.rmtree(step / "progress"),
    "torn position": lambda step: (step / "progress" / "metadata").write_text('{"st'),
    "score that is no text": lambda step: (step / "metrics" / "metrics").write_bytes(b"\xff"),
    "deleted manifest": lambda step: (step / "manifest.json").unlink(),
    "torn manifest": lambda step: (step / "manifest.json").write_text('{"step": 3'),
    "manifest that is a list": lambda step: (step / "manifest.json").write_text("[1]"),
    "no description": lambda step: (step / "_CHECKPOINT_METADATA").unlink(),
    "torn description": lambda step: (step / "_CHECKPOINT_METADATA").write_text("{"),
    "emptied step": lambda step: [shutil.rmtree(step), step.mkdir()],
}


# Every kind by one of the two ways of reading, in turns; they share what they look at.
@pytest.mark.parametrize(
    ("kind", "use"), [(kind, (resumed, latest)[i % 2]) for i, kind in enumerate(DAMAGE)]
)
def test_a_damaged_step_is_named_and_set_aside_and_the_one_before_is_used(
    run: Path, kind: str, use: Callable[[Path], object], capsys: pytest.CaptureFixture[str]
) -> None:
    DAMAGE[kind](run / "checkpoints" / "3")
    there = run / "checkpoints" / "3"
    before = {path.relative_to(there) for path in files_of(there)}
    assert use(run) == ((2, 2.0) if use is latest else 2)
    (line,) = capsys.readouterr().err.splitlines()
    assert "checkpoint 3 is damaged" in line and "damaged_checkpoints/3" in line
    kept = run / "damaged_checkpoints" / "3"
    assert {path.relative_to(kept) for path in files_of(kept)} == before
    assert use(run) == ((2, 2.0) if use is latest else 2)  # and nothing more is said
    assert capsys.readouterr().err == ""


def test_every_flipped_bit_is_found(whole: Path, tmp_path: Path) -> None:
    """Forty bits anywhere in the files of a step; no one of them changes what is restored."""
    rng = np.random.default_rng(5)
    names = [path.relative_to(whole / "checkpoints") for path in files_of(whole / "checkpoints/3")]
    names = [name for name in names if name.name != "commit_success.txt"]  # holds nothing
    folder, found = tmp_path / "checkpoints", 0
    shutil.copytree(whole / "checkpoints" / "3", folder / "3")
    for number in range(40):
        file = folder / names[number % len(names)]
        content = file.read_bytes()
        flip(file, int(rng.integers(8 * len(content))))
        try:
            sound_steps(checkpoint.absolute(folder))
        except UserError as error:
            assert "is sound" in str(error) and (folder / "3").is_dir()
            found += 1
        else:
            # Of Orbax's description the time stamps may be wrong: nothing reads them.
            assert file.name == "_CHECKPOINT_METADATA"
            with checkpoint.open_checkpoints(folder) as manager:
                assert checkpoint.restore(manager, state_of(0))[0] == 3
        file.write_bytes(content)
    assert found >= 38


def test_a_step_copied_under_a_newer_number_is_not_that_step(run: Path, capsys) -> None:
    shutil.copytree(run / "checkpoints" / "1", run / "checkpoints" / "9")
    assert latest(run) == (3, 3.0)
    assert "checkpoint 9 is damaged: it is a copy of step 1" in capsys.readouterr().err


def test_the_best_is_the_best_of_the_sound_ones(run: Path, capsys) -> None:
    flip(largest(run / "checkpoints" / "1", "params"), 900)
    assert checkpoint.restore_params(run, "best", LIKE)[0] == 2
    assert "checkpoint 1 is damaged" in capsys.readouterr().err


def test_a_damaged_step_that_was_asked_for_by_number_is_an_error(run: Path) -> None:
    flip(largest(run / "checkpoints" / "2", "params"), 900)
    with pytest.raises(UserError, match=r"no checkpoint 2.*saved steps \[1, 3\]"):
        checkpoint.restore_params(run, 2, LIKE)


@pytest.mark.parametrize("use", [latest, resumed])
def test_no_sound_step_is_one_error_and_nothing_is_moved(run: Path, use) -> None:
    for step in (1, 2, 3):
        flip(largest(run / "checkpoints" / str(step), "params"), 900)
    before = files_of(run)
    for _ in range(2):  # the second time as well: the run must not begin anew unasked
        with pytest.raises(UserError, match="no checkpoint in .* is sound"):
            use(run)
    assert files_of(run) == before


def test_a_checkpoint_of_an_older_version_is_read_with_a_word(run: Path, capsys) -> None:
    make_old(run / "checkpoints" / "3")
    assert latest(run) == (3, 3.0)
    assert "no manifest (older version)" in capsys.readouterr().err
    assert resumed(run) == 3


def test_who_wants_weights_alone_may_leave_the_optimizer_behind(run: Path, capsys) -> None:
    """As a run that was fetched for its release; to train on, the step before is taken."""
    shutil.rmtree(run / "checkpoints" / "3" / "optimizer")
    assert latest(run) == (3, 3.0)
    assert capsys.readouterr().err == ""
    assert resumed(run) == 2


def test_an_old_checkpoint_that_cannot_be_read_is_one_error(run: Path) -> None:
    make_old(run / "checkpoints" / "3")
    for file in files_of(run / "checkpoints" / "3" / "params"):
        if "ocdbt" in file.name or file.parent.name == "d":
            file.write_bytes(b"")
    for use in (latest, resumed):
        with pytest.raises(UserError, match="cannot be read.*older version"):
            use(run)


def make_old(step: Path) -> None:
    """Make a step as versions without manifests left it."""
    (step / "manifest.json").unlink()
    file = step / "_CHECKPOINT_METADATA"
    metadata = json.loads(file.read_text(encoding="utf-8")) | {"custom_metadata": {}}
    file.write_text(json.dumps(metadata), encoding="utf-8")


def test_damaged_steps_do_not_count_among_those_that_are_kept(run: Path) -> None:
    largest(run / "checkpoints" / "3", "params").write_bytes(b"")
    sound_steps(checkpoint.absolute(run / "checkpoints"))
    with checkpoint.open_checkpoints(run / "checkpoints", keep=2) as manager:
        checkpoint.save(manager, 4, state_of(4), {"step": 4}, 0.2)
    steps = {path.name for path in (run / "checkpoints").iterdir() if path.is_dir()}
    assert steps == {"1", "2", "4"}  # the best one, and the two newest
    assert latest(run) == (4, 4.0)


def test_a_failed_manifest_is_a_failed_save(tmp_path: Path, monkeypatch) -> None:
    """A step whose manifest cannot be written is never committed."""

    def full_disk(folder, step):
        raise OSError(28, "No space left on device", str(folder))

    monkeypatch.setattr(checkpoint.manifest, "write_manifest", full_disk)
    with pytest.raises(OSError, match="No space left"):
        make_checkpoints(tmp_path, {1: None})
    assert not (tmp_path / "checkpoints" / "1").exists()
