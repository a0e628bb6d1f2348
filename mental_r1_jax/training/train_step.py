"""The CRPO update as a pure function, and its compiled, donated, sharded form.

`train_step(state, batch) -> (state, metrics, advantages)`:

1. advantages of the whole step (before micro-batching), and which tokens the policy loss counts;
2. global denominators of every loss term, from masks alone;
3. for each interleaved micro-batch: one forward pass over shared prompts, log-probs and entropies
   of the completions, the loss as sums over global weights, its gradient;
4. the gradient, summed over micro-batches and then over copies of the model (`accumulation.py`), is
   clipped and applied by AdamW; a non-finite one is skipped and counted;
5. where the recipe steers entropies, the last update of a step moves their coefficients.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float

from mental_r1_jax import sharding
from mental_r1_jax.config import STAGE_NAMES, CrpoConfig, ExperimentConfig
from mental_r1_jax.models import decoder as network
from mental_r1_jax.models.decoder import DecoderConfig
from mental_r1_jax.rl import advantages as estimators
from mental_r1_jax.rl import entropy_control
from mental_r1_jax.rl.entropy_control import EntropyControl, EntropyWeights
from mental_r1_jax.rl.loss_terms import top_entropy_mask
from mental_r1_jax.rl.losses import Denominators, crpo_loss, loss_denominators
from mental_r1_jax.rl.masking import Sum, SumWeight, masked_sum, max_over, mean_over
from mental_r1_jax.training.accumulation import Metrics, accumulate_gradient, interleave
from mental_r1_jax.training.optimizer import fetched, moment_sharding
from mental_r1_jax.types import Batch, TraceBatch


@flax.struct.dataclass
class TrainState:
    """What an update changes.

    Attributes:
        num_updates: int32 scalar, optimizer updates attempted so far.
        params: float32 master weights; of a model with adapters, the adapters alone.
        opt_state: optax state, sharded as the weights.
        entropy_control: entropy coefficients that are steered, replicated; None where none is.
        frozen: weights that an update reads and leaves alone, matrices in the compute dtype; None
            where all are trained. They are in no checkpoint.
    """

    num_updates: Any
    params: Any
    opt_state: Any
    entropy_control: Any = None
    frozen: Any = None

    @property
    def weights(self) -> Any:
        """The policy: `params`, among the frozen weights where there are any."""
        return self.beside_frozen(self.params)

    def beside_frozen(self, params: Any) -> Any:
        """Whole weights made of `params` and the frozen ones; nothing is copied."""
        return network.join_weights(self.frozen, params)


def init_state(
    params: Any,
    optimizer: optax.GradientTransformation,
    crpo: CrpoConfig | None = None,
    frozen: Any = None,
    stages: tuple[str, ...] = STAGE_NAMES,
) -> TrainState:
    """Wrap `params` with a fresh optimizer state, and with what `crpo` steers of the `stages`."""
    return TrainState(
        num_updates=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
        entropy_control=None if crpo is None else entropy_control.start_control(crpo, stages),
        frozen=frozen,
    )


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    config: ExperimentConfig,
    decoder: DecoderConfig,
    optimizer: optax.GradientTransformation,
) -> tuple[TrainState, Metrics, Float[Array, "B G"]]:
    """One CRPO update: minimise L_GRPO + sum_t beta_t Hbar_t on `batch`.

    Args:
        state: weights and moments before the update.
        batch: the whole step; its number of prompts is a multiple of `run.micro_batches`.
        config: the recipe; `crpo`, `rollout` (temperature and length limit), `run.micro_batches`
            and `model.logprob_chunk_size` are read.
        decoder: architecture.
        optimizer: from `make_optimizer`.

    Returns:
        (state, metrics, advantages): the next state (unchanged weights and moments if the gradient
        was not finite), metrics whose types say how they are reduced, and the advantages used, one
        a completion.
    """
    crpo, limit = config.crpo, config.rollout.max_completion_length
    stages = config.text.stage_names
    advantages = estimators.advantages(batch, crpo)
    if crpo.policy_entropy_share < 1.0:
        batch = with_policy_mask(state.weights, batch, config=config, decoder=decoder)
    denominators = loss_denominators(batch, crpo, limit)
    weights = entropy_control.entropy_weights(crpo, state.entropy_control, stages)
    gradient, metrics = crpo_gradient(
        state.params,
        batch,
        advantages,
        denominators,
        weights,
        config=config,
        decoder=decoder,
        frozen=state.frozen,
    )
    steered = steer_entropies(state, metrics, crpo, stages)
    metrics |= entropy_control.control_metrics(state.entropy_control, crpo, stages)
    state = dataclasses.replace(state, entropy_control=steered)
    state, norms = apply_gradient(state, gradient, optimizer)
    reported = estimators.of_completions(advantages, batch.completion_mask)
    extra: Metrics = {
        "advantages/abs_mean": mean_over(jnp.abs(reported), jnp.ones_like(reported, bool)),
        "tokens/completion": Sum(batch.completion_mask.sum().astype(jnp.float32)),
        "tokens/prompt": Sum(batch.prompt_mask.sum().astype(jnp.float32)),
    }
    if batch.baseline_rewards is not None:
        everyone = jnp.ones_like(batch.baseline_rewards, bool)
        extra["rewards/greedy_mean"] = mean_over(batch.baseline_rewards, everyone)
    return state, metrics | norms | extra, reported


@jax.named_scope("policy_mask")
def with_policy_mask(
    params: Any, batch: Batch, *, config: ExperimentConfig, decoder: DecoderConfig
) -> Batch:
    """Find the tokens of the highest entropy, which the policy loss counts.

    Which ones they are is known only when the entropies of the whole step are, so a pass without
    gradient goes before the micro-batches.
    """

    def entropies_of(batch: Batch) -> Array:
        return network.completion_stats(
            params,
            batch,
            config=decoder,
            temperature=config.rollout.temperature,
            chunk_size=config.model.logprob_chunk_size,
        )[1]

    mask, micro_batches = batch.completion_mask, config.run.micro_batches
    if micro_batches == 1:
        entropies = entropies_of(batch)
    else:
        stacked = jax.lax.map(entropies_of, interleave(batch, micro_batches))
        entropies = stacked.swapaxes(0, 1).reshape(mask.shape)
    share = config.crpo.policy_entropy_share
    kept = top_entropy_mask(entropies, mask, share)
    return dataclasses.replace(batch, policy_mask=kept)


def crpo_gradient(
    params: Any,
    batch: Batch,
    advantages: Float[Array, "B G"] | Float[Array, "B G C"],
    denominators: Denominators,
    weights: EntropyWeights | None = None,
    *,
    config: ExperimentConfig,
    decoder: DecoderConfig,
    frozen: Any = None,
) -> tuple[Any, Metrics]:
    """Gradient of the step's CRPO loss by `params`, and its metrics, over all micro-batches."""

    def loss_of(params: Any, fixed: Any, batch: Batch, advantages: Array) -> tuple[Array, Metrics]:
        frozen, denominators = fixed
        logprobs, entropies = network.completion_stats(
            network.join_weights(frozen, params),
            batch,
            config=decoder,
            temperature=config.rollout.temperature,
            chunk_size=config.model.logprob_chunk_size,
        )
        limit = config.rollout.max_completion_length
        loss, metrics = crpo_loss(
            *(logprobs, entropies, batch, advantages, denominators),
            *(config.crpo, limit, weights, config.text.stage_names),
        )
        drift = jnp.abs(logprobs - batch.decode_logprobs)
        return loss, metrics | {
            "loss": Sum(loss),
            "sampler_drift/max": max_over(drift, batch.completion_mask),
        }

    # `weights` stay numbers of the program where they are not steered, so they are none of these.
    fixed, micro_batches = (frozen, denominators), config.run.micro_batches
    return accumulate_gradient(loss_of, params, fixed, (batch, advantages), micro_batches)


