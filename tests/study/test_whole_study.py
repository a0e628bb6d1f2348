"""A study of the real verbs in processes of their own, as small as it can be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mental_r1_jax.cli import main

RECIPE = """
model: {path: none, compute_dtype: float32, remat: none}
data: {sets: [Stress-Synthetic], tfds_dir: OUT/data, limit_per_set: 40}
rollout:
  {prompts_per_step: 4, num_generations: 4, max_prompt_length: 240, max_completion_length: 72}
sft: {batch_size: 4, num_steps: 3}
crpo: {kl_coef: 0}
evaluate: {batch_size: 8, limit_per_set: 8, bootstrap_samples: 50}
run: {output_dir: none, num_steps: 2, eval_every: 0, eval_limit_per_set: 4, tensorboard: false}
"""
STUDY = """
output_dir: OUT/study
recipe: recipe.yaml
seeds: [3]
start_model: tiny
baseline: cold_start
bootstrap_samples: 50
methods:
  cold_start: {verb: none}
  sft: {verb: sft, match: completions}
  grpo: {crpo.stage_entropy_rule: off}
"""


@pytest.mark.slow
def test_a_study_runs_resumes_and_compares(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, text in (("recipe", RECIPE), ("study", STUDY)):
        file = tmp_path / f"{name}.yaml"
        file.write_text(text.replace("OUT", str(tmp_path)), encoding="utf-8")
    command = ["study", str(tmp_path / "study.yaml")]
    assert main(command) == 0
    folder = tmp_path / "study"
    document = json.loads((folder / "study.json").read_text(encoding="utf-8"))
    assert document["missing"] == []
    assert set(document["arms"]) == {"cold_start", "sft", "grpo"}
    assert len(document["cells"]["grpo-seed3"]["curves"]["reward"]) == 2
    assert "reward" not in document["cells"]["sft-seed3"]["curves"]
    assert document["cells"]["sft-seed3"]["scores"]["seconds"] > 0
    assert document["arms"]["grpo"]["differences"]["cold_start"]["seeds"] == [3]
    # The run folders are ordinary ones.
    for run in ("cold_starts/cold_start-seed3", "runs/sft-seed3", "runs/grpo-seed3"):
        assert (folder / run / "checkpoints").is_dir() and (folder / run / "config.yaml").is_file()

    logs = {file: file.read_bytes() for file in (folder / "logs").iterdir()}
    capsys.readouterr()
    assert main(command) == 0
    assert "7 of 7 tasks were done before" in capsys.readouterr().out
    assert {file: file.read_bytes() for file in (folder / "logs").iterdir()} == logs
    assert main([*command, "--dry-run"]) == 0
    assert "left: about 0.0 min" in capsys.readouterr().out
