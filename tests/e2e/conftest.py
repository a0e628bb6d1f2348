"""One tiny model, one folder of built data and one cache of compiled programs for all runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from mental_r1_jax.config import ExperimentConfig
from mental_r1_jax.jobs.quickstart import corpus
from mental_r1_jax.models.tiny import make_tiny_model

Recipe = Callable[..., ExperimentConfig]


@pytest.fixture(scope="package", autouse=True)
def program_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Every run builds its programs anew; the second one of a kind comes from this cache.

    For this package alone: what other tests compile should be compiled.
    """
    options = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("programs")),
        "jax_persistent_cache_min_compile_time_secs": 0.2,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in options}
    for name, value in options.items():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """Make a recipe for the tiny model: `recipe(folder, crpo={...}, ...)` changes sections."""
    root = tmp_path_factory.mktemp("e2e")
    base: dict[str, dict[str, Any]] = {
        "model": {"path": str(root / "tiny"), "compute_dtype": "float32", "remat": "none"},
        "data": {
            "sets": ["Stress-Synthetic", "Depression-Synthetic"],
            "tfds_dir": root / "data",
            "limit_per_set": 40,
        },
        "rollout": {
            "prompts_per_step": 8,
            "num_generations": 4,
            "max_prompt_length": 400,
            "max_completion_length": 20,
        },
        "sft": {"batch_size": 8, "num_steps": 3, "traces_per_set": 16},
        "evaluate": {"batch_size": 8, "limit_per_set": 8, "bootstrap_samples": 50},
        "optimizer": {"learning_rate": 1e-3},
        "run": {
            "num_steps": 2,
            "save_every": 100,
            "eval_every": 0,
            "eval_limit_per_set": 4,
            "log_completions_every": 1,
            "tensorboard": False,
        },
    }

    def make(folder: Path, **sections: dict[str, Any]) -> ExperimentConfig:
        tree = {name: base.get(name, {}) | sections.get(name, {}) for name in {*base, *sections}}
        tree["run"] |= {"output_dir": folder}
        return ExperimentConfig.model_validate(tree)

    sizes = {"vocab_size": 512, "hidden_size": 32, "intermediate_size": 64}
    make_tiny_model(root / "tiny", corpus(make(root / "unused")), **sizes)
    return make
