"""From the metrics of a step to numbers in files: JSONL always, TensorBoard and W&B on request.

`metrics.jsonl` holds one object a line, `{"step": 3, "reward": 0.25, ...}`. JSON has no numbers
that are not finite, and hiding them would show a broken run as a clean curve, so they are written
as the strings "NaN", "Infinity" and "-Infinity"; `read_metrics` turns them back into floats.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mental_r1_jax.errors import UserError
from mental_r1_jax.rl.masking import Max, Metric, Min, Sum, SumWeight

METRICS_FILE = "metrics.jsonl"
TENSORBOARD_FOLDER = "tensorboard"

# What a metric may be: a reduction type of rl/masking.py, or a plain scalar.
Scalar = Metric | jax.Array | np.ndarray | np.generic | float | int


def scalars(metrics: Mapping[str, Scalar]) -> dict[str, float]:
    """Bring all metrics to the host in one transfer and reduce each to one float.

    NaN and infinities stay what they are; a mean over nothing (weight 0) is NaN.

    Raises:
        ValueError: a metric is an array of more than one element.
    """
    return {name: _number(name, metric) for name, metric in jax.device_get(dict(metrics)).items()}


def _number(name: str, metric: Any) -> float:
    # Plain floats rather than `metric.value`, which would send the numbers to the device again.
    match metric:
        case SumWeight():
            weight = float(metric.weight)
            return float(metric.sum) / weight if weight else math.nan
        case Sum() | Max() | Min():
            metric = metric.value
    if np.size(metric) != 1:
        raise ValueError(f"metric {name!r}: expected one number, got shape {np.shape(metric)}")
    return float(np.asarray(metric).reshape(()))


class JsonlWriter:
    """Appends one JSON object a line, on disk at once; a line torn by a crash is mended first.

    The file is closed after every line: on a mounted bucket only a closed file is stored.
    """

    def __init__(self, path: Path) -> None:
        """Make `path` ready for appending."""
        path.parent.mkdir(parents=True, exist_ok=True)
        _mend_last_line(path)
        path.touch()
        self._path = path

    def write(self, step: int, metrics: Mapping[str, float | int]) -> None:
        """Append the line of one step."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(_encode(step, metrics) + "\n")

    def close(self) -> None:
        """Nothing to do: the file is closed after every line."""


class TensorboardWriter:
    """Writes TensorBoard event files; those of earlier files from `first_step` on are disowned."""

    def __init__(self, folder: Path, *, first_step: int) -> None:
        """Start a new event file in `folder`."""
        # Imported here so that runs without TensorBoard do not pay for it.
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=first_step)

    def write(self, step: int, metrics: Mapping[str, float | int]) -> None:
        """Add one scalar event a metric; a curve has a gap where its value is not finite."""
        for name, value in metrics.items():
            if math.isfinite(value):
                self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        """Flush and close the event file."""
        self._writer.close()


class TrackerWriter:
    """Hands metrics to a run of Weights & Biases or Trackio, which have the same methods."""

    def __init__(self, run: Any) -> None:
        """Own `run` from now on."""
        self._run = run

    def write(self, step: int, metrics: Mapping[str, float | int]) -> None:
        """Log the metrics of one step."""
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


def open_wandb(folder: Path, project: str, config: Mapping[str, Any]) -> TrackerWriter:
    """Start a run of Weights & Biases, or go on with the one whose id `folder` keeps.

    Raises:
        UserError: the package is missing.
    """
    try:
        import wandb
    except ImportError:
        raise _not_installed("wandb", "Weights & Biases") from None
    run_id = _kept_id(folder / "wandb_id.txt")
    return TrackerWriter(
        wandb.init(project=project, id=run_id, resume="allow", dir=str(folder), config=dict(config))
    )


