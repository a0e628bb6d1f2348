"""The notebooks run, define nothing, and are stored without outputs."""

from __future__ import annotations

import ast
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).resolve().parents[1] / "notebooks").glob("*.ipynb"))
on_every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def test_both_notebooks_are_there() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["01_follow_one_batch", "02_stage_entropy"]


@on_every_notebook
def test_it_is_stored_without_outputs_and_defines_nothing(path: Path) -> None:
    code = [cell for cell in read(path).cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    tree = ast.parse("\n".join(cell.source for cell in code))
    defined = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    assert not [node for node in ast.walk(tree) if isinstance(node, defined)]
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert any(str(module).startswith("mental_r1_jax.") for module in imported)


@on_every_notebook
def test_it_runs(path: Path) -> None:
    notebook = read(path)
    place = {"metadata": {"path": str(path.parents[1])}}
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources=place).execute()
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    printed = "".join(
        output.get("text", "") for cell in code for output in cell.outputs if "text" in output
    )
    if path.stem == "01_follow_one_batch":
        for line in (
            "completion_ids [B, G, C] (8, 4, 48)",
            "stage_mask [B, G, S, C] (8, 4, 5, 48)",
            "advantages [B, G] (8, 4)",
            "well formed: True",
            "saved steps: [1]",
        ):
            assert line in printed
    else:
        assert "stimulus             -0.05920  explore" in printed
        assert "mental_state         +0.05431  decide" in printed
