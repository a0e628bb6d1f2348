"""Which share of a rollout is the drawing of tokens? The rollout with and without it, in turns.

    python benchmarks/draw_share.py --model HF_DIR --prompts 2 --group 8 --prompt-len 384 \
        --completion-len 256 --steps 3

The rollout is compiled twice: as it is, and with a draw that takes token 0 and reads one logit of
each row. All else is the same; a barrier keeps the head's product whole. What the second rollout
saves is what drawing takes.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
from step import open_run, parse, random_prompts

from mental_r1_jax.programs.step_programs import as_word, bind_sampler
from mental_r1_jax.rollout import sampler
from mental_r1_jax.rollout.sampler import sampler_settings
from mental_r1_jax.runs.training_run import fresh_state


def first_token(
    logits: jax.Array, uniform: jax.Array, *, sampler_logprobs: bool, **_: Any
) -> tuple[jax.Array | None, ...]:
    """Token 0 for every row, in place of `sample_token`."""
    one = jax.lax.optimization_barrier(logits)[..., 0]
    return jnp.zeros(uniform.shape, jnp.int32), one, one if sampler_logprobs else None


def measure(options: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of every rollout by what draws in it; the two take turns."""
    run = open_run(options)
    weights = fresh_state(run.model, run.optimizer, run.mesh, run.config.crpo).weights
    settings = sampler_settings(run.config, "train", eos_ids=(), pad_id=run.model.tokenizer.pad_id)
    seed = as_word(run.config.run.seed)

    def rollout(draw: Callable[..., Any]) -> Callable[[int], Any]:
        program = bind_sampler(run.model.decoder, settings, run.mesh)

        def call(step: int) -> Any:
            return program(weights, random_prompts(run, step), seed, as_word(step))

        with mock.patch.object(sampler, "sample_token", draw):
            jax.block_until_ready(call(0))  # traced and compiled with this draw
        return call

    rollouts = {"drawing": rollout(sampler.sample_token), "without": rollout(first_token)}
    seconds: dict[str, list[float]] = {name: [] for name in rollouts}
    for step in range(1, options.steps + 1):
        for name, call in rollouts.items():
            start = time.perf_counter()
            jax.block_until_ready(call(step))
            seconds[name].append(time.perf_counter() - start)
    return seconds


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print; the options are those of `step.py`."""
    seconds = measure(parse(arguments))
    for name, times in seconds.items():
        print(f"{name:8} {', '.join(f'{one:.2f}' for one in times)} s")
    drawing, without = (statistics.median(seconds[name]) for name in ("drawing", "without"))
    print(f"share    {1 - without / drawing:.1%} of the rollout is drawing")


if __name__ == "__main__":
    main()
