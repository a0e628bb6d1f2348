"""Runs in a bucket: where their checkpoints are, and their other files on the way up and down.

Checkpoints are written to the bucket and read there. All other files of a run are those of a local
folder (see `addresses`); they are copied up whole, before a checkpoint that they belong to is
committed, and fetched when a run is opened. Of a run that is no address nothing here does anything.
"""

from __future__ import annotations

import base64
import hashlib
import os
import tempfile
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mental_r1_jax.addresses import (
    SCHEME,
    address_of,
    is_address,
    reading_folder,
    training_folder,
)
from mental_r1_jax.errors import UserError

if TYPE_CHECKING:
    from etils import epath

CHECKPOINTS, DAMAGED = "checkpoints", "damaged_checkpoints"
COMMIT_FILE = "commit_success.txt"
# Not fetched: checkpoints stay, and nothing reads an export but who releases it.
_STAYS = (CHECKPOINTS, DAMAGED, "hf", "run.lock")
# Of one machine, or unfinished.
_LOCAL_ENDS = (".partial", ".tmp", ".retired")
_LOCAL_NAMES = ("run.lock", "unfinished")


def checkpoints_of(run: Path) -> epath.Path:
    """Where the checkpoints of a run are: in its bucket, or in its folder."""
    from etils import epath

    place = address_of(run)
    if place is None:
        return epath.Path(Path(run).absolute()) / CHECKPOINTS
    _store()  # Orbax would say less clearly what is missing
    return epath.Path(place) / CHECKPOINTS


def opened(name: str | Path) -> Path:
    """The folder that `name` stands for; of a run in a bucket the local one, just fetched.

    Raises:
        UserError: there is no run at that address, or gcsfs is not installed.
    """
    folder = training_folder(str(name)) if is_address(str(name)) else Path(name)
    place = address_of(folder)
    if place is None:
        return folder
    folder = reading_folder(folder)
    if not fetch(folder):
        raise UserError(
            what=f"there is no run at {place}",
            expected="the address of a run that has begun: gs://BUCKET/RUN",
            got="no file there",
            remedy="correct the address; `gcloud storage ls` shows what a bucket holds",
        )
    return folder


def names_in(folder: Path) -> list[str]:
    """Names at the top of a run's folder in its bucket."""
    return sorted({name.partition("/")[0] for name in _objects(_place(folder))})


def fetch(folder: Path, only: str | None = None) -> dict[str, tuple[int, int]]:
    """Make the local folder of a run, or one file of it, what the bucket holds.

    What is not in the bucket is removed, but for locks and batches of an evaluation under way.

    Returns:
        name -> size and time of each file of the folder that is now as in the bucket.
    """
    place = _place(folder)
    found = {
        name: facts
        for name, facts in _objects(place).items()
        if name.partition("/")[0] not in _STAYS and only in (None, name)
    }
    folder.mkdir(parents=True, exist_ok=True)
    _owner_alone(folder)
    for name, facts in found.items():
        if not _is_same(folder / name, facts):
            _download(place, folder, name, facts)
    stale = _files(folder) if only is None else [only]
    for name in set(stale) - found.keys():
        if name.partition("/")[0] not in _STAYS and not _is_at_work(folder, name):
            (folder / name).unlink(missing_ok=True)
    return {name: _stamp(folder / name) for name in found if (folder / name).is_file()}


class Copies:
    """The copies in the bucket of the files of a run that this process trains."""

    def __init__(self, run: Path) -> None:
        """Of the folder `run`, which may be local: then there is nothing to copy."""
        self._run = run
        self._copied: dict[str, tuple[int, int]] = {}

    def fetch(self) -> None:
        """Replace the local folder by what the bucket holds."""
        if address_of(self._run) is not None:
            self._copied = fetch(self._run)

    def push(self) -> None:
        """Copy up what has changed, and remove there what has been removed here."""
        if address_of(self._run) is None:
            return
        here = {name: _stamp(self._run / name) for name in _files(self._run)}
        # A file that grows meanwhile has another size the next time.
        changed = [name for name, stamp in here.items() if self._copied.get(name) != stamp]
        store, place = _store(), _place(self._run)
        for name in sorted(changed):
            store.pipe_file(f"{place}/{name}", (self._run / name).read_bytes())
        _remove(place, self._copied.keys() - here.keys())
        self._copied = here


