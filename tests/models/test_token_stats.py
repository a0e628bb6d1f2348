"""Chunked log-probs and entropies: values, gradients, memory, sharding."""

from __future__ import annotations

import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mental_r1_jax.models.head import token_stats

TEMPERATURE = 0.85
B, G, C, D, V = 2, 3, 7, 5, 13


def make_inputs(b: int = B, c: int = C, d: int = D, v: int = V) -> tuple[Array, Array, Array]:
    rng = np.random.default_rng(11)
    hidden = jnp.asarray(rng.standard_normal((b, G, c, d)), jnp.float32)
    targets = jnp.asarray(rng.integers(0, v, (b, G, c)), jnp.int32)
    return hidden, targets, jnp.asarray(rng.standard_normal((d, v)), jnp.float32)


def scalar(chunk_size: int, temperature: float = TEMPERATURE) -> Callable[..., Array]:
    """A scalar of both results, see `weighed`."""

    def function(hidden: Array, matrix: Array, targets: Array) -> Array:
        logprobs, entropies = token_stats(
            hidden, targets, matrix, temperature=temperature, chunk_size=chunk_size
        )
        return weighed(logprobs, entropies)

    return function


def in_torch(hidden: Array, targets: Array, matrix: Array) -> tuple[torch.Tensor, ...]:
    """The same in float64, all logits at once: (logprobs, entropies, scalar's gradients)."""
    torch = pytest.importorskip("torch", reason="compares with PyTorch")
    h = torch.tensor(np.asarray(hidden, np.float64), requires_grad=True)
    w = torch.tensor(np.asarray(matrix, np.float64), requires_grad=True)
    logp = torch.log_softmax(h @ w / TEMPERATURE, dim=-1)
    index = torch.tensor(np.asarray(targets, np.int64))
    logprobs = logp.gather(-1, index[..., None])[..., 0]
    entropies = -(logp.exp() * logp).sum(-1)
    weights = torch.linspace(-1, 2, index.numel(), dtype=torch.float64).reshape(index.shape)
    (weights * logprobs + weights**2 * entropies).sum().backward()
    return logprobs.detach(), entropies.detach(), h.grad, w.grad


@pytest.mark.parametrize("chunk_size", [1, 3, 7, 100])  # 3 does not divide 7; 100 is above it
def test_values_and_gradients_equal_the_unchunked_ones(chunk_size: int) -> None:
    hidden, targets, matrix = make_inputs()
    logprobs, entropies, grad_hidden, grad_matrix = in_torch(hidden, targets, matrix)
    ours = token_stats(hidden, targets, matrix, temperature=TEMPERATURE, chunk_size=chunk_size)
    np.testing.assert_allclose(ours[0], logprobs, atol=1e-5)
    np.testing.assert_allclose(ours[1], entropies, atol=1e-5)
    grads = jax.jit(jax.grad(scalar(chunk_size), argnums=(0, 1)))(hidden, matrix, targets)
    np.testing.assert_allclose(grads[0], grad_hidden, atol=1e-5)
    np.testing.assert_allclose(grads[1], grad_matrix, atol=1e-5)


def test_a_softcap_bounds_the_logits_before_the_temperature() -> None:
    """Values and gradients of chunks, against JAX' own derivative of the plain formula."""
    hidden, targets, matrix = make_inputs()

    def plain(hidden: Array, matrix: Array) -> tuple[Array, tuple[Array, Array]]:
        logits = 1.5 * jnp.tanh(hidden @ matrix / 1.5)
        logp = jax.nn.log_softmax(logits / TEMPERATURE)
        logprobs = jnp.take_along_axis(logp, targets[..., None], axis=-1)[..., 0]
        entropies = -(jnp.exp(logp) * logp).sum(-1)
        return weighed(logprobs, entropies), (logprobs, entropies)

    def chunked(hidden: Array, matrix: Array) -> tuple[Array, tuple[Array, Array]]:
        both = token_stats(
            hidden, targets, matrix, temperature=TEMPERATURE, chunk_size=5, softcap=1.5
        )
        return weighed(*both), both

    results = [
        jax.jit(jax.value_and_grad(f, argnums=(0, 1), has_aux=True))(hidden, matrix)
        for f in (plain, chunked)
    ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), *results)


def weighed(logprobs: Array, entropies: Array) -> Array:
    """Weigh every token's two numbers differently, so that no gradient cancels."""
    weights = np.linspace(-1.0, 2.0, logprobs.size, dtype=np.float32).reshape(logprobs.shape)
    return jnp.sum(weights * logprobs + jnp.square(weights) * entropies)


