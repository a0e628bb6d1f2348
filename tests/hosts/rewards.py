"""A reward that sends its own process a signal in the middle of a step, for trials."""

from __future__ import annotations

import os
import signal
from typing import Any

# Set by a trial: "PROCESS SIGNAL CALL", for example "1 SIGKILL 40".
TRIAL = "MENTAL_R1_TEST_TRIAL"
_calls = 0


def vowels(completion: str, example: Any) -> float:
    """Share of the completion's characters that are vowels."""
    global _calls
    _calls += 1
    process, name, call = os.environ.get(TRIAL, "none none 0").split()
    if _calls == int(call) and process == os.environ.get("MENTAL_R1_PROCESS_ID", "0"):
        os.kill(os.getpid(), signal.Signals[name])
    return sum(char in "aeiou" for char in completion) / max(1, len(completion))