def push_folder(folder: Path) -> None:
    """Make the copy in the bucket of a folder inside a run, a report or an export, what it is."""
    place = address_of(folder)
    if place is None:
        return
    here, store = sorted(_files(folder)), _store()
    for name in here:
        store.put_file(str(folder / name), f"{place}/{name}")
    _remove(place, _objects(place).keys() - set(here))
    print(f"copied to {place}")


def move(source: epath.Path, target: epath.Path) -> None:
    """Move a checkpoint within its bucket; if it is ended in between, the source does not count."""
    store, begin = _store(), os.fspath(source)
    names = _objects(begin)
    for name in names:
        store.cp_file(f"{begin}/{name}", f"{os.fspath(target)}/{name}")
    _remove(begin, [name for name in names if name == COMMIT_FILE])
    _remove(begin, [name for name in names if name != COMMIT_FILE])


def _store() -> Any:
    """The file system of gcsfs; it keeps no listing, for other machines write there too.

    Raises:
        UserError: gcsfs is not installed.
    """
    try:
        import fsspec
        import gcsfs  # noqa: F401  # what fsspec would look for
    except ImportError as error:
        raise UserError(
            what="runs in a bucket need gcsfs, which is not installed",
            expected="the extra `gcs`",
            got=str(error),
            remedy="pip install 'mental-r1-jax[gcs]', or mount the bucket and give a path",
        ) from None
    # For Orbax, too, whose file system `epath` makes when it first needs one.
    fsspec.config.conf.setdefault("gs", {}).setdefault("use_listings_cache", False)
    return fsspec.filesystem("gs")


def _place(folder: Path) -> str:
    place = address_of(folder)
    assert place is not None
    return place


def _objects(place: str) -> dict[str, dict[str, Any]]:
    """Names below an address, and what the bucket says about each."""
    store, root = _store(), place.removeprefix(SCHEME) + "/"
    found = store.find(place, detail=True)
    return {name.removeprefix(root): facts for name, facts in found.items() if name != root}


def _download(place: str, folder: Path, name: str, facts: dict[str, Any]) -> None:
    """Fetch one file; it appears whole, readable by its owner only, with the time of its object."""
    target = folder / name
    target.parent.mkdir(parents=True, exist_ok=True)
    descriptor, staging = tempfile.mkstemp(dir=target.parent, suffix=".partial")
    os.close(descriptor)
    try:
        _store().get_file(f"{place}/{name}", staging)
        written = datetime.fromisoformat(facts["updated"]).timestamp()
        os.utime(staging, (written, written))
        os.replace(staging, target)
    finally:
        Path(staging).unlink(missing_ok=True)


def _remove(place: str, names: Iterable[str]) -> None:
    store = _store()
    for name in sorted(names):
        store.rm_file(f"{place}/{name}")


def _files(folder: Path) -> list[str]:
    """Names below `folder` of the files that belong in the bucket."""
    paths = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    return [path.as_posix() for path in paths if not any(map(_is_local, path.parts))]


def _is_local(part: str) -> bool:
    lock = part.startswith("run.lock")
    return part in _LOCAL_NAMES or lock or part.endswith(_LOCAL_ENDS) or part.startswith(".")


def _is_at_work(folder: Path, name: str) -> bool:
    """Whether the file is in a folder (below `folder`) in which somebody is at work."""
    inner = [folder / parent for parent in list(Path(name).parents)[:-1]]
    return any((path / local).exists() for path in inner for local in _LOCAL_NAMES)


def _is_same(file: Path, facts: dict[str, Any]) -> bool:
    """Whether a local file has the content of an object; in doubt it has not."""
    if not file.is_file() or file.stat().st_size != int(facts["size"]):
        return False
    digest = hashlib.md5(file.read_bytes(), usedforsecurity=False).digest()
    return base64.b64encode(digest).decode() == facts.get("md5Hash")


def _stamp(file: Path) -> tuple[int, int]:
    """Size and time of a file."""
    facts = file.stat()
    return facts.st_size, facts.st_mtime_ns


def _owner_alone(folder: Path) -> None:
    """Close the folder of a digest to others; all of the run is below it."""
    place = _place(folder).removeprefix(SCHEME)
    folder.parents[len(place.split("/")) - 1].chmod(0o700)
