"""A completion cut at its answer, and the tokens by which each label would go on from there.

This is what the probability of a label is measured on. The reasoning is kept as it was sampled up
to the first answer tag; where there is none, the tags that are missing are written behind it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mental_r1_jax.text.stages import GRAMMAR, Grammar
from mental_r1_jax.text.tokenizer import Tokenizer, printable

_LETTER = "a"  # which joins no tag and no line end in one token


@dataclass(frozen=True)
class ForcedAnswer:
    """One reasoning, and one ending a label.

    Attributes:
        shared: completion tokens that all labels have in common, the answer tag included.
        endings: for each label the tokens that follow, its own and those of the closing tag.
    """

    shared: tuple[int, ...]
    endings: tuple[tuple[int, ...], ...]


def cut_at_answer(completion: str, grammar: Grammar = GRAMMAR) -> tuple[str, str]:
    """Return the text before the answer of `completion`, and the tags to write behind it.

    The second part ends with the answer tag. Before it come, where the completion has no answer
    tag, a line end and, where it has no closing tag of the reasoning, that tag in a line of its
    own. A stage that was not closed stays open.
    """
    answer, think_end = f"<{grammar.answer_tag}>", f"</{grammar.think_tag}>"
    before, tag, _ = completion.partition(answer)
    if tag:
        return before, answer
    return before, f"\n{answer}" if think_end in before else f"\n{think_end}\n{answer}"


def forced_answer(
    tokenizer: Tokenizer, ids: Sequence[int], labels: Sequence[str], grammar: Grammar = GRAMMAR
) -> ForcedAnswer:
    """Return the shared tokens of a completion and the endings of all labels.

    1. The sampled tokens that end before the answer tag are kept as they are; special tokens at
       their end, such as EOS, are dropped.
    2. What is left of the text before the tag (part of a token that goes on into the tag), the tags
       of `cut_at_answer`, the label and the closing answer tag are encoded in one piece for each
       label, as the tokenizer encodes them by itself.
    3. The tokens with which all of these begin join the shared part.

    The closing tag makes endings exclusive where one label begins another, as "Mild" and
    "Mild-moderate" do. A tag and the first letters of a label may be one token: then the tag's end
    is counted with every label, never with some of them only.

    Args:
        ids: the tokens of the completion, padding left out.
        labels: two or more that differ.
        grammar: has the tags.
    """
    decoded = tokenizer.decode(ids)
    before, tags = cut_at_answer(decoded.text, grammar)
    encoded = before.encode("utf-8", "surrogateescape")
    kept = int(np.searchsorted(decoded.offsets[1:], len(encoded), side="right"))
    while kept and decoded.offsets[kept] == decoded.offsets[kept - 1]:
        kept -= 1
    rest = encoded[int(decoded.offsets[kept]) :].decode("utf-8", "surrogateescape")
    start = printable(rest) + tags
    tails = [
        _encode_inside(tokenizer, f"{start}{label}</{grammar.answer_tag}>") for label in labels
    ]
    common = _common_beginning(tails)
    shared = (*(int(i) for i in ids[:kept]), *tails[0][:common])
    return ForcedAnswer(shared, tuple(tuple(tail[common:]) for tail in tails))


def _encode_inside(tokenizer: Tokenizer, text: str) -> list[int]:
    """The ids of a text that follows another one.

    Some SentencePiece tokenizers put a space before whatever they encode, which would stand before
    the tag here; behind a letter they do not.
    """
    ids = tokenizer.encode(text)
    if tokenizer.decode(ids).text == text:
        return ids
    behind, starts = tokenizer.encode_with_starts(_LETTER + text)
    inside = [i for i, start in zip(behind, starts, strict=True) if start >= len(_LETTER)]
    return inside if tokenizer.decode(inside).text == text else ids


def _common_beginning(sequences: Sequence[Sequence[int]]) -> int:
    """How many tokens all sequences begin with alike."""
    length = 0
    for tokens in zip(*sequences, strict=False):
        if len(set(tokens)) > 1:
            break
        length += 1
    return length
