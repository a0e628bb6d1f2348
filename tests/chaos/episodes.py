"""One disturbed run, from its first start to the end that the undisturbed run has."""

from __future__ import annotations

import dataclasses
import json
import random
import re
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.chaos import damage
from tests.chaos.runs import (
    STOPPERS,
    Command,
    Scenario,
    differences,
    result,
    start,
    steps_of,
)

# A command of a few seconds; a process may wait 50 s for another one that is dead.
LIMIT_SECONDS = 400
# Disturbed starts of one run; after so many it is left alone, so that it ends.
MOST_DISTURBANCES = 14


@dataclasses.dataclass
class Chaos:
    """Where and how runs are disturbed, and what was counted.

    Attributes:
        recipe: of all scenarios.
        disk: holds the run folders.
        logs: folder for the output of the commands.
        chance: all random choices.
        seconds: of an undisturbed command, by scenario.
        counts: disturbances, starts and finished runs, by name.
        faults: what should not have happened, in words.
        say: prints a line of progress.
    """

    recipe: Path
    disk: damage.SmallDisk
    logs: Path
    chance: random.Random
    seconds: dict[str, float]
    counts: Counter[str] = dataclasses.field(default_factory=Counter)
    faults: list[str] = dataclasses.field(default_factory=list)
    say: Callable[[str], None] = print
    _steps_before: set[int] = dataclasses.field(default_factory=set)
    _room: int = 0

    def undisturbed(self, scenario: Scenario) -> dict[str, Any]:
        """The run that all others must equal; the second start is timed, with compiled programs."""
        for name in ("warm", "whole"):
            run = self.disk.folder / f"{scenario.name}-{name}"
            command = start(scenario, self.recipe, run, self._logs(run.name))
            if not command.wait(LIMIT_SECONDS) or any(command.statuses()):
                raise RuntimeError(f"the undisturbed run failed:\n{command.err()[-3000:]}")
            self.seconds[scenario.name] = time.time() - command.started
            whole = result(run)
            shutil.rmtree(run)
        return whole

    def episode(self, scenario: Scenario, whole: dict[str, Any], number: int, until: float) -> None:
        """Disturb one run until it is done, and compare it with the undisturbed one."""
        run = self.disk.folder / f"{scenario.name}-{number}"
        disturbances, before = 0, len(self.faults)
        damaged: dict[int, str] = {}  # and not found yet
        while True:
            quiet = disturbances >= MOST_DISTURBANCES or time.monotonic() > until
            if not damaged and run.is_dir() and not quiet:
                damaged = self._damage(run)
            kind = "none" if quiet else self._kind()
            disturbances += 1
            command, ended = self._start(scenario, run, kind)
            self._judge(command, kind, ended, run, damaged)
            if "resuming after" in command.out():
                damaged = {}
            damaged = {step: words for step, words in damaged.items() if step in steps_of(run)}
            if len(self.faults) > before:
                kept = self.logs / f"kept-{scenario.name}-{number}"
                shutil.copytree(run, kept, dirs_exist_ok=True)
                break
            if command.statuses() == [0] * scenario.processes:
                # A run that is done may be damaged, too; then it is done once more.
                if quiet or self.chance.random() < 0.6:
                    break
        if len(self.faults) == before:
            found = differences(whole, result(run))
            self.faults += [f"{run.name} ended otherwise: {found[:8]}"] if found else []
            self.counts[f"{scenario.name}: runs that ended bit-equal"] += not found
        shutil.rmtree(run, ignore_errors=True)
        self.say(f"{run.name}: {disturbances} starts; {len(self.faults)} faults so far")

    def _kind(self) -> str:
        """Which disturbance comes next."""
        kinds = ["SIGKILL"] * 5 + ["SIGTERM", "SIGINT", "SIGHUP"] * 2 + ["twice", "full disk"]
        kinds += ["full disk", "second process", "none"]
        return self.chance.choice(kinds)

    def _damage(self, run: Path) -> dict[int, str]:
        """Damage what the last command has left, at times; returns what was done to which step."""
        if self.chance.random() < 0.2 and damage.tear_metrics(run, self.chance):
            self.counts["torn metrics"] += 1
        if len(steps_of(run)) < 2 or self.chance.random() < 0.5:
            return {}
        if self.chance.random() < 0.15:
            done = damage.copy_under_a_newer_number(run)
        else:
            done = damage.damage_newest(run, self.chance)
        for words in done.values():
            self.counts[f"damage: {words.partition(':')[0].partition(' of ')[0]}"] += 1
        return done

    def _start(self, scenario: Scenario, run: Path, kind: str) -> tuple[Command, bool]:
        """Start the command, disturb it, and wait; also returns whether it ended by itself."""
        logs = self._logs(run.name)
        self._steps_before = set(steps_of(run))
        self._room = int(10 ** self.chance.uniform(2, 6.3))
        limit = self._room if kind == "full disk" and not self.disk.is_real else None
        command = start(scenario, self.recipe, run, logs, limit)
        self.counts["starts"] += 1
        self.counts[f"disturbance: {kind}"] += 1
        if kind != "none" and limit is None:
            self._wait_for_a_moment(command, scenario, run, kind)
            self._disturb(command, scenario, run, kind)
        ended = command.wait(LIMIT_SECONDS)
        self.disk.free()
        return command, ended

    def _wait_for_a_moment(
        self, command: Command, scenario: Scenario, run: Path, kind: str
    ) -> None:
        """A random moment: of the start, of the steps, or where a checkpoint is being written."""
        lasts = self.seconds[scenario.name]
        where = self.chance.choice(("start", "steps", "steps", "writing", "writing"))
        if scenario.processes > 1 and where == "start" and kind != "SIGKILL":
            where = "steps"
        started = time.monotonic()

        def reached() -> bool:
            if where == "start" or not command.running():
                return True
            lock = run / "run.lock"
            if not lock.exists() or lock.stat().st_mtime < command.started:
                return False
            return where == "steps" or any(run.glob("checkpoints/*orbax-checkpoint-tmp*"))

        while not _tried(reached) and time.monotonic() - started < 3 * lasts + 20:
            time.sleep(0.01)
        # Python itself prints a traceback for Ctrl-C before it has come to our first line.
        wait = {"start": lambda: self.chance.uniform(1.5, lasts * 0.7)}
        wait["steps"] = lambda: self.chance.uniform(0, lasts * 0.6)
        wait["writing"] = lambda: self.chance.uniform(0, 0.3)
        until = time.monotonic() + wait[where]()
        while command.running() and time.monotonic() < until:
            time.sleep(0.01)

    def _disturb(self, command: Command, scenario: Scenario, run: Path, kind: str) -> None:
        alive = [process for process in command.processes if process.poll() is None]
        if not alive:
            self.counts["came too late"] += 1
        elif kind == "full disk":
            self.disk.fill(self._room)
        elif kind == "second process":
            other = start(scenario, self.recipe, run, self._logs(run.name + "-second"))
            ended = other.wait(LIMIT_SECONDS)
            # It may have come first, or after the end of the first one.
            both = command.running() and other.statuses()[0] != 2
            if not ended or (both and command.wait(LIMIT_SECONDS) and command.statuses()[0] != 2):
                self.faults.append(f"{run.name}: a second process ended with {other.statuses()}")
        else:
            chosen = STOPPERS if kind == "twice" else (signal.Signals[kind],)
            # Of several processes all are told, as by a scheduler, or one.
            victims = alive if self.chance.random() < 0.7 else [self.chance.choice(alive)]
            for number in [self.chance.choice(chosen)] * (2 if kind == "twice" else 1):
                for process in victims:
                    process.send_signal(number)
                time.sleep(self.chance.uniform(0, 0.5) if kind == "twice" else 0)

    def _judge(
        self, command: Command, kind: str, ended: bool, run: Path, damaged: dict[int, str]
    ) -> None:
        """Note what should not have happened in one command."""
        err, out, statuses = command.err(), command.out(), command.statuses()
        faults = [] if ended else [f"it did not end within {LIMIT_SECONDS} s"]
        if "Traceback" in err:
            faults.append(f"a traceback: {err[-1500:]}")
        allowed = {0} | {
            "SIGKILL": {-9},
            "SIGTERM": {143, -15},
            "SIGINT": {130, -2},
            "SIGHUP": {129, -1},
            "twice": {143, 130, 129, -15, -2, -1},
            "full disk": {2},
            "second process": {2},
        }.get(kind, set())
        alone = len(statuses) == 1
        if alone and statuses[0] not in allowed:
            faults.append(f"status {statuses[0]}: {err[-600:]}")
        if alone and kind == "full disk" and statuses[0] == 2 and err.count("error: ") != 1:
            faults.append(f"no single message: {err[-600:]}")
        if not alone and kind == "none" and any(statuses):
            faults.append(f"statuses {statuses}: {err[-600:]}")
        faults += self._resumed(out, err, damaged)
        self.faults += [f"{run.name}, {kind}, {damaged}: {fault}" for fault in faults]
        if faults:
            self.say(self.faults[-1])

    def _resumed(self, out: str, err: str, damaged: dict[int, str]) -> list[str]:
        """What is wrong with the step that it went on from, where it came so far."""
        if not (found := re.search(r"resuming after step (\d+)", out)):
            return []
        for step, words in damaged.items():
            if f"checkpoint {step} is damaged" not in err:
                return [f"step {step} was not found damaged ({words})"]
            self.counts["damaged checkpoints found"] += 1
        step, expected = int(found[1]), self._steps_before - set(damaged)
        if step != max(expected):
            return [f"it went on from {step} instead of {max(expected)}"]
        return []

    def _logs(self, name: str) -> Path:
        folder = self.logs / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def report(self) -> str:
        """The counts and the faults, as JSON."""
        content = {"counts": dict(sorted(self.counts.items())), "faults": self.faults}
        return json.dumps(content, indent=1)


def _tried(look: Callable[[], bool]) -> bool:
    """`look`, where what it looks at may vanish meanwhile."""
    try:
        return look()
    except OSError:
        return False
