"""What is kept of a completion's tokens: their own bytes, with nothing tokenised again."""

from __future__ import annotations

import numpy as np
import pytest

from mental_r1_jax.evaluation.completion_tokens import pieces, text_between
from mental_r1_jax.prediction.token_entropies import completion_tokens
from mental_r1_jax.rollout.collect import ScoredCompletion
from mental_r1_jax.text.stages import GRAMMAR
from mental_r1_jax.text.tokenizer import wrap_tokenizer
from tests.text.conftest import byte_level

TEXTS = ["नमस्ते 🌧️ rain", "你好 世界", "انتظر", "naïve café", "calm"]


@pytest.fixture(scope="module")
def tokenizer():
    return wrap_tokenizer(byte_level())


def test_every_part_is_cut_out_of_the_sampled_tokens(tokenizer) -> None:
    text = GRAMMAR.render(TEXTS, "Yes")
    ids = [*tokenizer.encode(text), tokenizer.eos_ids[0]]
    padded = np.array([*ids, tokenizer.pad_id, tokenizer.pad_id])
    entropies = np.arange(len(padded), dtype=np.float32) / 64  # exact in float16
    scored = ScoredCompletion(text, GRAMMAR.parse(text), len(ids), True)
    tokens = completion_tokens(tokenizer, scored, padded, entropies)
    *stages, answer = (*tokens.stage_spans, tokens.answer_span)
    assert [text_between(text, *span) for span in stages] == TEXTS
    assert text_between(text, *answer) == "Yes"
    assert tokens.entropies.tolist() == entropies[: len(ids)].tolist()
    assert tokens.lengths.tolist() == [len(tokenizer.token_bytes[i]) for i in ids]
    found = pieces(text, tokens)
    assert "".join(text_between(text, p.start, p.end) for p in found) == text
    # A tokenizer of 420 tokens writes these scripts in bytes; no character is torn all the same.
    assert len(found) < len(ids) - 20 and sum(p.num_tokens for p in found) == len(ids) - 1


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("calm</stimulus><answer>Yes", None),
        ("</answer>calm", None),
        ("é<answer> No </answer><answer>Yes</answer>", " No "),
        ("", None),
    ],
)
def test_parts_that_are_missing_are_none(tokenizer, text: str, answer: str | None) -> None:
    ids = tokenizer.encode(text)
    scored = ScoredCompletion(text, GRAMMAR.parse(text), len(ids), False)
    tokens = completion_tokens(tokenizer, scored, np.array(ids, int), np.zeros(len(ids)))
    assert tokens.stage_spans[1:] == (None,) * 4
    span = tokens.answer_span
    assert (span and text_between(text, *span)) == answer
    # The reader of answers means the same place.
    assert (answer and answer.strip()) == scored.parsed.answer
