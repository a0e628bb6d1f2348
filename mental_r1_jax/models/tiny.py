"""A tiny random chat model as a Hugging Face folder, for the quickstart and the tests.

It has everything that a released model has (tokenizer, chat template, configs, safetensors), so it
takes the same path through the program; only the weights are random and the tokenizer is trained on
the spot.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from mental_r1_jax.models.decoder import init_params
from mental_r1_jax.models.hf_config import decoder_config_from_hf
from mental_r1_jax.models.hf_format import save_params

START, END, PAD = "<|im_start|>", "<|im_end|>", "<|pad|>"

# A tag is one piece, so that one token can hold it; else words with the space before them.
_PIECES = Regex(r"</?[a-z_]+>| ?[A-Za-z']+| ?[0-9]| ?[^\sA-Za-z0-9]|\s+")

_FIXED_CONFIG = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 10_000.0,
    "max_position_embeddings": 4096,
    "attention_bias": False,
    "tie_word_embeddings": True,
    "initializer_range": 0.08,
    "dtype": "float32",
}

_CHAT_TEMPLATE = (
    "{% for message in messages %}"
    f"{START}{{{{ message['role'] }}}}\n{{{{ message['content'] }}}}{END}\n"
    "{% endfor %}"
    f"{{% if add_generation_prompt %}}{START}assistant\n{{% endif %}}"
)


def make_tiny_model(
    folder: Path,
    corpus: Iterable[str],
    *,
    vocab_size: int = 1024,
    hidden_size: int = 128,
    intermediate_size: int = 384,
    num_layers: int = 2,
    num_heads: int = 4,
    num_kv_heads: int = 2,
    seed: int = 0,
) -> Path:
    """Write a random Qwen3-style chat model with a byte-level BPE tokenizer trained on `corpus`.

    Args:
        folder: where to write; made if it is not there.
        corpus: texts that the tokenizer should encode well.
        vocab_size: upper bound; a small corpus gives fewer tokens.
        hidden_size: D.
        intermediate_size: width of the feed-forward part.
        num_layers: L.
        num_heads: H.
        num_kv_heads: K.
        seed: of the random key that draws the weights.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _train_tokenizer(corpus, vocab_size)
    tokenizer.save_pretrained(folder)
    hf_config: dict[str, Any] = _FIXED_CONFIG | {
        "vocab_size": len(tokenizer),
        "hidden_size": hidden_size,
        "intermediate_size": intermediate_size,
        "num_hidden_layers": num_layers,
        "num_attention_heads": num_heads,
        "num_key_value_heads": num_kv_heads,
        "head_dim": hidden_size // num_heads,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    (folder / "config.json").write_text(json.dumps(hf_config, indent=2) + "\n", encoding="utf-8")
    config = decoder_config_from_hf(hf_config)
    params = jax.jit(init_params, static_argnums=0)(config, jax.random.key(seed))
    save_params(params, config, folder, dtype="float32")
    return folder


def _train_tokenizer(corpus: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with a ChatML template."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(_PIECES, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[START, END, PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(corpus, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=END, pad_token=PAD)
    tokenizer.chat_template = _CHAT_TEMPLATE
    return tokenizer
