"""Bytes and offsets of ids, against Hugging Face's own encoding and decoding."""

import json

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers
from tokenizers import Tokenizer as RawTokenizer
from transformers import PreTrainedTokenizerFast

from mental_r1_jax.errors import UserError
from mental_r1_jax.text.tokenizer import byte_spans, load_tokenizer, printable, wrap_tokenizer
from tests.text.conftest import sentencepiece_bpe

WORDS = [
    "the rain ",
    "🙂",
    "👩‍👩‍👧",
    "é",
    "e\u0301",
    "你好",
    "  ",
    "\n",
    "<0x41>",
    "<think>",
    "[note]",
]
any_text = st.one_of(st.text(), st.lists(st.sampled_from(WORDS)).map("".join))
quick = settings(max_examples=150, deadline=None)


@pytest.fixture(params=["chatml", "llama", "unigram"], scope="module")
def tokenizer(request):
    return request.getfixturevalue(request.param)


def checked_decode(tokenizer, ids):
    """The text of `ids`, after rebuilding text and offsets from the bytes of the single ids."""
    decoded = tokenizer.decode(ids)
    raw = decoded.text.encode("utf-8", "surrogateescape")
    pieces = [tokenizer.token_bytes[i] for i in ids]
    assert raw == b"".join(pieces)
    bounds = decoded.offsets.tolist()
    assert len(bounds) == len(ids) + 1 and bounds[0] == 0 and bounds[-1] == len(raw)
    assert [raw[a:b] for a, b in zip(bounds[:-1], bounds[1:], strict=True)] == pieces
    return decoded.text


def assume_no_special_token(tokenizer, text):
    """Skip texts that spell a special token, which has no text to come back."""
    assume(
        not any(t.content in text for t in tokenizer.hf.added_tokens_decoder.values() if t.special)
    )


def hf_decode(tokenizer, ids):
    return tokenizer.hf.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


@quick
@given(any_text)
def test_byte_level_text_comes_back_byte_for_byte(chatml, text):
    assume_no_special_token(chatml, text)
    ids = chatml.encode(text)
    assert checked_decode(chatml, ids) == text == hf_decode(chatml, ids)


@quick
@given(any_text)
def test_sentencepiece_text_comes_back_byte_for_byte(llama, unigram, text):
    # Their space *is* "▁", so a "▁" in a text cannot come back; nobody writes one.
    text = text.replace("▁", "_")
    assume_no_special_token(llama, text)
    ids = unigram.encode(text)
    assert checked_decode(unigram, ids) == text == hf_decode(unigram, ids)
    ids = llama.encode(text)
    # Encoding puts a space in front of the text; Hugging Face's decoding takes it away again.
    assert checked_decode(llama, ids) == (f" {text}" if text else "")
    assert hf_decode(llama, ids) == text


@quick
@given(st.data())
def test_any_ids_have_exact_offsets_and_agree_with_hugging_face(tokenizer, data):
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=30))
    text = checked_decode(tokenizer, ids)
    if printable(text) == text:  # valid UTF-8
        theirs = hf_decode(tokenizer, ids)
        # A decoder of Llama's kind drops one leading space; a completion must keep it.
        assert theirs in (text, text.removeprefix(" "))


@quick
@given(st.lists(st.integers(0, 419), max_size=30))
def test_broken_bytes_are_displayed_as_hugging_face_does(chatml, ids):
    assert printable(checked_decode(chatml, ids)) == hf_decode(chatml, ids)


@quick
@given(st.one_of(st.binary(max_size=30), st.text(max_size=10).map(str.encode)))
def test_every_byte_string_survives(llama, raw):
    ids = llama.hf.convert_tokens_to_ids([f"<0x{byte:02X}>" for byte in raw])
    decoded = llama.decode(np.asarray(ids, dtype=np.int32))
    assert decoded.text.encode("utf-8", "surrogateescape") == raw
    assert decoded.offsets.tolist() == list(range(len(raw) + 1))
    assert printable(decoded.text) == raw.decode("utf-8", "replace")


def test_an_added_run_of_spaces_is_spaces() -> None:
    """Gemma lists runs of its sign for the space among the added tokens."""
    hf = sentencepiece_bpe()
    hf.add_tokens([AddedToken("▁▁▁", normalized=False), AddedToken("\n\n", normalized=False)])
    tokenizer = wrap_tokenizer(hf)
    ids = hf.convert_tokens_to_ids(["▁▁▁", "\n\n", "▁▁▁"])
    assert checked_decode(tokenizer, ids) == "   \n\n   "
    assert hf_decode(tokenizer, ids) == "  \n\n   "  # its decoder drops one leading space


