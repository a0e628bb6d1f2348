"""One tiny decoder with random weights, and random steps for it, for rollout and training tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mental_r1_jax.config import (
    STAGE_NAMES,
    CrpoConfig,
    DataConfig,
    ExperimentConfig,
    ModelConfig,
    RolloutConfig,
    RunConfig,
)
from mental_r1_jax.models import decoder
from mental_r1_jax.types import Batch, PromptBatch

TEMPERATURE = 0.85
NUM_PROMPTS, GROUP, PROMPT, COMPLETION = 8, 3, 6, 7

# The vocabulary is no multiple of the sampler's block of 128 tokens, and spans two of them.
CONFIG = decoder.DecoderConfig(
    vocab_size=149,
    hidden_size=16,
    intermediate_size=24,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=4,
    qk_norm=True,
)


def random_params(seed: int = 0, config: decoder.DecoderConfig = CONFIG) -> Any:
    """Weights large enough for next-token distributions far from uniform."""
    rng = np.random.default_rng(seed)

    def draw(path: Any, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        values = rng.standard_normal(leaf.shape, "f4")
        return 1 + 0.2 * values if path[-1].key == "scale" else 0.4 * values

    return jax.tree_util.tree_map_with_path(draw, decoder.abstract_params(config))


def random_prompts(seed: int = 1) -> PromptBatch:
    """Eight prompts of 1 to 6 tokens."""
    rng = np.random.default_rng(seed)
    lengths = np.array([6, 4, 1, 2, 5, 6, 3, 4])
    shape = (NUM_PROMPTS, PROMPT)
    return PromptBatch(
        prompt_ids=rng.integers(0, CONFIG.vocab_size, shape).astype(np.int32),
        prompt_mask=np.arange(PROMPT)[None] < lengths[:, None],
        prompt_index=np.arange(NUM_PROMPTS, dtype=np.int32),
    )


def random_batch(seed: int = 2) -> Batch:
    """A step with ragged completions, stage masks that overlap or are missing, and references."""
    rng = np.random.default_rng(seed)
    prompts = random_prompts()
    shape = (NUM_PROMPTS, GROUP, COMPLETION)
    lengths = rng.integers(1, COMPLETION + 1, shape[:2])
    mask = np.arange(COMPLETION)[None, None] < lengths[..., None]
    stages = rng.random((*shape[:2], len(STAGE_NAMES), COMPLETION)) < 0.4
    logprobs = -rng.gamma(4.0, 1.0, shape).astype(np.float32)
    batch = Batch(
        prompt_ids=prompts.prompt_ids,
        prompt_mask=prompts.prompt_mask,
        completion_ids=rng.integers(0, CONFIG.vocab_size, shape).astype(np.int32),
        completion_mask=mask,
        stage_mask=stages & mask[:, :, None],
        rewards=rng.standard_normal(shape[:2]).astype(np.float32),
        sampler_logprobs=logprobs,
        decode_logprobs=logprobs,
        ref_logprobs=logprobs + 0.3 * rng.standard_normal(shape).astype(np.float32),
    )
    return jax.tree.map(jnp.asarray, batch)


def tiny_recipe(*, micro_batches: int = 1, chunk_size: int = 3, **crpo: Any) -> ExperimentConfig:
    """A recipe with the paper's objective and the tiny decoder's sizes, with changes of `crpo`."""
    return ExperimentConfig(
        model=ModelConfig(path="tiny", logprob_chunk_size=chunk_size),
        data=DataConfig(sets=("none",)),
        run=RunConfig(output_dir=Path("nowhere"), micro_batches=micro_batches),
        rollout=RolloutConfig(
            prompts_per_step=NUM_PROMPTS,
            num_generations=GROUP,
            max_completion_length=COMPLETION,
            temperature=TEMPERATURE,
        ),
        crpo=CrpoConfig(**crpo),
    )
