"""Does the exported folder say in transformers what our model says here?"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mental_r1_jax.config import ExperimentConfig
from mental_r1_jax.data.loading import load_examples
from mental_r1_jax.errors import UserError
from mental_r1_jax.models import decoder, hf_format, peft_format
from mental_r1_jax.models.hf_config import decoder_config_from_hf
from mental_r1_jax.opening.adapters import has_adapters
from mental_r1_jax.opening.devices import open_mesh
from mental_r1_jax.opening.model_source import ModelSource, load_weights
from mental_r1_jax.rollout.collect import pad_prompts, render_prompts
from mental_r1_jax.rollout.sampler import sample_completions, sampler_settings, step_key
from mental_r1_jax.text.wording import grammar_of

# float32 logits of two implementations; the sums run in another order.
LOGIT_TOLERANCE = 1e-3


def verify_export(folder: Path, model: ModelSource, config: ExperimentConfig) -> None:
    """Reload `folder` with transformers and compare logits and greedy text, both in float32.

    Raises:
        UserError: torch is missing, a logit differs by more than `LOGIT_TOLERANCE`, or the greedy
            tokens differ before a point where the two likeliest tokens are closer than that.
    """
    torch, reference = _load_reference(folder)
    exact = decoder_config_from_hf(model.hf_config, compute_dtype="float32", remat="none")
    exact, params = _read_back(folder, model, exact, config)
    post = next(source[0] for source in load_examples(config, "validation").values())
    grammar, limit = grammar_of(config.text), config.rollout.max_prompt_length
    prompt = render_prompts(model.tokenizer, [post], limit, grammar)[0]
    padded = pad_prompts([prompt], len(prompt.ids), model.tokenizer.pad_id)
    batch = jax.tree.map(jnp.asarray, padded)
    eos_ids, pad_id = model.tokenizer.eos_ids, model.tokenizer.pad_id
    settings = sampler_settings(config, "verify", eos_ids=eos_ids, pad_id=pad_id)
    sample = functools.partial(sample_completions, config=exact, settings=settings)
    completions = jax.jit(sample)(params, batch, step_key(0, 0))
    length = int(completions.completion_mask.sum())
    ours = np.asarray(completions.completion_ids)[0, 0, :length]
    ids = torch.tensor([list(prompt.ids)])
    with torch.no_grad():
        theirs = reference.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=config.rollout.max_completion_length,
        )[0, len(prompt.ids) :].numpy()
        joined = torch.tensor([[*prompt.ids, *ours.tolist()]])
        their_logits = reference(joined).logits[0, len(prompt.ids) - 1 : -1].float().numpy()
    hidden = decoder.forward(
        params,
        exact,
        batch.prompt_ids,
        batch.prompt_mask,
        jnp.asarray(ours[None, None]),
        jnp.ones((1, 1, length), bool),
    )
    our_logits = np.asarray(decoder.unembed(params, exact, hidden))[0, 0]
    _compare(our_logits, their_logits, ours, theirs)


def _read_back(
    folder: Path, model: ModelSource, exact: decoder.DecoderConfig, config: ExperimentConfig
) -> tuple[decoder.DecoderConfig, Any]:
    """Architecture and float32 weights of what was written."""
    if not has_adapters(folder):
        return exact, hf_format.load_params(folder, exact, None)
    exact = dataclasses.replace(exact, lora=peft_format.read_peft_config(folder).lora)
    written = dataclasses.replace(model, run_folder=None, peft_folder=folder, decoder=exact)
    return exact, load_weights(written, open_mesh(config, rows={}))


def _load_reference(folder: Path) -> tuple[Any, Any]:
    """torch, and the folder's model in float32."""
    try:
        import torch
        from transformers import AutoModelForCausalLM
    except ImportError as error:
        raise UserError(
            what="--verify needs PyTorch, which reloads the folder independently",
            expected="torch to be installed",
            got=str(error),
            remedy="install the `test` extra, or export without --verify",
        ) from error
    if has_adapters(folder) and importlib.util.find_spec("peft") is None:
        raise UserError(
            what="--verify of a PEFT folder needs peft",
            expected="peft to be installed",
            got="no module of that name",
            remedy="install peft and accelerate, or export without --verify",
        )
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return torch, model


def _compare(our_logits: Any, their_logits: Any, ours: Any, theirs: Any) -> None:
    """Raise unless logits and greedy tokens agree."""
    difference = float(np.abs(our_logits - their_logits).max())
    if not difference <= LOGIT_TOLERANCE:
        raise UserError(
            what="the exported model computes other logits in transformers",
            expected=f"a largest difference of at most {LOGIT_TOLERANCE}",
            got=f"{difference:.2e}",
            remedy="report this with the model's config.json; the folder was not put in place",
        )
    agree = min(len(ours), len(theirs))
    if len(ours) != len(theirs) or (ours != theirs).any():
        place = int(np.argmax(ours[:agree] != theirs[:agree])) if agree else 0
        top = np.sort(our_logits[place])[-2:]
        if top[1] - top[0] > LOGIT_TOLERANCE:
            raise UserError(
                what="the exported model writes another text in transformers",
                expected="the same greedy tokens",
                got=f"a difference at token {place} of {len(ours)}",
                remedy="report this with the model's config.json; the folder was not put in place",
            )
        print(f"verified: tokens equal up to a tie at {place} (logits within {difference:.1e})")
        return
    print(f"verified: {len(ours)} greedy tokens equal, logits within {difference:.1e}")
