"""The one reader of answers: which label an answer names, for rewards and for evaluation alike."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mental_r1_jax.config import AnswerMatch

# What `lenient` reads past, in the order in which it is mended; their places are the bits of
# `mended_kinds`.
MENDED_KINDS = ("invisible", "unicode", "dashes", "quotes", "marks")

_QUOTES = "\"'«»‹›„‚“”‘’`´"
_BOLD = re.compile(r"\*+|`+|~~|</?(?:b|i|u|em|strong|code)>|^[#>\s]+|(?<!\w)_+|_+(?!\w)", re.I)


@dataclass(frozen=True)
class AnswerReader:
    """How the answers of a recipe's sets are read.

    Attributes:
        labels: set name -> its labels.
        match: see `read_answer`.
    """

    labels: Mapping[str, Sequence[str]]
    match: AnswerMatch = "prefix"

    def read(self, set_name: str, answer: str | None) -> str | None:
        """Return the label of the set that `answer` names, or None."""
        return read_answer(answer, self.labels[set_name], self.match)

    def mended(self, set_name: str, answer: str | None) -> int:
        """Return `mended_kinds` of an answer that only `lenient` could read so, else 0."""
        if self.match != "lenient" or answer is None:
            return 0
        labels = self.labels[set_name]
        strictly = read_answer(answer, labels, "prefix")
        return 0 if strictly == read_answer(answer, labels, "lenient") else mended_kinds(answer)


def read_answer(
    answer: str | None, labels: Sequence[str], match: AnswerMatch = "prefix"
) -> str | None:
    """Return which of `labels` an answer names, ignoring case; the longest where several are named.

    So "C++" is "C++" and not "C", and "Mild-moderate" is not "Mild", where both are labels.

    Args:
        answer: the stripped answer, or None where there is none.
        labels: all labels of the set.
        match: "prefix": the answer starts with the label and no word character follows it, nor a
            mark of one, so "Yes, clearly" names "Yes" and "Yesterday" does not; "exact": it is the
            label; "lenient": as "prefix", but past the signs that `MENDED_KINDS` lists.
    """
    if answer is None:
        return None
    if match != "lenient":
        named = [label for label in labels if _begins(answer, label, exact=match == "exact")]
        return max(named, key=len, default=None)
    mended = _mend(answer)[0]
    named = [label for label in labels if _begins(mended, _mended_label(label), exact=False)]
    # Labels that differ only in what is mended are told apart by the answer as it was written.
    return max(
        named, key=lambda x: (len(_mended_label(x)), _begins(answer, x, False)), default=None
    )


def mended_kinds(answer: str) -> int:
    """Return which `MENDED_KINDS` `lenient` mends in `answer`, bit i for kind i."""
    return _mend(answer)[1]


def _begins(answer: str, label: str, exact: bool) -> bool:
    """Whether `answer` is `label`, or begins with it as a whole word."""
    end = r"\Z" if exact else r"(?!\w)"
    found = re.match(re.escape(label) + end, answer, re.IGNORECASE)
    if found is None:
        return False
    # Vowel signs and other marks belong to the letter before them, and `\w` does not know them.
    following = answer[found.end() : found.end() + 1]
    return not following or not unicodedata.category(following).startswith("M")


@functools.lru_cache(maxsize=1024)
def _mended_label(label: str) -> str:
    return _mend(label)[0] or label


def _mend(text: str) -> tuple[str, int]:
    """`text` without the differences that say nothing, and which kinds there were."""
    steps = (
        lambda t: "".join(c for c in t if unicodedata.category(c) != "Cf"),
        lambda t: " ".join(unicodedata.normalize("NFKC", t).split()),
        lambda t: "".join("-" if unicodedata.category(c) == "Pd" or c == "−" else c for c in t),
        _without_outer_quotes,
        lambda t: _without_outer_quotes(_BOLD.sub("", t).strip()),
    )
    kinds = 0
    for bit, step in enumerate(steps):
        mended = step(text)
        kinds |= (mended != text) << bit
        text = mended
    return text, kinds


def _without_outer_quotes(text: str) -> str:
    """`text` with plain quotes inside and none around it."""
    plain = "".join({"’": "'", "‘": "'", "“": '"', "”": '"'}.get(c, c) for c in text)
    return plain.strip(_QUOTES + " ")
