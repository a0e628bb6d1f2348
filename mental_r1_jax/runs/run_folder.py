"""The run folder: who may write into it, what a resumed run must agree on, and a clean stop."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils

from mental_r1_jax import hosts
from mental_r1_jax.addresses import address_of, reading_folder, shown_place
from mental_r1_jax.bucket import Copies, fetch, names_in
from mental_r1_jax.config import ExperimentConfig
from mental_r1_jax.errors import UserError
from mental_r1_jax.recipe import dump_config, load_config
from mental_r1_jax.runs.object_lock import object_lock
from mental_r1_jax.runs.run_lock import LOCK_FILE, run_lock

CONFIG_FILE = "config.yaml"

# What a run that was killed at once may have left.
_EARLIEST = (LOCK_FILE, f"{CONFIG_FILE}.partial")

# Keys that change what is kept or shown, but not the trajectory: they may differ on resume.
_FREE_SECTIONS = ("evaluate", "export", "mesh")
_FREE_KEYS = ("rewards.timeout_s", "model.lora.base")
# The length is bound too: the learning rate decays over it.
_BOUND_RUN_KEYS = ("seed", "micro_batches", "num_steps", "num_epochs")


@contextlib.contextmanager
def open_run_folder(folder: Path, config: ExperimentConfig) -> Iterator[Copies]:
    """Create the run folder, or check that the run in it is this one; writes `config.yaml`.

    Every process looks before the first one writes, so all come to the same verdict. The first one
    holds the lock of the folder for all. Of a run in a bucket every host gets what the bucket
    holds, and what is done inside is copied up at the end, whatever ends it.

    Raises:
        UserError: the folder holds something else, or a run with another configuration, or another
            process is at work in it.
    """
    check_run_folder(folder, config)
    hosts.wait_for_all("checked the run folder")
    copies = Copies(folder)
    with contextlib.ExitStack() as stack:
        if hosts.is_first():
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(object_lock(folder))
            copies.fetch()
            stack.enter_context(run_lock(folder))
        if address_of(folder) is not None:
            hosts.wait_for_all("fetched the run folder")
            if not hosts.is_first():
                copies.fetch()
            hosts.wait_for_all("have the run folder on every host")
        if hosts.is_first():
            staging = folder / f"{CONFIG_FILE}.partial"
            staging.write_text(dump_config(config), encoding="utf-8")
            staging.rename(folder / CONFIG_FILE)
            copies.push()  # before a checkpoint: without it the bucket would hold no run
            stack.callback(copies.push)
        yield copies


def check_run_folder(folder: Path, config: ExperimentConfig) -> None:
    """Refuse a folder that is not this run's, or that Orbax cannot use; nothing is touched.

    Raises:
        UserError: see `open_run_folder`.
    """
    if "[" in str(folder.absolute()):
        raise UserError(
            what=f"the path {str(folder)!r} has a bracket",
            expected="a run folder without [ in its path: Orbax would take that for a pattern, and "
            "write checkpoints that nobody can read",
            got=str(folder.absolute()),
            remedy="choose another run.output_dir",
        )
    in_bucket = address_of(folder) is not None
    seen = reading_folder(folder)
    if in_bucket:
        fetch(seen, only=CONFIG_FILE)
    file = seen / CONFIG_FILE
    if file.is_file():
        changed = _changed_keys(load_config(file), config)
        if changed:
            raise UserError(
                what=f"{shown_place(folder)} holds a run with another configuration",
                expected="the same values, so that resuming continues the same run",
                got="\n" + "\n".join(f"  - {line}" for line in changed),
                remedy="repeat the first command, or choose another run.output_dir",
            )
        return
    names = names_in(folder) if in_bucket else _names_here(folder)
    if any(name not in _EARLIEST for name in names):
        raise UserError(
            what=f"{shown_place(folder)} is not empty and holds no run",
            expected="a new folder, or the folder of a run to resume",
            got=f"{names[:5]}",
            remedy="choose another run.output_dir; nothing was touched",
        )


def _names_here(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def _changed_keys(old: ExperimentConfig, new: ExperimentConfig) -> list[str]:
    """`key: old -> new` for every key that binds the trajectory."""
    before, after = _flatten(old.model_dump(mode="json")), _flatten(new.model_dump(mode="json"))
    changed = []
    for key in sorted(before.keys() | after.keys()):
        section, _, rest = key.partition(".")
        free = (
            section in _FREE_SECTIONS
            or key in _FREE_KEYS
            or (section == "run" and rest not in _BOUND_RUN_KEYS)
        )
        if not free and before.get(key) != after.get(key):
            changed.append(f"{key}: {before.get(key)!r} -> {after.get(key)!r}")
    return changed


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


class StopSignal:
    """Turns SIGTERM, SIGHUP and Ctrl-C into a request that the loop serves between two steps.

    A second signal ends the process at once, by the system's own action: nothing is printed, and
    files that are being written do not count. Of several processes each may be told alone; JAX sees
    the SIGTERM of any, and chooses a step that all can reach. Signals that are ignored when the run
    starts (`nohup`) stay so.
    """

    def __init__(self) -> None:
        self.requested = False
        self.number = signal.SIGTERM
        self._previous: dict[signal.Signals, Any] = {}

    def reached(self, step: int) -> bool:
        """Whether to stop after `step`, the same on every process; ask once for every step."""
        if jax.process_count() > 1:
            self.requested = multihost_utils.reached_preemption_sync_point(step)
        return self.requested

    def __enter__(self) -> StopSignal:
        # Of several processes JAX itself waits for SIGTERM.
        alone = [signal.SIGTERM] if jax.process_count() == 1 else []
        for number in (*alone, signal.SIGINT, signal.SIGHUP):
            if signal.getsignal(number) != signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.number = signal.Signals(number)
        for one in self._previous:
            signal.signal(one, signal.SIG_DFL)
        if number == signal.SIGHUP:
            _forget_closed_terminal()
        # Not `print`: the signal may have come in the middle of one.
        os.write(2, f"{self.number.name}: stopping after this step\n".encode())
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            self.requested = True


def _forget_closed_terminal() -> None:
    """Let output to a terminal go nowhere: after SIGHUP there is none, and writing to it fails."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        if os.isatty(descriptor):
            os.dup2(nowhere, descriptor)
    os.close(nowhere)


def exit_if_stopped(stop: StopSignal) -> None:
    """End with the status of an ended process, so that a scheduler knows to start it again."""
    if stop.requested:
        sys.exit(128 + stop.number)
