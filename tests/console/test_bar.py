"""The bar of long rows of items: few plain lines in a file, a bar in a terminal."""

from __future__ import annotations

import io

from rich.console import Console

from mental_r1_jax.console.bar import item_bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_file_gets_a_line_first_and_last_and_every_half_minute() -> None:
    """One of 100 items a second, 10 of which were there; the clock is ours."""
    seconds = iter(range(1000))
    console = Console(file=io.StringIO(), width=80)
    with item_bar(console, "posts", 100, 10, clock=lambda: float(next(seconds))) as show:
        for done in range(11, 101):
            show(done)
    lines = console.file.getvalue().splitlines()
    assert lines == [
        "  11/100 posts, ETA 0:01:29",
        "  41/100 posts, ETA 0:00:59",
        "  71/100 posts, ETA 0:00:29",
        "  100/100 posts, ETA 0:00:00",
    ]


def test_a_terminal_gets_a_bar() -> None:
    console = Console(file=Terminal(), width=80, force_terminal=True, _environ={"TERM": "xterm"})
    with item_bar(console, "posts", 3) as show:
        for done in (1, 2, 3):
            show(done)
    text = console.file.getvalue()
    assert "3/3" in text and "posts" in text and "\x1b[" in text
