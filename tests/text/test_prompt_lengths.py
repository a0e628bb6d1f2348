"""Lengths of many prompts at once, against rendering and encoding each by itself."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, normalizers, pre_tokenizers

from mental_r1_jax.text.prompt_lengths import frame_length, prompt_lengths
from mental_r1_jax.text.prompts import render_prompt
from mental_r1_jax.text.tokenizer import Tokenizer, wrap_tokenizer
from tests.text.conftest import CHATML, byte_level, sentencepiece_bpe

QUESTIONS = ["Is it raining?\nStatement: ", "Is it?\nStatement:", "雨? <|im_end|>\n"]

odd_posts = st.one_of(
    st.text(st.characters(exclude_categories=())),  # lone surrogates, too
    st.lists(
        st.sampled_from(
            ["the rain ", " ", "\n", "é", "e\u0301", "🙂", "你好", "<|im_end|>", "<|im_", "end|>"]
            + ["<think>", "x<", "note", "[note]", "<s>", "▁", "\u200d", "\udce9", "<", "user\n"]
        )
    ).map("".join),
)


def with_metaspace():
    """A tokenizer whose first piece alone gets a leading "▁"."""
    hf = sentencepiece_bpe()
    hf.backend_tokenizer.normalizer = normalizers.NFKC()
    hf.backend_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    hf.chat_template = (
        "{% for m in messages %}<s>{{ m['role'] }} {{ m['content'] }}</s>{% endfor %}<s>"
    )
    return hf


def reaching(content: str, **options):
    """ChatML that ends a turn by a special "<i", and an added token that may cover its "<".

    Where it is covered, the "i" joins the "ng" behind it to one token.
    """
    template = CHATML.replace("{{ m['content'] }}<|im_end|>", "{{ m['content'] }}<ing")
    hf = byte_level(extra=[AddedToken(content, normalized=False, **options)], template=template)
    hf.add_tokens([AddedToken("<i", normalized=False, special=True)], special_tokens=True)
    return hf


TOKENIZERS = {
    "chatml": lambda: byte_level(extra=["<think>", "</think>"]),
    "composed": lambda: byte_level(normalizer=normalizers.NFC()),
    "llama": sentencepiece_bpe,
    "metaspace": with_metaspace,
    "reaches in from the left": lambda: reaching("x<"),
    "holds a special token": lambda: reaching("rain <i"),
    "takes blanks": lambda: reaching("note", lstrip=True, rstrip=True),
    "without special tokens in the chat": lambda: byte_level(
        template="{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
    ),
}


@pytest.fixture(params=TOKENIZERS, scope="module")
def tokenizer(request):
    return wrap_tokenizer(TOKENIZERS[request.param]())


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(QUESTIONS), odd_posts), max_size=6))
@example([(QUESTIONS[0], "the rain x"), (QUESTIONS[1], "x<i"), (QUESTIONS[2], "the rain ")])
def test_lengths_are_those_of_prompts_made_one_by_one(tokenizer, prompts):
    questions, posts = [q for q, _ in prompts], [p for _, p in prompts]
    lengths = prompt_lengths(tokenizer, questions, posts)
    whole = [len(render_prompt(tokenizer, q, p, 10**9).ids) for q, p in prompts]
    empty = [len(render_prompt(tokenizer, q, "", 10**9).ids) for q in questions]
    assert lengths.prompts.tolist() == whole
    assert lengths.posts.tolist() == [n - m for n, m in zip(whole, empty, strict=True)]
    assert [frame_length(tokenizer, q) for q in questions] == empty


def test_what_all_prompts_share_is_encoded_once(chatml, monkeypatch):
    given_texts = []
    count = Tokenizer.count
    monkeypatch.setattr(
        Tokenizer, "count", lambda self, texts: given_texts.extend(texts) or count(self, texts)
    )
    posts = [f"the rain, day {day}" for day in range(50)]
    prompt_lengths(chatml, QUESTIONS[:1] * 50, posts)
    assert given_texts == [f"<|im_start|>user\n{QUESTIONS[0]}{post}<|im_end|>" for post in posts]


@settings(max_examples=20, deadline=None)
@given(st.lists(st.text(max_size=30), max_size=6), st.integers(1, 60))
def test_a_count_is_the_number_of_ids_in_any_batches(chatml, texts, size):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mental_r1_jax.text.tokenizer._BATCH_CHARS", size)
        assert chatml.count(texts).tolist() == [len(chatml.encode(text)) for text in texts]


def test_padding_and_truncation_of_the_file_do_not_count():
    hf = byte_level()
    hf.backend_tokenizer.enable_padding(length=64)
    hf.backend_tokenizer.enable_truncation(8)
    tokenizer = wrap_tokenizer(hf)
    assert tokenizer.count(["rain", "rain " * 40]).tolist() == [
        len(tokenizer.encode("rain")),
        len(tokenizer.encode("rain " * 40)),
    ]
    assert tokenizer.count(["rain " * 40])[0] >= 40


def test_long_texts_are_no_news(chatml, monkeypatch, caplog, capfd):
    monkeypatch.setattr(chatml.hf, "model_max_length", 4)
    chatml.encode("the rain " * 20)
    chatml.encode_with_starts("the rain " * 20)
    chatml.count(["the rain " * 20])
    assert not caplog.records and "longer" not in capfd.readouterr().err
    chatml.hf.encode("the rain " * 20)  # the library's own remark, which ours leave out
    assert "longer" in caplog.text + capfd.readouterr().err
