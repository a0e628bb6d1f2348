"""The sampled tokens of a completion: how uncertain each was, and which text it stands for.

A token may hold part of a character. Text is cut where a token ends at the end of a character, so
that no character is torn, and nothing is tokenised again.
"""

from __future__ import annotations

import base64
import itertools
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

Span = tuple[int, int]

_JOINER = "\u200d"
# Skin tones and variation selectors belong to the sign before them, as marks (category M) do.
_MODIFIERS = frozenset(map(chr, [*range(0x1F3FB, 0x1F400), *range(0xFE00, 0xFE10)]))


@dataclass(frozen=True)
class CompletionTokens:
    """Lengths and entropies of a completion's tokens, and the places of its parts.

    The numbers are packed, in 6 bytes a token: an evaluation holds those of all its posts.

    Attributes:
        packed_lengths: bytes of text of each token (0 for special ones), as little-endian uint32.
        packed_entropies: of the model's distribution at each token's place, nats, as little-endian
            float16, which keeps three digits.
        stage_spans: first byte and end of each stage's content; None where the stage is missing.
        answer_span: the same for the answer.
    """

    packed_lengths: bytes
    packed_entropies: bytes
    stage_spans: tuple[Span | None, ...]
    answer_span: Span | None

    @property
    def lengths(self) -> Int[np.ndarray, " n"]:
        """Bytes of text of each token."""
        return np.frombuffer(self.packed_lengths, "<u4").astype(np.int64)

    @property
    def entropies(self) -> Float[np.ndarray, " n"]:
        """Entropy of each token, nats."""
        return np.frombuffer(self.packed_entropies, "<f2").astype(np.float64)


@dataclass(frozen=True)
class Piece:
    """A stretch of text that is shaded as one.

    Attributes:
        start: its first byte in the completion.
        end: the byte after its last.
        entropy: sum over its tokens, nats.
        num_tokens: how many tokens it is made of; several where a character spans them.
    """

    start: int
    end: int
    entropy: float
    num_tokens: int


def pack_tokens(
    lengths: Int[np.ndarray, " n"],
    entropies: Float[np.ndarray, " n"],
    stage_spans: Sequence[Span | None],
    answer_span: Span | None,
) -> CompletionTokens:
    """Pack the numbers of one completion, see `CompletionTokens`."""
    return CompletionTokens(
        packed_lengths=lengths.astype("<u4").tobytes(),
        packed_entropies=entropies.astype("<f2").tobytes(),
        stage_spans=tuple(stage_spans),
        answer_span=answer_span,
    )


def pieces(completion: str, tokens: CompletionTokens) -> list[Piece]:
    """Cut a completion into its tokens; those that share a character make one piece.

    The entropies of such tokens are added: by the chain rule, H(a, b) = H(a) + H(b | a), the sum
    is what a tokenizer with the whole character as one token would have, along this sample.
    Special tokens, which have no text, are left out.

    Raises:
        ValueError: the tokens are those of another text.
    """
    lengths, ends = tokens.lengths, np.cumsum(tokens.lengths)
    places = set(_cuts(completion))
    total = len(_bytes(completion))
    if (ends[-1] if len(ends) else 0) != total:
        raise ValueError(f"the tokens cover {ends[-1:].tolist()} bytes of a text of {total}")
    found, start, entropy, count = [], 0, 0.0, 0
    for length, end, value in zip(lengths, ends, tokens.entropies, strict=True):
        if length == 0:
            continue
        entropy, count = entropy + float(value), count + 1
        if int(end) in places:
            found.append(Piece(start, int(end), entropy, count))
            start, entropy, count = int(end), 0.0, 0
    return found


def text_between(completion: str, start: int, end: int) -> str:
    """The text of bytes `start` to `end`; bytes that are no UTF-8 as lone surrogates."""
    return _bytes(completion)[start:end].decode("utf-8", "surrogateescape")


def tokens_within(tokens: CompletionTokens, span: Span) -> int:
    """How many tokens lie wholly in the span: those that a stage's mean entropy is over."""
    ends = np.cumsum(tokens.lengths)
    starts = ends - tokens.lengths
    return int(((starts >= span[0]) & (ends <= span[1]) & (ends > starts)).sum())


def tokens_to_json(tokens: CompletionTokens | None) -> dict[str, Any] | None:
    """The tokens in JSON types, which `tokens_from_json` reads."""
    if tokens is None:
        return None
    return {
        "lengths": base64.b64encode(tokens.packed_lengths).decode("ascii"),
        "entropies": base64.b64encode(tokens.packed_entropies).decode("ascii"),
        "stages": tokens.stage_spans,
        "answer": tokens.answer_span,
    }


def tokens_from_json(document: Mapping[str, Any] | None) -> CompletionTokens | None:
    """What `tokens_to_json` was given."""
    if document is None:
        return None
    return CompletionTokens(
        packed_lengths=base64.b64decode(document["lengths"]),
        packed_entropies=base64.b64decode(document["entropies"]),
        stage_spans=tuple(span and (span[0], span[1]) for span in document["stages"]),
        answer_span=document["answer"] and (document["answer"][0], document["answer"][1]),
    )


def _cuts(text: str) -> Iterator[int]:
    """Bytes at which `text` may be cut: its end, and before signs that start something new."""
    place = 0
    for before, sign in itertools.pairwise(f" {text}"):
        if before != _JOINER and not _continues(sign):
            yield place
        place += len(_bytes(sign))
    yield place


def _continues(sign: str) -> bool:
    """Whether a sign is drawn together with the one before it."""
    return sign == _JOINER or sign in _MODIFIERS or unicodedata.category(sign).startswith("M")


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
