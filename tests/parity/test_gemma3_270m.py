"""The real Gemma 3 270M against transformers; needs its folder, which is 1 GB, so it is never here.

`GEMMA3_270M=FOLDER` names it. Where the folder of real models and data lies beside the project,
`models/make_gemma3_270m.py FOLDER` in it makes one.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers
from safetensors import safe_open

from mental_r1_jax.models import hf_format
from mental_r1_jax.models.hf_config import decoder_config_from_hf, read_hf_config
from mental_r1_jax.rollout.collect import pad_prompts
from mental_r1_jax.rollout.sampler import sample_completions, step_key
from mental_r1_jax.text.prompts import check_grammar, render_prompt
from mental_r1_jax.text.tokenizer import load_tokenizer
from tests.parity.model_cases import our_logits
from tests.rollout.settings import make_settings

torch = pytest.importorskip("torch", reason="compares with PyTorch")
pytestmark = pytest.mark.slow

LENGTH = 24


@pytest.fixture(scope="module")
def real() -> Path:
    """The folder, or skip."""
    folder = os.environ.get("GEMMA3_270M")
    if not folder or not Path(folder).is_dir():
        pytest.skip("needs GEMMA3_270M=FOLDER with the real model, see the head of this file")
    return Path(folder)


@pytest.fixture(scope="module")
def theirs(real: Path) -> torch.nn.Module:
    return transformers.AutoModelForCausalLM.from_pretrained(real, dtype=torch.float32).eval()


def test_logits_and_greedy_text(real: Path, theirs: torch.nn.Module) -> None:
    """A prompt beyond the window of 512; logits reach 38, and float32 has 7 digits."""
    tokenizer = load_tokenizer(real)
    check_grammar(tokenizer)
    assert tokenizer.eos_ids == (1, 106)
    post = "people who have not slept for days often feel that everything is too much. " * 30
    prompt = render_prompt(tokenizer, "How does the writer sleep? Statement: ", post, 560)
    assert prompt.truncated and 520 < len(prompt.ids) <= 560
    assert prompt.text.startswith("<bos><start_of_turn>user\nYou assess mental health")
    ids = torch.tensor([prompt.ids])
    with torch.no_grad():
        out = theirs.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=LENGTH
        )[0, len(prompt.ids) :]
        joined = torch.cat([ids[0], out])[None]
        logits = theirs(joined).logits[0, len(prompt.ids) - 1 : -1].numpy()
    padded = pad_prompts([prompt], len(prompt.ids), tokenizer.pad_id)
    inputs = (padded.prompt_ids, padded.prompt_mask, out.numpy()[None, None])
    np.testing.assert_allclose(our_logits(real, inputs)[0, 0], logits, rtol=0, atol=1e-3)

    config = decoder_config_from_hf(read_hf_config(real))
    settings = make_settings(
        max_completion_length=LENGTH,
        eos_ids=tokenizer.eos_ids,
        pad_id=tokenizer.pad_id,
        greedy=True,
    )
    settings = dataclasses.replace(settings, num_completions=1)
    sample = functools.partial(sample_completions, config=config, settings=settings)
    params = hf_format.load_params(real, config)
    ours = jax.jit(sample)(params, jax.tree.map(jnp.asarray, padded), step_key(0, 0))
    kept = np.asarray(ours.completion_ids)[np.asarray(ours.completion_mask)]
    np.testing.assert_array_equal(kept, out.numpy())


def test_round_trip_is_bit_equal(real: Path, tmp_path: Path) -> None:
    config = decoder_config_from_hf(read_hf_config(real))
    params = hf_format.load_params(real, config)
    hf_format.save_params(params, config, tmp_path, dtype="float32")
    with (
        safe_open(real / "model.safetensors", framework="numpy") as before,
        safe_open(tmp_path / "model.safetensors", framework="numpy") as after,
    ):
        assert sorted(before.keys()) == sorted(after.keys())
        for name in before.keys():
            assert before.get_tensor(name).tobytes() == after.get_tensor(name).tobytes(), name
