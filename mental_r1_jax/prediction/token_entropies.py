"""What the reading room needs of a completion's tokens."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from mental_r1_jax.evaluation.completion_tokens import CompletionTokens, pack_tokens
from mental_r1_jax.rollout.collect import ScoredCompletion
from mental_r1_jax.text.stages import ANSWER_TAG
from mental_r1_jax.text.tokenizer import Tokenizer, byte_spans


def completion_tokens(
    tokenizer: Tokenizer,
    completion: ScoredCompletion,
    ids: Int[np.ndarray, " C"],
    entropies: Float[np.ndarray, " C"],
    answer_tag: str = ANSWER_TAG,
) -> CompletionTokens:
    """Byte lengths and entropies of the sampled tokens, and the places of stages and answer.

    Args:
        tokenizer: that of the model which sampled.
        completion: the tokens as text.
        ids: the sampled tokens, then padding.
        entropies: of each token's distribution, nats.
        answer_tag: the grammar's, around the answer.
    """
    count, parsed = completion.num_tokens, completion.parsed
    spans = [*parsed.stage_spans, _answer_span(completion.text, answer_tag)]
    *stages, answer = byte_spans(completion.text, spans)
    lengths = np.diff(tokenizer.decode(ids[:count]).offsets)
    return pack_tokens(lengths, entropies[:count], stages, answer)


def _answer_span(text: str, tag: str) -> tuple[int, int] | None:
    """Characters between the first opening answer tag and the closing tag that follows it."""
    opening, closing = f"<{tag}>", f"</{tag}>"
    start = text.find(opening)
    end = text.find(closing, start + len(opening)) if start >= 0 else -1
    return (start + len(opening), end) if end >= 0 else None
