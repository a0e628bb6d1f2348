"""The compiled programs of a step, and compiling them before they are needed.

`sample`, `logprobs` and `update` do not need each other's results to be compiled, only shapes. So a
thread compiles them while the main thread reads weights, and goes on while the device samples; the
first step waits for each where it is called.
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from mental_r1_jax import sharding
from mental_r1_jax.models import decoder
from mental_r1_jax.rollout.sampler import SamplingConfig, sample_completions, step_key
from mental_r1_jax.training.checkpoint import abstract_like
from mental_r1_jax.training.train_step import (
    StepConfig,
    TrainState,
    init_state,
    jit_step,
    policy_logprobs,
    state_shardings,
    train_step,
)
from mental_r1_jax.types import Batch, Completions, PromptBatch, TraceBatch


@dataclasses.dataclass(frozen=True)
class Programs:
    """The three compiled functions of a step.

    Attributes:
        sample: `(params, prompts, seed, step) -> Completions`; seed and step from `as_word`.
        logprobs: `(params, traces) -> [B, G, C]`, of the reference or the sampling policy.
        update: `(state, batch) -> (state, metrics)`; donates the state.
    """

    sample: Any
    logprobs: Any
    update: Any

    def compiled(self) -> int:
        """Programs compiled so far."""
        return sum(function._cache_size() for function in (self.sample, self.logprobs, self.update))


def bind_programs(
    sampling: SamplingConfig,
    step: StepConfig,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
) -> Programs:
    """Bind everything static; each function compiles at its first call for a prompt length."""
    logprobs = functools.partial(
        policy_logprobs,
        config=step.decoder,
        temperature=step.temperature,
        chunk_size=step.chunk_size,
    )
    return Programs(
        sample=jit_sampler(step.decoder, sampling, mesh),
        logprobs=jax.jit(logprobs, out_shardings=sharding.batch_sharding(mesh, 3)),
        update=jit_step(train_step, config=step, optimizer=optimizer, mesh=mesh),
    )


def jit_sampler(config: decoder.DecoderConfig, sampling: SamplingConfig, mesh: Mesh) -> Any:
    """The compiled sampler, `(params, prompts, seed, step) -> Completions`.

    Its outputs are cut over prompts, so that each process finds its own rows on its own devices.
    The random key is made inside, from two numbers: made outside, it would take programs of its
    own, and every process would have to agree on where it lives.
    """

    def sample(params: Any, prompts: PromptBatch, seed: jax.Array, step: jax.Array) -> Completions:
        key = step_key(seed, step)
        return sample_completions(params, prompts, key, config=config, sampling=sampling)

    def rows(ndim: int) -> Any:
        return sharding.batch_sharding(mesh, ndim)

    where = Completions(rows(3), rows(3), rows(3), rows(3), rows(2))
    return jax.jit(sample, out_shardings=where)


def as_word(number: int) -> np.uint32:
    """A seed or a step number as compiled functions take it; seeds count modulo 2**32."""
    return np.uint32(number & 0xFFFFFFFF)


def abstract_state(
    config: decoder.DecoderConfig, optimizer: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
    """Shapes and shardings of the state, to compile for or to restore a checkpoint into."""
    shapes = jax.eval_shape(
        functools.partial(init_state, optimizer=optimizer), decoder.abstract_params(config)
    )
    return abstract_like(shapes, state_shardings(config, optimizer, mesh))


def trace_batch(prompts: PromptBatch | Batch, completions: Completions | Batch) -> TraceBatch:
    """Prompts and completions as the log-prob program takes them: tokens, and no rewards."""
    return TraceBatch(
        prompt_ids=prompts.prompt_ids,
        prompt_mask=prompts.prompt_mask,
        completion_ids=completions.completion_ids,
        completion_mask=completions.completion_mask,
    )


# Waits until a jitted function is compiled.
Wait = Callable[[Any], None]


def no_wait(function: Any) -> None:
    """Wait for nothing: programs compile when they are first called."""


def compile_in_background(calls: Callable[[], Sequence[tuple[Any, tuple[Any, ...]]]]) -> Wait:
    """Start compiling in a thread; the function returned waits, and raises failures.

    Args:
        calls: gives pairs of a jitted function and its arguments (`jax.ShapeDtypeStruct` will do),
            in the order in which they are taken up.
    """
    # One thread: XLA uses several by itself, and two programs at a time took half as much memory
    # again and no less time.
    pool = ThreadPoolExecutor(1, thread_name_prefix="compile")

    def compile_one(function: Any, arguments: tuple[Any, ...]) -> None:
        function.lower(*arguments).compile()
        return_free_memory()

    def start() -> list[tuple[Any, Future[None]]]:
        jobs = [(call[0], pool.submit(compile_one, *call)) for call in calls()]
        pool.shutdown(wait=False)  # what is submitted still runs
        return jobs

    started = pool.submit(start)

    def wait(function: Any) -> None:
        for compiled, job in started.result():
            if compiled is function:
                job.result()

    return wait


def return_free_memory() -> None:
    """Give memory that the compiler has freed back to the system.

    The C library of Linux keeps it for later: half a gigabyte after the three programs of a step,
    which would stand beside the buffers of the whole run.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc alone
    if trim is not None:
        trim(0)
