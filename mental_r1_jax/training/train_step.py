"""The CRPO update as a pure function, and its compiled, donated, sharded form.

`train_step(state, batch) -> (state, metrics)`:

1. group-relative advantages of the whole step (before micro-batching);
2. global denominators of every loss term, from masks alone;
3. for each interleaved micro-batch: one forward pass over shared prompts, log-probs and entropies
   of the completions, the loss as sums over global weights, its gradient;
4. the summed gradient is clipped and applied by AdamW; a non-finite one is skipped and counted.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float

from mental_r1_jax import sharding
from mental_r1_jax.models import decoder
from mental_r1_jax.rl.advantages import group_advantages
from mental_r1_jax.rl.losses import (
    Denominators,
    LossConfig,
    crpo_loss,
    loss_denominators,
)
from mental_r1_jax.rl.masking import Sum, SumWeight, masked_sum, max_over, mean_over
from mental_r1_jax.rl.token_stats import token_stats
from mental_r1_jax.types import Batch, TraceBatch


@flax.struct.dataclass
class TrainState:
    """What an update changes.

    Attributes:
        num_updates: int32 scalar, optimizer updates attempted so far.
        params: float32 master weights.
        opt_state: optax state, sharded as the weights.
    """

    num_updates: Any
    params: Any
    opt_state: Any


@dataclasses.dataclass(frozen=True)
class StepConfig:
    """Everything static about an update; one compiled program for each value.

    Attributes:
        decoder: architecture.
        loss: objective.
        scale_rewards: see `group_advantages`.
        advantage_baseline: see `group_advantages`.
        temperature: divides the logits, as in sampling.
        chunk_size: vocabulary entries whose logits exist at the same time, see `token_stats`.
        micro_batches: gradient accumulation; divides the number of prompts.
    """

    decoder: decoder.DecoderConfig
    loss: LossConfig
    scale_rewards: Literal["group", "batch", "none"]
    advantage_baseline: Literal["mean", "leave_one_out"]
    temperature: float
    chunk_size: int
    micro_batches: int


def init_state(params: Any, optimizer: optax.GradientTransformation) -> TrainState:
    """Wrap `params` with a fresh optimizer state."""
    return TrainState(
        num_updates=jnp.zeros((), jnp.int32), params=params, opt_state=optimizer.init(params)
    )


def policy_stats(
    params: Any,
    batch: Batch | TraceBatch,
    *,
    config: decoder.DecoderConfig,
    temperature: float,
    chunk_size: int,
) -> tuple[Float[Array, "B G C"], Float[Array, "B G C"]]:
    """Log-probs and entropies (nats) of every completion token, prompts run once a group."""
    with jax.named_scope("forward"):
        hidden = decoder.forward(
            params,
            config,
            batch.prompt_ids,
            batch.prompt_mask,
            batch.completion_ids,
            batch.completion_mask,
        )
    with jax.named_scope("token_stats"):
        return token_stats(
            hidden,
            batch.completion_ids,
            decoder.unembed_matrix(params, config),
            temperature=temperature,
            chunk_size=chunk_size,
        )


def policy_logprobs(
    params: Any,
    batch: Batch | TraceBatch,
    *,
    config: decoder.DecoderConfig,
    temperature: float,
    chunk_size: int,
) -> Float[Array, "B G C"]:
    """Log-probs (nats) under `params`: of the reference policy, or of the policy that sampled."""
    return policy_stats(
        params, batch, config=config, temperature=temperature, chunk_size=chunk_size
    )[0]


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    config: StepConfig,
    optimizer: optax.GradientTransformation,
) -> tuple[TrainState, dict[str, Any]]:
    """One CRPO update: minimise L_GRPO + sum_t beta_t Hbar_t on `batch`.

    Returns:
        The next state (unchanged weights and moments if the gradient was not finite), and metrics
        whose types say how they are reduced.
    """
    advantages = group_advantages(
        batch.rewards, scale=config.scale_rewards, baseline=config.advantage_baseline
    )
    denominators = loss_denominators(batch, config.loss)
    gradient, metrics = crpo_gradient(state.params, batch, advantages, denominators, config)
    state, norms = apply_gradient(state, gradient, optimizer)
    extra = {
        "advantages/abs_mean": mean_over(jnp.abs(advantages), jnp.ones_like(advantages, bool)),
        "tokens/completion": Sum(batch.completion_mask.sum().astype(jnp.float32)),
        "tokens/prompt": Sum(batch.prompt_mask.sum().astype(jnp.float32)),
    }
    return state, metrics | norms | extra


def crpo_gradient(
    params: Any,
    batch: Batch,
    advantages: Float[Array, "B G"],
    denominators: Denominators,
    config: StepConfig,
) -> tuple[Any, dict[str, Any]]:
    """Gradient and metrics of the whole step, from one or more micro-batches."""

    def loss_of(params: Any, batch: Batch, advantages: Array) -> tuple[Array, dict[str, Any]]:
        logprobs, entropies = policy_stats(
            params,
            batch,
            config=config.decoder,
            temperature=config.temperature,
            chunk_size=config.chunk_size,
        )
        loss, metrics = crpo_loss(logprobs, entropies, batch, advantages, denominators, config.loss)
        drift = jnp.abs(logprobs - batch.decode_logprobs)
        return loss, metrics | {
            "loss": Sum(loss),
            "sampler_drift/max": max_over(drift, batch.completion_mask),
        }

    return accumulate_gradient(loss_of, params, (batch, advantages), config.micro_batches)


def accumulate_gradient(
    loss_of: Callable[..., tuple[Array, dict[str, Any]]],
    params: Any,
    inputs: tuple[Any, ...],
    micro_batches: int,
) -> tuple[Any, dict[str, Any]]:
    """Sum the gradient of `loss_of(params, *micro_inputs)` over interleaved micro-batches.

    The losses must be sums over global weights; then their sum, and that of their gradients, is
    the whole step's, however it was cut.
    """
    gradient_of = jax.grad(loss_of, has_aux=True)
    if micro_batches == 1:
        return gradient_of(params, *inputs)

    def add(total: Any, micro: tuple[Any, ...]) -> tuple[Any, dict[str, Any]]:
        gradient, metrics = gradient_of(params, *micro)
        return jax.tree.map(jnp.add, total, gradient), metrics

    zeros = jax.tree.map(jnp.zeros_like, params)
    gradient, stacked = jax.lax.scan(add, zeros, interleave(inputs, micro_batches))
    return gradient, {name: metric.reduce() for name, metric in stacked.items()}


def interleave(tree: Any, micro_batches: int) -> Any:
    """[B, ...] -> [n, B/n, ...] so that micro-batch i holds rows i, i + n, i + 2n, ...

    With rows sharded over devices in contiguous runs, every micro-batch then has an equal share on
    every device and no row moves; the plain reshape would send rows across the mesh.
    """
    return jax.tree.map(
        lambda x: x.reshape(x.shape[0] // micro_batches, micro_batches, *x.shape[1:]).swapaxes(
            0, 1
        ),
        tree,
    )


@jax.named_scope("apply_gradient")
def apply_gradient(
    state: TrainState, gradient: Any, optimizer: optax.GradientTransformation
) -> tuple[TrainState, dict[str, Any]]:
    """One optimizer update; a gradient that is not finite changes nothing and is counted."""
    norm = optax.tree.norm(gradient)
    finite = jnp.isfinite(norm)
    updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)

    def keep_if_finite(new: Any, old: Any) -> Any:
        return jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)

    state = TrainState(
        num_updates=state.num_updates + 1,
        params=keep_if_finite(params, state.params),
        opt_state=keep_if_finite(opt_state, state.opt_state),
    )
    one = jnp.ones((), jnp.float32)
    skipped = Sum(1.0 - finite.astype(jnp.float32))
    return state, {"grad_norm": SumWeight(norm, one), "updates/skipped": skipped}


def sft_step(
    state: TrainState,
    batch: TraceBatch,
    *,
    config: StepConfig,
    optimizer: optax.GradientTransformation,
) -> tuple[TrainState, dict[str, Any]]:
    """One supervised update: mean negative log-likelihood (nats) over the step's trace tokens."""
    total = jnp.maximum(batch.completion_mask.sum(), 1).astype(jnp.float32)

    def loss_of(params: Any, batch: TraceBatch) -> tuple[Array, dict[str, Any]]:
        logprobs, entropies = policy_stats(
            params, batch, config=config.decoder, temperature=1.0, chunk_size=config.chunk_size
        )
        loss = -masked_sum(logprobs, batch.completion_mask) / total
        return loss, {"loss": Sum(loss), "entropy": mean_over(entropies, batch.completion_mask)}

    gradient, metrics = accumulate_gradient(loss_of, state.params, (batch,), config.micro_batches)
    state, norms = apply_gradient(state, gradient, optimizer)
    return state, metrics | norms


