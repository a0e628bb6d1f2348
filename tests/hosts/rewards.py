"""Rewards that send their own process a signal, or fail, in the middle of a step, for trials."""

from __future__ import annotations

import functools
import os
import signal
import threading
from typing import Any

from mental_r1_jax.training import checkpoint, manifest

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


def fails_while_a_checkpoint_is_written(completion: str, example: Any) -> float:
    """As `vowels`; the first process fails while its first checkpoint is written, without end."""
    if os.environ.get("MENTAL_R1_PROCESS_ID") == "0":
        begun, signing = _checkpoint_without_end()
        if begun.is_set() and signing.wait(60):
            raise RuntimeError("it fails while a checkpoint is written")
    return vowels(completion, example)


@functools.cache
def _checkpoint_without_end() -> tuple[threading.Event, threading.Event]:
    """Let the signing of checkpoints never end; tells when a first one has begun, and is signed."""
    begun, signing = threading.Event(), threading.Event()
    save = checkpoint.CheckpointManager.save

    def announced(*arguments: Any, **parts: Any) -> bool:
        begun.set()
        return save(*arguments, **parts)

    def for_ever(*_: Any) -> None:
        signing.set()
        threading.Event().wait()

    checkpoint.CheckpointManager.save = announced
    manifest.write_manifest = for_ever
    return begun, signing
