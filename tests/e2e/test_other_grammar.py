"""Another task from end to end: three stages from a file, with other tags, in every output."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from mental_r1_jax.jobs import evaluate, export, sample, sft, train
from mental_r1_jax.jobs.quickstart import corpus
from mental_r1_jax.models.tiny import make_tiny_model
from mental_r1_jax.recipe import load_config
from mental_r1_jax.training.metrics import read_metrics

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
NAMES = ["night", "cause", "judgement"]
SECTIONS = {
    "rollout": {
        "prompts_per_step": 8,
        "num_generations": 2,
        "max_prompt_length": 400,
        "max_completion_length": 80,
    },
    "crpo": {
        "stage_entropy_rule": "target",
        "stage_entropy_targets": [1.0, 1.0, 0.5],
        "stage_entropy_start_steps": 1,
        "stage_entropy_step": 0.01,
    },
    "sft": {
        "batch_size": 8,
        "num_steps": 60,
        "traces_per_set": 16,
        "optimizer": {"learning_rate": 1e-2},
    },
}


def stages_logged(folder: Path) -> set[str]:
    """Metrics of stages that a run has written."""
    lines = read_metrics(folder / "metrics.jsonl")
    return {key for line in lines for key in line if "/stage/" in key}


@pytest.mark.slow
def test_three_stages_from_cold_start_to_a_released_folder(recipe, tmp_path, capsys):
    named = f"text.grammar={CONFIGS / 'grammars' / 'sleep_three_stages.yaml'}"
    read = load_config(CONFIGS / "quickstart.yaml", [named, "crpo.stage_entropy_rule=off"])
    sections = SECTIONS | {"text": read.text.model_dump()}

    def make(name: str, start: Path):
        model = {"path": str(start), "compute_dtype": "float32"}
        return recipe(tmp_path / name, model=model, **sections)

    tiny = tmp_path / "tiny"
    sizes = {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 128}
    make_tiny_model(tiny, corpus(make("unused", tiny)), **sizes)
    sft.run(make("cold", tiny))
    config = make("crpo", tmp_path / "cold")
    train.run(config)
    kinds = ("entropy", "coverage", "beta", "entropy_target")
    expected = {f"{kind}/stage/{name}" for kind in kinds for name in NAMES}
    assert stages_logged(tmp_path / "crpo") == expected
    last = read_metrics(tmp_path / "crpo" / "metrics.jsonl")[-1]
    assert last["eval/average/well_formed"] > 0.2  # the cold start has taught the form
    train.run(config)
    assert "resuming after step 2" in capsys.readouterr().out

    report = evaluate.run(config)
    document = json.loads((report / "metrics.json").read_text(encoding="utf-8"))
    for scores in document["sets"].values():
        assert list(scores["stage_entropies"]) == NAMES
        assert all(value is not None for value in scores["stage_entropies"].values())
        assert scores["well_formed"] > 0.2
    with (report / "predictions.csv").open(encoding="utf-8", newline="") as file:
        header = next(csv.reader(file))
    assert [c for c in header if c.startswith("entropy_")] == [f"entropy_{n}" for n in NAMES]
    page = (report / "report.html").read_text(encoding="utf-8")
    assert all(name in page for name in NAMES) and "stimulus" not in page

    capsys.readouterr()
    sample.run(config, post="i lie awake and listen to the rain", set_name=None)
    shown = capsys.readouterr().out
    assert all(name in shown for name in NAMES) and "primary_appraisal" not in shown
    card = (export.run(config) / "README.md").read_text(encoding="utf-8")
    assert "<finding>LABEL</finding>" in card and "in 3 stages" in card
