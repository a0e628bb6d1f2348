"""AdamW or Adafactor with clipping and a decaying learning rate, from optax."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Float

from mental_r1_jax.config import FACTORED_FROM, OptimizerConfig


class OffloadedOptimizer(optax.GradientTransformationExtraArgs):
    """An optimizer whose moments live in the memory of the hosts; see `moment_sharding`."""


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
    rule = _adafactor(config, rate) if config.name == "adafactor" else _adamw(config, rate)
    chain = optax.chain(clip, rule)
    return OffloadedOptimizer(*chain) if config.offload_moments else chain


def _adamw(config: OptimizerConfig, rate: optax.Schedule) -> optax.GradientTransformation:
    """AdamW with the recipe's keys."""
    return optax.adamw(
        rate,
        b1=config.beta1,
        b2=config.beta2,
        eps=config.epsilon,
        mu_dtype=None if config.first_moment == "float32" else config.first_moment,
        weight_decay=config.weight_decay,
        mask=_is_matrix,
    )


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
    optimizer: optax.GradientTransformation,
    moment: jax.ShapeDtypeStruct,
    weight: jax.ShapeDtypeStruct,
    where: NamedSharding,
) -> NamedSharding:
    """Where a moment lives whose weight lives at `where`: sharded alike, on the host if offloaded.

    Of one that is a mean over an axis of its weight, the other axes live as the weight's. Where
    several axes could be the missing one, the first is taken for it: only the place differs.
    """
    kind = "pinned_host" if isinstance(optimizer, OffloadedOptimizer) else where.memory_kind
    if moment.shape == weight.shape:
        return NamedSharding(where.mesh, where.spec, memory_kind=kind)
    spec = [*where.spec, *[None] * (len(weight.shape) - len(where.spec))]
    for axis in range(len(weight.shape)):
        if moment.shape == (*weight.shape[:axis], *weight.shape[axis + 1 :]):
            left = PartitionSpec(*spec[:axis], *spec[axis + 1 :])
            return NamedSharding(where.mesh, left, memory_kind=kind)
    return NamedSharding(where.mesh, PartitionSpec(), memory_kind=kind)


def fetched(moments: Any) -> Any:
    """Moments on the devices: those that live on the hosts are brought here."""

    def fetch(leaf: jax.Array) -> jax.Array:
        on_host = jax.typeof(leaf).memory_space == jax.memory.Space.Host
        return jax.device_put(leaf, jax.memory.Space.Device) if on_host else leaf

    return jax.tree.map(fetch, moments)


def _is_matrix(params: Any) -> Any:
    """True for kernels and embeddings; norms and biases are named `scale` and `bias`."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: getattr(path[-1], "key", "") not in ("scale", "bias"), params
    )
