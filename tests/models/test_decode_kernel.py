"""The decoding kernel for TPUs, interpreted on a CPU, against the decoding step in plain XLA."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mental_r1_jax.models import decode, decode_kernel_tpu
from mental_r1_jax.models.architecture import AttentionFacts, DecoderConfig
from mental_r1_jax.models.decode import PromptCache
from mental_r1_jax.models.layer import finish_heads
from mental_r1_jax.models.rope import rope_frequencies, rotation_factors

B, G, K, R, H = 2, 3, 2, 2, 128
PROMPT, SLOTS, PREFIX = 128, 256, 40
CONFIG = DecoderConfig(
    vocab_size=16,
    hidden_size=32,
    intermediate_size=32,
    num_layers=1,
    num_heads=K * R,
    num_kv_heads=K,
    head_dim=H,
    qk_norm=True,
)
FACTS = AttentionFacts(scale=H**-0.5)
LENGTHS = np.asarray([128, 67], np.int32)


def draw(seed: int, *shape: int) -> np.ndarray:
    """Random numbers, float32."""
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


@dataclasses.dataclass(frozen=True)
class Case:
    """One token of every completion, and what it attends to.

    Attributes:
        config: says whether heads are normed.
        facts: of the layer.
        index: slot of the token.
        dtype: of heads and caches.
        parts: copies of the prefix; 0: there is none.
    """

    config: DecoderConfig = CONFIG
    facts: AttentionFacts = FACTS
    index: int = 200
    dtype: Any = jnp.float32
    parts: int = 0

    def cast(self, *arrays: np.ndarray) -> tuple[jax.Array, ...]:
        """Arrays in the case's dtype."""
        return tuple(jnp.asarray(x, self.dtype) for x in arrays)

    @property
    def heads(self) -> Any:
        """Queries, keys and values as projected."""
        return self.cast(2 * draw(1, B, G, K, R, H), 3 * draw(2, B, G, K, H), draw(3, B, G, K, H))

    @property
    def own(self) -> Any:
        """Cache of the completions; slots from `index` on hold what must not be seen."""
        keys, values = draw(4, B, K, G, H, SLOTS), draw(5, B, K, G, SLOTS, H)
        keys[..., self.index :] = 1e4
        values[..., self.index :, :] = 1e4
        return self.cast(keys, values)

    @property
    def cache(self) -> PromptCache:
        """Cache of the prompts and of what stands before them; padding must not be seen."""
        keys, values = draw(6, B, K, H, PROMPT), draw(7, B, K, PROMPT, H)
        for b, length in enumerate(LENGTHS):
            keys[b, ..., length:] = 1e4
            values[b, :, length:] = 1e4
        keys, values = self.cast(keys, values)
        prefix = self.cast(draw(8, 1, K, H, PREFIX), draw(9, 1, K, PREFIX, H))
        copies = [((jnp.repeat(x, self.parts, axis=0),) if self.parts else ()) for x in prefix]
        mask = jnp.arange(PROMPT)[None] < LENGTHS[:, None]
        return PromptCache((keys,), (values,), mask, *copies)

    @property
    def weights(self) -> dict[str, dict[str, jax.Array]]:
        """Of the norms of the heads."""
        scales = {"query_norm": draw(10, H), "key_norm": draw(11, H)}
        return {name: {"scale": jnp.asarray(1 + 0.3 * x)} for name, x in scales.items()}


@partial(jax.jit, static_argnames=("config", "facts"))
def plain(
    heads: Any, own: Any, cache: PromptCache, weights: Any, index: Any, config: Any, facts: Any
) -> tuple[jax.Array, Any]:
    """What `decode_step` does without the kernel."""
    positions = jnp.asarray(LENGTHS)[:, None] + index
    places = positions + cache.prefix_length
    flat = heads[0].reshape(B, G, K * R, H), *heads[1:]
    queries, keys, values = finish_heads(weights, config, facts, flat, places)
    finished = queries.reshape(heads[0].shape), keys, values
    prompt = cache.keys[0], cache.values[0], cache.mask
    prefix = cache.prefix_heads(0, places, facts.window)
    mixed, filled = decode._attend(index, positions, prefix, prompt, own, facts, finished)
    return mixed[0], filled


