"""Signals that end work which the same command goes on with: one line says so."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


class Interrupted(KeyboardInterrupt):
    """A signal asked the work to end; says what becomes of what is done."""

    def __init__(self, number: int, line: str) -> None:
        """Remember the signal."""
        self.number = signal.Signals(number)
        super().__init__(f"{self.number.name}: {line}")


@contextlib.contextmanager
def ends_with_a_line(line: str) -> Iterator[None]:
    """Let SIGTERM, SIGHUP and Ctrl-C raise `Interrupted`; a second one ends the process at once.

    Signals that are ignored stay so.

    Args:
        line: what ended, and what becomes of what is done.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
    before = {n: signal.getsignal(n) for n in numbers if signal.getsignal(n) != signal.SIG_IGN}

    def interrupt(number: int, frame: FrameType | None) -> None:
        for one in before:
            signal.signal(one, signal.SIG_DFL)
        raise Interrupted(number, line)

    for number in before:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
