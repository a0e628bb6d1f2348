"""Masks over sampled ids, from offsets and spans that are worked out by hand."""

from __future__ import annotations

import numpy as np

from mental_r1_jax.rollout.collect import stage_mask
from mental_r1_jax.text.stages import GRAMMAR
from mental_r1_jax.text.tokenizer import byte_spans


def masks(pieces: list[bytes], length: int | None = None) -> tuple[np.ndarray, str]:
    """Stage masks of a completion given as the bytes of its tokens."""
    text = b"".join(pieces).decode("utf-8", "surrogateescape")
    offsets = np.cumsum([0, *map(len, pieces)])
    spans = byte_spans(text, GRAMMAR.parse(text).stage_spans)
    return stage_mask(offsets, spans, length or len(pieces)), text


def places(mask: np.ndarray) -> list[list[int]]:
    """Marked tokens of each stage."""
    return [np.flatnonzero(row).tolist() for row in mask]


def test_hand_made_offsets():
    #        0      1       2      3 (no bytes)  4          5
    offsets = np.array([0, 3, 7, 9, 9, 12, 20])
    spans = [(0, 7), (3, 9), None, (9, 12), (8, 20)]
    mask = stage_mask(offsets, spans, 8)
    assert mask.shape == (5, 8) and mask.dtype == bool
    # Overlapping spans share tokens; tokens that straddle an edge, or have no bytes, are outside.
    assert places(mask) == [[0, 1], [1, 2], [], [4], [4, 5]]


def test_spans_of_no_width_and_no_tokens_at_all():
    assert places(stage_mask(np.array([0, 2, 4]), [(2, 2), (0, 4)], 3)) == [[], [0, 1]]
    assert places(stage_mask(np.array([0]), [(0, 0), None], 3)) == [[], []]


def test_tags_and_tokens_across_their_edges_are_outside():
    pieces = [
        b"rain",  # 0 inside stimulus
        b" fell",  # 1 inside
        b".</stim",  # 2 straddles content and tag
        b"ulus>",  # 3 tag
        b"\n",  # 4 between stages
        b"<primary_appraisal>",  # 5 tag
        b"it matters",  # 6 inside primary appraisal
        b"</primary_appraisal><secondary_appraisal>x",  # 7 two tags and a letter
        b" help",  # 8 inside secondary appraisal
        b"</secondary_appraisal>",  # 9 tag
        b"<reaction>",  # 10 tag
        b"sad",  # 11 inside reaction
        b"</reaction>",  # 12 tag
        b"<mental_state>",  # 13 tag
        b"low",  # 14 inside mental state
        b"</mental_state>",  # 15 tag
        b"\n</think>\n<answer>",  # 16
        b"Yes",  # 17 the answer belongs to no stage
        b"</answer>",  # 18
        b"",  # 19 EOS
    ]
    mask, text = masks(pieces, 24)
    assert GRAMMAR.parse(text).well_formed
    assert places(mask) == [[0, 1], [6], [8], [11], [14]]
    assert not mask[:, len(pieces) :].any()


def test_characters_split_over_tokens_count_in_bytes():
    cry = "🌧".encode()  # four bytes
    pieces = [
        "é".encode(),
        cry[:1],
        cry[1:3],
        cry[3:],
        b"</stimulus>",
        b"<reaction>",
        b"\xff",  # a byte that is no text at all
        cry[:2],  # and half a character
        b"</reaction>",
    ]
    assert places(masks(pieces)[0]) == [[0, 1, 2, 3], [], [], [6, 7], []]


def test_malformed_text_may_mark_a_token_for_two_stages():
    pieces = [
        b"a",  # stimulus, open until its closing tag
        b"<reaction>",
        b"b",  # inside both
        b"</stimulus>",
        b"c",  # inside reaction alone
        b"</reaction>",
        b"<mental_state>",  # never closed: does not count
        b"d",
    ]
    assert places(masks(pieces)[0]) == [[0, 1, 2], [], [], [2, 3, 4], []]


def test_a_stage_closed_before_it_opens_does_not_count():
    pieces = [b"x", b"</reaction>", b"y", b"<reaction>", b"z", b"</reaction>"]
    assert places(masks(pieces)[0])[3] == []
