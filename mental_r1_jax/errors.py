"""The one exception for mistakes that a user can mend: bad config, bad data, a wrong path."""

from __future__ import annotations


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


def _as_sentence(text: str) -> str:
    """`text` ending in a punctuation mark."""
    return text if text.endswith((".", "!", "?")) else f"{text}."
