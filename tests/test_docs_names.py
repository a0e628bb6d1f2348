"""What the documentation names is there: files, tests, recipe keys, and functions in docstrings."""

from __future__ import annotations

import ast
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from mental_r1_jax.config import ExperimentConfig
from tests.test_layering import ALLOWED

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "mental_r1_jax"
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("*/README.md")])
PAGES = [page for page in PAGES if page.name != "CHANGELOG.md"]  # it names what was, too

# Names in the documentation that belong to a user, or to nobody on purpose.
NOT_OURS = {"config.yaml", "recipes/RUN.yaml", "utils.py", "helpers.py", "common.py"}
SECTIONS = {
    name: set(field.annotation.model_fields)
    for name, field in ExperimentConfig.model_fields.items()
}


def quoted(text: str) -> list[str]:
    """Everything between single backticks."""
    return re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text)


def found(name: str, page: Path) -> Path | None:
    """The file that a page means by `name`, from any of the places that pages speak of."""
    places = (ROOT, PACKAGE, ROOT / "tests", ROOT / "tpu_scripts", page.parent)
    return next((place / name for place in places if (place / name).is_file()), None)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_tests_and_keys_of_a_page_exist(page: Path) -> None:
    """A test without a file, `::test_name`, stands in the file that was named last."""
    last = page
    for name in quoted(page.read_text(encoding="utf-8")):
        if re.fullmatch(r"([\w./-]+\.(py|md|yaml|sh|ipynb))?(::\w+)?", name):
            file, _, test = name.partition("::")
            if file in NOT_OURS:
                continue
            place = found(file, page) if file else last
            assert place is not None, f"there is no file {file}"
            assert not test or f"def {test}(" in place.read_text(encoding="utf-8"), name
            last = place
        elif (key := re.match(r"(\w+)\.(\w+)(=|$)", name)) and key[1] in SECTIONS:
            assert key[2] in SECTIONS[key[1]] or key[2].isupper(), f"there is no key {name}"


def test_the_file_tree_of_the_readme_is_the_tree() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    tree = text.split("## File tree")[1].split("```")[1]
    inside = set(re.findall(r"^  ([\w/.]+)  ", tree, re.MULTILINE))
    there = {path.name for path in PACKAGE.glob("*.py")}
    there |= {f"{path.parent.name}/" for path in PACKAGE.glob("*/__init__.py")}
    assert inside == there - {"__init__.py", "__main__.py"}
    for name in re.findall(r"^([\w/.]+)  ", tree, re.MULTILINE):
        assert (ROOT / name).exists(), name


def test_the_layer_table_of_the_design_page_is_the_enforced_one() -> None:
    """Parts and what each may import; a part stands below those of a lower layer, never above."""
    text = (ROOT / "docs/design.md").read_text(encoding="utf-8")
    table = text.split("## The layers")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (\d) \| `(\w+)` \| .* \|([^|]*)\|$", table, re.MULTILINE)
    there = {part: set(quoted(imports)) for _, part, imports in rows}
    assert there == {part: allowed for part, allowed in ALLOWED.items() if part != "__init__"}
    layer_of = {part: int(layer) for layer, part, _ in rows} | {"__init__": 0}
    for part, imports in there.items():
        assert all(layer_of[other] <= layer_of[part] for other in imports), part


def words_of_code(file: Path) -> Iterator[str]:
    """Names and the words of strings, docstrings and comments left out."""
    before = tokenize.NEWLINE
    with tokenize.open(file) as lines:
        for token in tokenize.generate_tokens(lines.readline):
            opens_line = before in (tokenize.NEWLINE, tokenize.INDENT, tokenize.NL)
            if token.type == tokenize.NAME or (token.type == tokenize.STRING and not opens_line):
                yield from re.findall(r"\w+", token.string)
            before = token.type


def test_names_in_docstrings_are_names_of_the_code() -> None:
    """Names of two words and more; shorter ones may be symbols of a formula."""
    files = sorted(PACKAGE.rglob("*.py"))
    known = {word for file in files for word in words_of_code(file)} | {f.stem for f in files}
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                continue
            for name in quoted(ast.get_docstring(node) or ""):
                for part in re.findall(r"\b[a-z]{3,}(?:_[a-z0-9]{2,})+\b", name):
                    assert part in known, f"{file.relative_to(ROOT)}: there is no {part!r}"
