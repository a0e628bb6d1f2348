"""Log-probs and entropies on eight devices: equal to one device, and what crosses between devices.

What is moved is read from the compiled program: every collective with its size, and whether it
stands in a loop.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mental_r1_jax import sharding
from mental_r1_jax.models.head import token_stats
from tests.models.test_token_stats import largest_buffer

B, G, C, D, V = 16, 3, 7, 8, 96
CHUNK = 16
TOKENS = B * G * C
MESHES = {"data": (8, 1, 1), "fsdp": (1, 8, 1), "fsdp_tensor": (1, 4, 2), "all": (2, 2, 2)}
COLLECTIVE = re.compile(
    r" = \(?f32\[([\d,]*)\]\S* (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)"
    r"(?:-start)?\("
)

ScalarOf = Callable[[Array, Array, Array], Array]


def make_inputs(tokens: tuple[int, ...] = (B, G, C)) -> tuple[Array, Array, Array]:
    rng = np.random.default_rng(5)
    hidden = jnp.asarray(rng.standard_normal((*tokens, D)), jnp.float32)
    matrix = jnp.asarray(rng.standard_normal((D, V)), jnp.float32)
    return hidden, matrix, jnp.asarray(rng.integers(0, V, tokens), jnp.int32)


def scalar(hidden: Array, matrix: Array, targets: Array, chunk: int = CHUNK) -> Array:
    """A scalar that weighs every token's two numbers differently, so that no gradient cancels."""
    logprobs, entropies = token_stats(hidden, targets, matrix, temperature=0.85, chunk_size=chunk)
    # Without the batch axis: sharded, the micro-batches below weigh their rows as one batch does.
    weights = np.linspace(-1.0, 2.0, G * C, dtype=np.float32).reshape(1, G, C)
    weights = jnp.broadcast_to(weights, logprobs.shape)
    return jnp.sum(weights * logprobs + jnp.square(weights) * entropies)


def layout(mesh: Mesh) -> tuple[NamedSharding, NamedSharding, NamedSharding]:
    """Where hidden states, matrix and targets live in training."""
    rows = NamedSharding(mesh, PartitionSpec(sharding.BATCH_AXES))
    return rows, sharding.logical_to_sharding(mesh, ("embed", "vocab")), rows


def sharded(function: ScalarOf, name: str) -> jax.stages.Compiled:
    """The gradient of `function`, compiled for arrays that live as in training."""
    places = layout(sharding.make_mesh(*MESHES[name]))
    gradient = jax.jit(jax.grad(function, argnums=(0, 1)), out_shardings=places[:2])
    return gradient.lower(*jax.device_put(make_inputs(), places)).compile()


def collectives(program: str) -> tuple[list[tuple[str, int]], list[str]]:
    """(kind, float32 numbers of a device's result) outside of loops; lines of those inside."""
    outside, inside, entry = [], [], False
    for line in program.splitlines():
        if line and not line.startswith((" ", "}")):
            entry = line.startswith("ENTRY")
        for shape, kind in COLLECTIVE.findall(line):
            if entry:
                outside.append((kind, int(np.prod([int(n) for n in shape.split(",") if n]))))
            else:
                inside.append(line)
    return sorted(outside), inside


@pytest.mark.parametrize("name", MESHES)
def test_eight_devices_give_the_gradients_of_one(name: str) -> None:
    """Also with micro-batches in a loop and rematerialisation around, as in training."""

    def in_micro_batches(hidden: Array, matrix: Array, targets: Array) -> Array:
        def add(total: Array, micro: tuple[Array, Array]) -> tuple[Array, None]:
            return total + jax.checkpoint(scalar)(micro[0], matrix, micro[1]), None

        micro = [x.reshape(B // 2, 2, *x.shape[1:]).swapaxes(0, 1) for x in (hidden, targets)]
        return jax.lax.scan(add, jnp.zeros(()), tuple(micro))[0]

    inputs = make_inputs()
    expected = jax.jit(jax.grad(scalar, argnums=(0, 1)))(*inputs)
    for function in (scalar, in_micro_batches):
        for ours, one in zip(sharded(function, name)(*inputs), expected, strict=True):
            np.testing.assert_allclose(ours, one, atol=2e-5, rtol=1e-6)


# Numbers a device ends up with, for each collective of a forward and backward pass.
MATRIX = D * V
EXPECTED = {
    "data": [("all-reduce", MATRIX)],
    "fsdp": [("all-gather", MATRIX), ("reduce-scatter", MATRIX // 8)],
    "fsdp_tensor": [
        ("all-gather", MATRIX // 2),
        ("all-reduce", TOKENS // 4),  # the largest logit
        ("all-reduce", 3 * TOKENS // 4),  # two sums and the target's logit
        ("all-reduce", D * TOKENS // 4),  # the gradient of the hidden states
        ("reduce-scatter", MATRIX // 8),
    ],
    "all": [
        ("all-gather", MATRIX // 2),
        ("all-reduce", MATRIX // 4),  # over `data`, after `fsdp`
        ("all-reduce", TOKENS // 4),
        ("all-reduce", 3 * TOKENS // 4),
        ("all-reduce", D * TOKENS // 4),
        ("reduce-scatter", MATRIX // 4),
    ],
}


@pytest.mark.parametrize("name", MESHES)
def test_devices_meet_once_a_pass_and_never_in_a_loop(name: str) -> None:
    outside, inside = collectives(sharded(scalar, name).as_text())
    assert inside == []
    assert outside == sorted(EXPECTED[name])


@pytest.mark.parametrize("name", MESHES)
def test_no_device_holds_its_tokens_times_its_vocabulary(name: str) -> None:
    """The matrix, gathered over `fsdp` but never over `tensor`, is the largest array."""
    data, fsdp, tensor = MESHES[name]
    largest = largest_buffer(sharded(scalar, name).as_text())
    matrix, block = MATRIX // tensor, TOKENS // (data * fsdp) * CHUNK
    assert largest == max(matrix, block)
    assert largest < TOKENS // (data * fsdp) * V // tensor


@pytest.mark.parametrize("tokens", [(), (5,), (3, 2, 4)], ids=["one token", "5", "3 prompts"])
def test_what_a_mesh_does_not_divide_stays_whole(tokens: tuple[int, ...]) -> None:
    mesh = sharding.make_mesh(4, 2, 1)
    hidden, matrix, targets = make_inputs(tokens)
    stats = partial(token_stats, temperature=0.85, chunk_size=CHUNK)
    everywhere = jax.device_put((hidden, targets, matrix), sharding.replicated(mesh))
    for ours, one in zip(jax.jit(stats)(*everywhere), stats(hidden, targets, matrix), strict=True):
        np.testing.assert_allclose(ours, one, atol=1e-6)
