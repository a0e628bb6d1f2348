"""Random small steps for the tests of `rl/`, from NumPy's generator and literal seeds."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
from jax import Array

from mental_r1_jax.config import STAGE_NAMES
from mental_r1_jax.types import Batch


@dataclasses.dataclass(frozen=True)
class Step:
    """The arguments of `crpo_loss` for a whole step."""

    batch: Batch
    logprobs: Array
    entropies: Array
    advantages: Array


def random_step(seed: int, b: int = 4, g: int = 3, c: int = 7, *, off_policy: bool = True) -> Step:
    """Make a step with ragged lengths, one empty completion and overlapping or missing stages."""
    rng = np.random.default_rng(seed)
    shape = (b, g, c)
    lengths = rng.integers(1, c + 1, (b, g))
    lengths[0, 1] = 0
    mask = np.arange(c) < lengths[..., None]
    stage_mask = (rng.random((b, g, len(STAGE_NAMES), c)) < 0.4) & mask[:, :, None, :]
    stage_mask[-1, 1:, 2] = False
    logprobs = -rng.gamma(1.0, 1.0, shape)

    def near(spread: float) -> Array:
        return jnp.asarray(logprobs + spread * rng.standard_normal(shape), jnp.float32)

    batch = Batch(
        prompt_ids=jnp.ones((b, 2), jnp.int32),
        prompt_mask=jnp.ones((b, 2), bool),
        completion_ids=jnp.asarray(rng.integers(0, 11, shape), jnp.int32),
        completion_mask=jnp.asarray(mask),
        stage_mask=jnp.asarray(stage_mask),
        rewards=jnp.asarray(rng.standard_normal((b, g)), jnp.float32),
        sampler_logprobs=near(0.01),
        decode_logprobs=near(0.0),
        old_logprobs=near(0.3) if off_policy else None,
        ref_logprobs=near(0.5),
    )
    return Step(
        batch=batch,
        logprobs=jnp.asarray(logprobs, jnp.float32),
        entropies=jnp.asarray(rng.gamma(2.0, 0.5, shape), jnp.float32),
        advantages=jnp.asarray(rng.standard_normal((b, g)), jnp.float32),
    )
