"""One tiny decoder with every feature on, its inputs, and its jitted functions, compiled once."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mental_r1_jax.models import decoder

# Sizes differ from each other and from products of each other, so that a shape names its axes.
NUM_PROMPTS, GROUP, PROMPT, COMPLETION = 3, 5, 7, 12

CONFIG = decoder.DecoderConfig(
    vocab_size=37,
    hidden_size=20,
    intermediate_size=28,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=6,
    qkv_bias=True,
    qk_norm=True,
    sliding_windows=(None, 4),
    init_scale=0.3,
)


class Inputs(NamedTuple):
    """Arguments of `decoder.forward` after the parameters and the config."""

    prompt_ids: jax.Array
    prompt_mask: jax.Array
    completion_ids: jax.Array
    completion_mask: jax.Array


@pytest.fixture(scope="package")
def params() -> dict:
    """Random parameters of `CONFIG`, biases and norms included."""
    rng = np.random.default_rng(0)
    shapes = decoder.abstract_params(CONFIG)
    return jax.tree.map(lambda s: jnp.asarray(0.3 * rng.standard_normal(s.shape, "f4")), shapes)


@pytest.fixture(scope="package")
def inputs() -> Inputs:
    """Prompts of 7, 4 and 1 tokens, completions of different lengths."""
    rng = np.random.default_rng(1)
    prompt_mask = np.arange(PROMPT)[None] < np.asarray([7, 4, 1])[:, None]
    lengths = rng.integers(1, COMPLETION + 1, (NUM_PROMPTS, GROUP))
    completion_mask = np.arange(COMPLETION)[None, None] < lengths[..., None]
    ids = rng.integers(0, CONFIG.vocab_size, (NUM_PROMPTS, PROMPT))
    completion_ids = rng.integers(0, CONFIG.vocab_size, (NUM_PROMPTS, GROUP, COMPLETION))
    return Inputs(*map(jnp.asarray, (ids, prompt_mask, completion_ids, completion_mask)))


@pytest.fixture(scope="package")
def run_forward():
    """`decoder.forward` of `CONFIG`, jitted."""
    return jax.jit(lambda params, inputs: decoder.forward(params, CONFIG, *inputs))


@pytest.fixture(scope="package")
def hidden(run_forward, params: dict, inputs: Inputs) -> np.ndarray:
    """States of the forward pass on `inputs`."""
    return np.asarray(run_forward(params, inputs))
