"""`make chaos`: runs killed, stopped, starved of disk and damaged at random for a given time.

    python -m tests.chaos --seconds 3600 --seed 0 --only train

An undisturbed run of each scenario is made first. Then others are disturbed, one after the other,
and the same command is given again until the run is done; weights, optimizer state, position,
metrics (but times) and completions must be bit-equal to the undisturbed ones. Ends with status 1
where anything else happened: a traceback, a command that hangs, a wrong status, damage not found.

Where the system allows it (`unshare`), run folders lie on a small tmpfs of their own, which is
filled up to make a disk full; elsewhere the size of files is limited instead.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.chaos.damage import SmallDisk
from tests.chaos.episodes import Chaos
from tests.chaos.runs import SCENARIOS, STOPPERS, prepare

_APART = "MENTAL_R1_CHAOS_APART"  # set in the copy of this program that has its own mounts
_DISK_SIZE = "96m"


def main(arguments: Sequence[str] | None = None) -> int:
    """Disturb runs for the time asked for; returns the exit status."""
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__.split("\n\n")[0])
    parser.add_argument("--seconds", type=float, default=3600, help="how long (default an hour)")
    parser.add_argument("--seed", type=int, default=0, help="of all random choices")
    parser.add_argument("--only", choices=SCENARIOS, action="append", help="scenarios (all)")
    parser.add_argument("--folder", type=Path, help="for logs and runs with faults (temporary)")
    options = parser.parse_args(arguments)
    if _APART not in os.environ and _may_mount():
        again = [sys.executable, "-m", "tests.chaos", *(arguments or sys.argv[1:])]
        os.execvpe("unshare", ["unshare", "-rm", *again], os.environ | {_APART: "1"})
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    for number in STOPPERS:
        # A handler is not inherited, but "ignored" is, and `nohup` and `&` ignore some of them.
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, lambda *_: None)
    root = options.folder or Path(tempfile.mkdtemp(prefix="chaos-"))
    root.mkdir(parents=True, exist_ok=True)
    disk = root / "disk"
    disk.mkdir(exist_ok=True)
    if _APART in os.environ:
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={_DISK_SIZE}", "tmpfs", disk], check=True
        )
    chaos = Chaos(
        recipe=prepare(root),
        disk=SmallDisk(disk),
        logs=root / "logs",
        chance=random.Random(options.seed),
        seconds={},
        say=lambda line: print(line, flush=True),
    )
    kind = "a tmpfs that is filled" if chaos.disk.is_real else "a limit on the size of files"
    print(f"full disks by {kind}; logs in {root / 'logs'}; seed {options.seed}", flush=True)
    _run(chaos, options.only or list(SCENARIOS), options.seconds)
    print(chaos.report())
    if options.folder is None and not chaos.faults:
        shutil.rmtree(root, ignore_errors=True)
    return 1 if chaos.faults else 0


def _run(chaos: Chaos, names: Sequence[str], seconds: float) -> None:
    """Take turns between the scenarios until the time is over."""
    whole = {name: chaos.undisturbed(SCENARIOS[name]) for name in names}
    print(f"an undisturbed command takes {chaos.seconds} s", flush=True)
    until, number = time.monotonic() + seconds, 0
    while time.monotonic() < until:
        name = names[number % len(names)]
        chaos.episode(SCENARIOS[name], whole[name], number, until)
        number += 1


def _may_mount() -> bool:
    """Whether a program may have mounts of its own here."""
    if shutil.which("unshare") is None:
        return False
    with tempfile.TemporaryDirectory() as folder:
        words = ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", folder]
        return subprocess.run(words, capture_output=True).returncode == 0


if __name__ == "__main__":
    sys.exit(main())
