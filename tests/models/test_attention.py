"""Attention and rotary positions against plain numpy in float64."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

from mental_r1_jax.models import attention_plain
from mental_r1_jax.models.architecture import AttentionFacts
from mental_r1_jax.models.attention import kernel_for
from mental_r1_jax.models.attention_plain import (
    allowed_own_keys,
    allowed_prompt_keys,
    prompt_attention,
    shared_prefix_attention,
)
from mental_r1_jax.models.decode_attention import PrefixHeads, decode_attention
from mental_r1_jax.models.rope import RopeScaling, rope_frequencies, rotate
from mental_r1_jax.sharding import MESH_AXES

B, G, P, T, K, R, WIDTH = 2, 3, 5, 4, 2, 3, 6

# A scale that is not 1 / sqrt(h), and a softcap that bends logits of order 3 visibly.
FACTS = {
    "full": AttentionFacts(scale=WIDTH**-0.5),
    "window": AttentionFacts(scale=WIDTH**-0.5, window=3),
    "softcap": AttentionFacts(scale=0.3, softcap=2.0),
    "window-and-softcap": AttentionFacts(scale=0.3, window=3, softcap=2.0),
}
every_kind = pytest.mark.parametrize("facts", FACTS.values(), ids=FACTS)


def softmax_average(
    query: np.ndarray, keys: np.ndarray, values: np.ndarray, facts: AttentionFacts
) -> np.ndarray:
    """Attention of one query over listed keys, in float64."""
    logits = facts.scale * (keys.astype(np.float64) @ query.astype(np.float64))
    if facts.softcap is not None:
        logits = facts.softcap * np.tanh(logits / facts.softcap)
    weights = np.exp(logits - logits.max())
    return weights @ values.astype(np.float64) / weights.sum()


def draw(*shape: int) -> np.ndarray:
    """Random float32 numbers from a seed that depends on the shape."""
    return np.random.default_rng(shape).standard_normal(shape, dtype=np.float32)


@pytest.fixture(params=[1, 4], ids=["one-block-of-rows", "blocks-of-two-tokens"])
def blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Split the rows of a sequence into so many blocks."""
    monkeypatch.setattr(attention_plain, "MAX_BLOCKS", request.param)
    monkeypatch.setattr(attention_plain, "MIN_BLOCK", 1)


@pytest.mark.usefixtures("blocks")
@every_kind
def test_attention_is_one_softmax_over_prompt_and_own_keys(facts: AttentionFacts) -> None:
    prompt = 3 * draw(B, P, K, R, WIDTH), 3 * draw(B, P, K, WIDTH), draw(1, B, P, K, WIDTH)[0]
    own = 3 * draw(B, G, T, K, R, WIDTH), draw(B, G, T, K, WIDTH), draw(1, B, G, T, K, WIDTH)[0]
    lengths = np.asarray([5, 2])
    arrays = jax.tree.map(jnp.asarray, (prompt, own, np.arange(P)[None] < lengths[:, None]))
    of_prompt, of_own = map(np.asarray, shared_prefix_attention(*arrays, facts))
    seen = slice(-facts.window if facts.window else 0, None)
    for b, i, k, r in np.ndindex(B, P, K, R):
        keys, values = (x[b, : i + 1, k][seen] for x in prompt[1:])
        expected = softmax_average(prompt[0][b, i, k, r], keys, values, facts)
        np.testing.assert_allclose(of_prompt[b, i, k, r], expected, atol=2e-6)
    for b, g, t, k, r in np.ndindex(B, G, T, K, R):
        keys, values = (
            np.concatenate([shared[b, : lengths[b], k], mine[b, g, : t + 1, k]])[seen]
            for shared, mine in zip(prompt[1:], own[1:], strict=True)
        )
        expected = softmax_average(own[0][b, g, t, k, r], keys, values, facts)
        np.testing.assert_allclose(of_own[b, g, t, k, r], expected, atol=2e-6)
    alone = prompt_attention(*arrays[0], facts)
    np.testing.assert_array_equal(alone, of_prompt)


