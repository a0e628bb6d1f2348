import json
import math
import sys
import types
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mental_r1_jax.errors import UserError
from mental_r1_jax.rl.masking import Max, Min, Sum, SumWeight
from mental_r1_jax.training import metrics as m


def open_jsonl(folder):
    return m.open_writers(folder, tensorboard=False, config={})


def steps(path):
    return [line["step"] for line in m.read_metrics(path)]


def test_each_reduction_becomes_its_number():
    numbers = m.scalars(
        {
            "mean": SumWeight(sum=jnp.float32(3.0), weight=jnp.float32(4.0)),
            "total": Sum(jnp.float32(2.5)),
            "largest": Max(jnp.float32(7.0)),
            "smallest": Min(jnp.float32(-7.0)),
            "array": jnp.float32(0.5),
            "one": np.array([1.5]),
            "count": 3,
            "plain": 0.25,
        }
    )
    assert numbers == {
        "mean": 0.75,
        "total": 2.5,
        "largest": 7.0,
        "smallest": -7.0,
        "array": 0.5,
        "one": 1.5,
        "count": 3.0,
        "plain": 0.25,
    }
    assert all(type(number) is float for number in numbers.values())


def test_mean_agrees_with_the_reduction_types_own_value():
    mean = SumWeight(sum=jnp.float32(0.1), weight=jnp.float32(3.0))
    # The type divides in float32, the writer in float64: they differ by float32 rounding.
    assert m.scalars({"x": mean})["x"] == pytest.approx(float(mean.value), rel=1e-6)


def test_all_metrics_come_in_one_transfer(monkeypatch):
    calls = []
    get = jax.device_get
    monkeypatch.setattr(jax, "device_get", lambda tree: calls.append(1) or get(tree))
    m.scalars({name: SumWeight(sum=jnp.float32(1), weight=jnp.float32(2)) for name in "abcdef"})
    assert len(calls) == 1


def test_broken_numbers_stay_visible():
    numbers = m.scalars(
        {
            "nothing": SumWeight(sum=jnp.float32(0), weight=jnp.float32(0)),
            "broken": SumWeight(sum=jnp.float32(jnp.nan), weight=jnp.float32(2)),
            "empty maximum": Max(jnp.float32(-jnp.inf)),
        }
    )
    assert math.isnan(numbers["nothing"])
    assert math.isnan(numbers["broken"])
    assert numbers["empty maximum"] == -math.inf


def test_an_array_is_not_a_metric():
    with pytest.raises(ValueError, match=r"'entropies': expected one number, got shape \(2,\)"):
        m.scalars({"entropies": jnp.ones(2)})


def test_every_line_is_valid_json_and_reads_back(tmp_path):
    values = {"nan": math.nan, "up": math.inf, "down": -math.inf, "reward": 0.1}
    with open_jsonl(tmp_path) as writers:
        writers.write(1, values)
        writers.write(2, {"reward": np.float64(0.5), "count": 3})

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    lines = (tmp_path / m.METRICS_FILE).read_text().splitlines()
    first = json.loads(lines[0], parse_constant=refuse)
    assert first == {"step": 1, "nan": "NaN", "up": "Infinity", "down": "-Infinity", "reward": 0.1}
    back = m.read_metrics(tmp_path / m.METRICS_FILE)[0]
    assert math.isnan(back["nan"])
    assert (back["up"], back["down"], back["reward"]) == (math.inf, -math.inf, 0.1)
    assert json.loads(lines[1]) == {"step": 2, "reward": 0.5, "count": 3.0}


def test_a_line_is_on_disk_as_soon_as_it_is_written(tmp_path):
    writers = open_jsonl(tmp_path)
    writers.write(1, {"reward": 1.0})
    assert steps(tmp_path / m.METRICS_FILE) == [1]
    # A mounted bucket stores a file when it is closed.
    opened = {Path(link).resolve() for link in Path("/proc/self/fd").iterdir()}
    assert (tmp_path / m.METRICS_FILE).resolve() not in opened
    writers.close()


