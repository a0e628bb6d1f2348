"""Attention and rotary positions against plain numpy in float64."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

from mental_r1_jax.models.attention import kernel_for
from mental_r1_jax.models.attention_plain import (
    allowed_own_keys,
    allowed_prompt_keys,
    group_attention,
    prompt_attention,
)
from mental_r1_jax.models.rope import RopeScaling, rope_frequencies, rotate
from mental_r1_jax.sharding import MESH_AXES

B, G, P, T, K, R, WIDTH = 2, 3, 5, 4, 2, 3, 6


def softmax_average(query: np.ndarray, keys: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Attention of one query over listed keys, in float64."""
    logits = keys.astype(np.float64) @ query.astype(np.float64) / np.sqrt(len(query))
    weights = np.exp(logits - logits.max())
    return weights @ values.astype(np.float64) / weights.sum()


def draw(*shape: int) -> np.ndarray:
    """Random float32 numbers from a seed that depends on the shape."""
    return np.random.default_rng(shape).standard_normal(shape, dtype=np.float32)


@pytest.mark.parametrize("window", [None, 3])
def test_prompt_attention(window: int | None) -> None:
    queries, keys = draw(B, P, K, R, WIDTH), draw(B, K, P, WIDTH)
    values = draw(1, B, K, P, WIDTH)[0]
    limit = None if window is None else jnp.int32(window)
    result = np.asarray(prompt_attention(*map(jnp.asarray, (queries, keys, values)), limit))
    for b, i, k, r in np.ndindex(B, P, K, R):
        seen = slice(0 if window is None else max(0, i - window + 1), i + 1)
        expected = softmax_average(queries[b, i, k, r], keys[b, k, seen], values[b, k, seen])
        np.testing.assert_allclose(result[b, i, k, r], expected, atol=1e-6)


@pytest.mark.parametrize("window", [None, 3])
def test_group_attention_is_one_softmax_over_prompt_and_own_keys(window: int | None) -> None:
    queries = 3 * draw(B, G, T, K, R, WIDTH)
    prompt_keys, prompt_values = 3 * draw(B, K, P, WIDTH), draw(1, B, K, P, WIDTH)[0]
    own_keys, own_values = draw(B, G, K, T, WIDTH), draw(1, B, G, K, T, WIDTH)[0]
    lengths = np.asarray([5, 2])
    limit = None if window is None else jnp.int32(window)
    prompt_mask = jnp.arange(P)[None] < lengths[:, None]
    positions = jnp.asarray(lengths[:, None] + np.arange(T)[None])
    result = group_attention(
        *map(jnp.asarray, (queries, prompt_keys, prompt_values, own_keys, own_values)),
        allowed_prompt_keys(prompt_mask, positions, limit),
        allowed_own_keys(jnp.arange(T), T, limit)[None, None],
    )
    for b, g, t, k, r in np.ndindex(B, G, T, K, R):
        n = lengths[b]
        all_keys = np.concatenate([prompt_keys[b, k, :n], own_keys[b, g, k, : t + 1]])
        all_values = np.concatenate([prompt_values[b, k, :n], own_values[b, g, k, : t + 1]])
        seen = slice(0 if window is None else -window, None)
        expected = softmax_average(queries[b, g, t, k, r], all_keys[seen], all_values[seen])
        np.testing.assert_allclose(np.asarray(result)[b, g, t, k, r], expected, atol=2e-6)


def test_extreme_logits_stay_finite() -> None:
    """Logits of +-3e4 overflow `exp` unless the common maximum is taken out first."""
    queries = jnp.full((1, 1, 1, 1, 1, 2), 200.0)
    prompt_keys = jnp.asarray([[[[100.0, 100.0], [-100.0, -100.0]]]])
    own_keys = jnp.full((1, 1, 1, 1, 2), 99.0)
    everywhere = jnp.ones((1, 1, 2), bool)
    result = group_attention(
        queries,
        prompt_keys,
        jnp.asarray([[[[1.0, 2.0], [3.0, 4.0]]]]),
        own_keys,
        jnp.full((1, 1, 1, 1, 2), 9.0),
        everywhere,
        jnp.ones((1, 1, 1, 1), bool),
    )
    np.testing.assert_allclose(result.ravel(), [1.0, 2.0], rtol=1e-6)


