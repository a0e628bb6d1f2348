"""The model families: what each fixes, and how Hugging Face names its parameters."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_ATTENTION, _MLP = "model.layers.{i}.self_attn.", "model.layers.{i}.mlp."

# Our name of a group of parameters -> theirs; `{i}` is the layer.
_LLAMA_NAMES = {
    "embedding": "model.embed_tokens",
    "query": _ATTENTION + "q_proj",
    "key": _ATTENTION + "k_proj",
    "value": _ATTENTION + "v_proj",
    "output": _ATTENTION + "o_proj",
    "gate": _MLP + "gate_proj",
    "up": _MLP + "up_proj",
    "down": _MLP + "down_proj",
    "attention_norm": "model.layers.{i}.input_layernorm",
    "mlp_norm": "model.layers.{i}.post_attention_layernorm",
    "query_norm": _ATTENTION + "q_norm",
    "key_norm": _ATTENTION + "k_norm",
    "final_norm": "model.norm",
    "unembedding": "lm_head",
}
# What other families call the norm before the feed-forward part is here the one after attention.
_GEMMA_NAMES = {
    **_LLAMA_NAMES,
    "attention_post_norm": "model.layers.{i}.post_attention_layernorm",
    "mlp_norm": "model.layers.{i}.pre_feedforward_layernorm",
    "mlp_post_norm": "model.layers.{i}.post_feedforward_layernorm",
}


@dataclass(frozen=True)
class Family:
    """What a `model_type` fixes or lets the config choose.

    Attributes:
        qkv_bias: whether the projections have biases; None: as `attention_bias` says.
        output_bias: whether `attention_bias` also gives the output projection one.
        mlp_bias: whether the field `mlp_bias` is honoured.
        qk_norm: whether query and key heads are normed.
        windows: where sliding windows come from: `none`, `every` layer, `chosen` layers, or a
            `pattern`: all but every n-th, where `layer_types` does not say it.
        defaults: values of fields that a config of this family may leave out.
        hf_names: our name of a group of parameters -> theirs. Families may use one name for two
            things, so each has its own table, however alike they are.
        gemma: norms of ``1 + w``, also behind attention and feed-forward part, embeddings times
            ``sqrt(D)``, GELU, and a query scale of its own (`query_pre_attn_scalar`).
        softcaps: whether attention honours `attn_logit_softcapping`.
        local_rope_theta: base of the layers with a window where the config does not say it; None:
            the family has one base for all layers.
    """

    qkv_bias: bool | None
    output_bias: bool
    mlp_bias: bool
    qk_norm: bool
    windows: str
    defaults: Mapping[str, Any]
    hf_names: Mapping[str, str]
    gemma: bool = False
    softcaps: bool = False
    local_rope_theta: float | None = None


_QWEN2_DEFAULTS = {"num_key_value_heads": 32, "sliding_window": 4096, "max_window_layers": 28}
_QWEN3_DEFAULTS = {**_QWEN2_DEFAULTS, "head_dim": 128}
_MISTRAL_DEFAULTS = {"num_key_value_heads": 8, "sliding_window": 4096}

_GEMMA_DEFAULTS = {
    **{"hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26},
    **{"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256},
    **{"query_pre_attn_scalar": 256, "hidden_activation": "gelu_pytorch_tanh"},
    **{"sliding_window": 4096, "tie_word_embeddings": True},
}
_GEMMA2_DEFAULTS = _GEMMA_DEFAULTS | {
    **{"vocab_size": 256_000, "rope_theta": 10_000.0, "sliding_window_pattern": 2},
    **{"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
}
_GEMMA3_DEFAULTS = _GEMMA_DEFAULTS | {
    **{"vocab_size": 262_208, "rope_theta": 1_000_000.0, "sliding_window_pattern": 6},
}

_GEMMA3 = Family(
    qkv_bias=None,
    output_bias=True,
    mlp_bias=False,
    qk_norm=True,
    windows="pattern",
    defaults=_GEMMA3_DEFAULTS,
    hf_names=_GEMMA_NAMES,
    gemma=True,
    local_rope_theta=10_000.0,
)

_GEMMA2 = dataclasses.replace(
    _GEMMA3, qk_norm=False, defaults=_GEMMA2_DEFAULTS, softcaps=True, local_rope_theta=None
)

FAMILIES = {
    "llama": Family(None, True, True, False, "none", {"num_key_value_heads": None}, _LLAMA_NAMES),
    "qwen2": Family(True, False, False, False, "chosen", _QWEN2_DEFAULTS, _LLAMA_NAMES),
    "qwen3": Family(None, True, False, True, "chosen", _QWEN3_DEFAULTS, _LLAMA_NAMES),
    "mistral": Family(False, False, False, False, "every", _MISTRAL_DEFAULTS, _LLAMA_NAMES),
    "gemma2": _GEMMA2,
    "gemma3_text": _GEMMA3,
}
