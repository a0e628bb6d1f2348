"""One tiny model, one recipe, and the run of one process that all others are compared with."""

from __future__ import annotations

from pathlib import Path

import pytest

from mental_r1_jax.jobs.quickstart import corpus
from mental_r1_jax.models.tiny import make_tiny_model
from mental_r1_jax.recipe import parse_config
from tests.hosts.cluster import Cluster

STEPS = 6
RECIPE = """
model: {{path: {root}/tiny, compute_dtype: float32, remat: none}}
data: {{sets: [Stress-Synthetic, Depression-Synthetic], tfds_dir: {root}/data, limit_per_set: 40}}
rollout:
  prompts_per_step: 8
  num_generations: 2
  max_prompt_length: 400
  max_completion_length: 8
  keep_groups: reward
  max_rounds: 3
rewards: {{custom: {{"tests.hosts.rewards:vowels": 1.0}}}}
crpo: {{kl_coef: 0.05}}
evaluate: {{batch_size: 8, limit_per_set: 6, bootstrap_samples: 20}}
optimizer: {{learning_rate: 1.0e-3}}
run:
  output_dir: {root}/unused
  num_steps: {steps}
  save_every: 1
  eval_every: 0
  eval_limit_per_set: 2
  log_completions_every: 1
  compilation_cache: {root}/programs
"""


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    """A recipe for a tiny model, and a folder for its runs."""
    root = tmp_path_factory.mktemp("hosts")
    text = RECIPE.format(root=root, steps=STEPS)
    sizes = {"vocab_size": 512, "hidden_size": 32, "intermediate_size": 64}
    make_tiny_model(root / "tiny", corpus(parse_config(text, source="hosts")), **sizes)
    (root / "recipe.yaml").write_text(text, encoding="utf-8")
    return Cluster(root / "recipe.yaml", root)


@pytest.fixture(scope="session")
def alone(cluster: Cluster) -> Path:
    """The run of one process with eight devices, to its end."""
    (ended,) = cluster.run("train", "alone", 1, 8)
    assert ended.status == 0, ended.err
    return cluster.folder / "alone"
