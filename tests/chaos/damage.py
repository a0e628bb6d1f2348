"""Damage to what a run has written: bits, ends and whole files of its newest checkpoint."""

from __future__ import annotations

import errno
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

from tests.chaos.runs import steps_of

# Orbax writes these again when it commits, with the time; nothing reads what they hold.
_UNREAD = ("_CHECKPOINT_METADATA", "commit_success.txt")


def _file(step: Path, chance: random.Random) -> Path:
    files = sorted(path for path in step.rglob("*") if path.is_file() and path.name not in _UNREAD)
    return chance.choice([path for path in files if path.stat().st_size])


def flip_a_bit(step: Path, chance: random.Random) -> str:
    """One bit of a file that holds anything."""
    file = _file(step, chance)
    content = bytearray(file.read_bytes())
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    file.write_bytes(content)
    return f"a bit of {file.relative_to(step)}"


def truncate(step: Path, chance: random.Random) -> str:
    """The end of a file is missing, or all of it."""
    file = _file(step, chance)
    os.truncate(file, chance.randrange(file.stat().st_size))
    return f"the end of {file.relative_to(step)}"


def delete_a_file(step: Path, chance: random.Random) -> str:
    """A file is gone."""
    file = _file(step, chance)
    file.unlink()
    return f"{file.relative_to(step)} is gone"


def delete_an_item(step: Path, chance: random.Random) -> str:
    """Weights, optimizer, progress or score are gone as a whole."""
    name = chance.choice(("params", "optimizer", "progress", "metrics"))
    shutil.rmtree(step / name)
    return f"all of {name} is gone"


def empty(step: Path, chance: random.Random) -> str:
    """The folder is there, with nothing in it."""
    shutil.rmtree(step)
    step.mkdir()
    return "the folder is empty"


def zeros(step: Path, chance: random.Random) -> str:
    """A file has its size, and holds zeros: what a power cut can leave."""
    file = _file(step, chance)
    size = file.stat().st_size
    if not any(file.read_bytes()):
        return flip_a_bit(step, chance)
    file.write_bytes(bytes(size))
    return f"zeros in {file.relative_to(step)}"


KINDS: tuple[Callable[[Path, random.Random], str], ...] = (
    *(flip_a_bit, flip_a_bit, truncate, delete_a_file),
    *(delete_an_item, empty, zeros),
)


def damage_newest(run: Path, chance: random.Random) -> dict[int, str]:
    """Damage the newest checkpoint, at times the two newest; one that is sound always remains.

    Returns:
        what was done to which step, in words.
    """
    steps = steps_of(run)
    count = min(len(steps) - 1, chance.choice((1, 1, 1, 2)))
    done = {}
    for step in steps[len(steps) - count :]:
        kind = chance.choice(KINDS)
        folder = run / "checkpoints" / str(step)
        done[step] = f"{kind.__name__}: {kind(folder, chance)}"
    return done


def copy_under_a_newer_number(run: Path) -> dict[int, str]:
    """A checkpoint that claims to be a later one."""
    steps = steps_of(run)
    new = steps[-1] + 1
    shutil.copytree(run / "checkpoints" / str(steps[0]), run / "checkpoints" / str(new))
    return {new: f"copy of {steps[0]}"}


def tear_metrics(run: Path, chance: random.Random) -> bool:
    """Append half a line to the metrics, as a kill in the middle of a write does."""
    file = run / "metrics.jsonl"
    if not file.exists():
        return False
    line = b'{"step": 99, "reward": 0.25, "loss": 1.5}\n'
    with file.open("ab") as stream:
        stream.write(line[: chance.randrange(1, len(line) - 1)])
    return True


class SmallDisk:
    """The disk of the run folders, which can be filled up; a tmpfs where one may be mounted.

    Without the right to mount, no file may grow beyond a size (`RLIMIT_FSIZE`), which ends a write
    with another error number at much the same places.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ballast = folder / ".ballast"
        self.is_real = os.path.ismount(folder)

    def fill(self, left: int) -> None:
        """Take all room but `left` bytes."""
        with self._ballast.open("wb") as file:
            while (size := self._room() - left) > 0:
                try:
                    os.posix_fallocate(file.fileno(), 0, size)
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
                else:
                    return
                # The run has written meanwhile, so that less is left to take.

    def _room(self) -> int:
        """Bytes that are free."""
        free = os.statvfs(self.folder)
        return free.f_bavail * free.f_frsize

    def free(self) -> None:
        """Give the room back."""
        self._ballast.unlink(missing_ok=True)