@every_kind
def test_one_token_attends_like_the_last_of_a_sequence(facts: AttentionFacts) -> None:
    prompt = draw(B, P, K, R, WIDTH), 3 * draw(B, P, K, WIDTH), draw(1, B, P, K, WIDTH)[0]
    own = draw(B, G, T, K, R, WIDTH), 3 * draw(B, G, T, K, WIDTH), draw(1, B, G, T, K, WIDTH)[0]
    mask = np.arange(P)[None] < np.asarray([[5], [2]])
    arrays = jax.tree.map(jnp.asarray, (prompt, own, mask))
    expected = shared_prefix_attention(*arrays, facts)[1][:, :, -1]
    positions = jnp.asarray(mask.sum(-1, keepdims=True) + T - 1)
    found = decode_attention(
        arrays[1][0][:, :, -1],
        arrays[0][1].transpose(0, 2, 3, 1),
        arrays[0][2].swapaxes(1, 2),
        arrays[1][1].transpose(0, 3, 1, 4, 2),
        arrays[1][2].transpose(0, 3, 1, 2, 4),
        allowed_prompt_keys(arrays[2], positions, facts.window)[:, 0],
        allowed_own_keys(jnp.asarray([T - 1]), T, facts.window)[0],
        facts,
    )
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("parts", [1, 2])
@every_kind
def test_a_shared_prefix_is_as_if_each_prompt_began_with_it(
    facts: AttentionFacts, parts: int
) -> None:
    """One token after three of a prefix, some of a prompt and four of its own."""
    before, slots = 3, 4
    prompts, position = np.asarray([5, 2]), np.asarray([[5], [2]]) + slots - 1
    queries = jnp.asarray(3 * draw(B, G, K, R, WIDTH))
    prefix = draw(1, K, WIDTH, before), draw(1, K, before, WIDTH)
    keys, values = draw(B, K, WIDTH, P), draw(B, K, P, WIDTH)
    own = draw(B, K, G, WIDTH, slots), draw(B, K, G, slots, WIDTH)
    real = np.arange(P)[None] < prompts[:, None]
    own_allowed = allowed_own_keys(jnp.asarray([slots - 1]), slots, facts.window)[0]

    def attend(keys, values, mask, positions, prefix) -> np.ndarray:
        allowed = allowed_prompt_keys(jnp.asarray(mask), positions, facts.window)[:, 0]
        arrays = map(jnp.asarray, (keys, values, *own))
        return decode_attention(queries, *arrays, allowed, own_allowed, facts, prefix)

    copies = [np.repeat(x, B, axis=0) for x in prefix]
    expected = attend(
        np.concatenate([copies[0], keys], axis=3),
        np.concatenate([copies[1], values], axis=2),
        np.concatenate([np.ones((B, before), bool), real], axis=1),
        jnp.asarray(position + before),
        None,
    )
    seen = allowed_prompt_keys(
        jnp.ones((B, before), bool), jnp.asarray(position + before), facts.window
    )[:, 0]
    allowed = None if facts.window is None else seen
    heads = PrefixHeads(*(jnp.repeat(jnp.asarray(x), parts, axis=0) for x in prefix), allowed)
    found = attend(keys, values, real, jnp.asarray(position), heads)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)


def dense_attention(prompt: Any, own: Any, prompt_mask: Any, facts: AttentionFacts) -> Any:
    """The same with a copy of the prompt for each completion, differentiated by JAX."""
    joined = [
        jnp.concatenate([jnp.repeat(p[:, None], G, axis=1), c], axis=2)
        for p, c in zip(prompt, own, strict=True)
    ]
    lengths = prompt_mask.sum(-1)[:, None, None]
    steps = jnp.arange(P + T)[None, None]
    place = jnp.where(steps < P, steps, steps - P + lengths)  # [B, 1, P + T]
    real = (steps >= P) | (steps < lengths)
    allowed = (place[..., :, None] >= place[..., None, :]) & real[..., None, :]
    if facts.window is not None:
        allowed &= place[..., :, None] - place[..., None, :] < facts.window
    logits = facts.scale * jnp.einsum("bgikrh,bgjkh->bgkrij", *joined[:2])
    if facts.softcap is not None:
        logits = facts.softcap * jnp.tanh(logits / facts.softcap)
    logits = jnp.where(allowed[:, :, None, None], logits, -jnp.inf)
    weights = jax.nn.softmax(logits, where=allowed[:, :, None, None])
    mixed = jnp.einsum("bgkrij,bgjkh->bgikrh", weights, joined[2])
    return mixed[:, 0, :P], mixed[:, :, P:]


