"""Recipes on disk: YAML file + command-line overrides -> validated `ExperimentConfig`, and back."""

from __future__ import annotations

import difflib
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pydantic
import yaml

from mental_r1_jax.config import ExperimentConfig
from mental_r1_jax.errors import UserError


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> ExperimentConfig:
    """Read a recipe, or the `config.yaml` of a run folder, and apply `section.key=value` overrides.

    Raises:
        UserError: the file is missing or is not YAML, or any value is wrong; lists every problem.
    """
    path = Path(path)
    file = path / "config.yaml" if path.is_dir() else path
    if not file.is_file():
        raise UserError(
            what="recipe not found",
            expected="a YAML file, or a run folder that holds config.yaml",
            got=str(path),
            remedy="give the path of a recipe, for example one of those in configs/",
        )
    return parse_config(file.read_text(encoding="utf-8"), overrides, source=str(file))


def parse_config(text: str, overrides: Sequence[str] = (), *, source: str) -> ExperimentConfig:
    """Validate the YAML `text` of a recipe after applying `overrides`; see `load_config`."""
    tree = _parse_yaml(text, what=f"{source} is not YAML")
    if not isinstance(tree, dict):
        raise UserError(
            what=f"{source} is not a recipe",
            expected="a mapping of sections (model, data, run, ...)",
            got=type(tree).__name__,
            remedy="start from one of the recipes in configs/",
        )
    for override in overrides:
        _apply_override(tree, override)
    try:
        return ExperimentConfig.model_validate(tree)
    except pydantic.ValidationError as error:
        problems = [_describe(problem) for problem in error.errors()]
        raise UserError(
            what=f"{len(problems)} problem(s) in {source}",
            expected="known keys with values in range",
            got="\n" + "\n".join(f"  - {problem}" for problem in problems),
            remedy="correct the recipe or the overrides; configs/README.md explains every key",
        ) from None


def dump_config(config: ExperimentConfig) -> str:
    """The resolved recipe as YAML that `load_config` reads back to an equal config."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


class _RecipeLoader(yaml.SafeLoader):
    """YAML in which only `true` and `false` are booleans: Yes, No and off are words."""


_RecipeLoader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern)
        for tag, pattern in resolvers
        if tag != "tag:yaml.org,2002:bool" or first in "tTfF"
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _parse_yaml(text: str, *, what: str) -> Any:
    try:
        return yaml.load(text, Loader=_RecipeLoader)
    except yaml.YAMLError as error:
        raise UserError(
            what=what, expected="valid YAML", got=str(error), remedy="mend the line it names"
        ) from None


def _apply_override(tree: dict[str, Any], override: str) -> None:
    """Set one `section.key=value` in the nested mapping `tree`; the value is read as YAML."""
    name, equals, value = override.partition("=")
    keys = name.split(".")
    if not equals or len(keys) < 2 or not all(keys):
        raise UserError(
            what="override not understood",
            expected="section.key=value, for example crpo.kl_coef=0",
            got=override,
            remedy="write section and key with a dot, and the value after '='",
        )
    node = tree
    for key in keys[:-1]:
        child = node.get(key)
        node[key] = child = {} if child is None else child
        if not isinstance(child, dict):
            raise UserError(
                what=f"override {override!r} goes below a plain value",
                expected=f"{key} to be a section",
                got=repr(child),
                remedy="check the key's path",
            )
        node = child
    node[keys[-1]] = _parse_yaml(value, what=f"the value of override {override!r} is not YAML")


def _describe(problem: Mapping[str, Any]) -> str:
    """One line for one pydantic problem, with the nearest field for an unknown key."""
    location = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        *parents, key = (str(part) for part in problem["loc"])
        section = _section_at(parents)
        fields = list(section.model_fields) if section else []
        near = difflib.get_close_matches(key, fields, n=1, cutoff=0.0)
        hint = f"; did you mean {'.'.join([*parents, near[0]])!r}?" if near else ""
        return f"unknown key {location!r}{hint}"
    if problem["type"] == "missing":
        return f"{location} is required"
    message = str(problem["msg"]).removeprefix("Value error, ")
    if problem["type"] == "value_error":
        return f"{location}: {message}" if location else message
    return f"{location}: {message}, got {problem['input']!r}"


def _section_at(keys: Sequence[str]) -> type[pydantic.BaseModel] | None:
    """The section class that a path of keys leads to; None inside free-form mappings."""
    section: type[pydantic.BaseModel] | None = ExperimentConfig
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
