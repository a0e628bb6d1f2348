"""A tokenizer without merges: one token for every byte, so that lengths can be counted."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mental_r1_jax.text import tokenizer

TEMPLATE = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"


def save_byte_tokenizer(folder: Path) -> tokenizer.Tokenizer:
    """Write its files; return it as the program reads it."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {character: i for i, character in enumerate([*alphabet, "<|end|>"])}
    raw = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    hf = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|end|>", pad_token="<|end|>")
    hf.chat_template = TEMPLATE
    hf.save_pretrained(folder)
    return tokenizer.load_tokenizer(folder)
