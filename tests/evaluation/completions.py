"""Made-up completions, cut into tokens as a tokenizer would, for tests of reports."""

from __future__ import annotations

import numpy as np

from mental_r1_jax.config import STAGE_NAMES
from mental_r1_jax.evaluation.completion_tokens import CompletionTokens, pack_tokens
from mental_r1_jax.evaluation.metrics import Prediction


def packed(
    tokens: list[bytes],
    entropies: list[float],
    stages: list[tuple[int, int] | None] | None = None,
    answer: tuple[int, int] | None = None,
) -> CompletionTokens:
    """The record of these tokens."""
    lengths = np.array([len(token) for token in tokens], np.int64)
    spans = [None] * len(STAGE_NAMES) if stages is None else stages
    return pack_tokens(lengths, np.array(entropies, np.float32), spans, answer)


def answered(
    set_name: str,
    row: int,
    label: str,
    prediction: str | None,
    texts: list[str],
    entropies: list[float],
    post: str = "a made-up post",
) -> Prediction:
    """A well-formed completion, one token a word or tag; stage i has `entropies[i]` throughout.

    Tags have entropy 0, and so has the end-of-sequence token.
    """
    tokens: list[bytes] = []
    measured: list[float] = []
    stages: list[tuple[int, int] | None] = []
    for name, text, entropy in zip(STAGE_NAMES, texts, entropies, strict=True):
        if stages:
            tokens.append(f"\n<{name}>".encode())
            measured.append(0.0)
        start = sum(map(len, tokens))
        words = [f"{' ' if i else ''}{word}".encode() for i, word in enumerate(text.split(" "))]
        tokens += words
        measured += [entropy] * len(words)
        stages.append((start, sum(map(len, tokens))))
        tokens.append(f"</{name}>".encode())
        measured.append(0.0)
    tokens.append(b"\n</think>\n<answer>")
    start = sum(map(len, tokens))
    tokens += [(prediction or "?").encode(), b"</answer>", b""]
    measured += [0.0, 0.0, 0.0, 0.0]
    return Prediction(
        set_name=set_name,
        row=row,
        label=label,
        prediction=prediction,
        well_formed=True,
        truncated=False,
        num_tokens=len(tokens),
        answer=prediction or "?",
        stage_entropies=tuple(entropies),
        completion=b"".join(tokens).decode(),
        text=post,
        tokens=packed(tokens, measured, stages, (start, start + len(tokens[-3]))),
    )
