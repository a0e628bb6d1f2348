"""Run the tasks of a study as processes of their own, and remember which have ended well.

A task that ended well leaves a record with the hash of its recipe. The same study again skips it,
as long as the recipe is the same and what it made is there; others are started again, and `train`
and `sft` go on from their newest checkpoint by themselves.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO, Any

from mental_r1_jax.recipe import dump_config
from mental_r1_jax.study.cells import Task

COMMAND = (sys.executable, "-m", "mental_r1_jax")
_POLL_SECONDS = 0.1


@dataclass
class Outcome:
    """What became of the tasks.

    Attributes:
        failed: task -> why, with its log file.
        left_out: tasks that need a failed one.
        stopped: a signal asked to stop, so some have not been started.
    """

    failed: dict[str, str] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    stopped: bool = False


@dataclass
class _Running:
    """A started task: its process, log, and when it was started."""

    task: Task
    process: subprocess.Popen[bytes]
    log: IO[bytes]
    started: float


def log_file(folder: Path, task: str) -> Path:
    """Where the output of a task goes; a resumed one appends."""
    return folder / "logs" / f"{task}.log"


def is_done(folder: Path, task: Task) -> bool:
    """Whether `task` has ended well with the recipe it has now."""
    record = _read_record(folder, task)
    same = record is not None and record.get("recipe_sha256") == _digest(task)
    return same and task.product.exists()


def seconds_by_kind(folder: Path, tasks: Mapping[str, Task]) -> dict[str, float]:
    """Mean duration of the finished tasks of each kind, seconds of a whole process."""
    found: dict[str, list[float]] = {}
    for task in tasks.values():
        record = _read_record(folder, task)
        if record is not None and is_done(folder, task):
            found.setdefault(task.kind, []).append(float(record["seconds"]))
    return {kind: sum(all_) / len(all_) for kind, all_ in found.items()}


def run_tasks(
    tasks: Mapping[str, Task],
    folder: Path,
    *,
    processes: int,
    command: Sequence[str] = COMMAND,
    report: Callable[[str], None] = print,
) -> Outcome:
    """Run every task that is not done, each after those it needs; a failed one stops no other.

    Args:
        tasks: by name, in an order in which each comes after those it needs.
        folder: of the study; recipes, logs and records go below it.
        processes: tasks that run at the same time.
        command: what `VERB RECIPE` is appended to.
        report: called with one line for each event.
    """
    outcome = Outcome()
    done = {name for name, task in tasks.items() if is_done(folder, task)}
    waiting = [task for name, task in tasks.items() if name not in done]
    if done:
        report(f"{len(done)} of {len(tasks)} tasks were done before")
    running: list[_Running] = []
    with _stop_requests(running) as stop:
        while running or (waiting and not stop):
            _leave_out_the_hopeless(waiting, outcome, report)
            ready = [task for task in waiting if done.issuperset(task.needs)]
            for task in ready[: 0 if stop else processes - len(running)]:
                waiting.remove(task)
                report(f"[{len(tasks) - len(waiting)}/{len(tasks)}] {task.name}")
                running.append(_start(task, folder, command))
            time.sleep(_POLL_SECONDS if running else 0.0)
            for one in [one for one in running if one.process.poll() is not None]:
                running.remove(one)
                problem = _finish(one, folder)
                if problem is None:
                    done.add(one.task.name)
                elif not stop:
                    outcome.failed[one.task.name] = problem
                    report(f"FAILED {one.task.name}: {problem}")
        outcome.stopped = bool(stop)
    return outcome


def _leave_out_the_hopeless(
    waiting: list[Task], outcome: Outcome, report: Callable[[str], None]
) -> None:
    """Take out of `waiting` what needs a task that failed or was left out."""
    for task in list(waiting):
        lost = {*outcome.failed, *outcome.left_out}.intersection(task.needs)
        if lost:
            waiting.remove(task)
            outcome.left_out.append(task.name)
            report(f"left out {task.name}: it needs {', '.join(sorted(lost))}")


def _start(task: Task, folder: Path, command: Sequence[str]) -> _Running:
    """Write the recipe of a task and start its process."""
    recipe, log = folder / "recipes" / f"{task.name}.yaml", log_file(folder, task.name)
    for file in (recipe, log):
        file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(recipe, dump_config(task.config))
    arguments = [*command, task.verb, str(recipe), *task.options]
    output = log.open("ab")
    output.write(f"$ {' '.join(arguments)}\n".encode())
    output.flush()
    process = subprocess.Popen(
        arguments, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
    )
    return _Running(task, process, output, time.monotonic())


def _finish(one: _Running, folder: Path) -> str | None:
    """Write the record of a task that ended well; else say why it did not."""
    one.log.close()
    log, status = log_file(folder, one.task.name), one.process.returncode
    if status != 0:
        lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return f"status {status}, {last[:200]!r}; see {log}"
    if not one.task.product.exists():
        return f"status 0, but {one.task.product} is not there; see {log}"
    record = {"recipe_sha256": _digest(one.task), "seconds": time.monotonic() - one.started}
    file = _record_file(folder, one.task)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, json.dumps(record) + "\n")
    return None


@contextlib.contextmanager
def _stop_requests(running: list[_Running]) -> Iterator[list[int]]:
    """SIGTERM and Ctrl-C, collected in the list and passed on to the running processes."""
    requests: list[int] = []

    def request(number: int, frame: FrameType | None) -> None:
        requests.append(number)
        for one in running:
            # A terminal sends Ctrl-C to them by itself; a second signal would end them at once.
            if number == signal.SIGTERM and one.process.poll() is None:
                one.process.terminate()

    before = {number: signal.signal(number, request) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield requests
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _digest(task: Task) -> str:
    """SHA-256 (hex) over verb, options and recipe."""
    text = "\n".join([task.verb, *task.options, dump_config(task.config)])
    return hashlib.sha256(text.encode()).hexdigest()


def _record_file(folder: Path, task: Task) -> Path:
    return folder / "records" / f"{task.name}.json"


def _read_record(folder: Path, task: Task) -> dict[str, Any] | None:
    """The record of a task; None where it has not ended well yet."""
    file = _record_file(folder, task)
    if not file.is_file():
        return None
    record: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return record


def write_whole(path: Path, text: str) -> None:
    """Write the whole file or nothing."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
