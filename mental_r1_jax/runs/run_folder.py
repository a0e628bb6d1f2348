"""The run folder: who may write into it, what a resumed run must agree on, and a clean stop."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils

from mental_r1_jax import hosts
from mental_r1_jax.config import ExperimentConfig
from mental_r1_jax.errors import UserError
from mental_r1_jax.recipe import dump_config, load_config

CONFIG_FILE = "config.yaml"

# Keys that change what is kept or shown, but not the trajectory: they may differ on resume.
_FREE_SECTIONS = ("evaluate", "export", "mesh")
# The length is bound too: the learning rate decays over it.
_BOUND_RUN_KEYS = ("seed", "micro_batches", "num_steps", "num_epochs")


def open_run_folder(folder: Path, config: ExperimentConfig) -> None:
    """Create the run folder, or check that the run in it is this one; writes `config.yaml`.

    Every process looks before the first one writes, so all come to the same verdict.

    Raises:
        UserError: the folder holds something else, or a run with another configuration.
    """
    _check_run_folder(folder, config)
    hosts.wait_for_all("checked the run folder")
    if hosts.is_first():
        folder.mkdir(parents=True, exist_ok=True)
        staging = folder / f"{CONFIG_FILE}.partial"
        staging.write_text(dump_config(config), encoding="utf-8")
        staging.rename(folder / CONFIG_FILE)


def _check_run_folder(folder: Path, config: ExperimentConfig) -> None:
    """Refuse a folder that is not this run's."""
    file = folder / CONFIG_FILE
    if file.is_file():
        changed = _changed_keys(load_config(file), config)
        if changed:
            raise UserError(
                what=f"{folder} holds a run with another configuration",
                expected="the same values, so that resuming continues the same run",
                got="\n" + "\n".join(f"  - {line}" for line in changed),
                remedy="repeat the first command, or choose another run.output_dir",
            )
    elif folder.is_dir() and any(folder.iterdir()):
        raise UserError(
            what=f"{folder} is not empty and holds no run",
            expected="a new folder, or the folder of a run to resume",
            got=f"{sorted(path.name for path in folder.iterdir())[:5]}",
            remedy="choose another run.output_dir; nothing was touched",
        )


def _changed_keys(old: ExperimentConfig, new: ExperimentConfig) -> list[str]:
    """`key: old -> new` for every key that binds the trajectory."""
    before, after = _flatten(old.model_dump(mode="json")), _flatten(new.model_dump(mode="json"))
    changed = []
    for key in sorted(before.keys() | after.keys()):
        section, _, rest = key.partition(".")
        free = section in _FREE_SECTIONS or (section == "run" and rest not in _BOUND_RUN_KEYS)
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
    """Turns SIGTERM and Ctrl-C into a request that the loop serves between two steps.

    A second signal is not held back, so a run that hangs can still be ended. Of several processes
    each may be told alone; JAX sees the SIGTERM of any, and chooses a step that all can reach.
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[int, Any] = {}

    def reached(self, step: int) -> bool:
        """Whether to stop after `step`, the same on every process; ask once for every step."""
        if jax.process_count() > 1:
            self.requested = multihost_utils.reached_preemption_sync_point(step)
        return self.requested

    def __enter__(self) -> StopSignal:
        if jax.process_count() > 1:
            return self
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}


def exit_if_stopped(stop: StopSignal) -> None:
    """End with the status of a terminated process, so that a scheduler knows to start it again."""
    if stop.requested:
        sys.exit(128 + signal.SIGTERM)
