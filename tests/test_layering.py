"""Imports point downwards only, and nothing heavy is imported where it must not be."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1] / "mental_r1_jax"

# Part of the package -> parts it may import. A part is a module at the top level or a sub-package.
ALLOWED: dict[str, set[str]] = {
    # L0: words and containers
    "__init__": set(),
    "errors": set(),
    "addresses": set(),
    "section": {"addresses"},
    "objective": {"section"},
    "data_section": {"section"},
    "private_files": set(),
    "json_files": {"errors"},
    "text_section": {"objective", "section"},
    "evaluate_section": {"section"},
    "config": {
        "addresses",
        "data_section",
        "evaluate_section",
        "objective",
        "section",
        "text_section",
    },
    "recipe_problems": set(),
    "types": set(),
    "recipe": {"config", "errors", "recipe_problems", "section", "text_section"},
    # L1: one subject each
    "bucket": {"addresses", "errors"},
    "text": {"errors", "config", "json_files", "text_section"},
    "data": {"errors", "config", "private_files", "text", "text_section"},
    "rewards": {"errors", "text"},
    "rl": {"types", "objective"},
    "sharding": {"errors"},
    "hosts": {"errors", "sharding"},
    "models": {"errors", "json_files", "sharding", "types"},
    "footprint": {"config", "models"},
    # L2: subjects joined
    "rollout": {"config", "data", "types", "text", "rewards", "models", "sharding", "hosts"},
    "training": {
        "bucket",
        *("errors", "types", "config", "rl", "models", "sharding", "hosts", "private_files"),
    },
    "evaluation": {"config", "errors", "private_files"},
    "programs": {"config", "types", "models", "sharding", "rollout", "training", "footprint"},
    "console": {"config", "errors", "recipe", "data", "models", "footprint"},
    "opening": {
        "addresses",
        "bucket",
        "errors",
        "json_files",
        "config",
        "recipe",
        "text",
        "models",
        "sharding",
        "training",
        "footprint",
    },
    "prediction": {
        *("config", "data", "types", "evaluation", "hosts", "models", "errors"),
        *("sharding", "rollout", "training", "programs", "opening", "console", "text"),
        *("private_files", "json_files"),
    },
    # L3: whole runs
    "runs": {
        *("addresses", "bucket"),
        *("errors", "config", "recipe", "data", "rewards", "models", "hosts", "rollout"),
        *("training", "programs", "console", "opening", "prediction", "text", "private_files"),
    },
    "release": {
        *("__init__", "errors", "config", "text", "data", "models", "rollout", "opening"),
        *("json_files", "evaluation", "training", "addresses", "bucket"),
    },
    "planning": {"errors", "config", "data", "models", "footprint", "programs", "opening", "runs"},
    "study": {"addresses", "errors", "config", "recipe", "recipe_problems", "evaluation"},
    # L4: the verbs
    "jobs": {
        *("__init__", "errors", "config", "text", "data", "models", "hosts"),
        *("rollout", "training", "evaluation", "programs", "console", "opening", "prediction"),
        *("runs", "release", "planning", "study", "private_files", "sharding", "recipe"),
        *("json_files", "addresses", "bucket"),
    },
    "cli": {"addresses", "bucket", "errors", "recipe", "programs", "hosts", "study", "jobs"},
    "__main__": {"cli"},
}

# Modules that a whole part may take from another one, and no others.
ONLY = {
    ("data", "text"): {"mental_r1_jax.text.stages", "mental_r1_jax.text.wording"},
}

# Outside packages that a part must do without. `jax` also stands for flax, optax and orbax.
JAX = {"jax", "jaxlib", "flax", "optax", "orbax"}
FORBIDDEN: dict[str, set[str]] = {
    "errors": JAX | {"transformers", "numpy"},
    "section": JAX | {"transformers", "numpy"},
    "objective": JAX | {"transformers", "numpy"},
    "data_section": JAX | {"transformers", "numpy"},
    "text_section": JAX | {"transformers", "numpy"},
    "config": JAX | {"transformers", "numpy"},
    "recipe": JAX | {"transformers", "numpy"},
    "text": JAX,
    "data": JAX,
    "rewards": JAX | {"numpy"},
    "evaluation": JAX,
    "study": JAX | {"transformers"},
    "rl": {"transformers", "numpy"},
    "cli": JAX | {"transformers", "numpy"},
}

# torch compares; nothing else may need it. TensorFlow and pandas are not in the base install.
NEVER = {"torch", "tensorflow", "pandas"}
MAY_USE_TORCH = {"release/verify.py"}

# What the command line calls first, in a process of its own. Libraries keep their hands off.
MAY_CONFIGURE_JAX = {"cache.py", "hosts.py"}

# The command line imports the verb that it is asked for, by its name.
NAMED_AS_TEXT = {"cli.py": ["mental_r1_jax.jobs"]}

FILES = sorted(ROOT.rglob("*.py"))


def part_of(file: Path) -> str:
    """Name of the top-level module or sub-package that `file` belongs to."""
    first = file.relative_to(ROOT).parts[0]
    return first.removesuffix(".py")


def imports(tree: ast.AST) -> Iterator[str]:
    """Full names of all modules that `tree` imports, at any depth."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            for alias in node.names:
                yield f"{node.module}.{alias.name}"


