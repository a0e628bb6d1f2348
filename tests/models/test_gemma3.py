"""What is Gemma 3's own: configs old and new, blocks of layers, the embedding's factor."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from mental_r1_jax.errors import UserError
from mental_r1_jax.models.architecture import DecoderConfig, layer_blocks
from mental_r1_jax.models.embedding import scaled
from mental_r1_jax.models.hf_config import decoder_config_from_hf
from mental_r1_jax.models.parameters import parameter_count
from mental_r1_jax.models.rope import RopeScaling
from mental_r1_jax.planning.known_models import KNOWN_CONFIGS

SIZES = {
    **{"model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"], "vocab_size": 100},
    **{"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 8, "head_dim": 6},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": 8},
}
LOCAL, GLOBAL = "sliding_attention", "full_attention"


def test_the_spellings_of_transformers_4_and_5_mean_the_same() -> None:
    """Five local layers and a global one, without end; the factor is for global ones only."""
    old = {
        **{"rope_theta": 1e5, "rope_local_base_freq": 500.0, "sliding_window_pattern": 6},
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    }
    new = {
        "layer_types": [LOCAL] * 5 + [GLOBAL] + [LOCAL] * 2,
        "rope_parameters": {
            GLOBAL: {"rope_type": "linear", "rope_theta": 1e5, "factor": 8.0},
            LOCAL: {"rope_type": "default", "rope_theta": 500.0},
        },
    }
    config, again = (decoder_config_from_hf({**SIZES, **fields}) for fields in (old, new))
    assert config == again
    assert config.sliding_windows == (8,) * 5 + (None,) + (8,) * 2
    local, full = config.layer_facts(99)[4:6]
    assert (local.window, local.rope_theta, local.rope_scaling) == (8, 500.0, None)
    assert (full.window, full.rope_theta) == (None, 1e5)
    assert full.rope_scaling == RopeScaling("linear", 8.0)


def test_what_a_config_leaves_out_is_as_in_transformers() -> None:
    """The hub's 4B states five fields; its size is known: 3.88 billion with the embedding."""
    sparse = {
        **{"model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240},
        **{"num_hidden_layers": 34, "sliding_window": 1024},
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    }
    config = decoder_config_from_hf(sparse)
    assert config == decoder_config_from_hf(KNOWN_CONFIGS["google/gemma-3-4b-it"])
    assert (config.num_heads, config.num_kv_heads, config.head_dim) == (8, 4, 256)
    assert config.tie_embeddings and config.vocab_size == 262_208
    assert (config.rope_theta, config.local_rope_theta) == (1e6, 1e4)
    assert config.layer_facts(99)[0].scale == 1 / 16
    assert parameter_count(config) == pytest.approx(3.88e9, rel=0.001)


def test_the_query_scale_is_not_that_of_the_head() -> None:
    config = decoder_config_from_hf({**SIZES, "query_pre_attn_scalar": 100})
    assert {facts.scale for facts in config.layer_facts(99)} == {0.1}


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"hidden_activation": "gelu"}, "hidden_activation"),
        ({"query_pre_attn_scalar": None}, "query_pre_attn_scalar is missing"),
        ({"query_pre_attn_scalar": 0}, "query_pre_attn_scalar"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        ({"sliding_window": None}, "no sliding_window in use"),
        ({"sliding_window_pattern": 0}, "sliding_window_pattern"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}, "rope_parameters"),
        (
            {"rope_parameters": {LOCAL: {"rope_type": "linear", "factor": 2.0}}},
            "rope_parameters.sliding_attention",
        ),
        ({"rope_parameters": {GLOBAL: {"rope_type": "yarn", "factor": 2.0}}}, "yarn"),
        ({"rope_parameters": {GLOBAL: {"rope_theta": "1e6"}}}, "rope_theta"),
        ({"layer_types": [LOCAL] * 7 + ["chunked_attention"]}, "layer_types"),
    ],
)
def test_what_we_cannot_compute_is_refused_by_name(fields: dict[str, Any], name: str) -> None:
    with pytest.raises(UserError, match=name):
        decoder_config_from_hf({**SIZES, **fields})


@pytest.mark.parametrize("length", [300, 2000], ids=["below the window", "above"])
def test_26_layers_are_two_blocks_whatever_the_length(length: int) -> None:
    """(5 local + 1 global) x 4 + 2 local: kinds differ in their rotary base, windows or not."""
    config = decoder_config_from_hf(KNOWN_CONFIGS["google/gemma-3-1b-it"])
    blocks = layer_blocks(config.layer_facts(length))
    assert [(len(block.pattern), block.repeats) for block in blocks] == [(6, 4), (1, 2)]
    assert [count for _, count in blocks[0].runs] == [5, 1]
    bases = [facts.rope_theta for facts in blocks[0].pattern]
    assert bases == [1e4] * 5 + [1e6] and blocks[1].pattern[0].rope_theta == 1e4


def test_the_embedding_factor_is_rounded_to_the_compute_dtype() -> None:
    """The root of 1152 is 33.941; bfloat16 knows 33.75, 34 and 34.25 there."""
    sizes = {"vocab_size": 8, "hidden_size": 1152, "intermediate_size": 8, "head_dim": 2}
    config = DecoderConfig(**sizes, num_layers=1, num_heads=1, num_kv_heads=1, scale_embedding=True)
    rows = jnp.ones((1, 2), jnp.float32)
    np.testing.assert_array_equal(scaled(rows, config), np.float32(1152**0.5))
    half = DecoderConfig(**{**config.__dict__, "compute_dtype": "bfloat16"})
    result = scaled(rows.astype(jnp.bfloat16), half)
    assert result.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(result, np.float32), 34.0)
