"""Tiny random transformers models of every family, one case for each odd setting.

The weights are drawn so that every part matters: matrices keep the scale of their input, norms
differ from 1 and biases from 0. Logits are then of order 1, so a tolerance of 1e-4 is a strict one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers

from mental_r1_jax.models import decoder, hf_format
from mental_r1_jax.models.hf_config import decoder_config_from_hf, read_hf_config

torch = pytest.importorskip("torch", reason="compares with PyTorch")

BASE: dict[str, Any] = {
    "vocab_size": 131,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


# A query scale that is not the head's width, and a width whose root no bfloat16 is.
GEMMA = {"head_dim": 10, "query_pre_attn_scalar": 18, "tie_word_embeddings": True}


def _theta(theta: float) -> dict[str, Any]:
    """Plain rotary positions with this base."""
    return {"rope_parameters": {"rope_type": "default", "rope_theta": theta}}


@dataclass(frozen=True)
class Case:
    """A family, what is odd about this model, and the config fields that make it so."""

    family: str
    setting: str
    fields: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Short name for test ids."""
        return f"{self.family}: {self.setting}"


CASES = (
    Case("llama", "rope_theta 1e4, untied", _theta(1e4)),
    Case(
        "llama",
        "llama3 rope scaling, head_dim 10 (not 24 / 4), tied",
        {"rope_parameters": LLAMA3_ROPE, "head_dim": 10, "tie_word_embeddings": True},
    ),
    Case(
        "llama",
        "linear rope scaling, attention and mlp biases, 4 kv heads",
        {
            "rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.5},
            "attention_bias": True,
            "mlp_bias": True,
            "num_key_value_heads": 4,
        },
    ),
    Case("qwen2", "rope_theta 1e6, tied", {**_theta(1e6), "tie_word_embeddings": True}),
    Case(
        "qwen2",
        "window 4 from layer 1 on",
        {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    ),
    Case(
        "qwen2",
        "window 5, layer_types mixed",
        {
            "use_sliding_window": True,
            "sliding_window": 5,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    Case("qwen3", "head_dim 16 (not 24 / 4), untied", {**_theta(1e6), "head_dim": 16}),
    Case(
        "qwen3",
        "attention biases, 1 kv head, vocabulary 97, tied",
        {
            "head_dim": 6,
            "attention_bias": True,
            "num_key_value_heads": 1,
            "vocab_size": 97,
            "tie_word_embeddings": True,
        },
    ),
    Case("mistral", "window 5 in every layer", {**_theta(1e6), "sliding_window": 5}),
    Case("mistral", "no window, head_dim 8", {"sliding_window": None, "head_dim": 8}),
    Case(
        "qwen2",
        "window 4, (2 local + 1 global) x 2 + 1 local",
        {
            "use_sliding_window": True,
            "sliding_window": 4,
            "num_hidden_layers": 7,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2
            + ["sliding_attention"],
        },
    ),
    Case(
        "gemma3_text",
        "window 4, (2 local + 1 global) x 2 + 1 local, linear rope scaling",
        {
            **GEMMA,
            **{"num_hidden_layers": 7, "sliding_window": 4, "num_key_value_heads": 1},
            "layer_types": (["sliding_attention"] * 2 + ["full_attention"]) * 2
            + ["sliding_attention"],
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "rope_theta": 1e3, "factor": 8.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
            },
        },
    ),
    Case(
        "gemma3_text",
        "window 5, no layer_types (5 local + 1 global), untied, biases",
        {
            **GEMMA,
            **{"num_hidden_layers": 6, "sliding_window": 5, "query_pre_attn_scalar": 7},
            **{"tie_word_embeddings": False, "attention_bias": True},
        },
    ),
    Case(
        "gemma2",
        "window 4 in every other layer, softcaps 1.5 and 2",
        {
            **GEMMA,
            **{"sliding_window": 4, "attn_logit_softcapping": 1.5, "final_logit_softcapping": 2.0},
            "attn_implementation": "eager",
        },
    ),
)

PROMPT_LENGTHS = (9, 6, 1)
GROUP, COMPLETION_LENGTH = 2, 8


def make_hf_model(case: Case) -> Any:
    """Make the transformers model in float32, with weights from a fixed seed."""
    return make_weights(transformers.AutoConfig.for_model(case.family, **{**BASE, **case.fields}))


def make_weights(config: Any) -> Any:
    """Make a model of this config, float32, in which every part matters."""
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    rng = np.random.default_rng(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = rng.standard_normal(tuple(parameter.shape), dtype=np.float32)
            if "norm" in name:
                values = 0.2 * values + (
                    "gemma" not in config.model_type
                )  # Gemma's norms add the 1
            elif parameter.ndim == 2 and "embed" not in name:
                values = values / np.sqrt(parameter.shape[1], dtype=np.float32)
            else:
                values = 0.3 * values
            parameter.copy_(torch.from_numpy(values))
    return model


def make_inputs(vocab_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw prompt ids [B, P], their mask, and completion ids [B, G, C]; padding holds token 3."""
    rng = np.random.default_rng(1)
    num_prompts, longest = len(PROMPT_LENGTHS), max(PROMPT_LENGTHS)
    mask = np.arange(longest)[None] < np.asarray(PROMPT_LENGTHS)[:, None]
    prompt_ids = np.where(mask, rng.integers(0, vocab_size, mask.shape), 3)
    completion_shape = (num_prompts, GROUP, COMPLETION_LENGTH)
    return prompt_ids, mask, rng.integers(0, vocab_size, completion_shape)


def hf_logits(model: Any, inputs: tuple[np.ndarray, np.ndarray, np.ndarray]) -> np.ndarray:
    """Run every prompt + completion by itself; return the logits that predict the completion."""
    prompt_ids, mask, completion_ids = inputs
    logits = np.zeros((*completion_ids.shape, model.config.vocab_size), np.float32)
    for b, g in np.ndindex(completion_ids.shape[:2]):
        prompt = prompt_ids[b][mask[b]]
        row = torch.from_numpy(np.concatenate([prompt, completion_ids[b, g]]))[None]
        with torch.no_grad():
            logits[b, g] = model(row).logits[0, len(prompt) - 1 : -1].numpy()
    return logits


def our_logits(folder: Path, inputs: tuple[np.ndarray, np.ndarray, np.ndarray]) -> np.ndarray:
    """Load the folder and run all prompts with their groups at once."""
    config = decoder_config_from_hf(read_hf_config(folder))
    params = hf_format.load_params(folder, config)

    @jax.jit
    def run(params: Any, prompt_ids: jax.Array, mask: jax.Array, ids: jax.Array) -> jax.Array:
        everywhere = jnp.ones(ids.shape, bool)
        hidden = decoder.forward(params, config, prompt_ids, mask, ids, everywhere)
        return decoder.unembed(params, config, hidden)

    return np.asarray(run(params, *inputs))
