"""What the reader of CSV folders returns: posts, problems, and the two together."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mental_r1_jax.data.benchmarks import BenchmarkSpec, Split

_SHOWN_CHARS = 40


@dataclass(frozen=True)
class Example:
    """One labelled post.

    Attributes:
        set_name: the set it belongs to.
        split: train, validation or test.
        row: position among the data rows of its file, from 0.
        text: the post; left out of `repr`, so that no traceback repeats it.
        label: the gold label.
        question: the user turn before the post.
        group: whom or what the post belongs to, where the file says so: a writer, an age band.
        reasoning: text that came with the post and leads to its label: staged, or in any form.
    """

    set_name: str
    split: Split
    row: int
    text: str = field(repr=False)
    label: str
    question: str = field(repr=False)
    group: str | None = None
    reasoning: str | None = field(repr=False, default=None)


@dataclass(frozen=True)
class Problem:
    """Something wrong, or odd, in a file of a set.

    Attributes:
        file: path of the file.
        line: physical line, from 1, on which the record (or the open quote) starts; None when the
            problem is the file itself.
        column: name of the column, or "" when it is the record itself.
        value: what was found; a post only by length and hash.
        expected: what should have been there.
        kind: a fixed word to count and test by.
    """

    file: str
    line: int | None
    column: str
    value: str
    expected: str
    kind: str

    def __str__(self) -> str:
        """Return the report in one line, beginning with FILE:LINE."""
        place = self.file if self.line is None else f"{self.file}:{self.line}"
        column = f" [{self.column}]" if self.column else ""
        return f"{place}{column} {self.kind}: got {self.value}; expected {self.expected}"


@dataclass(frozen=True)
class CheckedSet:
    """A set after the check: usable when `errors` is empty.

    Attributes:
        spec: name, labels and question of the set.
        examples: the posts of each split, in file order.
        errors: problems that forbid building.
        warnings: problems that a person should look at.
        content_hash: SHA-256 (hex) over the files, the spec and the options that shape the records.
    """

    spec: BenchmarkSpec
    examples: Mapping[Split, tuple[Example, ...]]
    errors: tuple[Problem, ...]
    warnings: tuple[Problem, ...]
    content_hash: str


def redacted(text: str) -> str:
    """Return what a report may say of a post: its length and the beginning of its SHA-256."""
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{len(text)} characters, sha256 {digest[:8]}"


def shown(value: str, like: Sequence[str] = ()) -> str:
    """A value no longer than those it should be `like`; others may be a post in a wrong column."""
    words = max((len(word.split()) for word in like), default=0) + 1
    fits = len(value) <= _SHOWN_CHARS and len(value.split()) <= words
    return repr(value) if fits else redacted(value)


def shown_names(names: Sequence[str]) -> str:
    """Names of columns, in a row; what is no name may be a post in the first line."""
    fits = [name.isidentifier() and len(name) <= _SHOWN_CHARS for name in names]
    return ", ".join(
        repr(name) if fit else redacted(name) for name, fit in zip(names, fits, strict=True)
    )
