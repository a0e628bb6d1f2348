"""What the machine can do at best, measured: matrix products and copies, the two roofs.

Utilisation is quoted against these rates rather than a data sheet's, so that it says how well the
program uses this machine, not how good the machine is.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def matmul_flops_per_second(dtype: Any, size: int | None = None, repeats: int = 7) -> float:
    """Best rate (FLOP/s) of a square matrix product of `dtype` on one device."""
    size = size or (2048 if jax.default_backend() == "cpu" else 8192)
    left = jnp.ones((size, size), dtype)
    product = jax.jit(lambda a, b: a @ b)
    return 2 * size**3 / min(_seconds(lambda: product(left, left), repeats))


def copy_bytes_per_second(num_bytes: int | None = None, repeats: int = 7) -> float:
    """Median rate (bytes read plus bytes written a second) of copying a large array.

    The array is far larger than any cache, and is changed a little so that nothing elides the copy.
    """
    num_bytes = num_bytes or (2**28 if jax.default_backend() == "cpu" else 2**32)
    source = jnp.ones(num_bytes // 4, jnp.float32)
    copy = jax.jit(lambda x: x + 1, donate_argnums=0)
    times = []
    for _ in range(repeats + 1):  # in place: fresh pages would be measured instead of memory
        start = time.perf_counter()
        source = copy(source).block_until_ready()
        times.append(time.perf_counter() - start)
    return 2 * num_bytes / statistics.median(times[1:])


def _seconds(call: Callable[[], jax.Array], repeats: int) -> list[float]:
    """Wall times of `call`, the compiling first one left out."""
    call().block_until_ready()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call().block_until_ready()
        times.append(time.perf_counter() - start)
    return times
