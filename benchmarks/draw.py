"""How long drawing tokens takes, truncated to the nucleus or not, in turns on the same logits.

    python benchmarks/draw.py --vocabulary 8192 49152 151936 --spread 2

The draws stand in a loop, as in decoding, and every turn has other logits. Logits are normally
distributed: a spread of 0.1 is a model with random weights, whose nucleus is nearly everything; of
4 one that has been trained. A truncated draw is longer where the sampler's log-probs are wanted
(`crpo.sampler_correction`), which takes the mass of the nucleus. Seconds are those of the processor
by default, which other programs on the machine disturb less than the clock.
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

_DRAWS = 24  # in one call


def draws(
    top_p: float, temperature: float, sampler_logprobs: bool
) -> Callable[[jax.Array, jax.Array], Any]:
    """Several draws in one program."""

    def run(logits: jax.Array, uniform: jax.Array) -> Any:
        def one(i: jax.Array, total: jax.Array) -> jax.Array:
            scaled = logits * (1.0 + 1e-3 * i.astype(jnp.float32))
            drawn = sample_token(
                jax.lax.optimization_barrier(scaled),
                uniform[i],
                temperature=temperature,
                top_p=top_p,
                top_k=None,
                sampler_logprobs=sampler_logprobs,
            )
            return sum(jax.tree.leaves(drawn), total)

        return jax.lax.fori_loop(0, _DRAWS, one, jnp.zeros(uniform.shape[1:]))

    return jax.jit(run)


def measure(
    vocabulary: int, options: argparse.Namespace, shares: Sequence[tuple[float, bool]]
) -> list[float]:
    """Seconds of one draw for each top-p, with the sampler's log-probs or not; in turns, median."""
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((1, options.rows, vocabulary), np.float32) * options.spread
    uniform = rng.random((_DRAWS, 1, options.rows), np.float32)
    arguments = jnp.asarray(logits), jnp.asarray(uniform)
    programs = [draws(share, options.temperature, logprobs) for share, logprobs in shares]
    clock = time.perf_counter if options.clock == "wall" else time.process_time
    seconds: list[list[float]] = [[] for _ in programs]
    for turn in range(options.repeats + 1):  # the first one compiles
        for program, times in zip(programs, seconds, strict=True):
            start = clock()
            jax.block_until_ready(program(*arguments))
            if turn:
                times.append((clock() - start) / _DRAWS)
    return [statistics.median(times) for times in seconds]


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
        shares = ((1.0, False), (options.top_p, False), (options.top_p, True))
        plain, truncated, measured = measure(vocabulary, options, shares)
        print(
            f"V {vocabulary:7}: plain {1e3 * plain:7.2f} ms, top-p {options.top_p} "
            f"{1e3 * truncated:7.2f} ms, {truncated / plain:.2f} times; with the sampler's "
            f"log-probs {1e3 * measured:7.2f} ms, {measured / plain:.2f} times"
        )


if __name__ == "__main__":
    main()
