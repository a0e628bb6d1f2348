"""Traces of chosen steps for TensorBoard or XProf, written by `jax.profiler`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import jax

PROFILE_FOLDER = "profile"


class Profiler:
    """Traces the steps it is told to; steps that follow each other share one trace.

    A context manager, so that a trace is finished wherever the run ends.
    """

    def __init__(self, folder: Path, steps: Iterable[int]) -> None:
        """Prepare; nothing is written before the first of `steps` (from 1).

        Args:
            folder: the run folder; traces go to `profile/` in it.
            steps: numbers of the steps to trace.
        """
        self._folder, self._steps = folder / PROFILE_FOLDER, frozenset(steps)
        self._tracing = False

    @contextlib.contextmanager
    def around(self, step: int, drain: Callable[[], object]) -> Iterator[None]:
        """Trace `step` if it is one of those asked for.

        Args:
            step: number of the step that the body asks the device for, from 1.
            drain: waits until the device has nothing to do, so that a trace holds whole steps.
        """
        if step in self._steps and not self._tracing:
            drain()
            options = jax.profiler.ProfileOptions()
            # One event a Python call would hide what the device does, and slow the host down.
            options.python_tracer_level = 0
            jax.profiler.start_trace(self._folder, profiler_options=options)
            self._tracing = True
        with jax.profiler.StepTraceAnnotation("step", step_num=step):
            yield
        if self._tracing and step + 1 not in self._steps:
            drain()
            self._stop()

    def __enter__(self) -> Profiler:
        """Nothing to open."""
        return self

    def __exit__(self, *_: object) -> None:
        """Finish a trace that is still open."""
        if self._tracing:
            self._stop()

    def _stop(self) -> None:
        jax.profiler.stop_trace()
        self._tracing = False
