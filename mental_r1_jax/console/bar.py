"""How far a long row of equal items has come: a bar in a terminal, some plain lines elsewhere."""

from __future__ import annotations

import contextlib
import datetime
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

from mental_r1_jax.console.progress import is_interactive

# Between two lines where there is no terminal.
_LINE_SECONDS = 30.0


@contextlib.contextmanager
def item_bar(
    console: Console,
    what: str,
    total: int,
    done: int = 0,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Callable[[int], None]]:
    """Show how many of `total` items are done; call what this yields with the number.

    Args:
        console: where to show.
        what: the items, such as "posts".
        total: all of them.
        done: those that were done before.
        clock: seconds; replaced in tests.
    """
    if not is_interactive(console):
        yield _plain_lines(console, what, total, done, clock)
        return
    columns = (
        *(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()),
        *(TaskProgressColumn(show_speed=True), TimeRemainingColumn()),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(what, total=total, completed=done)
        yield lambda now: progress.update(task, completed=now)


def _plain_lines(
    console: Console, what: str, total: int, before: int, clock: Callable[[], float]
) -> Callable[[int], None]:
    """A line after the first items, one every half minute, and one at the end."""
    started, shown = clock(), float("-inf")

    def show(done: int) -> None:
        nonlocal shown
        now = clock()
        if done < total and now - shown < _LINE_SECONDS:
            return
        shown = now
        left = (total - done) * (now - started) / max(1, done - before)
        eta = datetime.timedelta(seconds=round(left))
        print(f"  {done:,}/{total:,} {what}, ETA {eta}", file=console.file, flush=True)

    return show
