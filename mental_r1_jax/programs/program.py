"""A jitted function that may be compiled in the background before it is called.

The programs of a step need each other's shapes to be compiled, not each other's results. So a
thread compiles them while the main thread reads weights, and goes on while the device samples; a
call of a program waits for that program's own compilation and for no other.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


class Program:
    """A jitted function; a call waits for its background compilation, if one was started."""

    def __init__(self, jitted: Any) -> None:
        """Wrap `jitted`, from `jax.jit`; nothing is compiled."""
        self.jitted = jitted
        self._compiling: Future[None] | None = None

    def __call__(self, *arguments: Any) -> Any:
        """Call the function; an error of its background compilation is raised here."""
        if self._compiling is not None:
            compiling, self._compiling = self._compiling, None
            compiling.result()
        return self.jitted(*arguments)

    def compile(self, *arguments: Any) -> Any:
        """Compile for `arguments` (`jax.ShapeDtypeStruct` will do) and return what is compiled."""
        return self.jitted.lower(*arguments).compile()

    def compiled(self) -> int:
        """Number of shapes of arguments that this program has been called with."""
        return int(self.jitted._cache_size())

    def _compile_later(self, pool: ThreadPoolExecutor, calls: Callable[[], Sequence[Any]]) -> None:
        """Compile in `pool` for every tuple of arguments that `calls` gives."""

        def compile_all() -> None:
            for arguments in calls():
                self.compile(*arguments)
                return_free_memory()

        self._compiling = pool.submit(compile_all)


def compile_in_background(
    programs: Sequence[Program], calls: Callable[[Program], Sequence[tuple[Any, ...]]]
) -> None:
    """Start compiling `programs` in a thread, in the order given, and return at once.

    Args:
        programs: in the order in which a step calls them, so that the device works on the first
            ones while the update, which takes longest, is compiled.
        calls: program -> the tuples of arguments to compile it for; called in the thread, because
            working out shapes takes time as well.
    """
    # One thread: XLA uses several by itself, and two programs at a time took half as much memory
    # again and no less time.
    pool = ThreadPoolExecutor(1, thread_name_prefix="compile")
    for program in programs:
        program._compile_later(pool, functools.partial(calls, program))
    pool.shutdown(wait=False)  # what is submitted still runs


def return_free_memory() -> None:
    """Give memory that the compiler has freed back to the system.

    The C library of Linux keeps it for later: half a gigabyte after the three programs of a step,
    which would stand beside the buffers of the whole run.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc alone
    if trim is not None:
        trim(0)
