"""The two calls of cuDNN and what joins them, against plain attention.

Without a GPU the calls are stood in for by their definition, and the real ones are lowered for CUDA
without being run.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mental_r1_jax.models import attention_gpu, attention_plain
from mental_r1_jax.models.architecture import AttentionFacts

B, G, P, T, K, R, WIDTH = 2, 3, 7, 5, 2, 3, 8
SCALE = 0.3  # not 1 / sqrt(h)
PROMPT_MASK = np.arange(P)[None] < np.asarray([7, 2])[:, None]


def draw(seed: int, *tokens: int, dtype: Any = jnp.float32, width: int = WIDTH) -> tuple:
    """Random queries, keys and values; queries are large, so that weights are far from equal."""
    rng = np.random.default_rng(seed)
    shapes = (*tokens, K, R, width), (*tokens, K, width), (*tokens, K, width)
    scales = 2.0, 1.0, 1.0
    return tuple(
        jnp.asarray(scale * rng.standard_normal(shape, "f4"), dtype)
        for scale, shape in zip(scales, shapes, strict=True)
    )


def logits(queries: Any, keys: Any, lengths: Any, scale: float) -> tuple[Any, Any]:
    """Logits [N, H, T, S], hidden ones minus infinity, and the keys' head of every query head."""
    heads = np.arange(queries.shape[2]) // (queries.shape[2] // keys.shape[2])
    products = jnp.einsum("nthc,nshc->nhts", queries, keys[:, :, heads])
    rows, columns = jnp.arange(queries.shape[1]), jnp.arange(keys.shape[1])
    seen = (rows[:, None] >= columns[None])[None, None]
    if lengths is not None:
        seen = (columns[None] < lengths[:, None])[:, None, None]
    return jnp.where(seen, products * scale, -jnp.inf), heads


def forward(queries: Any, keys_values: Any, lengths: Any, scale: float) -> tuple[Any, Any]:
    """What `cudnn_forward` promises."""
    keys, values = keys_values
    shifted, heads = logits(queries, keys, lengths, scale)
    lse = jax.scipy.special.logsumexp(shifted, axis=-1)
    return jnp.einsum("nhts,nshc->nthc", jax.nn.softmax(shifted), values[:, :, heads]), lse


def backward(
    queries: Any, keys_values: Any, lengths: Any, scale: float, lse: Any, mixed: Any, cotangent: Any
) -> tuple[Any, tuple[Any, Any]]:
    """What `cudnn_backward` promises."""
    keys, values = keys_values
    shifted, heads = logits(queries, keys, lengths, scale)
    weights = jnp.exp(shifted - lse[..., None])
    difference = jnp.einsum("nthc,nshc->nhts", cotangent, values[:, :, heads])
    difference -= jnp.einsum("nthc,nthc->nht", cotangent, mixed)[..., None]
    slope = weights * difference * scale

    def by_kv_head(x: Any) -> Any:
        return x.reshape(*x.shape[:2], K, -1, x.shape[-1]).sum(3)

    of_queries = jnp.einsum("nhts,nshc->nthc", slope, keys[:, :, heads])
    of_keys = by_kv_head(jnp.einsum("nhts,nthc->nshc", slope, queries))
    return of_queries, (of_keys, by_kv_head(jnp.einsum("nhts,nthc->nshc", weights, cotangent)))


def plain(prompt: Any, completions: Any, mask: Any) -> Any:
    facts = AttentionFacts(scale=SCALE)
    return attention_plain.shared_prefix_attention(prompt, completions, mask, facts)[1]


def fused(prompt: Any, completions: Any, mask: Any) -> Any:
    queries, *own = completions
    return attention_gpu.fused_completion_attention(queries, prompt[1:], tuple(own), mask, SCALE)


