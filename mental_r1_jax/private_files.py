"""Files that hold posts or completions: written whole, and to be read by their owner only."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def write_private(path: Path, content: bytes) -> None:
    """Replace `path` by a file with `content` that only its owner can read (mode 0600)."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.unlink(missing_ok=True)
    # Private from the start: it must not be readable even while it is written.
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    os.replace(temporary, path)


def make_private_folder(folder: Path) -> None:
    """Make `folder` for its owner only (mode 0700); one that exists keeps its mode."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)


def check_writable(folder: Path) -> None:
    """Make sure that files can be written into `folder`, before minutes of work for them.

    Nothing is left: folders that had to be made are removed again.

    Raises:
        OSError: it, or a folder above it, is no folder, is forbidden or cannot be made.
    """
    made: list[Path] = []
    try:
        for path in (*reversed(folder.absolute().parents), folder.absolute()):
            if not path.is_dir():
                path.mkdir()
                made.append(path)
        with tempfile.TemporaryFile(dir=folder):
            pass
    finally:
        for path in reversed(made):
            path.rmdir()


def close_to_others(folder: Path) -> None:
    """Take the rights of others from `folder` and all in it, which a library has written."""
    folder.chmod(0o700)
    for path in folder.rglob("*"):
        path.chmod(0o700 if path.is_dir() else 0o600)
