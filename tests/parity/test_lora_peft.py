"""Adapters against PEFT on transformers: its folders are read, and it reads ours."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import transformers

from mental_r1_jax.errors import UserError
from mental_r1_jax.models import decoder, hf_format, peft_format
from mental_r1_jax.models.hf_config import decoder_config_from_hf, read_hf_config
from mental_r1_jax.models.peft_format import TARGETS
from mental_r1_jax.sharding import make_mesh
from tests.parity.model_cases import CASES, hf_logits, make_hf_model, make_inputs, our_logits

torch = pytest.importorskip("torch", reason="compares with PyTorch")
peft = pytest.importorskip("peft", reason="compares with PEFT")

# peft 0.21 asks transformers 5 by a name that it is about to lose.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")

# As for whole models, see test_model_families.py.
TOLERANCE = 1e-4
FAMILIES = {case.name: case for case in (CASES[0], CASES[6])}


@pytest.fixture(scope="module", params=FAMILIES.values(), ids=lambda case: case.name)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple:
    """A tiny model, PEFT's adapters on it with random factors, and the folders of both."""
    root = tmp_path_factory.mktemp("peft")
    transformers.utils.logging.disable_progress_bar()
    make_hf_model(request.param).save_pretrained(root / "base")
    model = transformers.AutoModelForCausalLM.from_pretrained(root / "base", dtype=torch.float32)
    # The second family has adapters on some projections only, and another scale.
    some = list(TARGETS) if request.param is CASES[0] else ["q_proj", "o_proj", "down_proj"]
    config = peft.LoraConfig(r=3, lora_alpha=7, target_modules=some, task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(model, config).eval()
    generator = torch.Generator().manual_seed(3)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.data = 0.4 * torch.randn(parameter.shape, generator=generator)
    adapted.save_pretrained(root / "adapters")
    return adapted, root


def read(root: Path, adapters: Path) -> tuple[decoder.DecoderConfig, Any, Any]:
    """Architecture, base and adapters of the two folders."""
    config = decoder_config_from_hf(read_hf_config(root / "base"))
    found = peft_format.read_peft_config(adapters)
    config = dataclasses.replace(config, lora=found.lora)
    where = decoder.trained_shardings(config, make_mesh(1, 1, 1, jax.devices()[:1]))
    base = hf_format.load_params(root / "base", config)
    return config, base, peft_format.load_adapters(adapters, config, where)


def test_logits_equal_those_of_peft_in_both_directions(saved: tuple, tmp_path: Path) -> None:
    theirs, root = saved
    config, base, adapters = read(root, root / "adapters")
    inputs = make_inputs(theirs.config.vocab_size)
    wanted = hf_logits(theirs, inputs)
    assert np.abs(wanted - our_logits(root / "base", inputs)).max() > 0.1

    # Ours, merged and written as a whole model, and read again.
    merged = decoder.merge_adapters(decoder.join_weights(base, adapters), config)
    whole = tmp_path / "whole"
    whole.mkdir()
    hf_format.save_params(merged, config, whole, dtype="float32")
    (whole / "config.json").write_text((root / "base/config.json").read_text())
    np.testing.assert_allclose(our_logits(whole, inputs), wanted, rtol=0, atol=TOLERANCE)

    # Ours, written as a PEFT folder, loaded by peft itself.
    ours = tmp_path / "ours"
    ours.mkdir()
    assert config.lora is not None
    peft_format.write_peft_config(ours, config.lora, str(root / "base"))
    peft_format.save_adapters(adapters, config, ours)
    fresh = transformers.AutoModelForCausalLM.from_pretrained(root / "base", dtype=torch.float32)
    loaded = peft.PeftModel.from_pretrained(fresh, ours).eval()
    np.testing.assert_allclose(hf_logits(loaded, inputs), wanted, rtol=0, atol=1e-6)
    read_again = read(root, ours)[2]
    jax.tree.map(np.testing.assert_array_equal, read_again, adapters)


@pytest.mark.parametrize(
    "change",
    [
        {"use_dora": True},
        {"use_rslora": True},
        {"bias": "all"},
        {"modules_to_save": ["lm_head"]},
        {"rank_pattern": {"q_proj": 8}},
        {"target_modules": ["embed_tokens"]},
        {"target_modules": "all-linear"},
        {"init_lora_weights": "pissa"},
        {"peft_type": "IA3"},
        {"r": 0},
        {"lora_alpha": None},
        {"base_model_name_or_path": None},
    ],
    ids=str,
)
def test_adapters_of_another_kind_are_refused_by_name(tmp_path: Path, change: dict) -> None:
    peft_format.write_peft_config(tmp_path, peft_format.Lora(2, 4.0, TARGETS), "base", **change)
    with pytest.raises(UserError, match=f"{next(iter(change))} = "):
        peft_format.read_peft_config(tmp_path)


def test_adapters_of_another_model_are_refused(saved: tuple, tmp_path: Path) -> None:
    _, root = saved
    content = json.loads((root / "adapters/adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(content | {"r": 5}))
    weights = (root / "adapters/adapter_model.safetensors").read_bytes()
    (tmp_path / "adapter_model.safetensors").write_bytes(weights)
    with pytest.raises(UserError, match=r"expected shape \(5, 24\), got \(3, 24\)"):
        read(root, tmp_path)
