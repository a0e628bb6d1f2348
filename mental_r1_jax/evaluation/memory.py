"""How much a completion repeats: the longest run of words that it shares with posts.

A run shared with the own post is a quotation; a longer one shared with a *training* post is
something that the model has kept. Words are compared without case and punctuation; characters of
scripts that are written without spaces are words of their own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

# A Chinese, Japanese or Thai character, or a run of letters, digits and marks of other scripts.
_WORD = re.compile(r"[\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\W_]+")

# From this many words on a run that only a training post has is listed; 13 is the length by which
# GPT-3's authors looked for test texts in training data (Brown et al., 2020, appendix C).
REPORTED_WORDS = 13


def words_of(text: str) -> list[str]:
    """The words of a text, folded."""
    return _WORD.findall(text.casefold())


def longest_shared_runs(texts: Sequence[str], sources: Sequence[str]) -> Int[np.ndarray, " n"]:
    """For each text the number of words in the longest run that any of `sources` has, too.

    Runs grow by one word a round; places that match nothing on the other side drop out on both
    sides, so a round costs no more than what still matches. Exact: runs are numbered, not hashed.
    """
    codes: dict[str, int] = {}
    ids, owner = _numbered([*texts, *sources], codes)
    places = np.flatnonzero(owner >= 0)
    in_text = owner[places] < len(texts)
    run = ids[places]
    longest = np.zeros(len(texts), int)
    length = 0
    while True:
        found = np.zeros((2, run.max(initial=-1) + 1), bool)
        found[0, run[in_text]] = found[1, run[~in_text]] = True
        alive = (found[0] & found[1])[run]
        places, in_text, run = places[alive], in_text[alive], run[alive]
        if not len(places):
            return longest
        length += 1
        longest[owner[places[in_text]]] = length
        # A text ends in a place that no word has: no run reaches over it.
        following = ids[places + length]
        goes_on = following >= 0
        places, in_text = places[goes_on], in_text[goes_on]
        pairs = run[goes_on] * (len(codes) + 1) + following[goes_on]
        run = np.unique(pairs, return_inverse=True)[1]


def memory_document(
    rows: Sequence[tuple[str, int]],
    completions: Sequence[str],
    posts: Sequence[str],
    training: Sequence[str],
) -> dict[str, Any]:
    """Longest shared runs by set, and the completions that repeat a training post, as JSON types.

    A completion is listed where it shares `REPORTED_WORDS` or more with a training post and less
    with its own: what both posts have may be quoted from its own.

    Args:
        rows: set and row of each completion.
        completions: what the model wrote.
        posts: the post of each completion.
        training: all training posts.
    """
    own = np.array(
        [
            int(longest_shared_runs([one], [post])[0])
            for one, post in zip(completions, posts, strict=True)
        ],
        int,
    )
    trained = longest_shared_runs(completions, training)
    names = [name for name, _ in rows]
    sets = {}
    for name in dict.fromkeys(names):
        inside = np.array([other == name for other in names])
        sets[name] = {
            "n": int(inside.sum()),
            "own_post": _summary(own[inside]),
            "training_posts": _summary(trained[inside]),
        }
    kept = np.flatnonzero((trained >= REPORTED_WORDS) & (trained > own))
    return {
        "reported_words": REPORTED_WORDS,
        "training_posts": len(training),
        "sets": sets,
        "repeated": [
            {"set_name": rows[i][0], "row": rows[i][1], "words": int(trained[i])}
            for i in kept.tolist()
        ],
    }


def _numbered(
    texts: Sequence[str], codes: dict[str, int]
) -> tuple[Int[np.ndarray, " W"], Int[np.ndarray, " W"]]:
    """All words as numbers, with -1 behind each text; and of each place its text, or -1."""
    ids: list[int] = []
    owner: list[int] = []
    for place, text in enumerate(texts):
        words = [codes.setdefault(word, len(codes)) for word in words_of(text)]
        ids += [*words, -1]
        owner += [*[place] * len(words), -1]
    return np.array(ids, np.int64), np.array(owner, np.int64)


def _summary(lengths: Int[np.ndarray, " n"]) -> dict[str, float]:
    return {
        "mean": float(lengths.mean()),
        "median": float(np.median(lengths)),
        "p95": float(np.percentile(lengths, 95)),
        "longest": int(lengths.max()),
    }
