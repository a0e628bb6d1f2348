"""The measuring sticks measure: at toy size, on CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "benchmarks"


def run(*command: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | variables
    return subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env=environment,
    )


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """The accelerator's one command on a small model; PyTorch's trainer is not asked for."""
    out = tmp_path_factory.mktemp("accelerator")
    done = run(
        *("bash", FOLDER / "accelerator.sh", out),
        **{"MODELS": "5M", "PROMPTS": "8", "GROUP": "2", "PROMPT_LEN": "6", "STEPS": "2"},
        **{"COMPLETION_LEN": "5", "DTYPE": "float32", "ROUNDS": "1", "MICRO_BATCHES": "1"},
        PYTHON=sys.executable,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads((out / "5M.json").read_text(encoding="utf-8"))
    assert figures["ours"]["times_slower"] == 1.0
    assert "| ours |" in done.stdout
    (one,) = figures["ours"]["reports"]
    return one


def test_every_completion_has_its_full_length(report):
    assert report["completion_tokens"] == 8 * 2 * 5


def test_phases_add_up_to_the_step(report):
    seconds = {name: value["max"] for name, value in report["seconds"].items()}
    assert min(seconds.values()) > 0
    parts = report["seconds"]["rollout"]["min"] + report["seconds"]["reference"]["min"]
    assert parts + report["seconds"]["train"]["min"] <= report["seconds"]["step"]["median"]


def test_nothing_is_compiled_after_the_first_step(report):
    assert report["compiles_in_first_step"] > 0
    assert report["compiles_after"] == 0


def test_flops_are_six_a_matrix_number_and_token_with_prompts_once(report):
    layers, head = report["parameters"]["layers"], report["parameters"]["head"]
    assert head == 8192 * 256
    # Four layers: query and output 256 x 256, key and value 256 x 128, three of 256 x 688.
    assert layers == 4 * (2 * 256 * 256 + 2 * 256 * 128 + 3 * 256 * 688)
    flops = 6 * (layers * (8 * 6 + 80) + head * 80)
    found = report["train_flops_per_second"] * report["seconds"]["train"]["median"]
    assert found == pytest.approx(flops, rel=1e-9)
    share = report["train_flops_per_second"] / report["measured_matmul_flops_per_second"]
    assert report["model_flops_utilisation"] == pytest.approx(share)


@pytest.mark.slow
def test_adapters_keep_a_small_part_of_a_checkpoint(tmp_path):
    """Weights and two moments in float32: 12 bytes a number, which random ones need."""
    model = tmp_path / "model"
    made = run(sys.executable, FOLDER / "random_model.py", "--like", "5M", "--out", model)
    assert made.returncode == 0, made.stderr
    kept = {}
    for rank in (0, 2):
        file = tmp_path / f"{rank}.json"
        done = run(
            *(sys.executable, FOLDER / "step.py", "--model", model, "--json", file),
            *("--prompts", "8", "--group", "2", "--prompt-len", "6", "--completion-len", "5"),
            *("--steps", "1", "--lora", str(rank), "--checkpoint"),
        )
        assert done.returncode == 0, done.stderr
        kept[rank] = json.loads(file.read_text(encoding="utf-8"))["checkpoint_bytes"]
    layers = 4 * (2 * 256 * 256 + 2 * 256 * 128 + 3 * 256 * 688)
    assert kept[0] > 0.8 * 12 * (layers + 8192 * 256)
    assert kept[2] < 0.05 * kept[0]


def test_side_by_side_takes_medians_of_rounds_and_any_layout(tmp_path):
    """Commands in turns: the first writes 1, 2, 3 seconds, the second 4 seconds and megabytes."""
    counting = (
        "import json,pathlib,sys; n = pathlib.Path(sys.argv[2]); "
        "turn = int(n.read_text()) + 1 if n.exists() else 1; n.write_text(str(turn)); "
        "json.dump({'seconds': {'step': {'median': turn}}, 'peak_memory_bytes': 2**20},"
        " open(sys.argv[1], 'w'))"
    )
    other = "import json,sys; json.dump({'t': 4.0, 'mb': 3}, open(sys.argv[1], 'w'))"
    done = run(
        *(sys.executable, FOLDER / "side_by_side.py", "--rounds", "3"),
        *("--run", f'a={sys.executable} -c "{counting}" {{json}} {tmp_path / "n"}'),
        *("--run", f'b={sys.executable} -c "{other}" {{json}}', "--at", "b=t,mb*1048576"),
        *("--json", tmp_path / "all.json"),
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "all.json").read_text(encoding="utf-8"))
    assert figures["a"]["step_seconds"] == [1, 2, 3]
    assert figures["b"]["times_slower"] == 2.0
    assert figures["b"]["times_memory"] == 3.0
    assert "| b | 4.00 | 2.00 | 3 | 3.00 |" in done.stdout


def test_side_by_side_shows_what_a_failing_command_said(tmp_path):
    done = run(
        *(sys.executable, FOLDER / "side_by_side.py"),
        *("--run", f'a={sys.executable} -c "raise SystemExit(7)"'),
    )
    assert done.returncode != 0
    assert "a failed (exit 7)" in done.stderr
