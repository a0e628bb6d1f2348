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
from mental_r1_jax.models.architecture import AttentionFacts
from mental_r1_jax.models.attention_tpu import (
    GroupMask,
    PackedGroup,
    splash_group_attention,
    splash_prompt_attention,
)

# Two prompts of 130 and 67 tokens; the packed sequence has 256 + 2 * 128 slots, four blocks.
B, G, P, T, K, R, WIDTH = 2, 2, 130, 37, 2, 3, 16
PROMPT_MASK = np.arange(P)[None] < np.asarray([130, 67])[:, None]
FACTS = {
    "full": AttentionFacts(scale=WIDTH**-0.5),
    # Completions of up to 37 tokens see a part of prompts of 130 and of 67.
    "window": AttentionFacts(scale=WIDTH**-0.5, window=50),
    "window-inside-a-block": AttentionFacts(scale=WIDTH**-0.5, window=3),
    "softcap": AttentionFacts(scale=0.7, softcap=6.0),
    "window-and-softcap": AttentionFacts(scale=0.7, window=50, softcap=6.0),
}
every_kind = pytest.mark.parametrize("facts", FACTS.values(), ids=FACTS)
COMPLETION_MASK = np.arange(T)[None, None] < np.asarray([[37, 5], [1, 30]])[..., None]


def draw(seed: int, *tokens: int) -> tuple[jax.Array, ...]:
    """Random queries, keys and values."""
    rng = np.random.default_rng(seed)
    shapes = (*tokens, K, R, WIDTH), (*tokens, K, WIDTH), (*tokens, K, WIDTH)
    return tuple(jnp.asarray(rng.standard_normal(shape, "f4")) for shape in shapes)


def outputs_and_gradients(attend: Any, facts: AttentionFacts, dtype: Any) -> Any:
    """Both outputs at real tokens, and the gradients of a weighted sum of them."""
    weights = draw(2, B, P)[0], draw(3, B, G, T)[0]
    masks = jnp.asarray(PROMPT_MASK), jnp.asarray(COMPLETION_MASK)

    def loss(prompt: Any, completions: Any) -> tuple[jax.Array, Any]:
        mixed = attend(prompt, completions, *masks, facts)
        real = tuple(
            jnp.where(mask.reshape(*mask.shape, 1, 1, 1), x, 0).astype(jnp.float32)
            for x, mask in zip(mixed, masks, strict=True)
        )
        return sum((x * w).sum() for x, w in zip(real, weights, strict=True)), real

    streams = jax.tree.map(lambda x: x.astype(dtype), (draw(0, B, P), draw(1, B, G, T)))
    return jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(*streams)


def plain(prompt: Any, completions: Any, prompt_mask: Any, _: Any, facts: Any) -> Any:
    return attention_plain.shared_prefix_attention(prompt, completions, prompt_mask, facts)


def splash(*arguments: Any) -> Any:
    return splash_group_attention(*arguments, interpret=True)


@every_kind
@pytest.mark.parametrize(
    ("dtype", "atol"),
    # Largest differences seen: 2.9e-6 and 0.031, at numbers up to 5.4, of which bfloat16 keeps 8
    # bits.
    [(jnp.float32, 1e-5), (jnp.bfloat16, 0.1)],
    ids=["float32", "bfloat16"],
)
def test_outputs_and_gradients_equal_those_of_plain_attention(
    dtype: Any, atol: float, facts: AttentionFacts
) -> None:
    ours, expected = (outputs_and_gradients(attend, facts, dtype) for attend in (splash, plain))
    for x, y in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        assert np.abs(np.asarray(y, "f4")).max() > 0.5
        np.testing.assert_allclose(np.asarray(x, "f4"), np.asarray(y, "f4"), rtol=0, atol=atol)


@every_kind
def test_prompts_alone(facts: AttentionFacts) -> None:
    queries, keys, values = draw(4, B, P)
    ours = splash_prompt_attention(queries, keys, values, facts, interpret=True)
    expected = attention_plain.prompt_attention(queries, keys, values, facts)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["full", "window"])
@pytest.mark.parametrize("sizes", [(2, 1, 2), (1, 4, 2), (1, 2, 4)], ids=str)
def test_a_mesh_changes_nothing(sizes: tuple[int, int, int], kind: str) -> None:
    """(1, 4, 2): two prompts do not fit four devices; (1, 2, 4): nor two heads."""
    mesh = sharding.make_mesh(*sizes, jax.devices()[: int(np.prod(sizes))])
    streams = draw(0, B, P), draw(1, B, G, T)
    masks = jnp.asarray(PROMPT_MASK), jnp.asarray(COMPLETION_MASK)
    placed = jax.device_put((*streams, *masks), sharding.replicated(mesh))
    run = jax.jit(splash, static_argnums=4)
    facts = FACTS[kind]
    for x, y in zip(run(*placed, facts), run(*streams, *masks, facts), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-5)


@pytest.mark.parametrize("window", [None, 1, 70, 200])
def test_the_mask_of_a_group(window: int | None) -> None:
    """Block by block equals slot by slot, on blocks of any shape."""
    layout = PackedGroup(prompt=130, completion=5, group=3)
    assert (layout.start, layout.stride, layout.total) == (256, 128, 640)
    expected = np.zeros((640, 640), bool)
    for slot in range(640):
        part = (slot - 256) // 128 if slot >= 256 else None
        expected[slot, : min(slot + 1, 256)] = True
        if part is not None:
            expected[slot, 256 + 128 * part : slot + 1] = True
        if window is not None:  # so many of the visible slots that are last in their own order
            expected[slot, np.flatnonzero(expected[slot])[:-window]] = False
    mask = GroupMask(layout, window)
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


def test_a_window_has_the_prompt_end_where_completions_begin() -> None:
    layout = PackedGroup(prompt=4, completion=3, group=2)
    prompt = jnp.asarray([[1.0, 2, 8, 9], [1, 2, 3, 9]])  # two and three real tokens
    completions = jnp.zeros((2, 2, 3))
    padding = layout.start - jnp.asarray([2, 3])
    packed = layout.pack(prompt, completions, padding)
    assert np.asarray(packed)[:, 125:128].tolist() == [[0, 1, 2], [1, 2, 3]]
    np.testing.assert_array_equal(layout.unpack(packed, padding)[0], prompt)