def test_resumed_file_equals_that_of_an_uninterrupted_run(tmp_path):
    def write_steps(folder, numbers):
        with open_jsonl(folder) as writers:
            for step in numbers:
                writers.write(step, {"reward": step / 3})
                if step % 2 == 0:
                    writers.write(step, {"eval/average/weighted_f1": step / 7})

    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    write_steps(straight, range(1, 9))
    write_steps(resumed, range(1, 7))  # killed after step 6; the last checkpoint is that of step 4
    with (resumed / m.METRICS_FILE).open("a") as file:
        file.write('{"step": 7, "rewa')
    m.truncate_after(resumed / m.METRICS_FILE, 4)
    assert steps(resumed / m.METRICS_FILE) == [1, 2, 2, 3, 4, 4]
    write_steps(resumed, range(5, 9))
    assert (resumed / m.METRICS_FILE).read_bytes() == (straight / m.METRICS_FILE).read_bytes()
    assert [path.name for path in resumed.iterdir()] == [m.METRICS_FILE]


def test_truncating_a_file_that_does_not_exist_is_fine(tmp_path):
    m.truncate_after(tmp_path / m.METRICS_FILE, 3)
    assert not (tmp_path / m.METRICS_FILE).exists()
    assert m.last_step(tmp_path / m.METRICS_FILE) is None


@pytest.mark.parametrize(
    ("tail", "expected"),
    [
        ('{"step": 2, "rew', [1, 3]),  # torn: cut off
        ('{"step": 2}', [1, 2, 3]),  # whole but for its newline: kept
        ("2", [1, 3]),  # valid JSON, but the torn start of nothing we write
        ("", [1, 3]),
    ],
)
def test_last_line_torn_by_a_crash_is_mended_on_reopening(tmp_path, tail, expected):
    path = tmp_path / m.METRICS_FILE
    path.write_text('{"step": 1}\n' + tail)
    with open_jsonl(tmp_path) as writers:
        writers.write(3, {})
    assert steps(path) == expected


def test_a_foreign_line_is_named(tmp_path):
    path = tmp_path / m.METRICS_FILE
    path.write_text('{"step": 1}\n{"loss": 2}\n{"step": 3}\n')
    with pytest.raises(UserError, match=r"metrics.jsonl, line 2.*step"):
        m.truncate_after(path, 3)
    assert len(path.read_text().splitlines()) == 3


def test_tensorboard_files_hold_the_scalars_and_disown_what_was_cut(tmp_path):
    from tensorboardX.proto.event_pb2 import Event, SessionLog
    from tensorboardX.record_writer import RecordWriter

    assert RecordWriter  # the writer whose framing is undone below

    def events(path):
        content, events = path.read_bytes(), []
        while content:
            size = int.from_bytes(content[:8], "little")  # length, its CRC, record, its CRC
            events.append(Event.FromString(content[12 : 12 + size]))
            content = content[16 + size :]
        return events

    def run(numbers):
        with m.open_writers(tmp_path, tensorboard=True, config={}) as writers:
            for step in numbers:
                writers.write(step, {"reward": step / 2})

    run([1, 2, 3])
    first = set((tmp_path / m.TENSORBOARD_FOLDER).iterdir())
    values = {
        (event.step, value.tag, value.simple_value)
        for path in first
        for event in events(path)
        for value in event.summary.value
    }
    assert values == {(1, "reward", 0.5), (2, "reward", 1.0), (3, "reward", 1.5)}
    m.truncate_after(tmp_path / m.METRICS_FILE, 2)
    run([3])
    new = set((tmp_path / m.TENSORBOARD_FOLDER).iterdir()) - first
    starts = [
        event.step
        for path in new or first
        for event in events(path)
        if event.session_log.status == SessionLog.START
    ]
    assert starts[-1] == 3


