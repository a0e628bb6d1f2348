"""How long drawing tokens takes, truncated to the nucleus and not, in turns on the same logits.

    python benchmarks/draw.py --vocabulary 8192 49152 151936 --spread 2

The draws stand in a loop, as in decoding, and every turn has other logits. Logits are normally
distributed: a spread of 0.1 is a model with random weights, whose nucleus is nearly everything; of
4 one that has been trained. Seconds are those of the processor by default, which other programs on
the machine disturb less than the clock.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mental_r1_jax.rollout.sampling import sample_token

_DRAWS = 6  # in one call


def draws(top_p: float, temperature: float) -> Callable[[jax.Array, jax.Array], Any]:
    """Several draws in one program."""

    def run(logits: jax.Array, uniform: jax.Array) -> Any:
        def one(i: jax.Array, total: jax.Array) -> jax.Array:
            scaled = logits * (1.0 + 1e-3 * i.astype(jnp.float32))
            ids, sampler, decode = sample_token(
                jax.lax.optimization_barrier(scaled),
                uniform,
                temperature=temperature,
                top_p=top_p,
                top_k=None,
            )
            return total + ids + sampler + decode

        return jax.lax.fori_loop(0, _DRAWS, one, jnp.zeros(uniform.shape))

    return jax.jit(run)


def measure(
    vocabulary: int, options: argparse.Namespace, shares: Sequence[float]
) -> dict[float, list[float]]:
    """Seconds of one draw for each top-p, all measured in turns."""
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((1, options.rows, vocabulary), np.float32) * options.spread
    arguments = jnp.asarray(logits), jnp.asarray(rng.random((1, options.rows), np.float32))
    programs = {share: draws(share, options.temperature) for share in shares}
    clock = time.perf_counter if options.clock == "wall" else time.process_time
    seconds: dict[float, list[float]] = {share: [] for share in shares}
    for turn in range(options.repeats + 1):  # the first one compiles
        for share, program in programs.items():
            start = clock()
            jax.block_until_ready(program(*arguments))
            if turn:
                seconds[share].append((clock() - start) / _DRAWS)
    return seconds


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Measure the draw of a token.")
    add = functools.partial(parser.add_argument, type=float)
    add("--vocabulary", type=int, nargs="+", default=[8192, 49152, 151936], help="tokens")
    add("--rows", type=int, default=32, help="completions that draw at once")
    add("--spread", default=2.0, help="standard deviation of the logits")
    add("--temperature", default=0.85)
    add("--top-p", default=0.95, help="nucleus share")
    add("--repeats", type=int, default=9)
    add("--clock", type=str, default="cpu", choices=("cpu", "wall"))
    options = parser.parse_args(arguments)
    for vocabulary in options.vocabulary:
        seconds = measure(vocabulary, options, (1.0, options.top_p))
        plain, truncated = (statistics.median(times) for times in seconds.values())
        print(
            f"V {vocabulary:7}: plain {1e3 * plain:7.2f} ms, top-p {options.top_p} "
            f"{1e3 * truncated:7.2f} ms, {truncated / plain:.2f} times"
        )


if __name__ == "__main__":
    main()