Step = Callable[[TrainState, Any], tuple[TrainState, dict[str, Any]]]


def jit_step(
    step: Callable[..., tuple[TrainState, dict[str, Any]]],
    *,
    config: StepConfig,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
) -> Step:
    """Compile `train_step` or `sft_step` once: state donated, its shardings pinned both ways.

    Unpinned, the state that comes out of the first update may be laid out otherwise than the one
    that went in, and the second update would compile the whole step again.
    """
    state = state_shardings(config.decoder, optimizer, mesh)
    return jax.jit(
        functools.partial(step, config=config, optimizer=optimizer),
        in_shardings=(state, None),
        out_shardings=(state, sharding.replicated(mesh)),
        donate_argnums=0,
    )


def state_shardings(
    config: decoder.DecoderConfig, optimizer: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
    """Where each part of a `TrainState` lives: optimizer moments follow their weights."""
    params = param_shardings(config, mesh)
    everywhere = sharding.replicated(mesh)
    opt_state = optax.tree_utils.tree_map_params(
        optimizer,
        lambda _, where: where,
        jax.eval_shape(optimizer.init, decoder.abstract_params(config)),
        params,
        transform_non_params=lambda _: everywhere,
    )
    return TrainState(num_updates=everywhere, params=params, opt_state=opt_state)


def param_shardings(config: decoder.DecoderConfig, mesh: Mesh) -> Any:
    """Where each parameter lives."""
    return sharding.param_shardings(
        mesh, decoder.abstract_params(config), decoder.param_logical_axes(config)
    )
