"""The lock of a run folder: two processes that both went on would mix their files.

The file `run.lock` names host, process id and start of the process that writes into the folder. A
killed one leaves it behind. On its own machine that is seen at once, for the id is gone or belongs
to a process that started at another time. From elsewhere a dead owner is told from a living one by
its heartbeat, a number that it raises in the file: who waits needs no common clock.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from mental_r1_jax.errors import UserError

LOCK_FILE = "run.lock"
BEAT_SECONDS = 10.0
# Without a heartbeat for so long an owner on another machine counts as dead.
SILENCE_SECONDS = 60.0


@contextlib.contextmanager
def run_lock(folder: Path, wait: Callable[[float], None] = time.sleep) -> Iterator[None]:
    """Hold the lock of `folder`, which exists; at the end it is removed.

    Args:
        folder: the run folder.
        wait: sleeps for so many seconds.

    Raises:
        UserError: a living process holds it.
    """
    with hold(_FileLock(folder / LOCK_FILE), str(folder), wait):
        yield


class Lock(Protocol):
    """A place in which one process at a time can leave its name."""

    name: str

    def create(self, owner: dict[str, Any]) -> bool:
        """Write the lock, unless there is one."""

    def read(self) -> dict[str, Any] | None:
        """What the lock says; None where there is none, an empty mapping where it is damaged."""

    def retire(self, held: dict[str, Any]) -> None:
        """Remove the lock of a dead process, which was the last one read, and no other one."""

    def beat(self, owner: dict[str, Any]) -> bool:
        """Replace our lock by `owner`, with its next number; False: it is not ours any more."""

    def release(self, owner: dict[str, Any]) -> None:
        """Remove our lock."""


@contextlib.contextmanager
def hold(lock: Lock, shown: str, wait: Callable[[float], None]) -> Iterator[None]:
    """Hold `lock`, and keep its heart beating; see `run_lock`.

    Args:
        lock: to be held.
        shown: the folder that it belongs to, for messages.
        wait: sleeps for so many seconds.

    Raises:
        UserError: a living process holds it.
    """
    owner = describe_process() | {"token": uuid.uuid4().hex, "beat": 0}
    while not lock.create(owner):
        held = lock.read()
        if held is None:
            continue  # it has just gone
        if _is_alive(lock, held, wait):
            raise _refusal(lock.name, shown, held)
        lock.retire(held)
    stop = threading.Event()
    beats = threading.Thread(target=_beat, args=(lock, owner, stop), name="heartbeat", daemon=True)
    beats.start()
    try:
        yield
    finally:
        stop.set()
        beats.join()
        lock.release(owner)


def describe_process(pid: int | None = None) -> dict[str, Any]:
    """Host, machine and start of the process `pid` (this one by default).

    `machine` also tells a boot and a container from another, in which ids mean something else.
    """
    pid = os.getpid() if pid is None else pid
    parts = (_text_of("/proc/sys/kernel/random/boot_id"), _link_of("/proc/self/ns/pid"))
    return {
        "host": socket.gethostname(),
        "machine": " ".join(part.strip() for part in parts),
        "pid": pid,
        "started": _start_of(pid),
    }


def _start_of(pid: int) -> str:
    """When a process started, in ticks since the boot; empty where there is none of that id."""
    # The name of the program, in parentheses, may hold blanks; the start is field 22.
    fields = _text_of(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return fields[19] if len(fields) > 19 and fields[0] not in "ZX" else ""


def _text_of(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""  # not Linux, or no such process


def _link_of(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def _is_alive(lock: Lock, held: dict[str, Any], wait: Callable[[float], None]) -> bool:
    """Whether the owner is alive: by its id where it is of this machine, else by its heartbeat."""
    here = describe_process()
    if here["machine"].strip() and held.get("machine") == here["machine"]:
        return bool(held.get("started")) and _start_of(held["pid"]) == held["started"]
    print(
        f"{lock.name} is held from {held.get('host')}; waiting up to {SILENCE_SECONDS:.0f} "
        "seconds for a sign of life",
        file=sys.stderr,
        flush=True,
    )
    waited = 0.0
    while waited < SILENCE_SECONDS:
        wait(BEAT_SECONDS / 2)
        waited += BEAT_SECONDS / 2
        now = lock.read()
        if now is None:
            return False
        if now != held:
            return True
    return False


def parse_lock(content: bytes) -> dict[str, Any]:
    """What a lock says; an empty mapping where it is damaged."""
    try:
        held = json.loads(content)
    except ValueError:
        return {}  # its owner died while it wrote, or is writing just now: wait for a heartbeat
    return held if isinstance(held, dict) and isinstance(held.get("pid"), int) else {}


class _FileLock:
    """The lock file of a folder; see `Lock`."""

    def __init__(self, file: Path) -> None:
        self.file, self.name = file, str(file)

    def create(self, owner: dict[str, Any]) -> bool:
        try:
            stream = self.file.open("x", encoding="utf-8")
        except FileExistsError:
            return False
        try:
            with stream:
                stream.write(json.dumps(owner))
        except OSError:
            self.file.unlink(
                missing_ok=True
            )  # a full disk must not leave a lock that tells nothing
            raise
        return True

    def read(self) -> dict[str, Any] | None:
        try:
            return parse_lock(self.file.read_bytes())
        except FileNotFoundError:
            return None

    def retire(self, held: dict[str, Any]) -> None:
        # Of two processes that find the same dead one, the slower may have the faster one's lock
        # here.
        aside = self.file.with_name(f"{LOCK_FILE}.{uuid.uuid4().hex}")
        with contextlib.suppress(FileNotFoundError):
            self.file.rename(aside)
            if _FileLock(aside).read() != held and not self.file.exists():
                aside.rename(self.file)
            aside.unlink(missing_ok=True)

    def beat(self, owner: dict[str, Any]) -> bool:
        held = self.read()
        if held is None or held.get("token") != owner["token"]:
            return False
        staging = self.file.with_name(f"{LOCK_FILE}.{owner['token']}")
        staging.write_text(json.dumps(owner), encoding="utf-8")
        staging.replace(self.file)
        return True

    def release(self, owner: dict[str, Any]) -> None:
        if (self.read() or {}).get("token") == owner["token"]:
            self.file.unlink(missing_ok=True)


def _beat(lock: Lock, owner: dict[str, Any], stop: threading.Event) -> None:
    """Raise the number in the lock every so often, while the lock is ours."""
    beat = 0
    while not stop.wait(BEAT_SECONDS):
        beat += 1
        try:
            ours = lock.beat(owner | {"beat": beat})
        except (OSError, ValueError) as error:
            # A full disk, or a bucket out of reach, ends the run where something is lost, not here.
            print(f"warning: no heartbeat in {lock.name}: {error}", file=sys.stderr, flush=True)
            continue
        if not ours:
            print(
                f"warning: the lock {lock.name} is not ours any more", file=sys.stderr, flush=True
            )
            return


def _refusal(name: str, shown: str, held: dict[str, Any]) -> UserError:
    where = f"process {held.get('pid', '(unknown)')} on {held.get('host', 'an unknown host')}"
    return UserError(
        what=f"another process is at work in {shown}",
        expected="one process, or the processes of one job, for each folder",
        got=where,
        remedy="wait for it, stop it, or choose another output_dir; if it cannot be alive, "
        f"remove {name}",
    )
