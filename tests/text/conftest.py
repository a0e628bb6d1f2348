"""Real `tokenizers` objects, trained on made-up text within a second; nothing is downloaded."""

import json

import pytest
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as RawTokenizer
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from mental_r1_jax.text.stages import GRAMMAR
from mental_r1_jax.text.tokenizer import wrap_tokenizer

CORPUS = [
    "the rain kept falling and i watched it from the window all afternoon",
    "my sister called to say that the train was late again",
    "i can not sleep when the neighbours move their furniture at night",
    "work is piling up and i feel tired, but a walk in the park helps",
    "Yes No Not depressed [1-2] naïve café 你好 世界 🙂🌧️",
    GRAMMAR.skeleton(),
] * 3

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n"
    "{% endif %}{% endif %}"
)


def byte_level(normalizer=None, extra=(), template=CHATML):
    """A byte-level BPE tokenizer as Qwen has: ChatML, special tokens, added ordinary tokens."""
    raw = RawTokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.normalizer = normalizer
    special = ["<|pad|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=special,
        show_progress=False,
    )
    raw.train_from_iterator(CORPUS, trainer)
    hf = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|im_end|>", pad_token="<|pad|>")
    hf.add_tokens([*extra])
    hf.chat_template = template
    return hf


def sentencepiece_bpe():
    """A Llama-2-like tokenizer: BPE with byte fallback, a leading "▁", and a BOS of its own."""
    trained = RawTokenizer(models.BPE(unk_token="<unk>"))
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<unk>"], show_progress=False)
    trained.train_from_iterator([text for text in CORPUS if text.isascii()], trainer)
    learned = json.loads(trained.to_str())["model"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens += [token for token in learned["vocab"] if token != "<unk>"]
    raw = RawTokenizer(
        models.BPE(
            vocab={token: index for index, token in enumerate(tokens)},
            merges=[tuple(merge) for merge in learned["merges"]],
            unk_token="<unk>",
            byte_fallback=True,
        )
    )
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    raw.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    raw.add_special_tokens(["<unk>", "<s>", "</s>"])
    raw.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokens.index("<s>"))]
    )
    hf = PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    hf.chat_template = (
        "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}"
        "[SYS] {{ m['content'] | trim }} [/SYS]\n{% else %}[INST] {{ m['content'] | trim }} [/INST]"
        "{% endif %}{% endfor %}"
    )
    return hf


def sentencepiece_unigram():
    """A Unigram tokenizer with byte fallback and Metaspace without a leading space."""
    # Every ASCII character has a token: HF's Unigram takes "<0x41>" in a text for the byte 0x41
    # where spelling it out would need unknown characters.
    characters = ["▁", "é", "ï", *map(chr, range(0x21, 0x7F))]
    words = ["▁the", "▁i", "▁and", "ing", "▁work", "stimulus", "appraisal", "tired", "▁▁"]
    vocab = [("<unk>", 0.0), ("</s>", 0.0)]
    vocab += [(f"<0x{byte:02X}>", -1000.0) for byte in range(256)]
    vocab += [(char, -10.0) for char in characters] + [(word, -5.0) for word in words]
    raw = RawTokenizer(models.Unigram(vocab, unk_id=0, byte_fallback=True))
    raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    raw.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="never", split=False)]
    )
    raw.add_special_tokens(["<unk>", "</s>"])
    raw.add_tokens([AddedToken("[note]", normalized=False)])
    hf = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="</s>", unk_token="<unk>")
    hf.chat_template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}bot: "
    )
    return hf


@pytest.fixture(scope="session")
def chatml():
    """Byte-level BPE with "<think>" as an added, not special, token, as in Qwen3."""
    return wrap_tokenizer(byte_level(extra=["<think>", "</think>"]))


@pytest.fixture(scope="session")
def llama():
    """SentencePiece-like BPE with byte fallback."""
    return wrap_tokenizer(sentencepiece_bpe())


@pytest.fixture(scope="session")
def unigram():
    """SentencePiece-like Unigram with byte fallback."""
    return wrap_tokenizer(sentencepiece_unigram())


@pytest.fixture(scope="session")
def make_byte_level():
    """The maker of byte-level tokenizers, for odd ones."""
    return byte_level
