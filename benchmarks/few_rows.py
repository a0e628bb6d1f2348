"""A few rows times a matrix on a CPU: the plain product against `models/few_rows.py`, in turns.

    python benchmarks/few_rows.py --inputs 512 --outputs 2752

Prints milliseconds a product and GB/s of the matrix, by number of rows. As many matrices as make
64 MB are multiplied one after the other, so that they come from memory as in a decoding loop.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import jax

from mental_r1_jax.models.few_rows import few_rows_product, outputs_first

TOGETHER = 64e6  # bytes


def seconds_of(product: Callable[..., list[jax.Array]], *operands: object) -> float:
    """Seconds of one call, the results waited for."""
    start = time.perf_counter()
    jax.block_until_ready(product(*operands))
    return time.perf_counter() - start


def main() -> None:
    """Read the options, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--inputs", type=int, default=512)
    parser.add_argument("--outputs", type=int, default=2752)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64, 128])
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    shape = (options.inputs, options.outputs)
    size = 4 * options.inputs * options.outputs
    count = max(1, round(TOGETHER / size))
    keys = jax.random.split(jax.random.key(0), count)
    plain = [jax.random.normal(key, shape) for key in keys]
    turned = [outputs_first(matrix, 1) for matrix in plain]
    calls = {
        "plain": (jax.jit(lambda x, ws: [x @ w for w in ws]), plain),
        "outputs first": (jax.jit(lambda x, ws: [few_rows_product(x, w) for w in ws]), turned),
    }
    print("| rows | plain, ms | GB/s | outputs first, ms | GB/s |")
    print("|--:|--:|--:|--:|--:|")
    for num_rows in options.rows:
        x = jax.random.normal(jax.random.key(1), (num_rows, options.inputs))
        taken: dict[str, list[float]] = {name: [] for name in calls}
        for turn in range(options.repeats + 1):
            for name, (product, matrices) in calls.items():
                seconds = seconds_of(product, x, matrices)
                taken[name] += [seconds / count] if turn else []  # the first compiles
        middle = [statistics.median(of) for of in taken.values()]
        cells = " | ".join(f"{1e3 * s:.2f} | {size / s / 1e9:.1f}" for s in middle)
        print(f"| {num_rows} | {cells} |")


if __name__ == "__main__":
    main()