def open_trackio(folder: Path, project: str, config: Mapping[str, Any]) -> TrackerWriter:
    """Start a run of Trackio, or go on with the one whose name `folder` keeps.

    It stays on this machine unless Trackio's variables say otherwise. Of steps after the checkpoint
    that is resumed from, Trackio keeps what they had said before, beside what they say now.

    Raises:
        UserError: the package is missing.
    """
    try:
        import trackio
    except ImportError:
        raise _not_installed("trackio", "Trackio") from None
    return TrackerWriter(
        trackio.init(
            project=project,
            name=_kept_id(folder / "trackio_name.txt"),
            resume="allow",
            config=dict(config),
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
    )


def _not_installed(package: str, name: str) -> UserError:
    return UserError(
        what=f"run.{package}_project is set but {name} is not installed",
        expected=f"the package `{package}`",
        got="no such package in this environment",
        remedy=f"pip install 'mental-r1-jax[{package}]', or set run.{package}_project=null",
    )


def _kept_id(file: Path) -> str:
    """The id in `file`; a new one is drawn and kept where there is none."""
    if not file.exists():
        file.write_text(uuid.uuid4().hex[:12], encoding="utf-8")
    return file.read_text(encoding="utf-8").strip()


MetricsWriter = JsonlWriter | TensorboardWriter | TrackerWriter


class Writers(contextlib.ExitStack):
    """Several writers as one; a context manager that closes them all, even if closing one fails."""

    def __init__(self, writers: Sequence[MetricsWriter]) -> None:
        """Own `writers` from now on."""
        super().__init__()
        self._writers = tuple(writers)
        for writer in self._writers:
            self.callback(writer.close)

    def write(self, step: int, metrics: Mapping[str, float | int]) -> None:
        """Record the numbers of one step everywhere."""
        for writer in self._writers:
            writer.write(step, metrics)


def open_writers(
    folder: Path,
    *,
    tensorboard: bool,
    config: Mapping[str, Any],
    wandb_project: str | None = None,
    trackio_project: str | None = None,
) -> Writers:
    """Open `folder/metrics.jsonl` and the optional trackers.

    To resume at a step, call `truncate_after(folder / METRICS_FILE, step)` first.

    Args:
        tensorboard: whether to write event files.
        config: the resolved config; only W&B and Trackio store it.
        wandb_project: Weights & Biases project, or None.
        trackio_project: Trackio project, or None.

    Raises:
        UserError: a tracker is asked for and its package is missing; nothing is left open.
    """
    folder.mkdir(parents=True, exist_ok=True)
    trackers: list[MetricsWriter] = []
    with contextlib.ExitStack() as unless_all_open:
        # Those that may be refused come first, so that nothing is written then.
        for project, opened in ((wandb_project, open_wandb), (trackio_project, open_trackio)):
            if project is not None:
                trackers.append(opened(folder, project, config))
                unless_all_open.callback(trackers[-1].close)
        unless_all_open.pop_all()
    jsonl = JsonlWriter(folder / METRICS_FILE)
    if tensorboard:
        done = last_step(folder / METRICS_FILE)
        first_step = 0 if done is None else done + 1
        trackers.append(TensorboardWriter(folder / TENSORBOARD_FOLDER, first_step=first_step))
    return Writers([jsonl, *trackers])


def truncate_after(path: Path, step: int) -> None:
    """Remove the lines of steps after `step`, so that a resumed run writes them once.

    Afterwards the file equals that of an uninterrupted run up to `step`. A missing file is fine.

    Raises:
        UserError: a line inside the file is not a metrics line, or it is no text at all.
    """
    if not path.exists():
        return
    _read_text(path)  # refused before anything is changed
    _mend_last_line(path)
    kept = [
        line
        for number, line in enumerate(_read_text(path).splitlines(keepends=True), start=1)
        if _decode(line, path, number)["step"] <= step
    ]
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text("".join(kept), encoding="utf-8")
    os.replace(temporary, path)


def read_metrics(path: Path) -> list[dict[str, float | int]]:
    """Read `metrics.jsonl` back, one dict a line; `step` is an int, all else floats.

    Raises:
        UserError: a line is not a metrics line.
    """
    lines = _read_text(path).splitlines()
    return [_decode(line, path, number) for number, line in enumerate(lines, start=1)]


def read_sound_metrics(path: Path) -> tuple[list[dict[str, float | int]], list[str]]:
    """The lines of `metrics.jsonl` that can be read, and what is to be said about the others.

    For pages about a run, which may still be at work or have been damaged. Nothing is raised: a
    file that is missing or cannot be read gives no lines and one sentence.
    """
    if not path.is_file():
        return [], [f"there is no {path.name}"]
    try:
        text = path.read_bytes().decode("utf-8", errors="replace")
    except OSError as error:
        return [], [f"{path.name} cannot be read: {error.strerror}"]
    lines, damaged = [], []
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            lines.append(_decode(line, path, number))
        except UserError:
            damaged.append(number)
    if not damaged:
        return lines, [] if lines else [f"{path.name} is empty"]
    count = f"{len(damaged)} of {len(lines) + len(damaged)}"
    return lines, [
        f"{path.name}: lines that cannot be read and are left out: {count}, the first is line "
        f"{damaged[0]}"
    ]


def last_step(path: Path) -> int | None:
    """The largest step in `metrics.jsonl`, or None when it holds none."""
    if not path.exists():
        return None
    return max((int(line["step"]) for line in read_metrics(path)), default=None)


def _read_text(path: Path) -> str:
    """The text of `path`."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            what=f"{path} cannot be read",
            expected="the metrics of the run: a text file in UTF-8",
            got=str(error),
            remedy="move it away to start a new one",
        ) from None


def _encode(step: int, metrics: Mapping[str, float | int]) -> str:
    line = {"step": step} | {name: _encode_number(value) for name, value in metrics.items()}
    return json.dumps(line, allow_nan=False)


def _encode_number(value: float | int) -> float | str:
    if math.isfinite(value):
        return float(value)
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _decode(line: str, path: Path, number: int) -> dict[str, Any]:
    try:
        values = json.loads(line)
        if not isinstance(values, dict):
            raise TypeError("no object")
        numbers = {name: float(value) for name, value in values.items()}
        return numbers | {"step": int(values["step"])}
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        raise UserError(
            what=f"{path.name}, line {number}: not a metrics line",
            expected='a JSON object of numbers with a "step"',
            got=repr(line.strip()[:80]),
            remedy="delete that line, or move the file away to start a new one",
        ) from None


def _mend_last_line(path: Path) -> None:
    """End the file with a complete line: add a missing newline, or remove a torn last line."""
    if not path.exists() or path.stat().st_size == 0:
        return
    content = path.read_bytes()
    if content.endswith(b"\n"):
        return
    head, newline, tail = content.rpartition(b"\n")
    try:
        whole = isinstance(json.loads(tail), dict)
    except (ValueError, RecursionError):
        whole = False
    with path.open("r+b") as file:
        if whole:
            file.seek(0, os.SEEK_END)
            file.write(b"\n")
        else:
            file.truncate(len(head) + len(newline))