def steer_entropies(
    state: TrainState,
    metrics: Metrics,
    crpo: CrpoConfig,
    stages: tuple[str, ...] = STAGE_NAMES,
) -> EntropyControl | None:
    """Return the entropy coefficients of the next update.

    They are the same in all `num_iterations` updates of a step, and move after the last of them, by
    what that one has measured, which are the entropies that the step's metrics show.
    """
    before: EntropyControl | None = state.entropy_control
    if before is None:
        return None
    measured = entropy_control.measured_entropies(metrics, stages)
    after = entropy_control.next_control(before, measured, crpo)
    ends_step = (state.num_updates + 1) % crpo.num_iterations == 0
    return jax.tree.map(lambda new, old: jnp.where(ends_step, new, old), after, before)


@jax.named_scope("apply_gradient")
def apply_gradient(
    state: TrainState, gradient: Any, optimizer: optax.GradientTransformation
) -> tuple[TrainState, Metrics]:
    """Make one optimizer update, unless the gradient is not finite.

    One NaN would stay in the moments for the rest of the run. So a gradient whose norm is not
    finite changes neither weights nor moments; `updates/skipped` counts it. The choice is a
    selection inside the program, because the host would have to wait for the norm.
    """
    norm = optax.tree.norm(gradient)
    finite = jnp.isfinite(norm)
    old = fetched(state.opt_state)
    updates, opt_state = optimizer.update(gradient, old, state.params)
    params = optax.apply_updates(state.params, updates)

    def keep_if_finite(new: Any, old: Any) -> Any:
        return jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)

    state = dataclasses.replace(
        state,
        num_updates=state.num_updates + 1,
        params=keep_if_finite(params, state.params),
        opt_state=keep_if_finite(opt_state, old),
    )
    skipped = Sum(1.0 - finite.astype(jnp.float32))
    return state, {"grad_norm": SumWeight(norm, jnp.ones(())), "updates/skipped": skipped}


