"""Reward functions that the runs of these tests name in their recipes."""

from __future__ import annotations

import os
import signal
from typing import Any

# Calls of `stop_after` so far; a test sets it to 0 and `CALLS_BEFORE_STOP` to what it needs.
CALLS = 0
CALLS_BEFORE_STOP: int | None = None


def vowels(completion: str, example: Any) -> float:
    """Share of the completion's characters that are vowels."""
    return sum(char in "aeiou" for char in completion) / max(1, len(completion))


def fail_after(completion: str, example: Any) -> float:
    """1 for a completion of many vowels, else 0; at a certain call the process would be killed."""
    global CALLS
    CALLS += 1
    if CALLS == CALLS_BEFORE_STOP:
        raise InterruptedError
    return float(vowels(completion, example) > 0.25)


def stop_after(completion: str, example: Any) -> float:
    """`vowels`, and a SIGTERM to this process at a certain call, in the middle of a step."""
    global CALLS
    CALLS += 1
    if CALLS == CALLS_BEFORE_STOP:
        os.kill(os.getpid(), signal.SIGTERM)
    return vowels(completion, example)