def output_and_gradients(attend: Any) -> Any:
    """The output, and the gradients of a weighted sum of it."""
    prompt, completions = draw(0, B, P), draw(1, B, G, T)
    weights = draw(2, B, G, T)[0]

    @jax.jit
    def run(keys_values: Any, completions: Any) -> Any:
        mask = jnp.asarray(PROMPT_MASK)
        mixed, pullback = jax.vjp(
            lambda p, c: attend((prompt[0], *p), c, mask), keys_values, completions
        )
        return mixed, pullback(weights)

    return run(prompt[1:], completions)


def test_joined_by_their_log_sum_exp_two_softmaxes_are_one(monkeypatch) -> None:
    monkeypatch.setattr(attention_gpu, "cudnn_forward", forward)
    monkeypatch.setattr(attention_gpu, "cudnn_backward", backward)
    ours, expected = output_and_gradients(fused), output_and_gradients(plain)
    for x, y in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        assert np.abs(y).max() > 0.5
        # Largest difference seen 3.8e-6, at gradients up to 12.
        np.testing.assert_allclose(x, y, rtol=0, atol=2e-5)


def cuda_program(monkeypatch, width: int) -> str:
    """Forward and backward of a group, lowered for CUDA on any machine."""
    from jax._src.cudnn import fused_attention_stablehlo

    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91_000)

    def loss(prompt: Any, completions: Any) -> jax.Array:
        mask = jnp.asarray(PROMPT_MASK)
        mixed = attention_gpu.fused_group_attention(prompt, completions, mask, SCALE)
        return sum(jnp.square(x.astype(jnp.float32)).sum() for x in mixed)

    streams = (
        draw(0, B, P, dtype=jnp.bfloat16, width=width),
        draw(1, B, G, T, dtype=jnp.bfloat16, width=width),
    )
    traced = jax.jit(jax.grad(loss, argnums=(0, 1))).trace(*streams)
    return traced.lower(lowering_platforms=("cuda",)).as_text()


def test_cudnn_gets_one_copy_of_the_prompt(monkeypatch) -> None:
    """This fails when the version of JAX that is installed has moved what is below its surface."""
    program = cuda_program(monkeypatch, width=64)
    calls = [line for line in program.splitlines() if "__cudnn$fmha" in line]
    assert sum("SoftmaxBackward(" in line for line in calls) == 3
    assert len(calls) == 6
    shared = [line for line in calls if f"tensor<{B}x{G * T}x{K * R}x64xbf16>" in line]
    assert len(shared) == 2  # forward and backward
    for line in shared:
        assert f"tensor<{B}x{P}x{K}x64xbf16>" in line
        assert r"PADDING" in line and f"tensor<{B}xi32>" in line
        assert f"tensor<{B}x{K * R}x{G * T}xf32>" in line  # the log-sum-exp, not rounded
    assert f"tensor<{B * G}x{P}x" not in program
    assert f"tensor<{B}x{G}x{P}x" not in program


@pytest.mark.gpu
def test_on_a_gpu_cudnn_agrees_with_plain_attention() -> None:
    if jax.default_backend() != "gpu":
        pytest.skip("needs an NVIDIA GPU")
    sizes, mask = (2, 4, 300, 255), jnp.arange(300)[None] < jnp.asarray([[300], [40]])
    batch, group, prompt_length, length = sizes

    def gradients(attend: Any, dtype: Any) -> Any:
        prompt = draw(0, batch, prompt_length, dtype=dtype, width=64)
        completions = draw(1, batch, group, length, dtype=dtype, width=64)
        mixed, pullback = jax.vjp(
            lambda p, c: attend((prompt[0], *p), c, mask), prompt[1:], completions
        )
        return jax.tree.map(lambda x: np.asarray(x, "f4"), (mixed, pullback(mixed)))

    exact = gradients(plain, jnp.float32)
    for ours, theirs, expected in zip(
        *map(
            jax.tree.leaves, (gradients(fused, jnp.bfloat16), gradients(plain, jnp.bfloat16), exact)
        ),
        strict=True,
    ):
        # As far from float32 as plain attention in bfloat16 is, up to the order of sums.
        assert np.abs(ours - expected).mean() < 2 * np.abs(theirs - expected).mean()
