"""Shared runs of words: against a plain search, and a planted copy is found."""

from __future__ import annotations

import json

import numpy as np

from mental_r1_jax.evaluation.memory import (
    REPORTED_WORDS,
    longest_shared_runs,
    memory_document,
    words_of,
)

SENTENCE = "on sundays my uncle counts the blue herons that stand beside the old stone mill"


def plain_search(text: list[str], sources: list[list[str]]) -> int:
    """Length of the longest common run, by looking at every pair of places."""
    best = 0
    for source in sources:
        for i in range(len(text)):
            for j in range(len(source)):
                k = 0
                while i + k < len(text) and j + k < len(source) and text[i + k] == source[j + k]:
                    k += 1
                best = max(best, k)
    return best


def test_runs_equal_a_plain_search() -> None:
    """Few different words, so that runs of many lengths occur, also across ends of texts."""
    rng = np.random.default_rng(0)
    texts = [
        [" ".join(rng.choice(list("abc"), rng.integers(0, 25))) for _ in range(n)] for n in (30, 12)
    ]
    found = longest_shared_runs(*texts)
    sources = [one.split() for one in texts[1]]
    assert found.tolist() == [plain_search(one.split(), sources) for one in texts[0]]
    assert 3 < found.max() < 25


def test_words_are_folded_and_scripts_without_spaces_are_characters() -> None:
    assert words_of("It's NOT, _well_!") == ["it", "s", "not", "well"]
    assert words_of("我很累 so") == ["我", "很", "累", "so"]
    assert longest_shared_runs(["今天我很累", ""], ["我很累了"]).tolist() == [3, 0]


def test_nothing_is_shared_with_no_sources() -> None:
    assert longest_shared_runs(["a b"], []).tolist() == [0]
    assert longest_shared_runs([], ["a b"]).tolist() == []


def document(completions: list[str], posts: list[str], training: list[str]):
    rows = [("Made-Up", row) for row in range(len(completions))]
    return memory_document(rows, completions, posts, training)


def test_a_planted_copy_of_a_training_post_is_found_and_not_shown() -> None:
    completions = [f"They say {SENTENCE.upper()}, and more", "a calm and quiet day"]
    posts = ["tea is warm today", "a calm and quiet day it was"]
    found = document(completions, posts, ["nothing", f"I know {SENTENCE}. Yes."])
    words = len(SENTENCE.split())
    assert words >= REPORTED_WORDS
    assert found["repeated"] == [{"set_name": "Made-Up", "row": 0, "words": words}]
    assert found["sets"]["Made-Up"]["training_posts"]["longest"] == words
    assert found["sets"]["Made-Up"]["own_post"]["longest"] == 5
    text = json.dumps(found)
    assert "heron" not in text.lower() and "calm" not in text


def test_a_quotation_of_the_own_post_is_no_memory() -> None:
    found = document([SENTENCE], [f"well, {SENTENCE}"], [SENTENCE])
    assert found["repeated"] == []
    assert found["sets"]["Made-Up"]["own_post"]["longest"] == len(SENTENCE.split())
