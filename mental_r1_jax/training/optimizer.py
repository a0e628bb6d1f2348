"""AdamW with clipping and a decaying learning rate, from optax."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import optax
from jaxtyping import Float

from mental_r1_jax.config import OptimizerConfig


def make_schedule(config: OptimizerConfig, num_updates: int) -> optax.Schedule:
    """Learning rate of update u: linear warm-up, then decay that reaches zero at `num_updates`.

    Warm-up: rate * (u + 1) / warmup_steps, so the first update already moves.
    """
    rate, warmup = config.learning_rate, min(config.warmup_steps, num_updates)
    decay_updates = max(1, num_updates - warmup)
    decays: dict[str, optax.Schedule] = {
        "linear": optax.linear_schedule(rate, 0.0, decay_updates),
        "cosine": optax.cosine_decay_schedule(rate, decay_updates),
        "constant": optax.constant_schedule(rate),
    }
    if warmup == 0:
        return decays[config.schedule]
    ramp = optax.linear_schedule(rate / warmup, rate, max(1, warmup - 1))
    return optax.join_schedules([ramp, decays[config.schedule]], [warmup])


def learning_rates(schedule: optax.Schedule, num_updates: int) -> Float[np.ndarray, " updates"]:
    """The rate of every update, for people to read, from one program instead of one each."""
    return np.asarray(jax.jit(jax.vmap(schedule))(np.arange(num_updates)))


def make_optimizer(config: OptimizerConfig, num_updates: int) -> optax.GradientTransformation:
    """Clip by global norm, then AdamW; weight decay touches matrices, not norms or biases."""
    return optax.chain(
        optax.clip_by_global_norm(config.max_grad_norm),
        optax.adamw(
            make_schedule(config, num_updates),
            b1=config.beta1,
            b2=config.beta2,
            eps=config.epsilon,
            weight_decay=config.weight_decay,
            mask=_is_matrix,
        ),
    )


def _is_matrix(params: Any) -> Any:
    """True for kernels and embeddings; norms and biases are named `scale` and `bias`."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: getattr(path[-1], "key", "") not in ("scale", "bias"), params
    )