@partial(jax.jit, static_argnames=("config", "facts"))
def fused(
    heads: Any, own: Any, cache: PromptCache, weights: Any, index: Any, config: Any, facts: Any
) -> tuple[jax.Array, Any]:
    """The kernel on the same arrays."""
    norms = None
    if config.qk_norm:
        scales = (weights[name]["scale"] for name in ("query_norm", "key_norm"))
        norms = decode_kernel_tpu.HeadNorms(*scales, config.rms_norm_eps)
    places = jnp.asarray(LENGTHS) + index + cache.prefix_length
    frequencies = rope_frequencies(H, facts.rope_theta, facts.rope_scaling)
    return decode_kernel_tpu.fused_decode_attention(
        heads,
        index,
        jnp.asarray(LENGTHS),
        rotation_factors(places, frequencies),
        (cache.keys[0], cache.values[0]),
        own,
        facts,
        norms,
        (cache.prefix_keys[0], cache.prefix_values[0]) if cache.prefix_keys else None,
        interpret=True,
    )


def both(case: Case) -> tuple[Any, Any]:
    """Mixture and cache, by plain XLA and by the kernel."""
    arrays = case.heads, case.own, case.cache, case.weights, jnp.asarray(case.index)
    return tuple(run(*arrays, config=case.config, facts=case.facts) for run in (plain, fused))


CASES = {
    "middle": Case(),
    "first-slot": Case(index=0),
    "last-slot": Case(index=SLOTS - 1),
    "edge-of-a-register": Case(index=128),
    "window-within-the-completion": Case(facts=dataclasses.replace(FACTS, window=17)),
    "window-into-the-prompt": Case(facts=dataclasses.replace(FACTS, window=210)),
    "window-into-the-prefix": Case(facts=dataclasses.replace(FACTS, window=300), parts=2),
    "softcap-prefix-heads-not-normed": Case(
        config=dataclasses.replace(CONFIG, qk_norm=False),
        facts=dataclasses.replace(FACTS, softcap=1.5),
        parts=1,
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_it_computes_what_plain_xla_does(case: Case) -> None:
    (expected, expected_cache), (found, cache) = both(case)
    np.testing.assert_allclose(found, expected, rtol=0, atol=5e-6)
    for mine, theirs in zip(cache, expected_cache, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=2e-6)


def test_rounded_to_bfloat16_it_is_as_near_as_rounding_allows() -> None:
    """Keys and values that it writes are the same numbers, mixtures but for their last bit."""
    config = dataclasses.replace(CONFIG, compute_dtype="bfloat16")
    case = Case(config, dtype=jnp.bfloat16, parts=1)
    (expected, expected_cache), (found, cache) = both(case)
    assert found.dtype == jnp.bfloat16
    for mine, theirs in zip(cache, expected_cache, strict=True):
        np.testing.assert_array_equal(np.asarray(mine), np.asarray(theirs))
    difference = np.abs(np.asarray(found, np.float32) - np.asarray(expected, np.float32))
    assert difference.max() <= 2.0**-7 * np.abs(np.asarray(expected, np.float32)).max()


def test_completions_are_split_where_their_blocks_do_not_fit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Sixteen completions, in two turns of eight, are as when each eight come alone."""
    group, slots = 16, 128
    heads = draw(20, B, group, 1, R, H), draw(21, B, group, 1, H), draw(22, B, group, 1, H)
    prompt = draw(23, B, 1, H, 128), draw(24, B, 1, 128, H)
    own = draw(25, B, 1, group, H, slots), draw(26, B, 1, group, slots, H)
    at = np.asarray([70, 128], np.int32)
    rotation = rotation_factors(jnp.asarray(at), rope_frequencies(H, 10_000.0, None))
    heads, at, rotation, prompt, own = jax.tree.map(jnp.asarray, (heads, at, rotation, prompt, own))

    @jax.jit
    def run(heads: Any, own: Any) -> Any:
        arrays = heads, jnp.asarray(50), at, rotation, prompt, own
        return decode_kernel_tpu.fused_decode_attention(*arrays, FACTS, interpret=True)

    monkeypatch.setattr(decode_kernel_tpu, "MOST_BYTES", 6_000_000)
    assert decode_kernel_tpu._completions_a_turn(group, R, prompt, own, None) == 8
    whole, whole_cache = run(heads, own)
    for half in (slice(8), slice(8, 16)):
        mixed, cache = run(tuple(x[:, half] for x in heads), tuple(x[:, :, half] for x in own))
        np.testing.assert_array_equal(whole[:, half], mixed)
        for mine, theirs in zip(whole_cache, cache, strict=True):
            np.testing.assert_array_equal(mine[:, :, half], theirs)
    monkeypatch.setattr(decode_kernel_tpu, "MOST_BYTES", 1_000_000)
    assert decode_kernel_tpu._completions_a_turn(group, R, prompt, own, None) is None
