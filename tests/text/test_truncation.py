"""No post costs more work than its length, however odd; work is counted, not timed."""

from __future__ import annotations

import math

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mental_r1_jax.text.prompts import render_prompt
from mental_r1_jax.text.stages import GRAMMAR
from mental_r1_jax.text.tokenizer import wrap_tokenizer
from tests.work import counted

QUESTION = "Is it raining?\nStatement: "
SIZE = 2000

units = st.sampled_from(
    [" ", "\n", "\t", "\u00a0", "\u200d", "\u200b", "\u0301", "a", "🙂", "👩\u200d", "你"]
    + ["<|im_end|>", "<|im_<|pad|>end|>", "word ", "\n \n", "<think>", "</s>", "<s", "\r\n", "#"]
)
# Up to four runs of one thing each, with words between them.
odd_posts = st.lists(st.tuples(units, st.integers(1, SIZE)), min_size=1, max_size=4).map(
    lambda runs: "it rains ".join(unit * (count // len(unit) + 1) for unit, count in runs) + "end"
)


@pytest.fixture(params=["chatml", "llama", "unigram"], scope="module")
def tokenizer(request):
    return request.getfixturevalue(request.param)


def room_of(tokenizer, room):
    """The limit that leaves `room` tokens for the post; the question's template is then known."""
    return room + len(render_prompt(tokenizer, QUESTION, "", 10**6).ids)


@settings(max_examples=20)
@given(odd_posts, st.integers(1, 600))
@example("it rains" + " " * SIZE + "and pours", 200)
@example("it rains" + "\n" * SIZE + "and pours", 200)
@example("<|im_end|>" * 300, 100)
@example("<s>" * 300, 100)
@example("\u200d" * SIZE + "e", 100)
@example("e" + "\u0301" * SIZE, 100)
def test_work_is_bounded_by_length_whatever_the_post(tokenizer, post, room):
    limit = room_of(tokenizer, room)
    with counted("text") as work:
        prompt = render_prompt(tokenizer, QUESTION, post, limit)
    length = len(prompt.text) + 2 * len(post)  # breaking up special tokens makes a post longer
    assert work.calls <= 3 + 8 + math.log2(length)
    assert work.characters <= 6 * length
    assert work.lines <= 2 * length + 1000
    assert len(prompt.ids) <= limit
    assert list(prompt.ids) == tokenizer.encode(prompt.text)


@pytest.mark.parametrize("blank", [" ", "\n", " \n", "\t", "\u00a0"])
def test_a_run_of_blanks_is_kept_as_far_as_it_fits(chatml, blank):
    limit = room_of(chatml, 200)
    prompt = render_prompt(chatml, QUESTION, "it rains" + blank * SIZE + "and pours", limit)
    assert prompt.truncated
    assert limit - 3 <= len(prompt.ids) <= limit
    few = render_prompt(chatml, QUESTION, "it rains" + blank * 4 + "and pours " * SIZE, limit)
    assert limit - 3 <= len(few.ids) <= limit and "it rains" + blank * 4 + "and" in few.text


def test_many_words_cost_two_encodings_and_a_few_short_ones(chatml):
    post = "rain " * 30_000
    limit = room_of(chatml, 300)
    with counted("text") as work:
        prompt = render_prompt(chatml, QUESTION, post, limit)
    assert limit - 1 <= len(prompt.ids) <= limit
    assert work.calls <= 8 and work.characters <= 2.2 * len(post) and work.lines < len(post)


@pytest.mark.parametrize(
    ("specials", "post", "shown"),
    [
        (["  "], "a" + " " * 6 + "b", "a" + "\u00a0".join(" " * 6) + "b"),
        ([" x"], "a x x", "a \u00a0x \u00a0x"),
        (["qz", "q z"], "qz q z", "q\u00a0z q\u00a0 z"),
        (["xyx"], "xyxyxyx", "x yx yx yx"),
        (["<a<", "<b>"], "<a<b>", "< a< b>"),
    ],
    ids=["blanks", "leading blank", "one makes the other", "overlapping", "chained"],
)
def test_breaking_up_special_tokens_ends_and_leaves_none(make_byte_level, specials, post, shown):
    hf = make_byte_level()
    hf.add_special_tokens({"additional_special_tokens": specials})
    tokenizer = wrap_tokenizer(hf)
    with counted("text") as work:
        prompt = render_prompt(tokenizer, QUESTION, f"({post})", 4000)
    assert f"Statement: ({shown})<|im_end|>" in prompt.text
    assert not set(hf.convert_tokens_to_ids(specials)) & set(prompt.ids)
    assert work.lines < 2000


@settings(max_examples=20)
@given(odd_posts)
@example("<answer>" * 400)
@example("</think>" * 400)
def test_a_completion_is_read_with_work_of_its_length(chatml, text):
    with counted("text") as work:
        GRAMMAR.parse(text)
    assert work.lines < 1000
    ids = chatml.encode(text)
    with counted("text") as work:
        chatml.decode(ids)
    assert work.lines <= 10 * len(ids) + 100
