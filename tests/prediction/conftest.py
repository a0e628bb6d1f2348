"""A tiny model folder, and answers from a script in place of its network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from mental_r1_jax.config import ExperimentConfig
from mental_r1_jax.models.tiny import make_tiny_model
from mental_r1_jax.prediction import bulk
from mental_r1_jax.prediction.predictor import Predictor
from mental_r1_jax.prediction.prompt_shape import PromptShape
from mental_r1_jax.text.tokenizer import load_tokenizer
from mental_r1_jax.types import Completions
from tests.every_field.toys import CORPUS

LENGTH = 60  # of completions, in tokens

Recipe = Callable[..., ExperimentConfig]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smallest model folder."""
    folder = tmp_path_factory.mktemp("bulk") / "tiny"
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_layers": 1, "num_heads": 1}
    return make_tiny_model(folder, CORPUS, vocab_size=700, num_kv_heads=1, **sizes)


@pytest.fixture
def recipe(tiny: Path, tmp_path: Path) -> Recipe:
    """Make a recipe: `recipe(batch_size=4, num_votes=3)` changes the section `evaluate`."""

    def make(**evaluate: Any) -> ExperimentConfig:
        rollout = {"max_prompt_length": 330, "prompt_length_buckets": [300]}
        return ExperimentConfig.model_validate(
            {
                "model": {"path": str(tiny), "compute_dtype": "float32"},
                "data": {"sets": ["Stress-Synthetic"]},
                "rollout": rollout | {"max_completion_length": LENGTH},
                "evaluate": {"batch_size": 4} | evaluate,
                "run": {"output_dir": tmp_path / "run"},
            }
        )

    return make


@pytest.fixture(scope="session")
def tokenizer(tiny: Path) -> Any:
    return load_tokenizer(tiny)


@pytest.fixture
def predictor(recipe: Recipe, tokenizer: Any) -> Callable[..., Predictor]:
    """Make a predictor without a network."""

    def make(**evaluate: Any) -> Predictor:
        model: Any = SimpleNamespace(tokenizer=tokenizer)
        nothing: Any = None
        return Predictor(model, recipe(**evaluate), nothing, nothing)

    return make


class Script:
    """Stands for `ask`: what is answered depends on row and vote alone.

    Attributes:
        texts: (row, vote) -> completion; one that is longer than `LENGTH` does not end.
        asked: prompts, rows and shape of every batch that was asked about.
    """

    def __init__(self, texts: Callable[[int, int], str]) -> None:
        self.texts = texts
        self.asked: list[tuple[list[Any], list[int], PromptShape]] = []

    def __call__(
        self,
        predictor: Predictor,
        params: Any,
        prompts: Sequence[Any],
        rows: Any,
        shape: PromptShape,
    ) -> Completions:
        self.asked.append((list(prompts), list(rows), shape))
        votes, tokenizer = predictor.config.evaluate.num_votes, predictor.model.tokenizer
        ids = np.zeros((len(rows), votes, LENGTH), np.int32)
        lengths = np.zeros((len(rows), votes), np.int32)
        finished = np.zeros((len(rows), votes), bool)
        for place, row in enumerate(rows):
            for one in range(votes):
                tokens = [*tokenizer.encode(self.texts(row, one)), tokenizer.eos_ids[0]]
                finished[place, one] = len(tokens) <= LENGTH
                tokens = tokens[:LENGTH]
                ids[place, one, : len(tokens)], lengths[place, one] = tokens, len(tokens)
        mask = jnp.asarray(np.arange(LENGTH) < lengths[..., None])
        logprobs = jnp.zeros(ids.shape)
        return Completions(jnp.asarray(ids), mask, logprobs, logprobs, jnp.asarray(finished))


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[int, int], str]], Script]:
    """Let a script answer in place of the sampler."""

    def install(texts: Callable[[int, int], str]) -> Script:
        one = Script(texts)
        monkeypatch.setattr(bulk, "ask", one)
        return one

    return install
