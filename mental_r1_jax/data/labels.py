"""Which label of its set a value in a file is."""

from __future__ import annotations

import unicodedata

from mental_r1_jax.data.benchmarks import BenchmarkSpec
from mental_r1_jax.data.label_hint import label_hint, plain_number


def known_label(value: str, spec: BenchmarkSpec) -> str | None:
    """Return the label that `value` stands for; None where it is none.

    In the paper's layout only a label itself does. Of other files `label_map` comes first, then the
    labels; where neither has the value as it is written, numbers that are equal are the same label
    ("1.0", which pandas makes of 1), `True` is `true`, and all dashes are one sign: texts of the
    paper write "[3\\u20134]" for the label "[3-4]". The label is returned as the set spells it.
    """
    if spec.source is None:
        return value if value in spec.labels else None
    label_map = spec.source.label_map
    if value in label_map:
        return label_map[value]
    if value in spec.labels:
        return value
    meant = {label_map.get(one, one) for one in spellings(spec) if _loose(one) == _loose(value)}
    return meant.pop() if len(meant) == 1 else None


def spellings(spec: BenchmarkSpec) -> tuple[str, ...]:
    """Return everything that the label column of a set may hold."""
    return (*(spec.source.label_map if spec.source else ()), *spec.labels)


def expected_label(value: str, spec: BenchmarkSpec) -> str:
    """Return what should have stood in place of `value`, with a hint where one is likely."""
    known = spellings(spec)
    return "one of " + ", ".join(map(repr, known)) + label_hint(value, known)


def _loose(text: str) -> str:
    """What is left of a label when differences are undone that nobody means."""
    if text.lower() in ("true", "false"):
        return text.lower()
    dashed = "".join("-" if unicodedata.category(c) == "Pd" else c for c in text)
    return plain_number(dashed)
