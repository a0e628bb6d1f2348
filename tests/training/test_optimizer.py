"""Learning rates by hand, and AdamW against PyTorch's."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from mental_r1_jax import sharding
from mental_r1_jax.config import OptimizerConfig
from mental_r1_jax.training.optimizer import make_optimizer, make_schedule, moment_sharding
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


def test_updates_are_those_of_transformers_adafactor():
    torch = pytest.importorskip("torch", reason="compares with PyTorch")
    from transformers.optimization import Adafactor

    rng = np.random.default_rng(1)
    # One matrix that is factored, one that is too small for it, and a vector.
    start = {
        "kernel": rng.standard_normal((128, 160)).astype("f4"),
        "embedding": rng.standard_normal((40, 8)).astype("f4"),
        "scale": rng.standard_normal(6).astype("f4"),
    }
    config = OptimizerConfig(
        name="adafactor", learning_rate=0.05, schedule="constant", max_grad_norm=1e6
    )
    optimizer = make_optimizer(config, 5)
    params = jax.tree.map(jnp.asarray, start)
    state = optimizer.init(params)
    # transformers factors every matrix, so the small one is given to it as a vector.
    theirs = {
        name: torch.nn.Parameter(
            torch.from_numpy(x.copy()).reshape(x.shape if x.size > 320 else -1)
        )
        for name, x in start.items()
    }
    reference = Adafactor(
        theirs.values(),
        lr=0.05,
        eps=(1e-30, 1e-3),
        clip_threshold=1.0,
        decay_rate=-0.8,
        scale_parameter=False,
        relative_step=False,
    )
    for _ in range(5):
        gradient = {k: rng.standard_normal(x.shape).astype("f4") for k, x in start.items()}
        updates, state = optimizer.update(jax.tree.map(jnp.asarray, gradient), state, params)
        params = optax.apply_updates(params, updates)
        for name, parameter in theirs.items():
            parameter.grad = torch.from_numpy(gradient[name]).reshape(parameter.shape)
        reference.step()
    for name, x in start.items():
        expected = theirs[name].detach().numpy().reshape(x.shape)
        np.testing.assert_allclose(params[name], expected, atol=3e-5)


def test_adafactor_decays_matrices_by_the_learning_rate():
    params = {"kernel": jnp.ones((4, 4)), "bias": jnp.ones(4)}
    config = OptimizerConfig(
        name="adafactor", learning_rate=0.1, weight_decay=0.5, schedule="constant"
    )
    optimizer = make_optimizer(config, 10)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    np.testing.assert_allclose(updates["kernel"], -0.05 * np.ones((4, 4)), rtol=1e-6)
    np.testing.assert_array_equal(updates["bias"], np.zeros(4))


def test_a_first_moment_in_bfloat16_is_rounded_and_nothing_else():
    gradient = {"kernel": jnp.full((2, 2), 0.3)}
    states = {}
    for kind in ("float32", "bfloat16"):
        optimizer = make_optimizer(OptimizerConfig(first_moment=kind, max_grad_norm=10.0), 10)
        states[kind] = optimizer.update(gradient, optimizer.init(gradient), gradient)[1]
    full, short = (optax.tree_utils.tree_get(states[kind], "mu") for kind in states)
    assert short["kernel"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(short["kernel"], full["kernel"].astype(jnp.bfloat16))
    seconds = [optax.tree_utils.tree_get(states[kind], "nu")["kernel"] for kind in states]
    np.testing.assert_array_equal(*seconds)


@pytest.mark.parametrize(
    ("shape", "weight", "spec", "expected"),
    [
        ((4, 8), (4, 8), ("fsdp", "tensor"), ("fsdp", "tensor")),
        ((4,), (4, 8), ("fsdp", "tensor"), ("fsdp",)),
        ((8,), (4, 8), ("fsdp", "tensor"), ("tensor",)),
        ((2, 8), (2, 4, 8), (None, "fsdp"), (None, None)),
        ((1,), (4, 8), ("fsdp", "tensor"), ()),
    ],
)
def test_a_mean_over_an_axis_keeps_the_places_of_the_others(shape, weight, spec, expected):
    mesh = sharding.make_mesh(2, 2, 2)
    found = moment_sharding(
        optax.sgd(1.0),
        jax.ShapeDtypeStruct(shape, jnp.float32),
        jax.ShapeDtypeStruct(weight, jnp.float32),
        NamedSharding(mesh, PartitionSpec(*spec)),
    )
    assert found.spec == PartitionSpec(*expected)
