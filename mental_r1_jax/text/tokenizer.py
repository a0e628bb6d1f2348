"""Token ids to text and back, with the exact bytes of every id.

A sampled id may hold part of a character, and decoding followed by encoding is not the identity.
So the stage masks never re-tokenise: each id is known by its bytes, a completion is their
concatenation, and the offsets of the *sampled* ids are running sums of byte lengths.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from mental_r1_jax.errors import UserError
from mental_r1_jax.json_files import read_json_object

# A batch of the library holds about 50 bytes for each of these.
_BATCH_CHARS = 2**20
_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
# Surrogates that no broken byte stands behind (surrogateescape makes only U+DC80 to U+DCFF).
_OTHER_SURROGATES = re.compile("[\ud800-\udc7f\udd00-\udfff]")


@dataclass(frozen=True)
class DecodedCompletion:
    """The text of a sequence of ids, and where each id lies in it.

    Attributes:
        text: the bytes of the ids, decoded with "surrogateescape": broken UTF-8 survives as lone
            surrogates, so encoding the text the same way gives back exactly the same bytes.
        offsets: id i covers bytes offsets[i] to offsets[i + 1] of the text so encoded; special
            tokens cover none.
    """

    text: str
    offsets: Int[np.ndarray, " n_plus_1"]


@dataclass(frozen=True, eq=False)  # compared by identity, so that it can key a cache
class Tokenizer:
    """A fast Hugging Face tokenizer with the exact bytes of every id.

    Attributes:
        hf: the tokenizer itself.
        vocab_size: number of ids (the largest plus one), added tokens included.
        eos_ids: every id that ends a completion, ascending.
        pad_id: the id that fills padding; masks never depend on it.
        token_bytes: the bytes of every id; b"" for special tokens and unused ids.
    """

    hf: PreTrainedTokenizerBase
    vocab_size: int
    eos_ids: tuple[int, ...]
    pad_id: int
    token_bytes: tuple[bytes, ...]

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`; tokens written in it are recognised, none is added."""
        # `verbose=False`: a text longer than the model's window is no news, prompts are truncated.
        ids: list[int] = self.hf.encode(text, add_special_tokens=False, verbose=False)
        return ids

    def count(self, texts: Sequence[str]) -> Int[np.ndarray, " n"]:
        """Return how many ids `encode` gives for each of `texts`, on all cores at once.

        `TOKENIZERS_PARALLELISM=false` keeps it to one. A process forked afterwards has one, too:
        the library notices the fork.
        """
        self.encode("")  # puts truncation, padding and special tokens as `encode` has them
        backend = self.hf.backend_tokenizer
        counts: list[int] = []
        for start, stop in _batches(texts):
            encoded = backend.encode_batch_fast(texts[start:stop], add_special_tokens=False)
            counts += map(len, encoded)
        return np.array(counts, dtype=np.int64)

    def encode_with_starts(self, text: str) -> tuple[list[int], Int[np.ndarray, " n"]]:
        """Return the ids of `text`, as `encode` does, and the character at which each begins.

        A token that begins inside a character has the offset of the character.
        """
        encoded = self.hf(
            text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        starts = np.array([start for start, _ in encoded["offset_mapping"]], dtype=np.int64)
        return encoded["input_ids"], starts

    def decode(self, ids: Sequence[int | np.integer] | Int[np.ndarray, " n"]) -> DecodedCompletion:
        """Return text and byte offsets of `ids`.

        Ids beyond the vocabulary are empty: models often pad their vocabulary, and such an id can
        be sampled. Unlike Hugging Face, no leading space is stripped, because a completion
        continues a prompt.

        Raises:
            ValueError: an id is negative.
        """
        pieces = [self._bytes_of(int(i)) for i in ids]
        offsets = np.cumsum([0, *map(len, pieces)], dtype=np.int64)
        return DecodedCompletion(b"".join(pieces).decode("utf-8", "surrogateescape"), offsets)

    def _bytes_of(self, token_id: int) -> bytes:
        if token_id < 0:
            raise ValueError(f"{token_id=} is negative; leave the padding out before decoding")
        return self.token_bytes[token_id] if token_id < self.vocab_size else b""


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Load the tokenizer of a Hugging Face model folder, without network and without its code.

    Raises:
        UserError: no folder, no fast tokenizer in it, an unsupported kind, or no EOS token.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise UserError(
            what=f"There is no model folder {str(folder)!r}",
            expected="a folder with tokenizer.json",
            got="no such folder",
            remedy="Give the path of a Hugging Face model folder.",
        )
    try:
        hf = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    # Broken files end in any kind of error there, also in plain `Exception` from Rust.
    except Exception as error:
        raise UserError(
            what=f"The tokenizer of {str(folder)!r} cannot be loaded",
            expected="tokenizer.json of a fast tokenizer that needs no code of its own",
            got=f"{type(error).__name__}: {error}",
            remedy="Copy the tokenizer files of the model into the folder; if they are newer than "
            "the libraries here, update transformers and tokenizers.",
        ) from error
    return wrap_tokenizer(hf, _generation_eos_ids(folder / "generation_config.json"))


def wrap_tokenizer(
    hf: PreTrainedTokenizerBase, generation_eos_ids: Sequence[int] = ()
) -> Tokenizer:
    """Wrap a Hugging Face tokenizer; `generation_eos_ids` join its own EOS token.

    Raises:
        UserError: it is not a fast tokenizer, of an unsupported kind, or has no EOS token.
    """
    if not hf.is_fast:
        raise UserError(
            what="The tokenizer is a slow one",
            expected="a fast tokenizer (tokenizer.json)",
            got=type(hf).__name__,
            remedy="Convert it: load it with transformers and save it with save_pretrained.",
        )
    own = () if hf.eos_token_id is None else (hf.eos_token_id,)
    eos_ids = tuple(sorted({*own, *generation_eos_ids}))
    if not eos_ids:
        raise UserError(
            what="The tokenizer has no end-of-sequence token",
            expected="eos_token in tokenizer_config.json or eos_token_id in generation_config.json",
            got="neither",
            remedy="Name the token that ends the assistant's turn in one of them.",
        )
    token_bytes = _token_bytes(hf)
    return Tokenizer(
        hf=hf,
        vocab_size=len(token_bytes),
        eos_ids=eos_ids,
        pad_id=eos_ids[0] if hf.pad_token_id is None else hf.pad_token_id,
        token_bytes=token_bytes,
    )


def printable(text: str) -> str:
    """Return `text` with broken UTF-8 (lone surrogates) shown as U+FFFD."""
    escaped = _OTHER_SURROGATES.sub("\ufffd", text)
    return escaped.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def byte_spans(
    text: str, char_spans: Sequence[tuple[int, int] | None]
) -> tuple[tuple[int, int] | None, ...]:
    """Turn character spans of a decoded text into byte spans; None stays None."""

    def byte_offset(index: int) -> int:
        return len(text[:index].encode("utf-8", "surrogateescape"))

    return tuple(
        None if span is None else (byte_offset(span[0]), byte_offset(span[1]))
        for span in char_spans
    )


def _batches(texts: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Bounds of batches of at most `_BATCH_CHARS` characters, or of one text."""
    start, size = 0, 0
    for i, text in enumerate(texts):
        if size and size + len(text) > _BATCH_CHARS:
            yield start, i
            start, size = i, 0
        size += len(text)
    if start < len(texts):
        yield start, len(texts)


def _generation_eos_ids(file: Path) -> tuple[int, ...]:
    """The EOS ids that generation_config.json names: none, one or a list."""
    if not file.is_file():
        return ()
    eos = read_json_object(file, remedy="mend the file or remove it").get("eos_token_id")
    ids = [] if eos is None else eos if isinstance(eos, list) else [eos]
    if not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids):
        raise UserError(
            what=f"eos_token_id in {file} is not a token id",
            expected="a number from 0 on, or a list of them",
            got=f"{eos!r:.80}",
            remedy="mend the file or remove it",
        )
    return tuple(ids)


def _token_bytes(hf: PreTrainedTokenizerBase) -> tuple[bytes, ...]:
    """The exact bytes of every id, by the kind of the tokenizer's decoder."""
    decoder = hf.backend_tokenizer.decoder  # its state is its JSON, without the vocabulary
    steps = _decoder_steps(None if decoder is None else json.loads(decoder.__getstate__()))
    added = hf.added_tokens_decoder
    vocabulary = {i: t for t, i in hf.get_vocab().items() if i not in added}
    spaces = "▁"  # what stands for a space in added tokens, which pass the same decoder
    if "ByteLevel" in steps:
        spaces = ""
        char_to_byte = _byte_level_alphabet()
        pieces = {i: _byte_level_bytes(token, char_to_byte) for i, token in vocabulary.items()}
    elif "Metaspace" in steps or {"Replace", "ByteFallback"} <= steps:
        fallback = "ByteFallback" in steps
        pieces = {i: _sentencepiece_bytes(t, fallback) for i, t in vocabulary.items()}
    else:
        raise UserError(
            what="The kind of this tokenizer is not supported",
            expected="byte-level BPE or SentencePiece, whose ids have exact bytes",
            got=f"a decoder of {sorted(steps)}",
            remedy="Use a model of the Llama, Qwen, Mistral or Gemma families.",
        )
    for i, token in added.items():
        text = token.content.replace(spaces, " ") if spaces else token.content
        pieces[i] = b"" if token.special else text.encode("utf-8")
    # Not len(hf): some vocabularies leave ids unused, so the largest id exceeds their number.
    return tuple(pieces.get(i, b"") for i in range(max(pieces, default=-1) + 1))


def _decoder_steps(decoder: dict[str, object] | None) -> set[str]:
    """Names of the steps of a `tokenizers` decoder, sequences opened."""
    if decoder is None:
        return set()
    if decoder["type"] != "Sequence":
        return {str(decoder["type"])}
    inner = decoder["decoders"]
    assert isinstance(inner, list)
    return {step for part in inner for step in _decoder_steps(part)}


def _byte_level_alphabet() -> dict[str, int]:
    """The printable stand-in of every byte in byte-level BPE.

    Printable Latin-1 bytes stand for themselves, the others for U+0100 and up, in order.
    """
    itself = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    shifted = [byte for byte in range(256) if byte not in set(itself)]
    return {chr(byte): byte for byte in itself} | {
        chr(0x100 + index): byte for index, byte in enumerate(shifted)
    }


def _byte_level_bytes(token: str, char_to_byte: dict[str, int]) -> bytes:
    """Bytes of a byte-level token; one outside the alphabet stands for itself, as in decoding."""
    try:
        return bytes(map(char_to_byte.__getitem__, token))
    except KeyError:
        return token.encode("utf-8")


def _sentencepiece_bytes(token: str, fallback: bool) -> bytes:
    """Bytes of a SentencePiece token: a fallback byte, or text with "▁" for the space."""
    byte = _BYTE_PIECE.fullmatch(token) if fallback else None
    return bytes([int(byte[1], 16)]) if byte else token.replace("▁", " ").encode("utf-8")
