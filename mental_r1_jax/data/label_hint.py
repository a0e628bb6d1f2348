"""Which known label an unknown one was probably meant to be."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping, Sequence


def plain_number(text: str) -> str:
    """Return the "1" for which spreadsheets and pandas write "1.0"."""
    whole, dot, rest = text.partition(".")
    return whole if dot and whole.lstrip("+-").isdigit() and set(rest) <= {"0"} else text


# What two labels may differ in, and what undoes it.
_DIFFERENCES: Mapping[str, Callable[[str], str]] = {
    "invisible characters": lambda t: "".join(c for c in t if unicodedata.category(c) != "Cf"),
    "Unicode form": lambda t: unicodedata.normalize("NFKC", t),
    "dashes": lambda t: "".join("-" if unicodedata.category(c) == "Pd" else c for c in t),
    "blanks": lambda t: "".join(t.split()),
    "case": str.casefold,
    "number format": plain_number,
}


def label_hint(value: str, labels: Sequence[str]) -> str:
    """Return " (is 'Calm' meant? It differs in case)" for the one likely label, or "".

    The value itself is not shown: it may be a post in the wrong column.
    """
    if len(value) > 2 * max(map(len, labels)) + 8:
        return ""
    likely = [label for label in labels if _undo(label, _DIFFERENCES) == _undo(value, _DIFFERENCES)]
    if len(likely) != 1:
        return ""
    # A difference counts if the two stay apart unless it is undone; several may undo the same.
    needed = [
        name
        for name in _DIFFERENCES
        if _undo(value, set(_DIFFERENCES) - {name}) != _undo(likely[0], set(_DIFFERENCES) - {name})
    ] or [name for name in _DIFFERENCES if _undo(value, {name}) == _undo(likely[0], {name})][:1]
    return f" (is {likely[0]!r} meant? It differs in {' and '.join(needed) or 'spelling'})"


def _undo(text: str, names: Mapping[str, Callable[[str], str]] | set[str]) -> str:
    """`text` without the differences of these names."""
    for name, undo in _DIFFERENCES.items():
        text = undo(text) if name in names else text
    return text