@pytest.mark.usefixtures("blocks")
@every_kind
def test_gradients_are_those_of_dense_attention(facts: AttentionFacts) -> None:
    streams = tuple(
        tuple(jnp.asarray(draw(*lead, *tail)) for tail in ((K, R, WIDTH), (K, WIDTH), (K, WIDTH)))
        for lead in ((B, P), (B, G, T))
    )
    mask = jnp.arange(P)[None] < jnp.asarray([[5], [2]])
    weights = (
        draw(B, P, K, R, WIDTH) * np.asarray(mask)[..., None, None, None],
        draw(*((B, G, T, K, R, WIDTH))),
    )

    def gradients(attend: Any) -> Any:
        def loss(streams: Any) -> Any:
            mixed = attend(*streams, mask, facts)
            real = jnp.where(mask[..., None, None, None], mixed[0], 0), mixed[1]
            return sum((x * w).sum() for x, w in zip(real, weights, strict=True))

        return jax.jit(jax.grad(loss))(streams)

    ours, expected = gradients(shared_prefix_attention), gradients(dense_attention)
    for x, y in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        assert np.abs(y).max() > 0.3
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-5)  # seen 2.2e-6, of up to 7.5


def test_extreme_logits_stay_finite() -> None:
    """Logits of +-3e4 overflow `exp` unless the common maximum is taken out first."""
    prompt_keys = jnp.asarray([[[[100.0, 100.0]], [[-100.0, -100.0]]]])
    prompt_values = jnp.asarray([[[[1.0, 2.0]], [[3.0, 4.0]]]])
    own = jnp.full((1, 1, 1, 1, 1, 2), 200.0), jnp.full((1, 1, 1, 1, 2), 99.0)
    _, result = shared_prefix_attention(
        (prompt_keys[..., None, :], prompt_keys, prompt_values),
        (*own, jnp.full((1, 1, 1, 1, 2), 9.0)),
        jnp.ones((1, 2), bool),
        AttentionFacts(scale=2**-0.5),
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
    ("platform", "kind", "dtype", "width", "facts", "expected"),
    [
        ("cpu", "cpu", "bfloat16", 128, {}, "plain"),
        ("tpu", "TPU v5 lite", "float32", 64, {}, "tpu"),
        ("tpu", "TPU v5 lite", "float32", 64, {"window": 512, "softcap": 9.0}, "tpu"),
        ("gpu", "NVIDIA H100 80GB HBM3", "bfloat16", 128, {}, "gpu"),
        ("gpu", "NVIDIA H100 80GB HBM3", "bfloat16", 96, {}, "gpu"),
        ("gpu", "NVIDIA H100 80GB HBM3", "float32", 128, {}, "plain"),
        ("gpu", "NVIDIA H100 80GB HBM3", "bfloat16", 256, {}, "plain"),
        ("gpu", "NVIDIA H100 80GB HBM3", "bfloat16", 128, {"window": 512}, "plain"),
        ("gpu", "NVIDIA H100 80GB HBM3", "bfloat16", 128, {"softcap": 9.0}, "plain"),
        ("gpu", "AMD Instinct MI300X", "bfloat16", 128, {}, "plain"),
    ],
)
def test_the_devices_of_the_arguments_choose_the_kernel(
    platform: str, kind: str, dtype: str, width: int, facts: dict, expected: str
) -> None:
    device = jax.sharding.AbstractDevice(device_kind=kind, num_cores=None, platform=platform)
    axes = (AxisType.Auto,) * len(MESH_AXES)
    mesh = AbstractMesh((1, 1, 1), MESH_AXES, axes, abstract_device=device)
    where = NamedSharding(mesh, PartitionSpec())
    queries = jax.ShapeDtypeStruct((2, 3, width), jnp.dtype(dtype), sharding=where)
    of_layer = AttentionFacts(scale=1.0, **facts)
    chosen: list[str] = []
    jax.eval_shape(lambda x: chosen.append(kernel_for(x, of_layer)), queries)
    assert chosen == [expected]
