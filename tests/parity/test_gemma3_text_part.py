"""The text part of a Gemma 3 that also reads images: read under both spellings, exported alone."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import transformers
from safetensors.numpy import load_file, save_file

from mental_r1_jax.models import hf_format
from mental_r1_jax.models.hf_config import decoder_config_from_hf, read_hf_config
from mental_r1_jax.recipe import parse_config
from mental_r1_jax.release.hf_folder import write_configs
from tests.parity.model_cases import BASE, GEMMA, hf_logits, make_inputs, our_logits

torch = pytest.importorskip("torch", reason="compares with PyTorch")

FILE = "model.safetensors"
RECIPE = "{model: {path: unused}, data: {sets: [Stress-Synthetic]}, run: {output_dir: unused}}"
# How the file of the hub's 4B begins its names, and how transformers 5 names the same modules.
HUB = ("language_model.model.", "vision_tower.", "multi_modal_projector.")
MODULES = ("model.language_model.", "model.vision_tower.", "model.multi_modal_projector.")


def make_whole(folder: Path) -> Any:
    """A tiny model with a tower of one layer for images of four patches."""
    text = {**BASE, **GEMMA, "sliding_window": 5}
    vision = {
        **{"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1},
        **{"num_attention_heads": 1, "image_size": 28, "patch_size": 14},
    }
    config = transformers.Gemma3Config(
        text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_index=130
    )
    torch.manual_seed(0)
    model = transformers.Gemma3ForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    model.save_pretrained(folder)
    return model


def with_names(folder: Path, old: tuple[str, ...], new: tuple[str, ...]) -> None:
    """Rename the tensors of the file."""

    def renamed(name: str) -> str:
        for before, after in zip(old, new, strict=True):
            if name.startswith(before):
                return after + name.removeprefix(before)
        return name

    tensors = load_file(folder / FILE)
    save_file({renamed(n): x for n, x in tensors.items()}, folder / FILE, metadata={"format": "pt"})


def test_logits_and_export_of_the_text_part(tmp_path: Path) -> None:
    transformers.utils.logging.disable_progress_bar()
    whole, alone = tmp_path / "whole", tmp_path / "alone"
    model = make_whole(whole)
    model.config.vocab_size = BASE["vocab_size"]
    inputs = make_inputs(BASE["vocab_size"] - 1)  # the last one stands for an image
    theirs = hf_logits(model, inputs)
    written = {name.split(".")[0] for name in load_file(whole / FILE)}
    assert written & {"vision_tower", "model"}
    np.testing.assert_allclose(our_logits(whole, inputs), theirs, rtol=0, atol=1e-4)

    with_names(whole, *((MODULES, HUB) if "model" in written else (HUB, MODULES)))
    config = decoder_config_from_hf(read_hf_config(whole))
    params = hf_format.load_params(whole, config)

    # The export is a text model of its own, with the same logits in transformers.
    alone.mkdir()
    for name in ("config.json", "preprocessor_config.json", "processor_config.json"):
        source = whole / name
        (alone / name).write_text(source.read_text() if source.is_file() else "{}")
    hf_format.save_params(params, config, alone, dtype="float32")
    tokenizer = SimpleNamespace(eos_ids=(1, 106), pad_id=0)
    source = SimpleNamespace(folder=whole, hf_config=read_hf_config(whole), tokenizer=tokenizer)
    write_configs(source, alone, parse_config(RECIPE, [], source="test"))
    exported = transformers.AutoModelForCausalLM.from_pretrained(alone, dtype=torch.float32).eval()
    assert type(exported).__name__ == "Gemma3ForCausalLM"
    assert not list(alone.glob("*processor_config.json"))
    generation = json.loads((alone / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [1, 106]
    np.testing.assert_allclose(hf_logits(exported, inputs), theirs, rtol=0, atol=1e-6)
