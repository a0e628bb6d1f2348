"""What is tried: a reader, a file that it reads, and the words of its format."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Reader:
    """A reader to try.

    Attributes:
        sound: a file that it reads.
        words: pieces of its format, for mutations.
        read: `(folder, content)`: put the content where it belongs, and read it.
    """

    sound: bytes
    words: tuple[str, ...]
    read: Callable[[Path, bytes], object]


JSON_WORDS = (
    "{",
    "}",
    "[",
    "]",
    '"',
    ":",
    ",",
    "null",
    "true",
    "1e999",
    "-1",
    "0.5",
    "NaN",
    "\\ud800",
    "\\u0000",
)
