"""One file for llama.cpp, Ollama and LM Studio: weights, tokenizer and chat template in GGUF.

The package `gguf` of llama.cpp writes and quantises; which of our facts has which name there is
said here. Source: the GGUF specification and the keys of that package.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
from jaxtyping import PyTree

from mental_r1_jax.errors import UserError
from mental_r1_jax.models import hf_format
from mental_r1_jax.models.decoder import DecoderConfig
from mental_r1_jax.models.rope import rope_frequencies
from mental_r1_jax.opening.model_source import ModelSource
from mental_r1_jax.release.gguf_vocabulary import GgufVocabulary, gguf_vocabulary

Precision = Literal["f16", "q8_0"]

# Families of ours -> architectures of llama.cpp.
_ARCHITECTURES = {
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma3_text": "gemma3",
}
_Q8_BLOCK = 32  # weights that share a scale
_GEMMA3_PERIOD = 6  # llama.cpp knows one global layer in so many


def gguf_library() -> ModuleType:
    """Return the package `gguf`.

    Raises:
        UserError: it is not installed.
    """
    try:
        import gguf
    except ImportError as error:
        raise UserError(
            what="export.gguf needs the package gguf",
            expected="gguf to be installed",
            got=str(error),
            remedy="install the extra `gguf`, or leave export.gguf out",
        ) from error
    return gguf


def check_gguf(model: ModelSource) -> GgufVocabulary:
    """Return the vocabulary for the file, or refuse a model that llama.cpp would run otherwise.

    Raises:
        UserError: its architecture or tokenizer is none of llama.cpp's, or `gguf` is missing.
    """
    gguf_library()
    config = model.decoder
    problems = []
    if config.family not in _ARCHITECTURES:
        problems.append(f"a model of the family {config.family}")
    gemma = config.family == "gemma3_text"
    windows = config.sliding_windows
    if windows is not None and not gemma:
        problems.append("sliding windows")
    if gemma and windows != _gemma3_windows(config):
        problems.append(f"sliding windows that are not in {_GEMMA3_PERIOD - 1} of 6 layers")
    if gemma and config.query_scale not in (None, config.head_dim):
        problems.append(f"query_pre_attn_scalar={config.query_scale} beside heads of another width")
    if problems:
        raise UserError(
            what="llama.cpp would run this model otherwise, so there can be no GGUF file of it",
            expected=f"one of {', '.join(_ARCHITECTURES)}, without what is named below",
            got="; ".join(problems),
            remedy="leave export.gguf out",
        )
    return gguf_vocabulary(model.tokenizer, config.vocab_size)


def write_gguf(
    file: Path,
    params: PyTree[Any],
    model: ModelSource,
    precision: Precision,
) -> None:
    """Write the whole model as one file; one tensor at a time is in memory.

    Matrices get `precision`, vectors stay float32, as in llama.cpp's own files. A matrix whose rows
    are no multiple of 32, the block of `q8_0`, is written as f16.

    Args:
        file: to write.
        params: float32 weights without adapters, on any mesh.
        model: the model's configuration and tokenizer.
        precision: `f16`, or `q8_0` for 8 bits with a scale for 32 weights.

    Raises:
        UserError: `check_gguf`'s, or a weight is beyond the range of float16.
    """
    gguf, vocabulary = gguf_library(), check_gguf(model)
    architecture = _ARCHITECTURES[model.decoder.family]
    with contextlib.closing(gguf.GGUFWriter(file, architecture)) as writer:
        is_q8 = precision == "q8_0"
        writer.add_file_type(
            gguf.LlamaFileType.MOSTLY_Q8_0 if is_q8 else gguf.LlamaFileType.MOSTLY_F16
        )
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        _add_architecture(writer, model, gguf)
        _add_tokenizer(writer, model, vocabulary)

        # Every tensor is described before the first is written, so that none has to be kept.
        name_of = _names(model.decoder, architecture, gguf)
        kinds = {}
        for hf_name, shape in hf_format.hf_shapes(model.decoder).items():
            kind = kinds[hf_name] = _kind(shape, precision, gguf)
            _describe(writer, name_of(hf_name), shape, kind, gguf)
        divisors = _rope_divisors(model.decoder)
        if divisors is not None:
            _describe(writer, "rope_freqs.weight", divisors.shape, _kind((1,), "f16", gguf), gguf)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for hf_name, array in hf_format.hf_tensors(params, model.decoder):
            array = _as_llama_cpp(hf_name, array, model.decoder, architecture)
            if kinds[hf_name] == gguf.GGMLQuantizationType.F16:
                _check_half(hf_name, array)
            writer.write_tensor_data(gguf.quants.quantize(array, kinds[hf_name]))
        if divisors is not None:
            writer.write_tensor_data(divisors)


def _kind(shape: tuple[int, ...], precision: Precision, gguf: ModuleType) -> Any:
    """How the numbers of a tensor are stored."""
    if len(shape) == 1:
        return gguf.GGMLQuantizationType.F32
    if precision == "q8_0" and shape[-1] % _Q8_BLOCK == 0:
        return gguf.GGMLQuantizationType.Q8_0
    return gguf.GGMLQuantizationType.F16


def _describe(writer: Any, name: str, shape: tuple[int, ...], kind: Any, gguf: ModuleType) -> None:
    """Announce a tensor: its shape counts bytes where numbers are quantised in blocks."""
    dtypes = {gguf.GGMLQuantizationType.F32: np.float32, gguf.GGMLQuantizationType.F16: np.float16}
    dtype = np.dtype(dtypes.get(kind, np.uint8))
    if dtype == np.uint8:
        shape = gguf.quants.quant_shape_to_byte_shape(shape, kind)
    writer.add_tensor_info(name, shape, dtype, math.prod(shape) * dtype.itemsize, raw_dtype=kind)


def _add_architecture(writer: Any, model: ModelSource, gguf: ModuleType) -> None:
    """The hyperparameters, under the names of llama.cpp."""
    config = model.decoder
    # Of a folder only its own name: where it lay is nobody's business.
    writer.add_name(Path(str(model.hf_config.get("_name_or_path") or "mental-r1")).name)
    writer.add_context_length(int(model.hf_config.get("max_position_embeddings", 2048)))
    writer.add_vocab_size(config.vocab_size)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_layers)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    scaling = config.rope_scaling
    if scaling is not None and scaling.kind == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(scaling.factor)
    if config.sliding_windows is not None:
        writer.add_sliding_window(next(w for w in config.sliding_windows if w is not None))
        writer.add_rope_freq_base_swa(config.local_rope_theta or config.rope_theta)
    if config.logit_softcap is not None:
        writer.add_final_logit_softcapping(config.logit_softcap)


def _add_tokenizer(writer: Any, model: ModelSource, vocabulary: GgufVocabulary) -> None:
    """Tokens, the special ones among them, and the chat template."""
    hf, eos_ids = model.tokenizer.hf, model.tokenizer.eos_ids
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types([int(kind) for kind in vocabulary.types])
    if vocabulary.merges:
        writer.add_token_merges(vocabulary.merges)
    if vocabulary.scores:
        writer.add_token_scores(vocabulary.scores)
    writer.add_add_space_prefix(vocabulary.add_space_prefix)
    writer.add_add_bos_token(vocabulary.add_bos)
    writer.add_add_eos_token(False)
    if hf.bos_token_id is not None:
        writer.add_bos_token_id(hf.bos_token_id)
    eos = hf.eos_token_id if hf.eos_token_id in eos_ids else eos_ids[0]
    writer.add_eos_token_id(eos)
    # A second end, such as Gemma's <end_of_turn>. llama.cpp knows further ones by name.
    if others := [i for i in eos_ids if i != eos]:
        writer.add_eot_token_id(others[-1])
    writer.add_pad_token_id(model.tokenizer.pad_id)
    if hf.unk_token_id is not None:
        writer.add_unk_token_id(hf.unk_token_id)
    if isinstance(hf.chat_template, str):
        writer.add_chat_template(hf.chat_template)


def _names(config: DecoderConfig, architecture: str, gguf: ModuleType) -> Callable[[str], str]:
    """llama.cpp's name of a tensor of a Hugging Face folder."""
    key = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    table = gguf.get_tensor_name_map(key, config.num_layers)

    def name_of(hf_name: str) -> str:
        name: str | None = table.get_name(hf_name, (".weight", ".bias"))
        assert name is not None, hf_name  # `check_gguf` has let this family through
        return name

    return name_of


