"""The notebooks run, define nothing, and are stored with what they print and draw."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from mental_r1_jax.config import ExperimentConfig
from mental_r1_jax.recipe import load_config

NOTEBOOKS = sorted((Path(__file__).resolve().parents[1] / "notebooks").glob("*.ipynb"))
# The third one trains, evaluates and exports, which takes a minute.
RUNS = [
    pytest.param(path, id=path.stem, marks=[pytest.mark.slow] if path.stem[:2] == "03" else [])
    for path in NOTEBOOKS
]
on_every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def printed_by(notebook: nbformat.NotebookNode) -> str:
    """What all cells have printed."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    return "".join(output.text for output in outputs if "text" in output)


# What each notebook prints, among other things. Patterns, for some depends on the machine.
EXPECTED = {
    "01_follow_one_batch": (
        r"completion_ids \[B, G, C\] \(8, 4, 48\)",
        r"stage_mask \[B, G, S, C\] \(8, 4, 5, 48\)",
        r"advantages \[B, G\] \(8, 4\)",
        r"well formed: True",
        r"saved steps: \[1\]",
    ),
    "02_stage_entropy": (
        r"stimulus             -0\.05920  explore",
        r"mental_state         \+0\.05431  decide",
    ),
    "03_tpu_kaggle_colab": (
        r"2 x cpu, backend cpu",
        r"quickstart\.yaml on a mesh of fsdp 2, 2 prompts a step",
        r"cold start: 16 traces, 2 updates",
        r"step 2: reward -?\d\.\d+, ",
        r"--- reward [+-]\d\.\d\d, label ",
        r"exported to .*crpo/hf\n",
        r"\d MB  model\.safetensors",
    ),
    "04_your_own_data": (
        r"text: body, label: stressed, group: author",
        r"36 rows were read, 0 problems",
        r"test +9 posts .*'Yes': \d",
        r"diary\.jsonl:37 \[stressed\] unknown label: got 'maybe'",
        r"diary\.jsonl:38 \[body\] empty text",
    ),
    "05_read_a_report": (
        r"Made-up +│ 400 │ +76\.5 │ 72\.6 - 80\.7",
        r"sensitivity +0\.880  95% interval 0\.835 to 0\.925",
        r"'ece': 0\.1, 'brier': 0\.147",
        r"largest gap in sensitivity +0\.091",
    ),
    "06_compare_two_runs": (
        r"grpo: weighted F1 0\.636",
        r"weighted F1 │ +68\.0 │ +63\.6 │ +4\.3 │ +-0\.4 to 9\.3",
        r"'only_first_right': 35, 'only_second_right': 22",
    ),
}
DRAWN = {
    "02_stage_entropy": 2,
    "03_tpu_kaggle_colab": 1,
    "05_read_a_report": 1,
    "06_compare_two_runs": 1,
}


def test_every_notebook_is_there() -> None:
    assert [path.stem for path in NOTEBOOKS] == sorted(EXPECTED)


@on_every_notebook
def test_it_defines_nothing(path: Path) -> None:
    code = [cell for cell in read(path).cells if cell.cell_type == "code"]
    tree = ast.parse("\n".join(cell.source for cell in code))
    defined = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    assert not [node for node in ast.walk(tree) if isinstance(node, defined)]
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert any(str(module).startswith("mental_r1_jax.") for module in imported)


@on_every_notebook
def test_it_is_stored_with_its_outputs_and_without_places_of_a_machine(path: Path) -> None:
    notebook = read(path)
    for pattern in EXPECTED[path.stem]:
        assert re.search(pattern, printed_by(notebook)), pattern
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert all(output.output_type != "error" for output in outputs)
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == DRAWN.get(path.stem, 0)
    told = path.read_text(encoding="utf-8")
    assert not re.search(r"[\" (=](/tmp|/home|/root|/work|/Users|/var)/", told)


@pytest.mark.parametrize("path", RUNS)
def test_it_runs(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if path.stem == "03_tpu_kaggle_colab":
        monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "2")  # it makes a mesh of all there are
    notebook = read(path)
    place = {"metadata": {"path": str(path.parents[1])}}
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources=place).execute()
    for pattern in EXPECTED[path.stem]:
        assert re.search(pattern, printed_by(notebook)), pattern


@pytest.mark.parametrize("devices", [1, 8])
def test_on_a_tpu_the_third_notebook_takes_the_qwen_recipe_and_all_devices(
    devices: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cell that chooses sizes, told that it is on a TPU; nothing is loaded or computed."""
    path = next(path for path in NOTEBOOKS if path.stem.startswith("03_"))
    monkeypatch.chdir(path.parents[1])
    (cell,) = [cell for cell in read(path).cells if "run.micro_batches=8" in cell.source]
    names = {"on_tpu": True, "devices": devices, "Path": Path, "load_config": load_config}
    exec(cell.source, names)
    config = names["cold"]
    assert isinstance(config, ExperimentConfig)
    assert config.model.path == "Qwen/Qwen3-0.6B"
    assert (config.mesh.fsdp, config.rollout.prompts_per_step) == (devices, 16 * devices)
    assert config.rollout.prompts_per_step // config.run.micro_batches == 2 * devices
    assert config.sft.batch_size % devices == config.evaluate.batch_size % devices == 0
