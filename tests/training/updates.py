"""Updates of the tiny decoder, and ways to compare them; every compiled step is shared."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mental_r1_jax import sharding
from mental_r1_jax.models import decoder
from mental_r1_jax.training.train_step import (
    TrainState,
    init_state,
    jit_train_step,
    state_shardings,
)
from mental_r1_jax.types import Batch, TraceBatch
from tests.tiny_decoder import (
    CONFIG,
    TEMPERATURE,
    random_params,
    tiny_recipe,
)

# Adam divides a gradient by its own size, so rounding in a tiny one comes back at the scale of the
# rate; 2e-4 is 40 times the paper's.
RATE = 2e-4
OPTIMIZER = optax.chain(
    optax.clip_by_global_norm(1.0), optax.adamw(RATE, b2=0.99, weight_decay=0.01)
)


def mesh_of(data: int = 1, fsdp: int = 1, tensor: int = 1) -> jax.sharding.Mesh:
    return sharding.make_mesh(data, fsdp, tensor, jax.devices()[: data * fsdp * tensor])


@functools.cache
def compiled(mesh: tuple[int, ...] = (1,), **changes: Any) -> Any:
    """The jitted update for a mesh and a change of the paper's settings."""
    config = tiny_recipe(**changes)
    return jit_train_step(config=config, decoder=CONFIG, optimizer=OPTIMIZER, mesh=mesh_of(*mesh))


def start(mesh: tuple[int, ...] = (1,)) -> TrainState:
    """The same fresh state, placed on a mesh."""
    where = state_shardings(CONFIG, OPTIMIZER, mesh_of(*mesh))
    return jax.device_put(init_state(jax.tree.map(jnp.asarray, random_params()), OPTIMIZER), where)


def place(batch: Batch, mesh: tuple[int, ...] = (1,)) -> Batch:
    """The batch, sharded over the prompts axis of a mesh."""
    return jax.tree.map(
        lambda leaf: jax.device_put(leaf, sharding.batch_sharding(mesh_of(*mesh), leaf.ndim)), batch
    )


class Updated(NamedTuple):
    """Host copies of the weights and first moments after two updates, metrics of the second."""

    params: Any
    moments: Any
    metrics: dict[str, float]


def two_updates(batch: Batch, mesh: tuple[int, ...] = (1,), **changes: Any) -> Updated:
    """Two updates on `batch` from the same fresh state."""
    step, state = compiled(mesh, **changes), start(mesh)
    for _ in range(2):
        state, metrics, _ = step(state, place(batch, mesh))
    values = {name: float(metric.value) for name, metric in metrics.items()}
    moments = state.opt_state[1][0].mu
    return Updated(*jax.tree.map(np.asarray, (state.params, moments)), values)


def assert_close(tree: Any, other: Any, atol: float = 1e-6) -> None:
    for (path, ours), theirs in zip(
        jax.tree_util.tree_flatten_with_path(tree)[0], jax.tree.leaves(other), strict=True
    ):
        np.testing.assert_allclose(
            ours, theirs, rtol=0, atol=atol, err_msg=jax.tree_util.keystr(path)
        )


def assert_same(ours: Updated, theirs: Updated) -> None:
    """The update is the same up to float32 rounding."""
    assert_close(ours.params, theirs.params)
    assert_close(ours.moments, theirs.moments, atol=1e-7)  # moments reach 0.1
    assert ours.metrics.keys() == theirs.metrics.keys()
    for name, value in theirs.metrics.items():
        np.testing.assert_allclose(ours.metrics[name], value, rtol=2e-5, atol=1e-6, err_msg=name)


def assert_equal(tree: Any, other: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, tree, other)


@functools.partial(jax.jit, static_argnames="config")
def full_logits(
    params: Any, batch: Batch | TraceBatch, config: decoder.DecoderConfig = CONFIG
) -> jax.Array:
    """Logits over the whole vocabulary; transformers agrees with them, see parity/."""
    hidden = decoder.forward(
        params,
        config,
        batch.prompt_ids,
        batch.prompt_mask,
        batch.completion_ids,
        batch.completion_mask,
    )
    return decoder.unembed(params, config, hidden)


def numpy_entropies(params: Any, batch: Batch) -> np.ndarray:
    """Entropies (nats) at every place from full float64 softmaxes."""
    logits = np.asarray(full_logits(params, batch), np.float64) / TEMPERATURE
    probs = np.exp(logits - logits.max(-1, keepdims=True))
    probs /= probs.sum(-1, keepdims=True)
    return -(probs * np.log(probs)).sum(-1)


def score(params: Any, traces: Batch | TraceBatch) -> jax.Array:
    """Log-probs [B, G, C] (nats), as the program of that name computes them."""
    return _score(params, traces)


_score = jax.jit(
    functools.partial(
        decoder.completion_logprobs, config=CONFIG, temperature=TEMPERATURE, chunk_size=3
    )
)
