"""Configs of transformers 4 and 5, and the fields that are refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mental_r1_jax.errors import UserError
from mental_r1_jax.models.hf_config import decoder_config_from_hf, read_hf_config
from mental_r1_jax.models.rope import RopeScaling

SIZES = {
    "vocab_size": 100,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], **SIZES}
QWEN2 = {"model_type": "qwen2", **SIZES}
LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def test_both_spellings_of_rotary_settings_mean_the_same() -> None:
    old = {"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **LLAMA3}}
    older = {"rope_theta": 5e5, "rope_scaling": {"type": "llama3", **LLAMA3}}
    new = {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, **LLAMA3}}
    configs = [decoder_config_from_hf({**LLAMA, **rope}) for rope in (old, older, new)]
    assert configs[0] == configs[1] == configs[2]
    assert configs[0].rope_theta == 5e5
    assert configs[0].rope_scaling == RopeScaling("llama3", 8.0, 1.0, 4.0, 8192)
    assert decoder_config_from_hf({**LLAMA, "rope_scaling": None}).rope_theta == 10_000


def test_families_differ_in_biases_norms_and_defaults() -> None:
    llama = decoder_config_from_hf({**LLAMA, "attention_bias": True, "mlp_bias": True})
    assert (llama.qkv_bias, llama.output_bias, llama.mlp_bias, llama.qk_norm) == (1, 1, 1, 0)
    qwen2 = decoder_config_from_hf(QWEN2)
    assert (qwen2.qkv_bias, qwen2.output_bias, qwen2.qk_norm, qwen2.head_dim) == (1, 0, 0, 6)
    qwen3 = decoder_config_from_hf({**QWEN2, "model_type": "qwen3"})
    assert (qwen3.qkv_bias, qwen3.output_bias, qwen3.qk_norm, qwen3.head_dim) == (0, 0, 1, 128)
    mistral = decoder_config_from_hf({**QWEN2, "model_type": "mistral"})
    assert mistral.sliding_windows == (4096,) * 4
    without_kv = {k: v for k, v in LLAMA.items() if k != "num_key_value_heads"}
    assert decoder_config_from_hf(without_kv).num_kv_heads == 4


@pytest.mark.parametrize(
    ("fields", "windows"),
    [
        ({"sliding_window": 8}, None),  # not switched on
        ({"sliding_window": 8, "use_sliding_window": True}, None),  # from layer 28 on
        (
            {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 3},
            (None, None, None, 8),
        ),
        (
            {
                "sliding_window": 8,
                "use_sliding_window": True,
                "layer_types": ["full_attention", "sliding_attention"] * 2,
            },
            (None, 8, None, 8),
        ),
    ],
)
def test_sliding_windows_of_qwen2(fields: dict, windows: Any) -> None:
    assert decoder_config_from_hf({**QWEN2, **fields}).sliding_windows == windows


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"model_type": "gemma"}, "gemma"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "yarn"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 4.0}}, "dynamic"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 4.0}}, "low_freq_factor is missing"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0, "mscale": 1.0}}, "mscale"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"num_local_experts": 8}, "num_local_experts"),
        ({"num_experts": 64}, "num_experts"),
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
        ({"embedding_multiplier": 12.0}, "embedding_multiplier"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
        ({"sliding_window": 128}, "sliding_window"),
        ({"layer_types": ["sliding_attention"] * 4}, "layer_types"),
        ({"model_type": "qwen2", "layer_types": ["linear_attention"] * 4}, "linear_attention"),
        ({"model_type": "qwen2", "layer_types": ["full_attention"]}, "layer_types"),
        ({"model_type": "qwen2", "layer_types": ["sliding_attention"] * 4}, "sliding_window"),
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"head_dim": 7}, "head_dim"),
        ({"hidden_size": None}, "hidden_size is missing"),
    ],
)
def test_what_we_cannot_compute_is_refused_by_name(fields: dict, name: str) -> None:
    with pytest.raises(UserError, match=name):
        decoder_config_from_hf({**LLAMA, **fields})


def test_all_refused_fields_are_named_together() -> None:
    with pytest.raises(UserError) as raised:
        decoder_config_from_hf({**LLAMA, "hidden_act": "relu", "num_experts": 4, "clip_qkv": 8.0})
    assert all(name in str(raised.value) for name in ("hidden_act", "num_experts", "clip_qkv"))


def test_fields_that_change_nothing_are_accepted() -> None:
    neutral = {
        "rope_scaling": {"rope_type": "default"},
        "pretraining_tp": 1,
        "num_experts": 0,
        "hidden_act": "silu",
        "layer_types": ["full_attention"] * 4,
        "rope_interleaved": False,
    }
    assert decoder_config_from_hf({**LLAMA, **neutral}) == decoder_config_from_hf(LLAMA)


def test_reading_the_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.json"):
        read_hf_config(tmp_path)
    (tmp_path / "config.json").write_text("{not json")
    with pytest.raises(UserError, match=r"config\.json"):
        read_hf_config(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    assert read_hf_config(tmp_path) == LLAMA
