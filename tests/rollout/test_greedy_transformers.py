"""Greedy decoding says what transformers' `generate` says, token for token, for every family."""

from __future__ import annotations

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mental_r1_jax.models import hf_format
from mental_r1_jax.models.hf_config import decoder_config_from_hf, read_hf_config
from mental_r1_jax.rollout.sampler import sample_completions, step_key
from mental_r1_jax.types import PromptBatch
from tests.parity.model_cases import CASES, Case, make_hf_model, make_inputs
from tests.rollout.settings import make_settings

torch = pytest.importorskip("torch", reason="compares with PyTorch")

LENGTH = 14
# One of each family; the windows of 4 and 5 tokens are shorter than prompts and completions.
CHOSEN = [CASES[1], CASES[3], CASES[4], CASES[6], CASES[8], CASES[11]]


@pytest.mark.parametrize("case", CHOSEN, ids=lambda case: case.name)
def test_greedy_tokens_are_those_of_generate(case: Case, tmp_path: Path):
    model = make_hf_model(case)
    model.save_pretrained(tmp_path)
    vocab_size = model.config.vocab_size
    prompt_ids, mask, _ = make_inputs(vocab_size)
    free = [generate(model, prompt_ids[b][mask[b]], eos=[]) for b in range(len(mask))]
    # Tokens that some completion reaches after a few others, and not all of them at once.
    eos = sorted({int(free[0][4]), int(free[1][6])})
    theirs = [generate(model, prompt_ids[b][mask[b]], eos) for b in range(len(mask))]

    config = decoder_config_from_hf(read_hf_config(tmp_path))
    params = hf_format.load_params(tmp_path, config)
    prompts = PromptBatch(
        prompt_ids=jnp.asarray(prompt_ids, jnp.int32),
        prompt_mask=jnp.asarray(mask),
        prompt_index=jnp.arange(len(mask)),
    )
    settings = make_settings(
        num_generations=2,
        max_completion_length=LENGTH,
        temperature=0.5,
        top_p=0.1,
        top_k=3,
        eos_ids=tuple(eos),
        pad_id=0,
        greedy=True,
    )
    sample = functools.partial(sample_completions, config=config, settings=settings)
    ours = jax.tree.map(np.asarray, jax.jit(sample)(params, prompts, step_key(0, 0)))
    for b, expected in enumerate(theirs):
        for g in range(2):
            ids = ours.completion_ids[b, g][ours.completion_mask[b, g]]
            np.testing.assert_array_equal(ids, expected)
            assert bool(ours.finished[b, g]) == (int(expected[-1]) in eos)
    assert ours.finished.any()
    assert len({token for row in free for token in row.tolist()}) > 4  # no constant


def generate(model: torch.nn.Module, prompt: np.ndarray, eos: list[int]) -> np.ndarray:
    """Greedy completion of one prompt by itself, so that no padding is involved."""
    ids = torch.from_numpy(prompt)[None]
    with torch.no_grad():
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=LENGTH,
            eos_token_id=eos or None,
            pad_token_id=0,
        )
    return out[0, len(prompt) :].numpy()
