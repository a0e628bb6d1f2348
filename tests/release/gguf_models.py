"""Tiny chat models whose tokenizers llama.cpp knows, one of each architecture that it runs."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import AutoConfig, PreTrainedTokenizerFast

from mental_r1_jax.opening.model_source import ModelSource, open_model
from mental_r1_jax.recipe import parse_config
from tests.parity.model_cases import LLAMA3_ROPE, make_weights

_CORPUS = ["the nights and days of the sleepless, never asked why", "don't ask: it's 2026"] * 8
_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<unk>", "<bos>", "<|im_start|>", "<|im_end|>"]
QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3 = QWEN.replace(r"+|\p{N}|", r"+|\p{N}{1,3}|")


@dataclass(frozen=True)
class Case:
    """A model of a family.

    Attributes:
        family: its `model_type`.
        architecture: llama.cpp's name.
        split: what a text is split by before BPE: a pattern, `digits`, `bytes` or `spaces`.
        pre: llama.cpp's name of that.
        fields: of the config.
    """

    family: str
    architecture: str
    split: str
    pre: str
    fields: dict[str, Any] = field(default_factory=dict)
    vocab_size: int = 512

    @property
    def name(self) -> str:
        return f"{self.family}-{self.pre}"


ROPE = {"rope_type": "default", "rope_theta": 500_000.0}
LONG = Case("llama", "llama", LLAMA3, "llama-bpe", {"rope_parameters": LLAMA3_ROPE})
SCALED = {
    "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}
GEMMA = {
    **{"head_dim": 32, "query_pre_attn_scalar": 32, "tie_word_embeddings": True},
    **{"num_hidden_layers": 6, "sliding_window": 8},
}
CASES = (
    Case("llama", "llama", LLAMA3, "llama-bpe", {"rope_parameters": ROPE}),
    Case("qwen2", "qwen2", QWEN, "qwen2", {"tie_word_embeddings": True}),
    Case("qwen3", "qwen3", QWEN, "qwen2", {"head_dim": 32, "tie_word_embeddings": False}),
    Case("llama", "llama", "digits", "smollm", {"tie_word_embeddings": True}),
    Case("llama", "llama", "bytes", "gpt-2", {"num_key_value_heads": 4}),
    Case("gemma3_text", "gemma3", "spaces", "default", GEMMA),
)
# Llama 2's tokenizer puts a space before a text; Gemma 3 from 4B on stretches its rotary angles.
PREFIXED = Case("llama", "llama", "prefixed spaces", "default", {"tie_word_embeddings": False})
STRETCHED = Case("gemma3_text", "gemma3", "spaces", "default", {**GEMMA, "rope_parameters": SCALED})
NEMO = Case("qwen3", "qwen3", r"\p{L}+|\P{L}+", "unknown")
_BASE = {
    **{"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64},
}


def make_folder(case: Case, folder: Path) -> Path:
    """Write the model with random weights and its tokenizer; returns the folder."""
    tokenizer = _tokenizer(case)
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    fields = {**_BASE, **case.fields, **ids, "pad_token_id": None, "vocab_size": case.vocab_size}
    model = make_weights(AutoConfig.for_model(case.family, **fields))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def open_folder(folder: Path) -> ModelSource:
    """The folder as `export` opens it."""
    recipe = f"model: {{path: {folder}, compute_dtype: float32}}\ndata: {{sets: [Mine]}}\n"
    config = parse_config(recipe + "run: {output_dir: out}", source="test")
    return open_model(str(folder), config)


def _tokenizer(case: Case) -> PreTrainedTokenizerFast:
    if case.split.endswith("spaces"):
        bpe = _sentencepiece(case)
    else:
        bpe = Tokenizer(models.BPE())
        bpe.pre_tokenizer, bpe.decoder = _before_bytes(case.split), decoders.ByteLevel()
        _train(bpe, case.vocab_size - 1, sorted(pre_tokenizers.ByteLevel.alphabet()))
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token="<bos>",
        eos_token="<|im_end|>",
        unk_token="<unk>",
        chat_template=_TEMPLATE,
    )


def _before_bytes(split: str) -> Any:
    whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if split == "bytes":
        return whole
    if split == "digits":
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), whole])
    cut = pre_tokenizers.Split(Regex(split), behavior="isolated")
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([cut, plain])


def _sentencepiece(case: Case) -> Tokenizer:
    """Gemma's kind: spaces become U+2581, and a character without a token becomes its bytes."""
    spaces = normalizers.Replace(" ", "▁"), pre_tokenizers.Split(" ", "merged_with_previous")
    learned = Tokenizer(models.BPE())
    learned.normalizer, learned.pre_tokenizer = spaces
    _train(learned, case.vocab_size - 1 - 256, [])
    model = json.loads(learned.to_str())["model"]
    vocabulary = dict(model["vocab"])
    vocabulary |= {f"<0x{byte:02X}>": len(vocabulary) + byte for byte in range(256)}
    merges = [tuple(merge) for merge in model["merges"]]
    whole = models.BPE(vocabulary, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True)
    bpe = Tokenizer(whole)
    bpe.normalizer, bpe.pre_tokenizer = spaces
    if case.split.startswith("prefixed"):
        bpe.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces[0]])
        bpe.pre_tokenizer = None
    bpe.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    bpe.add_special_tokens(SPECIAL)
    bos = ("<bos>", bpe.token_to_id("<bos>"))
    bpe.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[bos])
    return bpe


def _train(bpe: Tokenizer, vocab_size: int, alphabet: list[str]) -> None:
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    bpe.train_from_iterator(_CORPUS, trainer)
