"""Types and ranges of the fields of `config.json` that we read, checked in one place.

A field that is missing has the default of its family; one that is there must be what it claims to
be. What the values mean is decided in `hf_config.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import pydantic
from pydantic import Field

_Size = Annotated[int, Field(gt=0, lt=2**31)]
_Layers = Annotated[int, Field(ge=0, le=10_000)]
_Positive = Annotated[float, Field(gt=0.0)]
_Ids = int | list[int] | None


class _Rotary(pydantic.BaseModel):
    """The settings of rotary positions; null is as good as missing."""

    model_config = pydantic.ConfigDict(strict=True, extra="allow", allow_inf_nan=False)

    rope_type: str | None = None
    type: str | None = None
    rope_theta: _Positive | None = None
    factor: _Positive | None = None
    low_freq_factor: _Positive | None = None
    high_freq_factor: _Positive | None = None
    original_max_position_embeddings: _Positive | None = None
    full_attention: _Rotary | None = None
    sliding_attention: _Rotary | None = None


class _Fields(pydantic.BaseModel):
    """Every field that `decoder_config_from_hf` reads; a type without None forbids null."""

    model_config = pydantic.ConfigDict(
        strict=True, extra="allow", allow_inf_nan=False, protected_namespaces=()
    )

    model_type: str | None = None
    architectures: list[str] | None = None
    vocab_size: _Size | None = None
    hidden_size: _Size | None = None
    intermediate_size: _Size | None = None
    num_hidden_layers: Annotated[int, Field(gt=0, le=10_000)] | None = None
    num_attention_heads: _Size | None = None
    num_key_value_heads: _Size | None = None
    head_dim: _Size | None = None
    rope_theta: _Positive | None = None
    rope_parameters: _Rotary | None = None
    rope_scaling: _Rotary | None = None
    max_position_embeddings: _Positive | None = None
    original_max_position_embeddings: _Positive | None = None
    rms_norm_eps: Annotated[float, Field(ge=0.0)] = 1e-6
    initializer_range: Annotated[float, Field(ge=0.0)] = 0.02
    tie_word_embeddings: bool | None = None
    attention_bias: bool | None = None
    mlp_bias: bool | None = None
    use_sliding_window: bool | None = None
    sliding_window: _Size | None = None
    sliding_window_pattern: _Size = 6
    query_pre_attn_scalar: _Positive | None = None
    attn_logit_softcapping: _Positive | None = None
    final_logit_softcapping: _Positive | None = None
    rope_local_base_freq: _Positive | None = None
    max_window_layers: _Layers = 0
    layer_types: list[str] | None = None
    eos_token_id: _Ids = None
    bos_token_id: _Ids = None
    pad_token_id: _Ids = None


def wrong_fields(hf: Mapping[str, Any]) -> list[str]:
    """Name every field of the wrong type or out of range, with its value."""
    try:
        _Fields.model_validate(dict(hf))
    except pydantic.ValidationError as error:
        problems: dict[str, str] = {}
        for one in error.errors():
            place = ".".join(str(part) for part in one["loc"] if str(part).islower())
            problems.setdefault(place, f"{place} = {one['input']!r:.80} ({one['msg']})")
        return list(problems.values())
    return []