def sft_step(
    state: TrainState,
    batch: TraceBatch,
    *,
    config: ExperimentConfig,
    decoder: DecoderConfig,
    optimizer: optax.GradientTransformation,
) -> tuple[TrainState, Metrics]:
    """One supervised update: mean negative log-likelihood (nats) over the step's trace tokens.

    It is that of the model itself, at temperature 1, whatever the recipe samples at.
    """
    total = jnp.maximum(_targets(batch).sum(), 1).astype(jnp.float32)
    chunk_size = config.model.logprob_chunk_size

    def loss_of(params: Any, fixed: Any, batch: TraceBatch) -> tuple[Array, Metrics]:
        frozen, total = fixed
        weights = network.join_weights(frozen, params)
        logprobs, entropies = network.completion_stats(
            weights, batch, config=decoder, temperature=1.0, chunk_size=chunk_size
        )
        loss = -masked_sum(logprobs, _targets(batch)) / total
        return loss, {"loss": Sum(loss), "entropy": mean_over(entropies, _targets(batch))}

    micro_batches = config.run.micro_batches
    fixed = state.frozen, total
    gradient, metrics = accumulate_gradient(loss_of, state.params, fixed, (batch,), micro_batches)
    state, norms = apply_gradient(state, gradient, optimizer)
    return state, metrics | norms


def _targets(batch: TraceBatch) -> Bool[Array, "B G T"]:
    """The tokens that a supervised update learns."""
    return batch.completion_mask if batch.target_mask is None else batch.target_mask


def jit_train_step(
    *,
    config: ExperimentConfig,
    decoder: DecoderConfig,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics, Array]]:
    """Bind and jit `train_step`: state donated, metrics replicated, advantages sharded as rows.

    The state's shardings are pinned both ways. Unpinned, the state that comes out of the first
    update may be laid out otherwise than the one that went in, and the second update would compile
    the whole step again.
    """
    state = state_shardings(decoder, optimizer, mesh, config.crpo, config.text.stage_names)
    return jax.jit(
        functools.partial(train_step, config=config, decoder=decoder, optimizer=optimizer),
        in_shardings=(state, None),
        out_shardings=(state, sharding.replicated(mesh), sharding.batch_sharding(mesh, 2)),
        donate_argnums=0,
    )


def jit_sft_step(
    *,
    config: ExperimentConfig,
    decoder: DecoderConfig,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
) -> Callable[[TrainState, TraceBatch], tuple[TrainState, Metrics]]:
    """Bind and jit `sft_step`, as `jit_train_step` does."""
    state = state_shardings(decoder, optimizer, mesh)
    return jax.jit(
        functools.partial(sft_step, config=config, decoder=decoder, optimizer=optimizer),
        in_shardings=(state, None),
        out_shardings=(state, sharding.replicated(mesh)),
        donate_argnums=0,
    )


def state_shardings(
    config: DecoderConfig,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    crpo: CrpoConfig | None = None,
    stages: tuple[str, ...] = STAGE_NAMES,
) -> TrainState:
    """Where each part of a `TrainState` lives: moments as their weights, all else replicated."""
    params = network.trained_shardings(config, mesh)
    everywhere = sharding.replicated(mesh)
    trained = network.abstract_trained(config)
    opt_state = optax.tree_utils.tree_map_params(
        optimizer,
        functools.partial(moment_sharding, optimizer),
        jax.eval_shape(optimizer.init, trained),
        trained,
        params,
        transform_non_params=lambda _: everywhere,
    )
    control = None if crpo is None else entropy_control.start_control(crpo, stages)
    return TrainState(
        num_updates=everywhere,
        params=params,
        opt_state=opt_state,
        entropy_control=jax.tree.map(lambda _: everywhere, control),
        frozen=None if config.lora is None else network.param_shardings(config, mesh),
    )