def _as_llama_cpp(
    hf_name: str, array: np.ndarray, config: DecoderConfig, architecture: str
) -> np.ndarray:
    """The numbers of a tensor as llama.cpp expects them.

    Its architecture `llama` rotates neighbouring numbers of a head, all others (and Hugging Face)
    the two halves, so the rows of queries and keys change places there. Gemma's norms hold w in
    Hugging Face's files and 1 + w in these.
    """
    heads = {"q_proj": config.num_heads, "k_proj": config.num_kv_heads}
    module = hf_name.split(".")[-2]
    if architecture == "llama" and module in heads:
        halves = array.reshape(heads[module], 2, config.head_dim // 2, -1)
        return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(array.shape)
    return array + np.float32(config.norm_offset) if module.endswith("norm") else array


def _rope_divisors(config: DecoderConfig) -> np.ndarray | None:
    """What llama.cpp divides the rotary frequencies by, for models with the Llama 3.1 rule."""
    scaling = config.rope_scaling
    if scaling is None or scaling.kind != "llama3":
        return None
    plain = rope_frequencies(config.head_dim, config.rope_theta, None)
    return plain / rope_frequencies(config.head_dim, config.rope_theta, scaling)


def _gemma3_windows(config: DecoderConfig) -> tuple[int | None, ...] | None:
    """The layers that have a window in llama.cpp's Gemma 3, with this model's own window."""
    windows = config.sliding_windows or ()
    window = next((w for w in windows if w is not None), None)
    return tuple(
        None if (layer + 1) % _GEMMA3_PERIOD == 0 else window for layer in range(config.num_layers)
    )


def _check_half(name: str, array: np.ndarray) -> None:
    """Raise where a weight would become infinite as float16."""
    largest, bound = float(np.abs(array).max()), float(np.finfo(np.float16).max)
    if largest > bound:
        raise UserError(
            what=f"the tensor {name} cannot be written as float16",
            expected=f"weights up to {bound:.0f}",
            got=f"{largest:.3g}",
            remedy="leave export.gguf out",
        )
