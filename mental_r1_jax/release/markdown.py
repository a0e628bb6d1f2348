"""Markdown of a model card: tables, and text that cannot be taken for something else."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from mental_r1_jax.errors import visible


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; its cells are given as Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def plain(value: Any) -> str:
    """`value` as text that cannot be taken for a table border, a tag, a link or a control."""
    return visible(re.sub(r"([|<>\[\]*`\\])", r"\\\1", str(value)).replace("\n", " "))
