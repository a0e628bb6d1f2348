"""Raw rows: what every reader of a file yields, and the one way from them to checked posts.

A reader (CSV, JSON, Parquet) goes through its file in order and yields, for each row, a `RawRow`,
or the problems that keep the row from being one. `check_rows` makes `Example`s of them. What
depends on the format of a file stays in its reader; what a post must be is decided here, once.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from mental_r1_jax.config import ColumnMap
from mental_r1_jax.data.benchmarks import BenchmarkSpec, Split
from mental_r1_jax.data.records import Problem
from mental_r1_jax.data.repeats import LocatedExample


@dataclass(frozen=True)
class RawRow:
    """One row as its file has it, before any check of its contents.

    Attributes:
        file: path of the file.
        line: physical line, from 1, on which the row starts; in Parquet the row, from 1.
        text: the post.
        label: the label as text; a tuple where the file has a list of labels there.
        question: the user turn before the post; None where the row brings none.
        group: whom or what the post belongs to, where the file says so.
        reasoning: reasoning that came with the row.
    """

    file: str
    line: int
    text: str = field(repr=False)
    label: str | tuple[str, ...] = field(repr=False)
    question: str | None = field(repr=False)
    group: str | None = None
    reasoning: str | None = field(repr=False, default=None)


@dataclass(frozen=True)
class Oddity:
    """A problem that does not forbid building: a warning."""

    problem: Problem


# What a reader yields.
Event = RawRow | Problem | Oddity


@dataclass(frozen=True)
class CheckedRows:
    """The rows of one file after the check.

    Attributes:
        found: the posts that are right, in file order.
        errors: problems that forbid building.
        warnings: problems that a person should look at.
    """

    found: tuple[LocatedExample, ...]
    errors: tuple[Problem, ...]
    warnings: tuple[Problem, ...]


def check_rows(
    events: Iterable[Event], spec: BenchmarkSpec, split: Split, names: ColumnMap
) -> CheckedRows:
    """Check the rows of one file.

    Args:
        events: what the file's reader yields.
        spec: labels and question of the set.
        split: the split that the file is; of one file without splits "train" stands for all, and
            `dataclasses.replace` gives each post its own afterwards.
        names: what the file calls its columns, for complaints.
    """
    raise NotImplementedError
