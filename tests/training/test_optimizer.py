"""Learning rates by hand, and AdamW against PyTorch's."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mental_r1_jax.config import OptimizerConfig
from mental_r1_jax.training.optimizer import make_optimizer, make_schedule
from tests.tiny_decoder import random_params


def rates(num_updates: int, **options: Any) -> list[float]:
    schedule = make_schedule(OptimizerConfig(learning_rate=0.8, **options), num_updates)
    return [float(schedule(update)) for update in range(num_updates + 1)]


def test_linear_decay_reaches_zero_at_the_end():
    assert rates(4, schedule="linear") == pytest.approx([0.8, 0.6, 0.4, 0.2, 0.0])


def test_cosine_decay_reaches_zero_at_the_end():
    half = 0.4 * (1 + math.cos(math.pi / 4))
    assert rates(4, schedule="cosine") == pytest.approx([0.8, half, 0.4, 0.8 - half, 0.0], abs=1e-7)


def test_constant_stays():
    assert rates(3, schedule="constant") == pytest.approx([0.8] * 4)


@pytest.mark.parametrize(
    ("schedule", "after"), [("linear", [0.8, 0.4, 0.0]), ("constant", [0.8, 0.8, 0.8])]
)
def test_warm_up_begins_above_zero_and_joins_the_decay(schedule, after):
    # rate (u + 1) / 4 for u = 0..3, then the decay over the other two updates.
    ours = rates(6, schedule=schedule, warmup_steps=4)
    assert ours == pytest.approx([0.2, 0.4, 0.6, 0.8, *after])


def test_warm_up_of_one_step_and_longer_than_the_run():
    assert rates(2, warmup_steps=1) == pytest.approx([0.8, 0.8, 0.0])
    assert rates(2, warmup_steps=9)[:2] == pytest.approx([0.4, 0.8])


def test_one_update_runs_at_the_full_rate():
    assert rates(1) == pytest.approx([0.8, 0.0])


def test_decay_touches_matrices_alone():
    params = jax.tree.map(jnp.asarray, random_params())
    params["layers"]["query"]["bias"] = jnp.ones((2, 4, 4))
    config = OptimizerConfig(learning_rate=0.1, weight_decay=0.5, schedule="constant")
    optimizer = make_optimizer(config, 10)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    moved = {
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, leaf in jax.tree_util.tree_flatten_with_path(updates)[0]
        if np.abs(leaf).max() > 0
    }
    names = ("query", "key", "value", "output", "gate", "up", "down")
    assert moved == {"embedding", "unembedding", *(f"layers/{name}/kernel" for name in names)}
    # -rate * decay * weight
    np.testing.assert_allclose(updates["embedding"], -0.05 * params["embedding"], rtol=1e-6)


def test_updates_are_those_of_pytorchs_adamw_with_clipping():
    torch = pytest.importorskip("torch", reason="compares with PyTorch")
    rng = np.random.default_rng(0)
    start = {
        "kernel": rng.standard_normal((3, 4)).astype("f4"),
        "scale": rng.standard_normal(4).astype("f4"),
    }
    config = OptimizerConfig(
        learning_rate=0.05,
        schedule="linear",
        warmup_steps=2,
        weight_decay=0.1,
        beta1=0.8,
        beta2=0.95,
        epsilon=1e-6,
        max_grad_norm=1.5,
    )
    steps = 6
    optimizer = make_optimizer(config, steps)
    params = jax.tree.map(jnp.asarray, start)
    state = optimizer.init(params)

    theirs = {name: torch.nn.Parameter(torch.from_numpy(x.copy())) for name, x in start.items()}
    adamw = torch.optim.AdamW(
        [
            {"params": [theirs["kernel"]], "weight_decay": 0.1},
            {"params": [theirs["scale"]], "weight_decay": 0.0},
        ],
        betas=(0.8, 0.95),
        eps=1e-6,
    )
    lrs = [0.025, 0.05, 0.05, 0.0375, 0.025, 0.0125]
    for step in range(steps):
        scale = 5.0 if step % 2 else 0.1  # above and below the clipping norm
        gradient = {
            k: (scale * rng.standard_normal(x.shape)).astype("f4") for k, x in start.items()
        }
        updates, state = optimizer.update(jax.tree.map(jnp.asarray, gradient), state, params)
        params = optax.apply_updates(params, updates)
        for name, parameter in theirs.items():
            parameter.grad = torch.from_numpy(gradient[name])
        torch.nn.utils.clip_grad_norm_(theirs.values(), 1.5)
        for group in adamw.param_groups:
            group["lr"] = lrs[step]
        adamw.step()
    for name in start:
        np.testing.assert_allclose(params[name], theirs[name].detach().numpy(), atol=2e-6)
