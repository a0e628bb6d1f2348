"""The TPU kernel, run by an interpreter, against plain attention; its mask against its definition.

That the kernel compiles for TPUs is tested in tests/aot/.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mental_r1_jax import sharding
from mental_r1_jax.models import attention_plain
from mental_r1_jax.models.attention_tpu import (
    GroupMask,
    PackedGroup,
    splash_group_attention,
    splash_prompt_attention,
)

# Two prompts of 130 and 67 tokens; the packed sequence has 256 + 2 * 128 slots, four blocks.
B, G, P, T, K, R, WIDTH = 2, 2, 130, 37, 2, 3, 16
PROMPT_MASK = np.arange(P)[None] < np.asarray([130, 67])[:, None]
COMPLETION_MASK = np.arange(T)[None, None] < np.asarray([[37, 5], [1, 30]])[..., None]


def draw(seed: int, *tokens: int) -> tuple[jax.Array, ...]:
    """Random queries, keys and values."""
    rng = np.random.default_rng(seed)
    shapes = (*tokens, K, R, WIDTH), (*tokens, K, WIDTH), (*tokens, K, WIDTH)
    return tuple(jnp.asarray(rng.standard_normal(shape, "f4")) for shape in shapes)


def outputs_and_gradients(attend: Any, dtype: Any = jnp.float32) -> Any:
    """Both outputs at real tokens, and the gradients of a weighted sum of them."""
    weights = draw(2, B, P)[0], draw(3, B, G, T)[0]
    masks = jnp.asarray(PROMPT_MASK), jnp.asarray(COMPLETION_MASK)

    def loss(prompt: Any, completions: Any) -> tuple[jax.Array, Any]:
        mixed = attend(prompt, completions, *masks)
        real = tuple(
            jnp.where(mask.reshape(*mask.shape, 1, 1, 1), x, 0).astype(jnp.float32)
            for x, mask in zip(mixed, masks, strict=True)
        )
        return sum((x * w).sum() for x, w in zip(real, weights, strict=True)), real

    streams = jax.tree.map(lambda x: x.astype(dtype), (draw(0, B, P), draw(1, B, G, T)))
    return jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(*streams)


def plain(prompt: Any, completions: Any, prompt_mask: Any, completion_mask: Any) -> Any:
    return attention_plain.shared_prefix_attention(prompt, completions, prompt_mask, None)


def splash(*arguments: Any) -> Any:
    return splash_group_attention(*arguments, interpret=True)


@pytest.mark.parametrize(
    ("dtype", "atol"),
    # Largest differences seen: 2.9e-6 and 0.031, at numbers up to 5.4, of which bfloat16 keeps 8
    # bits.
    [(jnp.float32, 1e-5), (jnp.bfloat16, 0.1)],
    ids=["float32", "bfloat16"],
)
def test_outputs_and_gradients_equal_those_of_plain_attention(dtype: Any, atol: float) -> None:
    ours, expected = outputs_and_gradients(splash, dtype), outputs_and_gradients(plain, dtype)
    for x, y in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        assert np.abs(np.asarray(y, "f4")).max() > 0.5
        np.testing.assert_allclose(np.asarray(x, "f4"), np.asarray(y, "f4"), rtol=0, atol=atol)


def test_prompts_alone() -> None:
    queries, keys, values = draw(4, B, P)
    ours = splash_prompt_attention(queries, keys, values, interpret=True)
    expected = attention_plain.prompt_attention(queries, keys, values, None)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("cut", [(2, 1, 2), (1, 4, 2), (1, 2, 4)], ids=str)
def test_a_mesh_changes_nothing(cut: tuple[int, int, int]) -> None:
    """(1, 4, 2): two prompts do not fit four devices; (1, 2, 4): nor two heads."""
    size = int(np.prod(cut))
    mesh = sharding.make_mesh(*cut, jax.devices()[:size])
    streams = draw(0, B, P), draw(1, B, G, T)
    masks = jnp.asarray(PROMPT_MASK), jnp.asarray(COMPLETION_MASK)
    placed = jax.device_put((*streams, *masks), sharding.replicated(mesh))
    for x, y in zip(jax.jit(splash)(*placed), splash(*streams, *masks), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-5)


def test_the_mask_of_a_group() -> None:
    """Block by block equals slot by slot, on blocks of any shape."""
    layout = PackedGroup(prompt=130, completion=5, group=3)
    assert (layout.start, layout.stride, layout.total) == (256, 128, 640)
    expected = np.zeros((640, 640), bool)
    for slot in range(640):
        part = (slot - 256) // 128 if slot >= 256 else None
        expected[slot, : min(slot + 1, 256)] = True
        if part is not None:
            expected[slot, 256 + 128 * part : slot + 1] = True
    mask = GroupMask(layout)
    for size in (64, 128, 160, 640):
        blocks = [slice(i, i + size) for i in range(0, 640, size)]
        joined = np.block([[mask[rows, columns] for columns in blocks] for rows in blocks])
        np.testing.assert_array_equal(joined, expected)


def test_packing_and_unpacking() -> None:
    layout = PackedGroup(prompt=2, completion=3, group=2)
    prompt = 1.0 + jnp.arange(2.0).reshape(1, 2)
    completions = 10.0 + jnp.arange(6.0).reshape(1, 2, 3)
    packed = layout.pack(prompt, completions)
    assert packed.shape == (1, 384)
    slots = np.asarray([0, 1, 128, 129, 130, 256, 257, 258])
    assert np.asarray(packed)[0, slots].tolist() == [1, 2, *range(10, 16)]
    assert np.count_nonzero(np.asarray(packed)) == 8
    for x, y in zip(layout.unpack(packed), (prompt, completions), strict=True):
        np.testing.assert_array_equal(x, y)
