"""AdamW or Adafactor with clipping and a decaying learning rate, from optax."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Float

from mental_r1_jax.config import FACTORED_FROM, OptimizerConfig


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
    """Clip by global norm, then AdamW or Adafactor; weight decay touches matrices alone.

    Weight decay is decoupled and follows the learning rate with both.
    """
    clip = optax.clip_by_global_norm(config.max_grad_norm)
    rate = make_schedule(config, num_updates)
    if config.name == "adafactor":
        return optax.chain(clip, _adafactor(config, rate))
    adamw = optax.adamw(
        rate,
        b1=config.beta1,
        b2=config.beta2,
        eps=config.epsilon,
        mu_dtype=None if config.first_moment == "float32" else config.first_moment,
        weight_decay=config.weight_decay,
        mask=_is_matrix,
    )
    return optax.chain(clip, adamw)


def _adafactor(config: OptimizerConfig, rate: optax.Schedule) -> optax.GradientTransformation:
    """Adafactor with a given learning rate: no first moment, no scaling by the size of weights.

    V_t = b_t V_{t-1} + (1 - b_t) G^2 with b_t = 1 - t^-0.8, as the outer product of its row and
    column means over the mean where a matrix is at least 128 x 128; the update G / sqrt(V) is
    scaled down to a root mean square of 1, that of a stack of layers as a whole.

    Source: Shazeer and Stern, "Adafactor" (2018), algorithms 4 and 5, sections 6 and 7.2.
    """
    return optax.chain(
        optax.scale_by_factored_rms(min_dim_size_to_factor=FACTORED_FROM),
        optax.clip_by_block_rms(1.0),
        optax.add_decayed_weights(config.weight_decay, _is_matrix),
        optax.scale_by_learning_rate(rate),
    )


def moment_sharding(
    moment: jax.ShapeDtypeStruct, weight: jax.ShapeDtypeStruct, where: NamedSharding
) -> NamedSharding:
    """Where a moment lives whose weight lives at `where`.

    Of one that is a mean over an axis of its weight, the other axes live as the weight's. Where
    several axes could be the missing one, the first is taken for it: only the place differs.
    """
    if moment.shape == weight.shape:
        return where
    spec = [*where.spec, *[None] * (len(weight.shape) - len(where.spec))]
    for axis in range(len(weight.shape)):
        if moment.shape == (*weight.shape[:axis], *weight.shape[axis + 1 :]):
            return NamedSharding(where.mesh, PartitionSpec(*spec[:axis], *spec[axis + 1 :]))
    return NamedSharding(where.mesh, PartitionSpec())


def _is_matrix(params: Any) -> Any:
    """True for kernels and embeddings; norms and biases are named `scale` and `bias`."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: getattr(path[-1], "key", "") not in ("scale", "bias"), params
    )
