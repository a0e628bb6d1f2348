"""Damaged checkpoints: found before they are restored, named, and moved out of the way.

Nothing is deleted: a damaged step goes from `checkpoints/` to `damaged_checkpoints/` of its run.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence

import jax
from etils import epath
from orbax.checkpoint.utils import is_gcs_path

from mental_r1_jax import bucket, hosts
from mental_r1_jax.errors import UserError
from mental_r1_jax.training import manifest

_LOCK_FILE = "run.lock"  # that of `runs/run_lock.py`, a layer above


def sound_steps(
    folder: epath.Path,
    choose: Callable[[list[int]], int | None] = max,
    *,
    only_reads: bool = False,
    may_lack: Sequence[str] = (),
) -> list[int]:
    """Steps in `folder` that may be restored, after the damaged ones have been set aside.

    The step that `choose` takes of them has been read and compared with its manifest, every file.
    Of the others only sizes and small files have been looked at: reading all would multiply the
    time of a start. All processes must call this, and come to the same steps.

    Args:
        folder: the `checkpoints` folder of a run; it need not be there.
        choose: sound steps, ascending and at least one -> the one to be restored, None for none.
        only_reads: a damaged step is left alone, with a word, where it cannot be moved (a folder
            without write permission) or another process is at work in the run.
        may_lack: items that may be missing as a whole, because they are not wanted.

    Raises:
        UserError: there are steps, and none is sound; nothing is moved.
    """
    steps = steps_in(folder)
    damaged: dict[int, list[str]] = {}
    for step in steps:
        if found := _problems(folder, step, thorough=False, may_lack=may_lack):
            damaged[step] = found
    sound = [step for step in steps if step not in damaged]
    while sound and (chosen := choose(sound)) is not None:
        found = _problems(folder, chosen, thorough=True, may_lack=may_lack)
        if not found:
            if not manifest.is_signed(folder / str(chosen)):
                _say(f"checkpoint {chosen} has no manifest (older version): it is not verified")
            break
        damaged[chosen] = found
        sound.remove(chosen)
    if damaged and not sound:
        raise _none_sound(folder, damaged)
    for step, found in sorted(damaged.items()):
        where = _set_aside(folder, step, only_reads=only_reads)
        _say(f"checkpoint {step} is damaged: {manifest.in_words(found)}; {where}")
    return sound


def steps_in(folder: epath.Path) -> list[int]:
    """Steps of which there is a folder, ascending; in a bucket, the committed ones.

    Elsewhere a step gets its name when it is committed, so a folder of that name claims to be one.
    """
    if not folder.is_dir():
        return []
    names = [path.name for path in folder.iterdir() if path.is_dir()]
    steps = sorted(int(name) for name in names if name.isdecimal() and name == str(int(name)))
    if is_gcs_path(folder):
        return [s for s in steps if (folder / str(s) / bucket.COMMIT_FILE).exists()]
    return steps


def _problems(
    folder: epath.Path, step: int, *, thorough: bool, may_lack: Sequence[str]
) -> list[str]:
    """Problems of a step that any process has found; each reads its share of the files."""
    index, count = jax.process_index(), jax.process_count()
    path = folder / str(step)
    own = manifest.problems(path, step, thorough=thorough, share=(index, count), may_lack=may_lack)
    merged = [problem for found in hosts.all_items([(index, own)]) for problem in found]
    return list(dict.fromkeys(merged))


def _set_aside(folder: epath.Path, step: int, *, only_reads: bool) -> str:
    """Move a damaged step to `damaged_checkpoints/`; says in words where it is now."""
    target = folder.parent / bucket.DAMAGED / str(step)
    number = 1
    while target.exists():
        number += 1
        target = target.with_name(f"{step}-{number}")
    hosts.wait_for_all(f"chose where damaged step {step} goes")
    where = f"set aside as {target}"
    if only_reads and (folder.parent / _LOCK_FILE).exists():
        return "not used, and left where it is, for a process is at work in this run"
    if hosts.is_first():
        try:
            if is_gcs_path(folder):
                bucket.move(folder / str(step), target)
            else:
                target.parent.mkdir(parents=True, exist_ok=True)
                (folder / str(step)).rename(target)
        except OSError as error:
            if not only_reads:
                raise
            where = f"not used, and left where it is ({error.strerror or error})"
    hosts.wait_for_all(f"set damaged step {step} aside")
    return where


def _none_sound(folder: epath.Path, damaged: Mapping[int, list[str]]) -> UserError:
    lines = [f"  - {step}: {manifest.in_words(found)}" for step, found in sorted(damaged.items())]
    return UserError(
        what=f"no checkpoint in {folder} is sound",
        expected="at least one whose files are as they were when it was written",
        got="\n" + "\n".join(lines),
        remedy="restore the folder from a backup, or start anew in another run.output_dir; "
        "nothing was touched",
    )


def _say(line: str) -> None:
    """To standard error: standard output may be somebody's input."""
    if hosts.is_first():
        print(f"warning: {line}", file=sys.stderr, flush=True)
