"""The longest beginning of a post that fits into a prompt of so many tokens.

The work is bounded whatever the post holds: the prompt is encoded whole once, and shorter prompts a
few times; everything else is one pass over its characters.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Int

from mental_r1_jax.errors import UserError
from mental_r1_jax.text.tokenizer import Tokenizer

# Blanks at the end of what is kept say nothing and are dropped; a run of more counts as text.
_DROPPED_BLANKS = 16
# Guesses before the search halves what is left; ordinary posts need about four.
_GUESSES = 8


def longest_beginning(
    tokenizer: Tokenizer, before: str, post: str, after: str, limit: int
) -> tuple[str, list[int]]:
    """Return the beginning of `post` that is kept, and the ids of the prompt with it.

    A beginning may end where a token of the whole prompt starts, so that no character is torn. The
    longest is kept with which `before + beginning + after` has at most `limit` tokens.

    Ending elsewhere changes the tokens next to that place only, so the number of tokens is known
    but for a constant that every trial corrects: about four encodings decide, and never more than
    `_GUESSES` plus the binary logarithm of the number of tokens.

    Args:
        tokenizer: the model's.
        before: the prompt up to the post.
        post: a post that does not fit whole.
        after: the prompt behind the post.
        limit: in tokens.

    Raises:
        UserError: the prompt without a post leaves no room for one.
    """
    lengths, tokens_before = _beginnings(tokenizer, before, post, after)

    def ids_at(place: int) -> list[int]:
        return tokenizer.encode(before + post[: lengths[place]] + after)

    fits, best = 0, ids_at(0)
    check_room(len(best), limit)
    too_long, constant, trials = len(lengths) - 1, len(best) - tokens_before[0], 0
    while too_long - fits > 1:
        guess = int(np.searchsorted(tokens_before, limit - constant, side="right")) - 1
        # A tokenizer may take back every correction, so guessing alone need not come to an end.
        guess = guess if trials < _GUESSES else (fits + too_long) // 2
        place = min(max(guess, fits + 1), too_long - 1)
        ids, trials = ids_at(place), trials + 1
        constant = len(ids) - tokens_before[place]
        if len(ids) <= limit:
            fits, best = place, ids
        else:
            too_long = place
    return post[: lengths[fits]], best


def check_room(frame_tokens: int, limit: int, whose: str = "the post") -> None:
    """Check that a prompt without its post, of `frame_tokens`, leaves room for one.

    Raises:
        UserError: it does not.
    """
    if frame_tokens >= limit:
        raise UserError(
            what=f"max_prompt_length leaves no room for {whose}",
            expected=f"more than the {frame_tokens} tokens of instruction, question and prefill",
            got=str(limit),
            remedy="Raise rollout.max_prompt_length.",
        )


def _beginnings(
    tokenizer: Tokenizer, before: str, post: str, after: str
) -> tuple[list[int], Int[np.ndarray, " places"]]:
    """Lengths to which `post` may be truncated, ascending, from nothing to all of it.

    Also returns, for each, how many tokens of the whole prompt start before that place.
    """
    _, starts = tokenizer.encode_with_starts(before + post + after)
    starts = np.sort(starts) - len(before)
    inside = starts[(starts > 0) & (starts < len(post))]
    # For every length the end of the last word before it.
    blank = np.fromiter(map(str.isspace, post), bool, len(post))
    ends = np.where(blank, 0, np.arange(1, len(post) + 1))
    ends = np.concatenate([[0], np.maximum.accumulate(ends)])[inside]
    lengths = np.where(inside - ends <= _DROPPED_BLANKS, ends, inside)
    ascending = np.unique(np.concatenate([[0, len(post)], lengths]))
    return ascending.tolist(), np.searchsorted(starts, ascending, side="left")
