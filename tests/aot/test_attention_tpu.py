"""Attention compiled for TPUs on a machine without one."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import Mesh

from mental_r1_jax import sharding
from mental_r1_jax.models.architecture import AttentionFacts
from mental_r1_jax.models.attention import prompt_attention, shared_prefix_attention
from tests.aot.programs import tpu_mesh


def gradient_program(
    mesh: Mesh,
    dtype: Any,
    sizes: tuple[int, int, int, int],
    heads: tuple[int, int, int],
    window: int | None = None,
) -> Any:
    """Forward and backward of attention for B, P, G, T and K, R, h, compiled."""
    facts = AttentionFacts(scale=heads[2] ** -0.5, window=window)
    (batch, prompt, group, length), (kv_heads, repeats, width) = sizes, heads

    def array(*shape: int, dtype: Any = dtype) -> jax.ShapeDtypeStruct:
        where = sharding.batch_sharding(mesh, len(shape))
        return jax.ShapeDtypeStruct(shape, dtype, sharding=where)

    def qkv(*tokens: int) -> tuple[jax.ShapeDtypeStruct, ...]:
        keys = array(*tokens, kv_heads, width)
        return array(*tokens, kv_heads, repeats, width), keys, keys

    def loss(prompt: Any, completions: Any, *masks: jax.Array) -> jax.Array:
        mixed = shared_prefix_attention(prompt, completions, *masks, facts)
        return sum(jnp.square(x.astype(jnp.float32)).sum() for x in mixed)

    masks = array(batch, prompt, dtype=jnp.bool_), array(batch, group, length, dtype=jnp.bool_)
    arguments = qkv(batch, prompt), qkv(batch, group, length), *masks
    return jax.jit(jax.grad(loss, argnums=(0, 1))).lower(*arguments).compile()


V5E = ("v5e:2x2", {"data": 2, "fsdp": 2}, jnp.bfloat16, (2, 6, 64))
V5P = ("v5p:2x2x1", {"fsdp": 2, "tensor": 2}, jnp.bfloat16, (2, 6, 128))
V6E = ("v6e:2x2", {"tensor": 4}, jnp.float32, (2, 7, 128))


@pytest.mark.parametrize(
    ("topology", "mesh", "dtype", "heads", "window"),
    [
        pytest.param(*V5E, None, id="v5e-full"),
        pytest.param(*V5E, 300, id="v5e-window"),
        pytest.param(*V5P, None, id="v5p-heads-sharded-full"),
        pytest.param(*V5P, 300, id="v5p-heads-sharded-window", marks=pytest.mark.slow),
        pytest.param(*V6E, None, id="v6e-heads-that-the-mesh-does-not-divide-full"),
        pytest.param(
            *V6E, 300, id="v6e-heads-that-the-mesh-does-not-divide-window", marks=pytest.mark.slow
        ),
    ],
)
def test_forward_and_backward_compile(
    topology: str,
    mesh: dict[str, int],
    dtype: Any,
    heads: tuple[int, int, int],
    window: int | None,
) -> None:
    """Lengths are no multiples of anything. Rolling prompts for a window needs no exchange."""
    sizes = (4, 390, 3, 255)
    text = gradient_program(tpu_mesh(topology, **mesh), dtype, sizes, heads, window).as_text()
    assert {"splash_mha_fwd", "splash_mha_dq", "splash_mha_dkv"} <= {
        name for name in _KERNELS if name in text
    }
    exchanges = ("all-gather", "all-to-all", "collective-permute", "all-reduce")
    if "tensor" not in mesh:
        assert not [name for name in exchanges if f" {name}" in text]


_KERNELS = ("splash_mha_fwd", "splash_mha_dq", "splash_mha_dkv")


def test_temporaries_grow_linearly_with_the_length() -> None:
    """Four times the tokens need at most four and a half times the memory; logits need sixteen.

    The batch is large, so that what fits into the chip's fast memory (and is not counted) is small
    beside the rest.
    """
    mesh = tpu_mesh("v5e:2x2", data=4)
    sizes = [
        gradient_program(mesh, jnp.bfloat16, (1024, n // 4, 3, n // 4), (1, 2, 128))
        .memory_analysis()
        .temp_size_in_bytes
        for n in (1024, 2048, 4096)
    ]
    assert sizes[1] < 2.25 * sizes[0]
    assert sizes[2] < 2.25 * sizes[1]


def test_a_prompt_alone_with_and_without_a_window() -> None:
    """Prefill has its own kernel, also in layers with a window."""
    mesh = tpu_mesh("v5e:2x2", data=4)

    def program(window: int | None) -> str:
        keys = jax.ShapeDtypeStruct(
            (4, 200, 2, 64), jnp.bfloat16, sharding=sharding.batch_sharding(mesh, 4)
        )
        queries = jax.ShapeDtypeStruct(
            (4, 200, 2, 3, 64), jnp.bfloat16, sharding=sharding.batch_sharding(mesh, 5)
        )
        facts = AttentionFacts(scale=0.125, window=window)
        run = jax.jit(lambda q, k: prompt_attention(q, k, k, facts))
        return run.lower(queries, keys).as_text()

    assert "tpu_custom_call" in program(None)
    assert "tpu_custom_call" in program(64)