def test_logprobs_are_those_of_the_tempered_distribution() -> None:
    """Hand value: logits (0, ln 4) at T = 1/2 are (0, ln 16), so p = (1/17, 16/17)."""
    matrix = jnp.log(jnp.array([[1.0, 4.0]]))
    logprobs, entropies = token_stats(
        jnp.ones((1, 1)), jnp.array([1]), matrix, temperature=0.5, chunk_size=4
    )
    np.testing.assert_allclose(jnp.exp(logprobs), [16 / 17], rtol=1e-6)
    np.testing.assert_allclose(entropies, [np.log(17) - 16 / 17 * np.log(16)], rtol=1e-6)


def test_entropy_of_large_logits_lies_between_zero_and_log_v() -> None:
    matrix = jnp.eye(4)
    hidden = jnp.array([[1e4, 0, 0, 0], [1e4, 1e4, 1e4, 1e4]])
    logprobs, entropies = token_stats(
        hidden, jnp.array([1, 2]), matrix, temperature=1.0, chunk_size=1
    )
    np.testing.assert_allclose(logprobs, [-1e4, -np.log(4)], rtol=1e-6)
    np.testing.assert_allclose(entropies, [0.0, np.log(4)], rtol=1e-6)
    grads = jax.grad(scalar(1, 1.0), argnums=(0, 1))(hidden, matrix, jnp.array([1, 2]))
    assert all(bool(jnp.isfinite(grad).all()) for grad in grads)


def test_bfloat16_inputs_give_float32_numbers() -> None:
    hidden, targets, matrix = make_inputs()
    hidden, matrix = hidden.astype(jnp.bfloat16), matrix.astype(jnp.bfloat16)
    logprobs, entropies, grad_hidden, grad_matrix = in_torch(hidden, targets, matrix)
    ours = token_stats(hidden, targets, matrix, temperature=TEMPERATURE, chunk_size=3)
    assert ours[0].dtype == ours[1].dtype == jnp.float32
    # Products of bfloat16 numbers are exact in float32: the values keep the float32 tolerance.
    np.testing.assert_allclose(ours[0], logprobs, atol=1e-5)
    np.testing.assert_allclose(ours[1], entropies, atol=1e-5)
    grads = jax.grad(scalar(3), argnums=(0, 1))(hidden, matrix, targets)
    assert grads[0].dtype == grads[1].dtype == jnp.bfloat16
    # Gradients are returned in bfloat16 (8 bits), after logit gradients rounded to it.
    for ours_grad, reference in zip(grads, (grad_hidden, grad_matrix), strict=True):
        difference = np.abs(np.asarray(ours_grad, np.float64) - reference.numpy())
        assert difference.max() < 2**-7 * float(reference.abs().max())


def largest_buffer(hlo: str) -> int:
    """Number of elements of the largest array a compiled program names."""
    shapes = re.findall(r"\b(?:f|bf|s|u|pred)\d*\[([\d,]+)\]", hlo)
    return max(int(np.prod([int(n) for n in shape.split(",")])) for shape in shapes)


def test_no_tokens_by_vocabulary_array_in_forward_or_backward() -> None:
    hidden, targets, matrix = make_inputs(c=16, d=5, v=97)
    tokens, vocabulary = targets.size, 97

    def naive(hidden: Array, matrix: Array, targets: Array) -> Array:
        logp = jax.nn.log_softmax(hidden @ matrix)
        return jnp.take_along_axis(logp, targets[..., None], axis=-1).sum()

    def compiled(function: Callable[..., Array]) -> str:
        gradient = jax.jit(jax.value_and_grad(function, argnums=(0, 1)))
        return gradient.lower(hidden, matrix, targets).compile().as_text()

    assert largest_buffer(compiled(naive)) >= tokens * vocabulary  # the measure can see one
    assert largest_buffer(compiled(scalar(chunk_size=2))) <= tokens * vocabulary // 8


def test_sharded_prompts_need_no_communication_but_the_matrix_gradient() -> None:
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    rows, copies = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ()))
    hidden, targets, matrix = make_inputs(b=8)
    gradient = jax.jit(
        jax.grad(scalar(chunk_size=3), argnums=(0, 1)),
        in_shardings=(rows, copies, rows),
        out_shardings=(rows, copies),
    )
    program = gradient.lower(hidden, matrix, targets).compile()
    moves = set(
        re.findall(r"all-to-all|all-gather|collective-permute|all-reduce", program.as_text())
    )
    assert moves <= {"all-reduce"}
    on_one = jax.jit(jax.grad(scalar(chunk_size=3), argnums=(0, 1)))(hidden, matrix, targets)
    for sharded, single in zip(gradient(hidden, matrix, targets), on_one, strict=True):
        np.testing.assert_allclose(sharded, single, atol=2e-5, rtol=1e-6)


@pytest.mark.parametrize(("chunk_size", "temperature"), [(0, 1.0), (4, 0.0)])
def test_bad_options_are_named(chunk_size: int, temperature: float) -> None:
    with pytest.raises(ValueError, match="chunk_size=.*temperature="):
        token_stats(*make_inputs(), temperature=temperature, chunk_size=chunk_size)
