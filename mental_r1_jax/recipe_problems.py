"""What pydantic found wrong with a recipe, in words of the recipe."""

from __future__ import annotations

import difflib
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pydantic

# How pydantic names the branch of a union behind the key that has one.
_BRANCH = re.compile(r"(function-\w+|literal|lax-or-strict|constrained-\w+)\[")


def describe_problem(problem: Mapping[str, Any], root: type[pydantic.BaseModel]) -> str:
    """One line for one pydantic problem of a `root`, with the nearest field for an unknown key."""
    keys = [part for part in problem["loc"] if not _BRANCH.match(str(part))]
    location = ".".join(f"{part!s:.200}" for part in keys)
    if problem["type"] == "extra_forbidden":
        *parents, key = (str(part) for part in problem["loc"])
        section = _section_at(parents, root)
        fields = list(section.model_fields) if section else []
        # Of a long key the beginning only: comparing takes time with the product of the lengths.
        near = difflib.get_close_matches(key[:80], fields, n=1, cutoff=0.0)
        hint = f"; did you mean {'.'.join([*parents, near[0]])!r}?" if near else ""
        return f"unknown key {location!r}{hint}"
    if problem["type"] == "missing":
        return f"{location} is required"
    message = str(problem["msg"]).removeprefix("Value error, ")
    if problem["type"] == "value_error":
        return f"{location}: {message}" if location else message
    return f"{location}: {message}, got {_shown(problem['input'])}"


def _shown(value: Any) -> str:
    """A value as the user wrote it, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 300 else f"{text[:300]}..."


def _section_at(
    keys: Sequence[str], root: type[pydantic.BaseModel]
) -> type[pydantic.BaseModel] | None:
    """The section class that a path of keys from `root` leads to; None in free-form mappings."""
    section: type[pydantic.BaseModel] | None = root
    for key in keys:
        if section is None:
            return None
        field = section.model_fields.get(key)
        section = next(_models_in(field.annotation), None) if field else section
    return section


def _models_in(annotation: Any) -> Iterator[type[pydantic.BaseModel]]:
    """Section classes named by a field's annotation, also inside dict[...] and unions."""
    if isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
        yield annotation
    for part in typing.get_args(annotation):
        yield from _models_in(part)
