"""The manifest of a checkpoint: which step it is, and size and SHA-256 of every file in it.

Orbax keeps no checksum of most of what it writes, so a flipped bit is restored as another weight.
The manifest is written when all processes have written their files and before the step is
committed, by reading those files again. Whoever restores a step compares it first. Paths are those
of `etils.epath`, as in Orbax, so that buckets work as folders do.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from etils import epath

MANIFEST_FILE = "manifest.json"
# What every one of our checkpoints holds.
ITEMS = ("params", "optimizer", "progress", "metrics")

# Orbax writes these two once more when it commits; of the first, the lasting part is compared.
_METADATA_FILE = "_CHECKPOINT_METADATA"
_COMMIT_FILE = "commit_success.txt"
# Says in `_METADATA_FILE` that there is a manifest, so that one that is deleted is missed.
SIGNED = {"manifest": MANIFEST_FILE}

_CHUNK_BYTES = 1 << 20
# Files up to this size are compared even where only a quick look is asked for.
_SMALL_BYTES = 1 << 16
_ALGORITHM = "sha256"


def write_manifest(folder: epath.Path, step: int) -> None:
    """Write the manifest of checkpoint `step`, whose files lie in `folder` and are complete."""
    names = _names_of_files(folder)
    with _threads() as pool:
        files = pool.map(lambda name: _describe(folder / name), names)
        content = {
            "step": step,
            "algorithm": _ALGORITHM,
            "metadata": _lasting_metadata(folder),
            "files": dict(zip(names, files, strict=True)),
        }
    text = json.dumps(content, indent=1) + "\n"
    (folder / MANIFEST_FILE).write_text(text, encoding="utf-8")


def is_signed(folder: epath.Path) -> bool:
    """Whether the checkpoint in `folder` has a manifest, or says that it had one."""
    if (folder / MANIFEST_FILE).exists():
        return True
    metadata = _read_object(folder / _METADATA_FILE)
    return isinstance(metadata, dict) and metadata.get("custom_metadata") == SIGNED


def problems(
    folder: epath.Path,
    step: int,
    *,
    thorough: bool,
    share: tuple[int, int] = (0, 1),
    may_lack: Sequence[str] = (),
) -> list[str]:
    """What is wrong with checkpoint `step`, one line a problem; nothing where it is sound.

    Of a checkpoint without a manifest, from an older version, only the outline can be checked.

    Args:
        folder: the checkpoint's own.
        step: the number that its folder bears.
        thorough: read every file; otherwise only the small ones, and the sizes of all.
        share: (k, n): read every n-th file from the k-th on, for n processes that share the work.
        may_lack: items that may be missing as a whole, because they are not wanted.
    """
    metadata = _read_object(folder / _METADATA_FILE)
    if not isinstance(metadata, dict):
        return [f"{_METADATA_FILE} is {metadata or 'no mapping'}"]
    lacking = [item for item in may_lack if not (folder / item).exists()]
    if not is_signed(folder):
        return _problems_of_outline(folder, lacking)
    manifest = _read_object(folder / MANIFEST_FILE)
    if not _is_manifest(manifest):
        return [
            f"{MANIFEST_FILE} is {manifest if isinstance(manifest, str) else 'not one of ours'}"
        ]
    if manifest["step"] != step:
        return [f"it is a copy of step {manifest['step']}"]
    if manifest["metadata"] != _lasting_metadata(folder):
        return [f"{_METADATA_FILE} has changed since it was written"]
    files = [
        (name, wanted)
        for name, wanted in sorted(manifest["files"].items())
        if name.partition("/")[0] not in lacking
    ][share[0] :: share[1]]
    with _threads() as pool:
        found = pool.map(lambda file: _problem_of(folder, *file, thorough=thorough), files)
        return [problem for problem in found if problem]


def _problem_of(folder: epath.Path, name: str, wanted: Any, *, thorough: bool) -> str | None:
    """What is wrong with one file, None where it is as its manifest says."""
    file = folder / name
    if not file.is_file():
        return f"{name} is missing"
    size = file.stat().length
    if size != wanted["bytes"]:
        return f"{name} has {size} bytes instead of {wanted['bytes']}"
    if (thorough or size <= _SMALL_BYTES) and _describe(file) != wanted:
        return f"{name} has changed since it was written"
    return None


def _problems_of_outline(folder: epath.Path, lacking: Sequence[str]) -> list[str]:
    """What can be seen of a checkpoint without a manifest: all items are there, and not empty."""
    missing = [
        f"{name} is missing or empty"
        for name in ITEMS
        if name not in lacking and not ((folder / name).is_dir() and any((folder / name).iterdir()))
    ]
    if missing:
        return missing
    documents = {"metrics/metrics", "progress/metadata"}
    read = {name: _read_object(folder / name) for name in sorted(documents)}
    return [f"{name} is {found}" for name, found in read.items() if not isinstance(found, dict)]


def _is_manifest(content: Any) -> bool:
    """Whether `content` has the form that `write_manifest` gives it."""
    return (
        isinstance(content, dict)
        and content.keys() == {"step", "algorithm", "metadata", "files"}
        and content["algorithm"] == _ALGORITHM
        and isinstance(content["files"], dict)
        and all(
            isinstance(file, dict) and file.keys() == {"bytes", _ALGORITHM}
            for file in content["files"].values()
        )
    )


def _read_object(file: epath.Path) -> Any:
    """The JSON in `file`, or in words why there is none."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except OSError:
        return "missing"
    except (ValueError, RecursionError):
        return "not JSON"


def _lasting_metadata(folder: epath.Path) -> Any:
    """The part of Orbax's own description that stays the same when the step is committed."""
    metadata = _read_object(folder / _METADATA_FILE)
    if not isinstance(metadata, dict):
        return None
    return {name: metadata.get(name) for name in ("item_handlers", "custom_metadata")}


def _names_of_files(folder: epath.Path) -> list[str]:
    """Paths below `folder` of all files, sorted, without those that change later."""
    exempt = {_METADATA_FILE, _COMMIT_FILE, MANIFEST_FILE}
    return sorted(set(names_below(folder)) - exempt)


def names_below(folder: epath.Path) -> Iterable[str]:
    """Paths below `folder` of all files; in a bucket, where no pattern finds them, too."""
    return _walk(folder, folder.iterdir())


def _walk(root: epath.Path, entries: Iterable[epath.Path]) -> Iterable[str]:
    for entry in entries:
        if entry.is_dir():
            yield from _walk(root, entry.iterdir())
        else:
            yield entry.relative_to(root).as_posix()


def _describe(file: epath.Path) -> dict[str, int | str]:
    """Size and digest of one file, read piece by piece."""
    digest, size = hashlib.new(_ALGORITHM), 0
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
            size += len(chunk)
    return {"bytes": size, _ALGORITHM: digest.hexdigest()}


def _threads() -> ThreadPoolExecutor:
    """Threads that read and hash at the same time; hashing lets go of Python's lock."""
    return ThreadPoolExecutor(min(8, os.cpu_count() or 1), thread_name_prefix="hash")


def in_words(found: Sequence[str]) -> str:
    """The first problem, and how many more there are."""
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    return found[0] + more
