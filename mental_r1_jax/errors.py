"""The one exception for mistakes that a user can mend: bad config, bad data, a wrong path."""

from __future__ import annotations

import errno
import re

# What the surroundings refuse. A file that is merely missing is not here: we should have looked.
_REMEDIES = {
    errno.ENOSPC: "make room, then give the same command again",
    errno.EDQUOT: "make room in your quota, then give the same command again",
    errno.EFBIG: "write to another file system",
    errno.EACCES: "change its permissions, or choose another path",
    errno.EPERM: "change its permissions, or choose another path",
    errno.EROFS: "choose a path on a file system that can be written to",
    errno.EEXIST: "a file or a broken link is in the way: remove it, or choose another path",
    errno.ENOTDIR: "a part of the path is a file: choose another path",
    errno.EISDIR: "a folder is in the way: move it, or choose another path",
    errno.ENAMETOOLONG: "choose a shorter path",
    errno.ELOOP: "mend the links, or choose another path",
    errno.EIO: "look after the disk, then give the same command again",
}
# Libraries report a full disk by errors of their own.
_FULL_DISK = ("No space left on device", "Disk quota exceeded", "File too large")

# Control characters but tab and line end, and what changes the direction of writing.
_UNSEEN = re.compile("[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\u202a-\\u202e\\u2066-\\u2069]")


def visible(text: str) -> str:
    """Return `text` with control characters written out, as `\\x1b`: a terminal obeys them."""
    return _UNSEEN.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


class UserError(Exception):
    """A mistake in what the user gave, with the way out of it.

    The command line prints it and exits with status 2, without a traceback.

    Attributes:
        what: the thing that is wrong, with its name or place.
        expected: what would have been right; may be empty.
        got: what was found instead; may be empty.
        remedy: what to do about it; may be empty.
    """

    def __init__(self, what: str, expected: str, got: str, remedy: str) -> None:
        """Take the four parts of the message; all are required, an empty one is left out."""
        # All four go to `args`, so that the exception survives pickling between processes.
        super().__init__(what, expected, got, remedy)
        self.what = what
        self.expected = expected
        self.got = got
        self.remedy = remedy

    def __str__(self) -> str:
        """Return the message as one paragraph."""
        parts = (
            self.what,
            self.expected and f"Expected {self.expected}",
            self.got and f"Got {self.got}",
            self.remedy,
        )
        return " ".join(_as_sentence(part) for part in parts if part)


def mistake_of_surroundings(error: BaseException) -> UserError | None:
    """A full disk, a forbidden folder or an impossible path as a message; None for other errors."""
    if isinstance(error, OSError) and error.errno in _REMEDIES:
        where = f" {error.filename!r}" if error.filename is not None else ""
        if len(where) > 200:
            where = f"{where[:200]}... ({len(str(error.filename))} characters)"
        got, remedy = error.strerror or type(error).__name__, _REMEDIES[error.errno]
        return UserError(f"cannot use the path{where}", "a place to read and write", got, remedy)
    text = str(error)
    if full := [words for words in _FULL_DISK if words in text]:
        remedy = _REMEDIES[errno.ENOSPC]
        return UserError("cannot write", "room on the disk", f"{full[0]}: {text[:300]}", remedy)
    if isinstance(error, ValueError) and "embedded null byte" in text:
        remedy = "correct the path"
        return UserError("a path holds the character NUL", "a path of the system", text, remedy)
    return None


def _as_sentence(text: str) -> str:
    """`text` ending in a punctuation mark."""
    return text if text.endswith((".", "!", "?")) else f"{text}."
