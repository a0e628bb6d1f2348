"""Completions cut at their answer: what is kept, what is added, and which tokens are a label's."""

from __future__ import annotations

import pytest

from mental_r1_jax.text.forced_answer import cut_at_answer, forced_answer
from mental_r1_jax.text.stages import GRAMMAR, Grammar
from mental_r1_jax.text.tokenizer import wrap_tokenizer

CONTENTS = ("rain", "it spoils the walk", "an umbrella helps", "a little sad", "well")
LABELS = ("Mild", "Mild-moderate", "Severe")
WHOLE = GRAMMAR.render(CONTENTS, "Mild")
REASONING = WHOLE[: WHOLE.index("<answer>")]


@pytest.fixture
def tokenizers(chatml, llama, unigram):
    """Byte-level BPE, and both kinds of SentencePiece."""
    return chatml, llama, unigram


@pytest.mark.parametrize(
    ("completion", "before", "tags"),
    [
        ("a</think>\n<answer>No</answer><answer>Yes</answer>", "a</think>\n", "<answer>"),
        ("a<answer>", "a", "<answer>"),
        ("a</think> and so on", "a</think> and so on", "\n<answer>"),
        ("a</stimulus> and it ends he", "a</stimulus> and it ends he", "\n</think>\n<answer>"),
        ("", "", "\n</think>\n<answer>"),
    ],
)
def test_tags_that_are_missing_are_added(completion: str, before: str, tags: str) -> None:
    assert cut_at_answer(completion) == (before, tags)


def test_the_forced_layout_is_that_of_the_grammar() -> None:
    """A completion that stops after the last stage goes on as a whole one does."""
    stopped = REASONING[: REASONING.index("\n</think>")]
    before, tags = cut_at_answer(stopped)
    assert f"{before}{tags}Mild</answer>" == WHOLE


def test_tags_are_those_of_the_grammar() -> None:
    grammar = Grammar(think_tag="reason", answer_tag="verdict")
    assert cut_at_answer("a<verdict>b", grammar) == ("a", "<verdict>")
    assert cut_at_answer("a<answer>b", grammar) == ("a<answer>b", "\n</reason>\n<verdict>")


def test_a_verdict_is_forced_as_an_answer_is(chatml) -> None:
    grammar = Grammar(think_tag="reason", answer_tag="verdict")
    found = forced_answer(chatml, chatml.encode("calm"), ("Yes", "No"), grammar)
    texts = [chatml.decode([*found.shared, *ending]).text for ending in found.endings]
    ends = [f"calm\n</reason>\n<verdict>{label}</verdict>" for label in ("Yes", "No")]
    assert texts == ends


def test_shared_tokens_and_endings_are_the_completion_with_each_label(tokenizers) -> None:
    for tokenizer in tokenizers:
        reasoning = tokenizer.encode(REASONING)
        ids = [*reasoning, *tokenizer.encode("<answer>Mild</answer>"), tokenizer.eos_ids[0]]
        text = tokenizer.decode(reasoning).text
        found = forced_answer(tokenizer, ids, LABELS)
        for label, ending in zip(LABELS, found.endings, strict=True):
            whole = tokenizer.decode([*found.shared, *ending]).text
            # Llama's own space before the tag, in `ids`, is text before the tag and stays.
            assert whole.replace(" <answer>", "<answer>") == f"{text}<answer>{label}</answer>"
        assert list(found.shared[: len(reasoning)]) == reasoning


def test_no_ending_begins_another_where_a_label_does(tokenizers) -> None:
    for tokenizer in tokenizers:
        endings = forced_answer(tokenizer, tokenizer.encode(WHOLE), LABELS).endings
        for one in endings:
            assert [other for other in endings if other[: len(one)] == one] == [one]
        assert len({ending[0] for ending in endings}) > 1  # what all share is not in them


def test_a_truncated_completion_ends_in_the_answer_tag(tokenizers) -> None:
    for tokenizer in tokenizers:
        ids = tokenizer.encode(REASONING[:60])
        found = forced_answer(tokenizer, ids, LABELS)
        text = tokenizer.decode([*found.shared, *found.endings[2]]).text
        assert text == tokenizer.decode(ids).text + "\n</think>\n<answer>Severe</answer>"


def test_a_token_that_goes_on_into_the_tag_is_taken_apart(make_byte_level) -> None:
    """A token of the text before the tag and of the tag's first sign; one of tag and label."""
    tokenizer = wrap_tokenizer(make_byte_level(extra=[">\n<", "r>Ye"]))
    ids = tokenizer.encode("calm</think>\n<answer>Yes</answer>")
    assert {tokenizer.token_bytes[i] for i in ids} >= {b">\n<", b"r>Ye"}
    found = forced_answer(tokenizer, ids, ("Yes", "No"))
    texts = [tokenizer.decode([*found.shared, *ending]).text for ending in found.endings]
    assert texts == [f"calm</think>\n<answer>{label}</answer>" for label in ("Yes", "No")]
    # The end of the tag is counted with both.
    ends = [tokenizer.decode(ending).text for ending in found.endings]
    before = [
        end.removesuffix(f"{label}</answer>")
        for end, label in zip(ends, ("Yes", "No"), strict=True)
    ]
    assert before[0] == before[1] and before[0].endswith("r>")


def test_broken_text_is_no_obstacle(tokenizers) -> None:
    """Half a character, and a special token, at the end of a completion."""
    for tokenizer in tokenizers:
        half = next(i for i, b in enumerate(tokenizer.token_bytes) if b == "é".encode()[:1])
        ids = [*tokenizer.encode("calm"), half, tokenizer.eos_ids[0]]
        found = forced_answer(tokenizer, ids, LABELS)
        assert half in found.shared and tokenizer.eos_ids[0] not in found.shared
