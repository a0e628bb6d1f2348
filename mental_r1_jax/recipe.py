"""Recipes on disk: YAML file + command-line overrides -> validated `ExperimentConfig`, and back."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pydantic
import yaml

from mental_r1_jax.config import ExperimentConfig
from mental_r1_jax.errors import UserError
from mental_r1_jax.recipe_problems import describe_problem
from mental_r1_jax.section import Section
from mental_r1_jax.text_section import GrammarSection, WordingSection

# A chain of `base:` recipes longer than this is a mistake, not a design.
MAX_BASES = 8
_SHOWN_PROBLEMS = 100


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> ExperimentConfig:
    """Read a recipe, or the `config.yaml` of a run folder, and apply `section.key=value` overrides.

    Raises:
        UserError: the file or a base is missing or is not YAML, or any value is wrong; lists every
            problem.
    """
    file = recipe_file(path)
    return parse_config(recipe_text(file), overrides, source=str(file))


def config_of_model(
    model: str, overrides: Sequence[str], recipe: str | None, set_name: str | None
) -> ExperimentConfig:
    """The recipe to ask a model with: the one given, that of its run folder, else the defaults.

    Args:
        model: run folder, model folder or hub id.
        overrides: `section.key=value`.
        recipe: a YAML file or a run folder, or None.
        set_name: the set whose question is asked; the defaults have no other.

    Raises:
        UserError: `load_config`'s, or nothing tells the question.
    """
    if recipe is not None:
        return load_config(recipe, overrides)
    if (Path(model) / "config.yaml").is_file():
        return load_config(model, overrides)
    if set_name is None:
        raise UserError(
            what=f"nothing tells what to ask {model}",
            expected="the folder of a run, or a recipe, or the name of a set",
            got="no recipe beside the model",
            remedy="name a set with --set, or a recipe with --recipe",
        )
    # Nothing is written into this run folder.
    tree = {"model": {"path": model}, "data": {"sets": [set_name]}, "run": {"output_dir": "."}}
    return parse_config(yaml.safe_dump(tree), overrides, source=f"the defaults for {model}")


def recipe_file(path: str | Path) -> Path:
    """The YAML file that `path` names: itself, or `config.yaml` where it is a run folder.

    Raises:
        UserError: there is no such file.
    """
    path = Path(path)
    file = path / "config.yaml" if path.is_dir() else path
    if not os.path.isfile(file):  # False too for a name that is too long
        raise UserError(
            what="recipe not found",
            expected="a YAML file, or a run folder that holds config.yaml",
            got=str(path),
            remedy="give the path of a recipe, for example one of those in configs/",
        )
    return file


def recipe_text(file: Path) -> str:
    """What stands in a YAML file.

    Raises:
        UserError: it is not text in UTF-8.
    """
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            what=f"{file} is not text in UTF-8",
            expected="a YAML file",
            got=str(error),
            remedy="give the path of a recipe; where a run has lost its config.yaml, put "
            "the recipe that it was started with in its place",
        ) from None


def parse_config(text: str, overrides: Sequence[str] = (), *, source: str) -> ExperimentConfig:
    """Validate the YAML `text` of a recipe after applying `overrides`; see `load_config`.

    Args:
        text: the recipe. Its values win over those of its `base:`, and overrides win over both.
        overrides: `section.key=value`, the later one wins.
        source: the recipe's file, for complaints; a `base:` is relative to its folder.
    """
    layers = _read_layers(text, source)
    tree: dict[str, Any] = {}
    for _, layer in layers:
        _merge(tree, layer)
    for override in overrides:
        _apply_override(tree, override)
    _read_named_files(tree)
    try:
        return ExperimentConfig.model_validate(tree)
    except pydantic.ValidationError as error:
        problems = [
            describe_problem(problem, ExperimentConfig) + _origin(problem["loc"], layers, overrides)
            for problem in error.errors()[:_SHOWN_PROBLEMS]
        ]
        raise UserError(
            what=f"{error.error_count()} problem(s) in {source}",
            expected="known keys with values in range",
            got="\n" + "\n".join(f"  - {problem}" for problem in problems),
            remedy="correct the recipe or the overrides; configs/README.md explains every key",
        ) from None


def _read_named_files(tree: dict[str, Any]) -> None:
    """Put what stands in the files that the section `text` names in the place of their names."""
    section = tree.get("text")
    for key, model in (("wording", WordingSection), ("grammar", GrammarSection)):
        if isinstance(section, dict) and isinstance(section.get(key), str):
            section[key] = _read_section(Path(section[key]), model, f"text.{key}")


def _read_section(file: Path, model: type[Section], key: str) -> dict[str, Any]:
    """A section that is a file of its own, checked.

    Raises:
        UserError: the file is missing or is not YAML, or any value is wrong; lists every problem.
    """
    if not os.path.isfile(file):
        raise UserError(
            what=f"{key} names a file that is not there",
            expected="a YAML file; a relative path counts from where the command is started",
            got=str(file),
            remedy="correct the path",
        )
    content = parse_yaml(recipe_text(file), what=f"{file} is not YAML")
    try:
        return model.model_validate(content).model_dump(mode="json")
    except pydantic.ValidationError as error:
        found = [describe_problem(problem, model) for problem in error.errors()[:_SHOWN_PROBLEMS]]
        raise UserError(
            what=f"{error.error_count()} problem(s) in {file}, which {key} names",
            expected="known keys with values of the right form",
            got="\n" + "\n".join(f"  - {problem}" for problem in found),
            remedy="correct the file; docs/languages.md explains every key",
        ) from None


def dump_config(config: ExperimentConfig) -> str:
    """The resolved recipe as YAML that `load_config` reads back to an equal config."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


