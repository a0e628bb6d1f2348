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
from typing import Any

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
    file = folder / LOCK_FILE
    owner = describe_process() | {"token": uuid.uuid4().hex, "beat": 0}
    while not _create(file, owner):
        held = _read(file)
        if held is None:
            continue  # it has just gone
        if _is_alive(file, held, wait):
            raise _refusal(folder, held)
        _retire(file, held)
    stop = threading.Event()
    beats = threading.Thread(target=_beat, args=(file, owner, stop), name="heartbeat", daemon=True)
    beats.start()
    try:
        yield
    finally:
        stop.set()
        beats.join()
        if (_read(file) or {}).get("token") == owner["token"]:
            file.unlink(missing_ok=True)


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


def _is_alive(file: Path, held: dict[str, Any], wait: Callable[[float], None]) -> bool:
    """Whether the owner is alive: by its id where it is of this machine, else by its heartbeat."""
    here = describe_process()
    if here["machine"].strip() and held.get("machine") == here["machine"]:
        return bool(held.get("started")) and _start_of(held["pid"]) == held["started"]
    print(
        f"{file} is held from {held.get('host')}; waiting up to {SILENCE_SECONDS:.0f} seconds for "
        "a sign of life",
        file=sys.stderr,
        flush=True,
    )
    waited = 0.0
    while waited < SILENCE_SECONDS:
        wait(BEAT_SECONDS / 2)
        waited += BEAT_SECONDS / 2
        now = _read(file)
        if now is None:
            return False
        if now != held:
            return True
    return False


def _create(file: Path, owner: dict[str, Any]) -> bool:
    """Write the lock, unless there is one."""
    try:
        stream = file.open("x", encoding="utf-8")
    except FileExistsError:
        return False
    try:
        with stream:
            stream.write(json.dumps(owner))
    except OSError:
        file.unlink(missing_ok=True)  # a full disk must not leave a lock that tells nothing
        raise
    return True


def _read(file: Path) -> dict[str, Any] | None:
    """What the lock says; None where there is none, an empty mapping where it is damaged."""
    try:
        held = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        return {}  # its owner died while it wrote, or is writing just now: wait for a heartbeat
    return held if isinstance(held, dict) and isinstance(held.get("pid"), int) else {}


def _retire(file: Path, held: dict[str, Any]) -> None:
    """Remove the lock of a dead process, and no other one."""
    # Of two processes that find the same dead one, the slower may have the faster one's lock here.
    aside = file.with_name(f"{LOCK_FILE}.{uuid.uuid4().hex}")
    with contextlib.suppress(FileNotFoundError):
        file.rename(aside)
        if _read(aside) != held and not file.exists():
            aside.rename(file)
        aside.unlink(missing_ok=True)


def _beat(file: Path, owner: dict[str, Any], stop: threading.Event) -> None:
    """Raise the number in the lock every so often, while the lock is ours."""
    staging = file.with_name(f"{LOCK_FILE}.{owner['token']}")
    while not stop.wait(BEAT_SECONDS):
        held = _read(file)
        if held is None or held.get("token") != owner["token"]:
            print(f"warning: the lock {file} is not ours any more", file=sys.stderr, flush=True)
            return
        try:
            staging.write_text(json.dumps(owner | {"beat": held["beat"] + 1}), encoding="utf-8")
            staging.replace(file)
        except OSError as error:
            # A full disk ends the run where something is lost, not here.
            print(f"warning: no heartbeat in {file}: {error}", file=sys.stderr, flush=True)


def _refusal(folder: Path, held: dict[str, Any]) -> UserError:
    where = f"process {held.get('pid', '(unknown)')} on {held.get('host', 'an unknown host')}"
    return UserError(
        what=f"another process is at work in {folder}",
        expected="one process, or the processes of one job, for each folder",
        got=where,
        remedy="wait for it, stop it, or choose another output_dir; if it cannot be alive, "
        f"remove {folder / LOCK_FILE}",
    )
