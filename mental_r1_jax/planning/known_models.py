"""The architecture of a recipe's model, without a download for the models of our recipes.

Their `config.json` facts stand here: public values, as the models' own files on the hub state them.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from mental_r1_jax.config import ExperimentConfig
from mental_r1_jax.models import hf_format
from mental_r1_jax.models.architecture import DecoderConfig
from mental_r1_jax.models.hf_config import decoder_config_from_hf, read_hf_config
from mental_r1_jax.opening.adapters import BASE_MODEL
from mental_r1_jax.opening.model_source import wanted_adapters

_LLAMA: dict[str, Any] = {
    **{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_act": "silu"},
    **{"rms_norm_eps": 1e-5, "tie_word_embeddings": True},
}
_SMOLLM2 = _LLAMA | {
    **{"vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "head_dim": 64},
    **{"num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3},
    **{"rope_theta": 100000.0, "max_position_embeddings": 8192},
}
_LLAMA_32_1B = _LLAMA | {
    **{"vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192, "head_dim": 64},
    **{"num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8},
    **{"rope_theta": 500000.0, "max_position_embeddings": 131072},
    "rope_scaling": {
        **{"rope_type": "llama3", "factor": 32.0, "original_max_position_embeddings": 8192},
        **{"low_freq_factor": 1.0, "high_freq_factor": 4.0},
    },
}
_QWEN3: dict[str, Any] = {
    **{"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "hidden_act": "silu"},
    **{"vocab_size": 151936, "num_key_value_heads": 8, "head_dim": 128, "rope_theta": 1000000.0},
    **{"rms_norm_eps": 1e-6, "attention_bias": False, "max_position_embeddings": 40960},
}


def _qwen3(width: int, hidden: int, layers: int, heads: int, tied: bool) -> dict[str, Any]:
    """One size of the family."""
    return _QWEN3 | {
        **{"hidden_size": width, "intermediate_size": hidden, "num_hidden_layers": layers},
        **{"num_attention_heads": heads, "tie_word_embeddings": tied},
    }


def _gemma3(
    width: int, hidden: int, layers: int, heads: tuple[int, int], window: int
) -> dict[str, Any]:
    """The text model of one size of the family."""
    return {
        **{"model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"]},
        **{"vocab_size": 262144, "hidden_size": width, "intermediate_size": hidden},
        **{"num_hidden_layers": layers, "head_dim": 256, "query_pre_attn_scalar": 256},
        **{"num_attention_heads": heads[0], "num_key_value_heads": heads[1]},
        **{"sliding_window": window, "sliding_window_pattern": 6, "rms_norm_eps": 1e-6},
        **{"rope_theta": 1000000.0, "rope_local_base_freq": 10000.0},
    }


KNOWN_CONFIGS: dict[str, dict[str, Any]] = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": _SMOLLM2,
    "meta-llama/Llama-3.2-1B-Instruct": _LLAMA_32_1B,
    "Qwen/Qwen3-0.6B": _qwen3(1024, 3072, 28, 16, tied=True),
    "Qwen/Qwen3-1.7B": _qwen3(2048, 6144, 28, 16, tied=True),
    "Qwen/Qwen3-8B": _qwen3(4096, 12288, 36, 32, tied=False),
    "Qwen/Qwen3-32B": _qwen3(5120, 25600, 64, 64, tied=False),
    "google/gemma-3-270m-it": _gemma3(640, 2048, 18, (4, 1), 512),
    "google/gemma-3-1b-it": _gemma3(1152, 6912, 26, (4, 1), 512),
    "google/gemma-3-4b-it": _gemma3(2560, 10240, 34, (8, 4), 1024)
    | {"vocab_size": 262208, "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
}


def planned_decoder(config: ExperimentConfig) -> DecoderConfig:
    """The architecture of the recipe's model by its `config.json` alone.

    A folder needs no other file; the models of our own recipes need not be there at all.

    Raises:
        UserError: no such model, or one that the decoder would compute wrongly.
    """
    name, settings = config.model.path, config.model
    if name in KNOWN_CONFIGS and not Path(name).is_dir():
        hf_config = KNOWN_CONFIGS[name]
    else:
        run = Path(name) / BASE_MODEL
        hf_config = read_hf_config(run if run.is_dir() else hf_format.resolve_model(name))
    decoder = decoder_config_from_hf(
        hf_config, compute_dtype=settings.compute_dtype, remat=settings.remat
    )
    return dataclasses.replace(
        decoder, lora=wanted_adapters(config), decode_kernel=settings.decode_kernel
    )