def test_special_and_unused_ids_are_empty_and_added_tokens_are_text(chatml):
    special = [chatml.hf.convert_tokens_to_ids(t) for t in ("<|pad|>", "<|im_start|>")]
    think = chatml.hf.convert_tokens_to_ids("<think>")
    assert [chatml.token_bytes[i] for i in (*special, *chatml.eos_ids, think)] == (
        [b"", b"", b"", b"<think>"]
    )
    decoded = chatml.decode([think, special[0], chatml.vocab_size + 5, think])
    assert decoded.text == "<think><think>"
    assert decoded.offsets.tolist() == [0, 7, 7, 7, 14]
    with pytest.raises(ValueError, match="-1"):
        chatml.decode([-1])


def test_added_tokens_beyond_ascii_keep_their_bytes(make_byte_level):
    tokenizer = wrap_tokenizer(make_byte_level(extra=["émoi 你"]))
    ids = tokenizer.encode("a émoi 你 b")
    assert len(ids) == 4 or tokenizer.hf.convert_tokens_to_ids("émoi 你") in ids
    assert checked_decode(tokenizer, ids) == "a émoi 你 b"


def test_normalizer_changes_text_only_at_encoding(make_byte_level):
    tokenizer = wrap_tokenizer(make_byte_level(normalizer=normalizers.NFC()))
    assert checked_decode(tokenizer, tokenizer.encode("cafe\u0301")) == "caf\u00e9"


def test_empty_sequence():
    raw = RawTokenizer(models.BPE(vocab={"a": 0, "</s>": 1}, merges=[]))
    raw.decoder = decoders.ByteLevel()
    tokenizer = wrap_tokenizer(PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="</s>"))
    decoded = tokenizer.decode([])
    assert decoded.text == "" and decoded.offsets.tolist() == [0]
    assert tokenizer.pad_id == tokenizer.eos_ids[0] == 1  # no pad token: EOS fills


@given(st.text(st.characters()))
def test_printable_is_total_and_leaves_good_text_alone(text):
    shown = printable(text)
    assert shown.encode("utf-8").decode("utf-8") == shown
    assert shown == text or any(0xD800 <= ord(char) <= 0xDFFF for char in text)


@given(st.binary(max_size=12), st.data())
def test_byte_spans_cut_the_same_text(raw, data):
    text = raw.decode("utf-8", "surrogateescape")
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, len(text)))
    span, nothing = byte_spans(text, [(start, end), None])
    assert nothing is None and span is not None
    assert raw[slice(*span)].decode("utf-8", "surrogateescape") == text[start:end]


@pytest.mark.parametrize(
    ("eos_json", "extra"),
    [(None, []), ("{}", []), ('{"eos_token_id": 0}', [0]), ('{"eos_token_id": [0, 2, 1]}', [0, 1])],
)
def test_load_joins_the_eos_ids_of_the_generation_config(
    make_byte_level, tmp_path, eos_json, extra
):
    hf = make_byte_level()
    hf.save_pretrained(tmp_path)
    if eos_json is not None:
        (tmp_path / "generation_config.json").write_text(eos_json)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.hf.eos_token_id == 2
    assert tokenizer.eos_ids == (*extra, 2)
    assert tokenizer.pad_id == 0
    assert tokenizer.vocab_size == len(hf)
    assert tokenizer.token_bytes == wrap_tokenizer(hf).token_bytes


def test_load_refuses_what_it_cannot_read(make_byte_level, tmp_path):
    with pytest.raises(UserError, match="no model folder"):
        load_tokenizer(tmp_path / "gone")
    with pytest.raises(UserError, match="cannot be loaded"):
        load_tokenizer(tmp_path)
    make_byte_level().save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text("[1")
    with pytest.raises(UserError, match="generation_config.json"):
        load_tokenizer(tmp_path)


def test_tokenizer_without_eos_or_of_another_kind_is_refused(make_byte_level):
    raw = RawTokenizer(models.WordPiece(vocab={"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    raw.decoder = decoders.WordPiece()
    with pytest.raises(UserError, match="WordPiece"):
        wrap_tokenizer(PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="a"))
    no_eos = PreTrainedTokenizerFast(tokenizer_object=make_byte_level().backend_tokenizer)
    with pytest.raises(UserError, match="end-of-sequence"):
        wrap_tokenizer(no_eos)
    assert wrap_tokenizer(no_eos, [2]).eos_ids == (2,)


def test_unused_ids_below_the_largest_are_empty(tmp_path, make_byte_level):
    hf = make_byte_level(extra=["<late>"])
    hf.save_pretrained(tmp_path)
    file = tmp_path / "tokenizer.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    vocab = content["model"]["vocab"]
    last = max(vocab, key=vocab.__getitem__)
    content["model"]["merges"] = [m for m in content["model"]["merges"] if "".join(m) != last]
    del vocab[last]  # leaves a hole
    file.write_text(json.dumps(content), encoding="utf-8")
    holed = PreTrainedTokenizerFast(tokenizer_file=str(file), eos_token="<|im_end|>")
    tokenizer = wrap_tokenizer(holed)
    late = holed.convert_tokens_to_ids("<late>")
    assert tokenizer.vocab_size == late + 1
    assert tokenizer.token_bytes[late] == b"<late>"
    assert len(tokenizer.token_bytes) == tokenizer.vocab_size
