"""From character spans of the parsed text to masks over the sampled ids themselves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int


def stage_mask(
    offsets: Int[np.ndarray, " n_plus_1"],
    byte_spans: Sequence[tuple[int, int] | None],
    length: int,
) -> Bool[np.ndarray, "S {length}"]:
    """Mark the tokens that lie wholly inside each stage's content.

    m[t, i] = 1  iff  start_t <= offset_i  and  offset_{i+1} <= end_t  and the token has bytes.

    Tags, tokens that straddle a tag's edge, and special tokens (no bytes) are outside. Nothing is
    tokenized again: the offsets belong to the sampled ids.

    Args:
        offsets: byte offset of each token and, last, of the end of the text.
        byte_spans: start and end byte of each stage's content, None for a stage that is missing.
        length: C, the padded number of completion tokens.
    """
    starts, ends = offsets[:-1], offsets[1:]
    mask = np.zeros((len(byte_spans), length), bool)
    for stage, span in enumerate(byte_spans):
        if span is not None:
            inside = (starts >= span[0]) & (ends <= span[1]) & (ends > starts)
            mask[stage, : len(starts)] = inside
    return mask
