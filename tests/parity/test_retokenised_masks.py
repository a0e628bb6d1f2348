"""Where tokenizing again agrees with the sampled ids, and where it cannot."""

from __future__ import annotations

import numpy as np
import pytest

from mental_r1_jax.text.stages import GRAMMAR
from mental_r1_jax.text.tokenizer import Tokenizer, wrap_tokenizer
from tests.parity.retokenised_masks import (
    masks_of_ids,
    retokenised_disagreement,
    retokenised_masks,
)
from tests.text.conftest import byte_level

CONTENTS = ["the rain kept falling", "it matters", "a walk in the park helps", "tired", "low"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return wrap_tokenizer(byte_level())


def test_clean_text_with_its_own_ids_agrees(tokenizer):
    ids = tokenizer.encode(GRAMMAR.render(CONTENTS, "Yes"))
    found = retokenised_disagreement(tokenizer, [ids, [*ids, tokenizer.eos_ids[0]]])
    assert (found.completions, found.other_ids, found.other_masks, found.other_tokens) == (
        2,
        0,
        0,
        0,
    )
    assert found.tokens == 2 * len(ids) + 1
    assert masks_of_ids(tokenizer, ids).any(axis=1).all()


def test_another_split_of_the_same_text_shifts_every_later_place(tokenizer):
    ids = tokenizer.encode(GRAMMAR.render(CONTENTS, "Yes"))
    # "the" of the first stage, spelled letter by letter as a sampler may well choose to.
    place = next(i for i, token in enumerate(ids) if len(tokenizer.token_bytes[token]) > 2)
    letters = [
        tokenizer.token_bytes.index(bytes([byte])) for byte in tokenizer.token_bytes[ids[place]]
    ]
    sampled = [*ids[:place], *letters, *ids[place + 1 :]]
    assert tokenizer.decode(sampled).text == tokenizer.decode(ids).text
    ours, theirs = masks_of_ids(tokenizer, sampled), retokenised_masks(tokenizer, sampled)
    shift = len(letters) - 1
    # Ours follow the ids; the other way's are those of the old ids, too early by the shift.
    np.testing.assert_array_equal(ours[1:, shift:], masks_of_ids(tokenizer, ids)[1:])
    np.testing.assert_array_equal(theirs[:, : len(ids)], masks_of_ids(tokenizer, ids))
    found = retokenised_disagreement(tokenizer, [sampled, ids])
    assert (found.other_ids, found.other_masks) == (1, 1)
    assert found.other_tokens >= shift


def test_random_ids_around_real_tags_disagree(tokenizer):
    rng = np.random.default_rng(0)
    tag = tokenizer.encode("</stimulus>\n<reaction>")
    end = tokenizer.encode("</reaction>")
    special = set(tokenizer.hf.all_special_ids)
    words = [i for i in range(tokenizer.vocab_size) if i not in special]
    completions = [
        [*rng.choice(words, 30).tolist(), *tag, *rng.choice(words, 30).tolist(), *end]
        for _ in range(20)
    ]
    found = retokenised_disagreement(tokenizer, completions)
    assert found.other_ids == found.other_masks == 20
    assert found.other_tokens > 0.02 * found.tokens