TRACKERS = {"wandb": "id", "trackio": "name"}  # what each calls the run


class TrackedRun:
    """What a tracker's `init` returns; `told` collects what it hears."""

    def __init__(self, told: list[Any]) -> None:
        self.told = told

    def log(self, metrics: Any, step: int) -> None:
        self.told.append((step, metrics))

    def finish(self) -> None:
        self.told.append("finished")


def fake_tracker(monkeypatch: Any, package: str) -> tuple[list[dict[str, Any]], list[Any]]:
    """What `init` was given, and what the runs were told."""
    inits: list[dict[str, Any]] = []
    told: list[Any] = []
    fake = types.ModuleType(package)
    fake.init = lambda **options: inits.append(options) or TrackedRun(told)
    monkeypatch.setitem(sys.modules, package, fake)
    return inits, told


@pytest.mark.parametrize("package", TRACKERS)
def test_a_missing_tracker_is_a_clear_error_and_leaves_nothing_open(tmp_path, monkeypatch, package):
    """Also where another tracker was opened before it."""
    told = []
    for other in set(TRACKERS) - {package}:
        _, told = fake_tracker(monkeypatch, other)
    monkeypatch.setitem(sys.modules, package, None)
    projects = {f"{name}_project": "p" for name in TRACKERS}
    with pytest.raises(UserError, match=rf"{package}.*pip install"):
        m.open_writers(tmp_path, tensorboard=True, config={}, **projects)
    assert told == ["finished"] * (package == "trackio")
    assert not (tmp_path / m.METRICS_FILE).exists()


@pytest.mark.parametrize("package", TRACKERS)
def test_a_tracker_gets_config_and_metrics_and_resumes_the_same_run(tmp_path, monkeypatch, package):
    inits, told = fake_tracker(monkeypatch, package)
    for step in (1, 2):
        with m.open_writers(
            tmp_path, tensorboard=False, config={"seed": 1}, **{f"{package}_project": "p"}
        ) as writers:
            writers.write(step, {"reward": 0.5})
    name = TRACKERS[package]
    assert [init[name] for init in inits] == [inits[0][name]] * 2 and len(inits[0][name]) == 12
    assert inits[0]["project"] == "p" and inits[0]["config"] == {"seed": 1}
    assert {init["resume"] for init in inits} == {"allow"}
    assert told == [(1, {"reward": 0.5}), "finished", (2, {"reward": 0.5}), "finished"]


def test_trackers_are_imported_only_when_asked_for():
    """In a fresh process: another test may have imported them here."""
    import subprocess

    code = (
        "import sys, pathlib, tempfile; from mental_r1_jax.training import metrics as m\n"
        "m.open_writers(pathlib.Path(tempfile.mkdtemp()), tensorboard=False,"
        " config={}).close()\n"
        "print('loaded:', *sorted({'tensorboardX', 'wandb', 'trackio'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "loaded:"


def test_sound_lines_of_a_damaged_file_are_read_and_the_others_are_counted(tmp_path):
    path = tmp_path / m.METRICS_FILE
    assert m.read_sound_metrics(path) == ([], ["there is no metrics.jsonl"])
    with open_jsonl(tmp_path) as writers:
        writers.write(1, {"reward": 0.5})
        writers.write(2, {"reward": math.inf})
    whole = [{"step": 1, "reward": 0.5}, {"step": 2, "reward": math.inf}]
    assert m.read_sound_metrics(path) == (whole, [])
    before = path.read_bytes()
    path.write_bytes(b"\xff\n" + before + b'{"reward": 1}\n{"step": 3, "rew')
    lines, notes = m.read_sound_metrics(path)
    assert lines == whole
    assert notes == [
        "metrics.jsonl: lines that cannot be read and are left out: 3 of 5, the first is line 1"
    ]
    path.write_bytes(b"")
    assert m.read_sound_metrics(path) == ([], ["metrics.jsonl is empty"])
