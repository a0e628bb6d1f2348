"""Tokens of a completion: packed, cut without tearing a character, and read back."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mental_r1_jax.evaluation.completion_tokens import (
    CompletionTokens,
    pieces,
    text_between,
    tokens_from_json,
    tokens_to_json,
    tokens_within,
)
from tests.evaluation.completions import packed


def cut(text: str, tokens: list[bytes], entropies: list[float]) -> list[tuple[str, float, int]]:
    found = pieces(text, packed(tokens, entropies))
    return [(text_between(text, p.start, p.end), p.entropy, p.num_tokens) for p in found]


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        # "é" in two tokens is one piece with the sum of their entropies.
        ([b"a", b"\xc3", b"\xa9", b"b"], [("a", 1.0, 1), ("é", 6.0, 2), ("b", 8.0, 1)]),
        # A token that ends one character and begins the next joins both.
        ([b"\xe4\xb8", b"\xad\xe6", b"\x96\x87"], [("中文", 7.0, 3)]),
        # Special tokens have no text and no piece.
        ([b"a", b"", b"b", b""], [("a", 1.0, 1), ("b", 4.0, 1)]),
        # Marks, joiners and skin tones stay with the sign they belong to.
        (["क".encode(), "ि".encode()], [("कि", 3.0, 2)]),
        (
            ["👩".encode(), "\u200d".encode(), "🔬".encode(), b"!"],
            [("👩\u200d🔬", 7.0, 3), ("!", 8.0, 1)],
        ),
        (["👍".encode(), "🏽".encode()], [("👍🏽", 3.0, 2)]),
        # Bytes that are no UTF-8 are signs of their own.
        ([b"a\xff", b"\xfe"], [("a\udcff", 1.0, 1), ("\udcfe", 2.0, 1)]),
        ([], []),
    ],
)
def test_text_is_cut_between_characters(tokens, expected) -> None:
    text = b"".join(tokens).decode("utf-8", "surrogateescape")
    entropies = [2.0**i for i in range(len(tokens))]
    assert cut(text, tokens, entropies) == expected


@given(st.binary(max_size=40), st.sets(st.integers(0, 40)))
def test_pieces_are_the_text_and_hold_every_entropy(raw: bytes, places: set[int]) -> None:
    edges = [0, *sorted(p for p in places if 0 < p < len(raw)), len(raw)]
    tokens = [raw[a:b] for a, b in zip(edges, edges[1:], strict=False)]
    text = raw.decode("utf-8", "surrogateescape")
    found = cut(text, tokens, [1.0] * len(tokens))
    assert "".join(piece for piece, _, _ in found) == text
    assert sum(count for _, _, count in found) == sum(1 for token in tokens if token)
    assert all(entropy == count for _, entropy, count in found)


def test_tokens_of_another_text_are_refused() -> None:
    with pytest.raises(ValueError, match="cover"):
        pieces("tea", packed([b"te"], [1.0]))
    with pytest.raises(ValueError, match="cover"):
        pieces("tea", packed([], []))


def test_what_is_kept_comes_back() -> None:
    tokens = packed([b"tea", b"", b" now"], [0.1, 2.5, 11.7], [(0, 3), None], (3, 7))
    assert tokens_from_json(json.loads(json.dumps(tokens_to_json(tokens)))) == tokens
    assert tokens_from_json(json.loads(json.dumps(tokens_to_json(None)))) is None
    bare = dataclasses.replace(tokens, answer_span=None)
    assert tokens_from_json(json.loads(json.dumps(tokens_to_json(bare)))) == bare


def test_a_token_takes_six_bytes_and_keeps_three_digits() -> None:
    entropies = list(np.random.default_rng(0).gamma(2.0, 1.0, 512))
    tokens: CompletionTokens = packed([b"tea"] * 512, entropies)
    assert len(tokens.packed_lengths) + len(tokens.packed_entropies) == 6 * 512
    np.testing.assert_allclose(tokens.entropies, entropies, rtol=2**-11, atol=1e-7)
    assert tokens.lengths.tolist() == [3] * 512


def test_only_tokens_that_lie_wholly_in_a_part_are_counted() -> None:
    tokens = packed([b"a>", b"tea", b"", b" b", b"c<"], [1.0] * 5)
    assert tokens_within(tokens, (1, 8)) == 2
    assert tokens_within(tokens, (0, 9)) == 4
