"""The tokenizer of a Hugging Face folder in the terms of llama.cpp.

llama.cpp has its own tokenizers and a list of the pre-tokenizers it knows by name. A tokenizer that
is none of these would read other tokens there, so it is refused.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mental_r1_jax.errors import UserError
from mental_r1_jax.text.tokenizer import Tokenizer


class TokenType(enum.IntEnum):
    """What llama.cpp takes a token for (`LLAMA_TOKEN_TYPE_*`)."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class GgufVocabulary:
    """What the keys `tokenizer.ggml.*` hold.

    Attributes:
        model: `gpt2` for byte-level BPE, `llama` for SentencePiece.
        pre: name of the pre-tokenizer.
        tokens: text of every id of the embedding, rows that no token uses included.
        types: of every token.
        merges: of byte-level BPE, likeliest first; empty for SentencePiece.
        scores: of SentencePiece, where the highest is merged first; empty for byte-level BPE.
        add_space_prefix: whether a space is put before a text.
        add_bos: whether a text begins with the BOS token.
    """

    model: str
    pre: str
    tokens: tuple[str, ...]
    types: tuple[TokenType, ...]
    merges: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()
    add_space_prefix: bool = False
    add_bos: bool = False


_SUFFIXES = "'s|'t|'re|'ve|'m|'ll|'d"
_WORDS = r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
_SIGNS = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# Patterns that a text is split by before byte-level BPE -> what llama.cpp calls them.
_SPLITS = {
    f"(?i:{_SUFFIXES}){_WORDS}{{1,3}}{_SIGNS}": "llama-bpe",
    f"(?i:{_SUFFIXES}){_WORDS}{_SIGNS}": "qwen2",
}
# A token that no merge makes is never made from its parts.
_NEVER_MERGED = -1e9


def gguf_vocabulary(tokenizer: Tokenizer, num_rows: int) -> GgufVocabulary:
    """Translate a tokenizer.

    In SentencePiece the neighbours are merged first whose joint token has the highest score. Scores
    are minus the place of the first merge that makes the token, so the order is that of the merges.

    Args:
        tokenizer: the model's own.
        num_rows: rows V of the embedding, which may exceed the tokens.

    Raises:
        UserError: llama.cpp has no such tokenizer.
    """
    content: dict[str, Any] = json.loads(tokenizer.hf.backend_tokenizer.to_str())
    model = content["model"]
    if model["type"] != "BPE":
        raise _refused(f"a model of type {model['type']}")
    merges = [tuple(m.split(" ") if isinstance(m, str) else m) for m in model["merges"]]
    tokens, types = _tokens(content, tokenizer, num_rows)
    some = tokenizer.hf.encode("a")
    add_bos = bool(some) and some[0] == tokenizer.hf.bos_token_id
    if not model.get("byte_fallback"):
        joined, pre = tuple(" ".join(merge) for merge in merges), _pre_tokenizer(content)
        return GgufVocabulary("gpt2", pre, tokens, types, merges=joined, add_bos=add_bos)
    rank: dict[str, int] = {}
    for place, (left, right) in enumerate(merges):
        rank.setdefault(left + right, place)
    scores = tuple(-float(rank[token]) if token in rank else _NEVER_MERGED for token in tokens)
    return GgufVocabulary(
        "llama",
        "default",
        tokens,
        types,
        scores=scores,
        add_space_prefix=_space_prefix(content),
        add_bos=add_bos,
    )


def _tokens(
    content: Mapping[str, Any], tokenizer: Tokenizer, num_rows: int
) -> tuple[tuple[str, ...], tuple[TokenType, ...]]:
    """Text and type of every row; a row without a token gets a name that no text spells."""
    texts = [f"[PAD{i}]" for i in range(num_rows)]
    types = [TokenType.UNUSED] * num_rows
    model = content["model"]
    for text, i in model["vocab"].items():
        texts[i], types[i] = text, TokenType.NORMAL
        if model.get("byte_fallback") and len(text) == 6 and text.startswith("<0x"):
            types[i] = TokenType.BYTE
    for i, token in tokenizer.hf.added_tokens_decoder.items():
        texts[i] = token.content
        types[i] = TokenType.CONTROL if token.special else TokenType.USER_DEFINED
    unknown = model["vocab"].get(model.get("unk_token"))
    if unknown is not None:
        types[unknown] = TokenType.UNKNOWN
    return tuple(texts), tuple(types)


def _pre_tokenizer(content: Mapping[str, Any]) -> str:
    """Return llama.cpp's name of the pre-tokenizer of a byte-level BPE.

    Unicode normalisation to NFC, which Qwen's tokenizers begin with, is passed over: llama.cpp does
    not do it, and knows Qwen's pre-tokenizer all the same.
    """
    if (content["normalizer"] or {}).get("type") not in (None, "NFC"):
        raise _refused(f"a normalizer {content['normalizer']}")
    steps = content["pre_tokenizer"] or {"type": "none"}
    steps = steps["pretokenizers"] if steps["type"] == "Sequence" else [steps]
    match [step["type"] for step in steps]:
        case ["ByteLevel"] if steps[0]["use_regex"]:
            return "gpt-2"
        case ["Digits", "ByteLevel"] if steps[0]["individual_digits"] and steps[1]["use_regex"]:
            return "smollm"
        case ["Split", "ByteLevel"] if not steps[1]["use_regex"]:
            pattern = steps[0]["pattern"].get("Regex")
            if pattern in _SPLITS and steps[0]["behavior"] == "Isolated":
                return _SPLITS[pattern]
    raise _refused(f"the pre-tokenizer {json.dumps(content['pre_tokenizer'])}")


def _space_prefix(content: Mapping[str, Any]) -> bool:
    """Whether a SentencePiece tokenizer puts a space before a text."""
    parts = [content["normalizer"], content["pre_tokenizer"]]
    steps = [
        step
        for part in parts
        if part
        for step in part.get("normalizers", part.get("pretokenizers", [part]))
    ]
    known = {"Prepend", "Replace", "Metaspace", "Split"}
    if {step["type"] for step in steps} - known:
        raise _refused(f"the steps {[step['type'] for step in steps]} before SentencePiece")
    return any(
        step["type"] == "Prepend" or step.get("prepend_scheme", "never") != "never"
        for step in steps
    )


def _refused(got: str) -> UserError:
    return UserError(
        what="llama.cpp has no tokenizer like this model's, so there can be no GGUF file of it",
        expected="the tokenizer of a Llama, Mistral, SmolLM, Qwen or Gemma model",
        got=f"{got:.300}",
        remedy="leave export.gguf out",
    )
