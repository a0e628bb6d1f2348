"""`config.json` of a Hugging Face folder -> `DecoderConfig`, refusing what we cannot compute.

transformers ignores fields that a family does not know, and so do we, with one exception: a field
that says this is another kind of network under a familiar name is refused by its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mental_r1_jax.errors import UserError
from mental_r1_jax.json_files import read_json_object
from mental_r1_jax.models.architecture import DecoderConfig, Remat
from mental_r1_jax.models.families import FAMILIES, Family
from mental_r1_jax.models.hf_fields import wrong_fields
from mental_r1_jax.models.hf_text_part import text_config
from mental_r1_jax.models.rope import RopeScaling

SUPPORTED_FAMILIES = tuple(FAMILIES)

# Field -> the values under which it changes nothing. Any other value is refused by name.
_NEUTRAL_VALUES: dict[str, tuple[Any, ...]] = {
    "hidden_act": (None, "silu", "swish"),
    "is_causal": (None, True),
    "no_rope_layers": (None, []),
    "quantization_config": (None, {}),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), (None, 0)),
    **dict.fromkeys(("rope_interleaved", "use_bidirectional_attention"), (None, False)),
    **dict.fromkeys(("is_encoder_decoder", "add_cross_attention"), (None, False)),
    **dict.fromkeys(("attn_logit_softcapping", "final_logit_softcapping"), (None,)),
    **dict.fromkeys(("query_pre_attn_scalar", "attention_chunk_size", "clip_qkv"), (None,)),
    **dict.fromkeys(("attention_multiplier", "residual_multiplier"), (None, 1, 1.0)),
    **dict.fromkeys(("embedding_multiplier", "logits_scaling"), (None, 1, 1.0)),
    "partial_rotary_factor": (None, 1, 1.0),
}
_ROPE_FIELDS = {
    "default": set(),
    "linear": {"factor"},
    "llama3": {
        *("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    },
}
_REQUIRED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
)


def read_hf_config(folder: Path) -> dict[str, Any]:
    """Read `config.json` of a model folder; of a model of images and text, its text part.

    Raises:
        UserError: it is missing or not a JSON object.
    """
    content: dict[str, Any] = read_json_object(
        folder / "config.json",
        expected="a Hugging Face model folder with config.json, UTF-8 without a byte order mark",
        remedy="check model.path, or download the file again",
    )
    return text_config(content)


def decoder_config_from_hf(
    hf: Mapping[str, Any], compute_dtype: str = "float32", remat: Remat = "layers"
) -> DecoderConfig:
    """Translate a Hugging Face config, of transformers 4 or 5.

    Args:
        hf: the content of `config.json`.
        compute_dtype: `float32` or `bfloat16`.
        remat: see `DecoderConfig`.

    Raises:
        UserError: names every field that we cannot compute, all at once.
    """
    wrong = wrong_fields(hf)
    if wrong:
        raise UserError(
            what=f"config.json of this model has {len(wrong)} field(s) that cannot be right",
            expected="numbers, texts and lists as transformers writes them",
            got="; ".join(wrong),
            remedy="download config.json again, or correct these fields",
        )
    family = _find_family(hf)
    hf = {**family.defaults, **hf}
    problems = _refused_fields(hf, family)
    scaling, theta, local_theta = _ropes(hf, family.local_rope_theta, problems)
    windows = _windows(hf, family, problems)
    if not problems:
        problems += _inconsistencies(hf)
    if problems:
        raise UserError(
            what=f"this {hf['model_type']} config has {len(problems)} field(s) we cannot compute",
            expected="a dense decoder with SiLU (Gemma: GELU), RMSNorm, causal attention, rotary "
            "positions",
            got="; ".join(problems),
            remedy="choose another model; a wrong result would be worse than none",
        )
    heads, kv_heads, head_dim = _head_shape(hf)
    bias = bool(hf.get("attention_bias", False))
    return DecoderConfig(
        vocab_size=hf["vocab_size"],
        hidden_size=hf["hidden_size"],
        intermediate_size=hf["intermediate_size"],
        num_layers=hf["num_hidden_layers"],
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        rope_theta=theta,
        rope_scaling=scaling,
        rms_norm_eps=float(hf.get("rms_norm_eps", 1e-6)),
        tie_embeddings=bool(hf.get("tie_word_embeddings", False)),
        qkv_bias=bias if family.qkv_bias is None else family.qkv_bias,
        output_bias=bias and family.output_bias,
        mlp_bias=bool(hf.get("mlp_bias", False)) and family.mlp_bias,
        qk_norm=family.qk_norm,
        **(_gemma_settings(hf, local_theta) if family.gemma else {}),
        sliding_windows=windows,
        compute_dtype=compute_dtype,
        remat=remat,
        init_scale=float(hf.get("initializer_range", 0.02)),
        family=hf["model_type"],
    )


def _gemma_settings(hf: Mapping[str, Any], local_theta: float | None) -> dict[str, Any]:
    """What the Gemma families have and others have not."""
    return {
        "norm_offset": 1.0,
        "post_norms": True,
        "scale_embedding": True,
        "activation": "gelu_tanh",
        "query_scale": float(hf["query_pre_attn_scalar"]),
        "local_rope_theta": local_theta,
        "attention_softcap": hf.get("attn_logit_softcapping"),
        "logit_softcap": hf.get("final_logit_softcapping"),
    }


def _find_family(hf: Mapping[str, Any]) -> Family:
    """Look up the family, or refuse the model."""
    family = FAMILIES.get(hf.get("model_type", ""))
    if family is None:
        raise UserError(
            what=f"unsupported model_type {hf.get('model_type')!r}",
            expected=f"one of {', '.join(SUPPORTED_FAMILIES)}",
            got=f"architectures {hf.get('architectures')}",
            remedy="choose a dense model of one of these families",
        )
    return family


def _refused_fields(hf: Mapping[str, Any], family: Family) -> list[str]:
    """Name fields that are missing, or say that this is another kind of network."""
    neutral = _NEUTRAL_VALUES
    if family.gemma:
        read = {"hidden_act", "query_pre_attn_scalar", "final_logit_softcapping"}
        if family.softcaps:
            read.add("attn_logit_softcapping")
        neutral = {name: ok for name, ok in neutral.items() if name not in read}
        neutral["hidden_activation"] = (None, "gelu_pytorch_tanh")
    problems = [f"{name} = {hf[name]!r}" for name, ok in neutral.items() if hf.get(name) not in ok]
    required = (*_REQUIRED, "query_pre_attn_scalar") if family.gemma else _REQUIRED
    problems += [f"{name} is missing" for name in required if hf.get(name) is None]
    if not all(name.endswith("ForCausalLM") for name in hf.get("architectures") or ()):
        problems.append(f"architectures = {hf['architectures']!r}")
    return problems


def _rope(hf: Mapping[str, Any], problems: list[str]) -> tuple[RopeScaling | None, float]:
    """Read rotary settings, from `rope_parameters` (transformers 5) or `rope_scaling` (4)."""
    name = "rope_scaling" if hf.get("rope_scaling") else "rope_parameters"
    rope = dict(hf.get(name) or {})
    theta = float(rope.pop("rope_theta", None) or hf.get("rope_theta") or 10_000.0)
    old_name = rope.pop("type", None)
    kind = rope.pop("rope_type", None) or old_name or "default"
    if rope.pop("partial_rotary_factor", None) not in (None, 1, 1.0):
        problems.append(f"{name}.partial_rotary_factor")
    if kind not in _ROPE_FIELDS:
        problems.append(f"{name}.rope_type = {kind!r}")
        return None, theta
    needed = _ROPE_FIELDS[kind]
    # A plain model may carry fields of a scaling that it does not use; HF ignores them as well.
    if kind != "default":
        problems += [f"{name}.{field}" for field in sorted(set(rope) - needed)]
    if kind == "llama3":
        # Precedence as in transformers: a top-level value, then the one here, then the maximum.
        length = hf.get("original_max_position_embeddings") or rope.get(
            "original_max_position_embeddings", hf.get("max_position_embeddings")
        )
        rope["original_max_position_embeddings"] = length
    missing = [field for field in sorted(needed) if rope.get(field) is None]
    problems += [f"{name}.{field} is missing" for field in missing]
    if missing or kind == "default":
        return None, theta
    if kind == "linear":
        return RopeScaling(kind="linear", factor=float(rope["factor"])), theta
    scaling = RopeScaling(
        kind="llama3",
        factor=float(rope["factor"]),
        low_freq_factor=float(rope["low_freq_factor"]),
        high_freq_factor=float(rope["high_freq_factor"]),
        original_length=int(rope["original_max_position_embeddings"]),
    )
    return scaling, theta


def _ropes(
    hf: Mapping[str, Any], local_default: float | None, problems: list[str]
) -> tuple[RopeScaling | None, float, float | None]:
    """Read rotary settings: (scaling, base, base under a window or None: the same).

    Of a family with two bases, transformers 5 has an object for each kind of layer in
    `rope_parameters`. In 4, `rope_theta` and `rope_scaling` are those of full attention, and
    `rope_local_base_freq` is the other base.
    """
    if local_default is None:
        return *_rope(hf, problems), None
    kinds = dict(hf.get("rope_parameters") or {})
    full, local = (kinds.pop(f"{kind}_attention", None) or {} for kind in ("full", "sliding"))
    problems += [f"rope_parameters.{name} (of no kind of layer)" for name in sorted(kinds)]
    full = {**full, **(hf.get("rope_scaling") or {})}
    top = {"max_position_embeddings": hf.get("max_position_embeddings")}
    found = [
        _rope({**top, "rope_theta": default, "rope_parameters": settings}, problems)
        for settings, default in (
            (full, hf.get("rope_theta")),
            (local, hf.get("rope_local_base_freq") or local_default),
        )
    ]
    (scaling, theta), (local_scaling, local_theta) = found
    if local_scaling is not None:
        problems.append(f"rope_parameters.sliding_attention = {local!r}")
    return scaling, theta, local_theta


def _windows(
    hf: Mapping[str, Any], family: Family, problems: list[str]
) -> tuple[int | None, ...] | None:
    """Find each layer's sliding window; None when no layer has one."""
    num_layers = hf.get("num_hidden_layers") or 0
    types = hf.get("layer_types")
    if types is None and family.windows == "pattern":
        kinds = "full_attention", "sliding_attention"
        types = [kinds[(i + 1) % hf["sliding_window_pattern"] > 0] for i in range(num_layers)]
    window = hf.get("sliding_window")
    if family.windows == "chosen" and not hf.get("use_sliding_window", False):
        window = None
    if family.windows == "none" and window is not None:
        problems.append(f"sliding_window = {window!r} (this family has none)")
        return None
    if types is None:
        first = 0
        if family.windows == "chosen":
            first = hf["max_window_layers"]
        sliding = [window is not None and i >= first for i in range(num_layers)]
    else:
        unknown = sorted({str(t) for t in types} - {"full_attention", "sliding_attention"})
        sliding = [kind == "sliding_attention" for kind in types]
        uniform = family.windows in ("chosen", "pattern") or set(sliding) <= {window is not None}
        if unknown or len(types) != num_layers or not uniform:
            problems.append(f"layer_types = {types!r}")
        elif any(sliding) and window is None:
            problems.append("layer_types with sliding_attention, but no sliding_window in use")
    if not any(sliding):
        return None
    return tuple(window if slides else None for slides in sliding)


def _head_shape(hf: Mapping[str, Any]) -> tuple[int, int, int]:
    """Return the number of query heads, of key/value heads, and the width of a head."""
    heads = hf["num_attention_heads"]
    kv_heads = hf.get("num_key_value_heads") or heads
    head_dim = hf.get("head_dim") or hf["hidden_size"] // heads
    return heads, kv_heads, head_dim


def _inconsistencies(hf: Mapping[str, Any]) -> list[str]:
    """Name head shapes that do not fit together."""
    heads, kv_heads, head_dim = _head_shape(hf)
    problems = []
    if heads % kv_heads:
        problems.append(f"num_key_value_heads = {kv_heads} does not divide {heads} heads")
    if head_dim < 2:
        problems.append(
            f"hidden_size = {hf['hidden_size']} is less than 2 for each of {heads} heads"
        )
    if head_dim % 2:
        problems.append(f"head_dim = {head_dim} is odd")
    return problems
