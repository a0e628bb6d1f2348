"""Stage masks are exact to the byte in any script, however a character is cut into tokens."""

from __future__ import annotations

import random
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mental_r1_jax.rollout.collect import stage_mask
from mental_r1_jax.text.stages import GRAMMAR, Grammar, Stage
from mental_r1_jax.text.tokenizer import Tokenizer, byte_spans

# Syllables with joined vowels, right-to-left words, emoji of several code points, rare characters.
PIECES = {
    "chinese": ["今天", "很累", "，", "𠮷野", "。", "心里", "「好」"],
    "arabic": ["أنا", " متعب", "،", " لا أنام", "ّ", "\u200f", "؟"],
    "hindi": ["मैं", " थक", "गया", "क्षि", "\u200d", "।", "ङ्क्त"],
    "emoji": ["🙂", "👩‍👩‍👧", "🌧️", "🇮🇳", "👍🏽", " ", "é"],
}
OTHER = Grammar(
    stages=(Stage("观察", "看到了什么"), Stage("रात", "रात"), Stage("end", "end")),
    think_tag="思考",
    answer_tag="答案",
)
scripts = st.sampled_from([*PIECES]).flatmap(
    lambda script: st.lists(st.sampled_from(PIECES[script]), min_size=1, max_size=6).map("".join)
)
contents = scripts.filter(str.strip)


@pytest.fixture(params=["chatml", "llama", "unigram"], scope="module")
def tokenizer(request):
    return request.getfixturevalue(request.param)


def masks(tokenizer: Tokenizer, ids: list[int], grammar: Grammar) -> np.ndarray:
    decoded = tokenizer.decode(ids)
    spans = byte_spans(decoded.text, grammar.parse(decoded.text).stage_spans)
    return stage_mask(decoded.offsets, spans, len(ids))


def expected(tokenizer: Tokenizer, ids: list[int], grammar: Grammar) -> np.ndarray:
    """The same by searching the bytes for the tags, without ever making text of them."""
    pieces = [tokenizer.token_bytes[i] for i in ids]
    whole, ends = b"".join(pieces), np.cumsum([0, *map(len, pieces)])
    rows = []
    for number, stage in enumerate(grammar.stages):
        opening, closing = f"<{stage.name}>".encode(), f"</{stage.name}>".encode()
        start = whole.index(opening) + len(opening) if number else 0
        stop = whole.index(closing)
        rows.append([start <= a < b <= stop for a, b in pairwise(ends)])
    return np.array(rows)


@settings(max_examples=20, deadline=None)
@given(st.lists(contents, min_size=5, max_size=5), st.sampled_from(["Yes", "是", "نعم", "हाँ"]))
def test_tokens_wholly_inside_a_stage_are_marked_and_no_others(tokenizer, texts, answer):
    ids = tokenizer.encode(GRAMMAR.render(texts, answer))
    mask = masks(tokenizer, ids, GRAMMAR)
    np.testing.assert_array_equal(mask, expected(tokenizer, ids, GRAMMAR))
    for row, text in zip(mask, texts, strict=True):
        inside = b"".join(tokenizer.token_bytes[i] for i in np.array(ids)[row])
        assert inside.lstrip() in text.encode() or not inside


@settings(max_examples=20, deadline=None)
@given(st.lists(contents, min_size=3, max_size=3), st.integers(0, 2**32))
def test_a_grammar_in_other_scripts_and_characters_cut_anywhere(tokenizer, texts, seed):
    """Sampled ids need not be those of the tokenizer: here some characters are single bytes."""
    whole_or_cut = random.Random(seed)
    of_byte = {piece: i for i, piece in enumerate(tokenizer.token_bytes) if len(piece) == 1}
    ids: list[int] = []
    for char in OTHER.render(texts, "是"):
        whole = tokenizer.encode(char)
        exact = b"".join(tokenizer.token_bytes[i] for i in whole) == char.encode()
        cut = [of_byte[bytes([byte])] for byte in char.encode()]
        ids += whole if exact and whole_or_cut.random() < 0.5 else cut
    mask = masks(tokenizer, ids, OTHER)
    np.testing.assert_array_equal(mask, expected(tokenizer, ids, OTHER))
    for row, text in zip(mask, texts, strict=True):
        inside = b"".join(tokenizer.token_bytes[i] for i in np.array(ids)[row])
        assert inside == text.encode()


@pytest.mark.parametrize("script", PIECES)
def test_half_a_character_at_the_edge_of_a_tag_is_inside(tokenizer, script):
    """A completion that ends in the middle of a character marks the bytes that are there."""
    of_byte = {piece: i for i, piece in enumerate(tokenizer.token_bytes) if len(piece) == 1}
    torn = PIECES[script][0].encode()[:-1]
    text = torn + b"</stimulus>\n<primary_appraisal>" + torn + b"</primary_appraisal>"
    ids = [of_byte[bytes([byte])] for byte in text]
    mask = masks(tokenizer, ids, GRAMMAR)
    assert [int(row.sum()) for row in mask] == [len(torn), len(torn), 0, 0, 0]
