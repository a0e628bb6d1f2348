"""Addresses of runs in a bucket, `gs://BUCKET/RUN`, and the local folders that stand for them.

Both directions are functions of the name alone: the address can be read off the folder. So a run in
a bucket is a `Path` like any other, and only what keeps checkpoints or copies files asks for more.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

SCHEME = "gs://"
# A bucket, and at least one part behind it. Wildcards would be patterns to the libraries.
_ADDRESS = re.compile(r"gs://[a-z0-9][a-z0-9._-]+(/[^/\s\[\]*?#]+)+")
# A session of training has a folder of its own: a reader must not change files under it.
_TRAINING, _READING = "training", "reading"


def is_address(name: str) -> bool:
    """Whether `name` is an address in a bucket."""
    return name.strip().lower().startswith(SCHEME)


def training_folder(address: str) -> Path:
    """The local folder of a run in a bucket, for the process that trains it.

    Raises:
        ValueError: `address` is not that of a folder in a bucket.
    """
    address = address.strip().rstrip("/")
    parts = address.removeprefix(SCHEME).split("/")
    if not _ADDRESS.fullmatch(address) or {".", ".."} & set(parts):
        raise ValueError(
            f"{address[:200]!r} is not the address of a folder in a bucket; write "
            "gs://BUCKET/RUN, without blanks, brackets and wildcards"
        )
    digest = hashlib.sha256(address.encode()).hexdigest()[:16]
    return _root() / _TRAINING / digest / Path(*parts)


def reading_folder(folder: Path) -> Path:
    """The local folder for those who only read the run of `folder`; of other folders, itself."""
    parts = _parts(folder)
    return _root() / _READING / Path(*parts[1:]) if parts else folder


def address_of(folder: Path) -> str | None:
    """The address that a local folder, or a file or folder in it, stands for; None: it is local."""
    parts = _parts(folder)
    return SCHEME + "/".join(parts[2:]) if len(parts) > 3 else None


def shown_place(folder: Path) -> str:
    """A run's folder as its owner knows it: by its address where it has one."""
    return address_of(folder) or str(folder)


def _parts(folder: Path) -> tuple[str, ...]:
    """Kind, digest, bucket and further parts of a folder that stands for an address, else none."""
    absolute, root = Path(os.path.abspath(folder)), _root()
    return absolute.relative_to(root).parts if absolute.is_relative_to(root) else ()


def _root() -> Path:
    """Where these folders are: in the user's cache folder."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.path.abspath(cache)) / "mental_r1_jax" / "buckets"