def module_of(name: str) -> str:
    """The module that the imported `name` is, or lies in."""
    path = ROOT.parent / Path(*name.split("."))
    if path.is_dir() or path.with_suffix(".py").is_file():
        return name
    return name.rpartition(".")[0]


def parse(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"), filename=str(file))


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_imports_point_downwards(file: Path) -> None:
    part = part_of(file)
    for name in imports(parse(file)):
        top = name.split(".")[0]
        if top == "mental_r1_jax":
            module = module_of(name)
            other = module.split(".")[1] if "." in module else "__init__"
            assert other == part or other in ALLOWED[part], f"{part} may not import {name}"
            only = ONLY.get((part, other))
            assert only is None or module in only, f"{part} may import only {only} of {other}"
        else:
            assert top not in FORBIDDEN.get(part, set()), f"{part} may not import {top}"
            uses_torch = str(file.relative_to(ROOT)) in MAY_USE_TORCH
            assert top not in NEVER or uses_torch, f"{top} is not in the base install"


def test_the_table_has_every_part_and_no_other() -> None:
    assert {part_of(file) for file in FILES} == set(ALLOWED)


def test_every_allowance_is_used() -> None:
    """What no import needs is taken out of the tables, so that they draw the package as it is."""
    used: set[tuple[str, str]] = set()
    modules: set[tuple[str, str, str]] = set()
    for file in FILES:
        names = [name for name in imports(parse(file)) if name.split(".")[0] == "mental_r1_jax"]
        names += NAMED_AS_TEXT.get(str(file.relative_to(ROOT)), [])
        for module in map(module_of, names):
            other = module.split(".")[1] if "." in module else "__init__"
            used.add((part_of(file), other))
            modules.add((part_of(file), other, module))
    assert {(p, other) for p, others in ALLOWED.items() for other in others} <= used
    assert {(*pair, module) for pair, only in ONLY.items() for module in only} <= modules


def test_the_table_has_no_cycle() -> None:
    order: list[str] = []
    while len(order) < len(ALLOWED):
        ready = [p for p in ALLOWED if p not in order and ALLOWED[p] <= set(order)]
        assert ready, f"cycle among {set(ALLOWED) - set(order)}"
        order += ready


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_files_and_functions_are_short(file: Path) -> None:
    assert file.name not in ("utils.py", "helpers.py", "common.py")
    assert len(file.read_text(encoding="utf-8").splitlines()) <= 400
    for node in ast.walk(parse(file)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            code = (body[-1].end_lineno - body[0].lineno + 1) if body else 0
            assert code <= 50, f"{node.name} has {code} lines after its docstring"


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_no_error_is_swallowed_and_nothing_configures_jax(file: Path) -> None:
    for node in ast.walk(parse(file)):
        if isinstance(node, ast.ExceptHandler):
            silent = all(isinstance(statement, ast.Pass) for statement in node.body)
            assert node.type is not None and not silent, f"line {node.lineno}"
        sets_jax = isinstance(node, ast.Attribute) and ast.unparse(node) == "jax.config.update"
        if sets_jax and file.name not in MAY_CONFIGURE_JAX:
            raise AssertionError(f"line {node.lineno} changes the user's JAX settings")
