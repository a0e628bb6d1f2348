"""Work counted instead of timed: the same on every machine, and not by a clock."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from mental_r1_jax.text.tokenizer import Tokenizer


class Work:
    """What was done: calls of the tokenizer, characters given to it, and lines of ours run."""

    def __init__(self) -> None:
        self.calls = self.characters = self.lines = 0


@contextmanager
def counted(*packages: str) -> Iterator[Work]:
    """Count the work of everything inside; `packages` are folders below `mental_r1_jax`."""
    work, places = Work(), tuple(f"mental_r1_jax/{package}" for package in packages)

    def on_line(frame, event, argument):
        work.lines += event == "line"
        return on_line

    def on_call(frame, event, argument):
        return on_line if any(place in frame.f_code.co_filename for place in places) else None

    def counting(method):
        def call(self, text):
            work.calls += 1
            work.characters += len(text)
            return method(self, text)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in ("encode", "encode_with_starts"):
            patch.setattr(Tokenizer, name, counting(getattr(Tokenizer, name)))
        tracer = sys.gettrace()
        sys.settrace(on_call)
        try:
            yield work
        finally:
            sys.settrace(tracer)