# Far more than any recipe has. Reading is refused beyond them, for it could take hours.
_MAX_CHARACTERS, _MAX_NODES, _MAX_DIGITS, _MAX_DEPTH = 1_000_000, 20_000, 400, 50
# What constructors of YAML values raise where a value is not what its tag says.
_WRONG_VALUES = (ValueError, ArithmeticError, LookupError, TypeError, AttributeError)


class _RecipeLoader(yaml.SafeLoader):
    """YAML in which only `true` and `false` are booleans: Yes, No and off are words.

    Brackets may be nested so deep only: finding their ends takes time with the square of the depth.
    """

    def fetch_flow_collection_start(self, TokenClass: Any) -> None:
        """Read an opening bracket, as the scanner does, unless it is too deep."""
        if self.flow_level >= _MAX_DEPTH:
            raise yaml.YAMLError(f"brackets in brackets, more than {_MAX_DEPTH} deep")
        super().fetch_flow_collection_start(TokenClass)


_RecipeLoader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern)
        for tag, pattern in resolvers
        if tag != "tag:yaml.org,2002:bool" or first in "tTfF"
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def parse_yaml(text: str, *, what: str) -> Any:
    """Read YAML as a recipe's; refused before it costs more than a moment.

    Values of the wrong form (a date such as 2024-99-99) end in any kind of error there.

    Args:
        text: the YAML.
        what: opens the complaint where it is none.
    """
    try:
        if len(text) > _MAX_CHARACTERS:
            raise yaml.YAMLError(f"{len(text)} characters, more than {_MAX_CHARACTERS}")
        return _load_yaml(text)
    except (yaml.YAMLError, RecursionError, *_WRONG_VALUES) as error:
        raise UserError(
            what=what,
            expected="valid YAML",
            got=f"{str(error) or type(error).__name__:.2000}",
            remedy="mend the line it names",
        ) from None


def _load_yaml(text: str) -> Any:
    loader = _RecipeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _expanded_size(node, {})
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _expanded_size(node: yaml.Node, sizes: dict[int, int]) -> int:
    """Number of nodes with every alias written out; `sizes` holds those that are known.

    Raises:
        YAMLError: there are too many, a node holds itself, or a number is too long.
    """
    if id(node) in sizes:
        if not sizes[id(node)]:
            raise yaml.YAMLError(f"a value that holds itself{node.start_mark}")
        return sizes[id(node)]
    sizes[id(node)] = 0  # begun
    size = 1
    if isinstance(node, yaml.ScalarNode):
        number = node.tag.endswith((":int", ":float", ":timestamp"))
        if number and len(node.value) > _MAX_DIGITS:
            raise yaml.YAMLError(f"a number of {len(node.value)} digits{node.start_mark}")
    else:
        pairs = node.value if isinstance(node, yaml.MappingNode) else [(n,) for n in node.value]
        size += sum(_expanded_size(part, sizes) for pair in pairs for part in pair)
    if size > _MAX_NODES:
        raise yaml.YAMLError(f"more than {_MAX_NODES} values, aliases written out{node.start_mark}")
    sizes[id(node)] = size
    return size