def test_rope_frequencies_by_hand() -> None:
    """Head of 4, base 100: f = 1 and 1/10. Numbers below are worked out on paper."""
    np.testing.assert_allclose(rope_frequencies(4, 100.0, None), [1.0, 0.1], rtol=1e-6)
    linear = RopeScaling(kind="linear", factor=4.0)
    np.testing.assert_allclose(rope_frequencies(4, 100.0, linear), [0.25, 0.025], rtol=1e-6)

    def llama3(length: int) -> np.ndarray:
        scaling = RopeScaling("llama3", 8.0, 1.0, 4.0, original_length=length)
        return rope_frequencies(4, 100.0, scaling)

    # Wavelengths are 6.28 and 62.8 tokens; below N / 4 they stay, above N they are divided by 8.
    np.testing.assert_allclose(llama3(40), [1.0, 0.1 / 8], rtol=1e-6)
    np.testing.assert_allclose(llama3(4000), [1.0, 0.1], rtol=1e-6)
    # N = 126: N / w = 2.0053523, s = 1.0053523 / 3, f = 0.1 / 8 + s (0.1 - 0.1 / 8).
    np.testing.assert_allclose(llama3(126), [1.0, 0.041822775], rtol=1e-6)


def test_rotation_turns_each_pair_by_position_times_frequency() -> None:
    x = jnp.asarray([[[1.0, 2.0, 3.0, 4.0]]])  # one token, one head; pairs (1, 3) and (2, 4)
    frequencies = np.asarray([np.pi / 4, np.pi / 6], np.float32)
    turned = rotate(x, jnp.asarray([2]), frequencies)  # by 90 and by 60 degrees
    half, root = 0.5, np.sqrt(3) / 2
    expected = [-3.0, 2 * half - 4 * root, 1.0, 4 * half + 2 * root]
    np.testing.assert_allclose(turned.ravel(), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("platform", "kind", "dtype", "width", "window", "expected"),
    [
        ("cpu", "cpu", "bfloat16", 128, None, "plain"),
        ("tpu", "TPU v5 lite", "float32", 64, None, "tpu"),
        ("tpu", "TPU v5 lite", "float32", 64, 512, "plain"),
        ("gpu", "NVIDIA H100 80GB HBM3", "bfloat16", 128, None, "gpu"),
        ("gpu", "NVIDIA H100 80GB HBM3", "bfloat16", 96, None, "gpu"),
        ("gpu", "NVIDIA H100 80GB HBM3", "float32", 128, None, "plain"),
        ("gpu", "NVIDIA H100 80GB HBM3", "bfloat16", 256, None, "plain"),
        ("gpu", "NVIDIA H100 80GB HBM3", "bfloat16", 128, 512, "plain"),
        ("gpu", "AMD Instinct MI300X", "bfloat16", 128, None, "plain"),
    ],
)
def test_the_devices_of_the_arguments_choose_the_kernel(
    platform: str, kind: str, dtype: str, width: int, window: int | None, expected: str
) -> None:
    device = jax.sharding.AbstractDevice(device_kind=kind, num_cores=None, platform=platform)
    axes = (AxisType.Auto,) * len(MESH_AXES)
    mesh = AbstractMesh((1, 1, 1), MESH_AXES, axes, abstract_device=device)
    where = NamedSharding(mesh, PartitionSpec())
    queries = jax.ShapeDtypeStruct((2, 3, width), jnp.dtype(dtype), sharding=where)
    limit = None if window is None else jnp.int32(window)
    chosen: list[str] = []
    jax.eval_shape(lambda x: chosen.append(kernel_for(x, limit)), queries)
    assert chosen == [expected]