def _read_layers(text: str, source: str) -> list[tuple[str, dict[str, Any]]]:
    """(file, sections) of a recipe and of its bases, the farthest base first.

    Raises:
        UserError: a base is missing, names itself in a circle, or the chain is too long.
    """
    layers: list[tuple[str, dict[str, Any]]] = []
    seen = {Path(source).resolve()}
    while True:
        tree = parse_yaml(text, what=f"{source} is not YAML")
        if not isinstance(tree, dict):
            raise UserError(
                what=f"{source} is not a recipe",
                expected="a mapping of sections (model, data, run, ...)",
                got=type(tree).__name__,
                remedy="start from one of the recipes in configs/",
            )
        layers.insert(0, (source, tree))
        if "base" not in tree:
            return layers
        file = _base_file(tree.pop("base"), source)
        chain = [*reversed([name for name, _ in layers]), str(file)]
        if file.resolve() in seen or len(layers) > MAX_BASES:
            circle = file.resolve() in seen
            raise UserError(
                what=f"base: in {source} {'leads in a circle' if circle else 'is one too many'}",
                expected=f"at most {MAX_BASES} recipes below one another, each another file",
                got=" -> ".join(chain),
                remedy="let the last of them name no base",
            )
        seen.add(file.resolve())
        text, source = recipe_text(file), str(file)


def _base_file(base: Any, source: str) -> Path:
    """The file that `base` of the recipe `source` names."""
    if not isinstance(base, str) or not base:
        raise UserError(
            what=f"base: in {source} is not a path",
            expected="one recipe, relative to the folder of the recipe that names it",
            got=repr(base),
            remedy="write base: other.yaml, or leave it out",
        )
    try:
        return recipe_file(Path(source).parent / base)
    except UserError as error:
        raise UserError(
            what=f"the base of {source} is not there",
            expected=f"{error.expected}, relative to the folder of the recipe that names it",
            got=f"{base}, that is {error.got}",
            remedy="correct base:, or leave it out",
        ) from None


def _merge(tree: dict[str, Any], above: Mapping[str, Any]) -> None:
    """Put the values of `above` into `tree`: mappings key by key, everything else as a whole.

    A section without a line (null over a mapping) says nothing, so it changes nothing.
    """
    for key, value in above.items():
        below = tree.get(key)
        if isinstance(below, dict) and isinstance(value, dict):
            _merge(below, value)
        elif not (isinstance(below, dict) and value is None):
            tree[key] = value


def _origin(
    location: Sequence[str | int],
    layers: Sequence[tuple[str, dict[str, Any]]],
    overrides: Sequence[str],
) -> str:
    """` (in FILE)`: which of several files wrote the value at `location`; else nothing."""
    name = ".".join(str(part) for part in location)
    given = [override.partition("=")[0] for override in overrides]
    if len(layers) == 1 or any(f"{name}.".startswith(f"{key}.") for key in given):
        return ""
    for file, tree in reversed(layers):
        node: Any = tree
        for part in location:
            if not isinstance(node, dict) or part not in node:
                break
            node = node[part]
        else:
            return f" (in {file})" if location else ""
    return ""


def parse_override(override: str) -> tuple[list[str], Any]:
    """The path of keys and the value, read as YAML, of `section.key=value`."""
    name, equals, value = override.partition("=")
    keys = name.split(".")
    if not equals or len(keys) < 2 or not all(keys):
        raise UserError(
            what="override not understood",
            expected="section.key=value, for example crpo.kl_coef=0",
            got=override,
            remedy="write section and key with a dot, and the value after '='",
        )
    return keys, parse_yaml(value, what=f"the value of override {override!r} is not YAML")


def _apply_override(tree: dict[str, Any], override: str) -> None:
    """Set one `section.key=value` in the nested mapping `tree`."""
    keys, value = parse_override(override)
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
    node[keys[-1]] = value
