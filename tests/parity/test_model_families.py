"""Our decoder against transformers: logits, and bit-equal weights through the file format."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import transformers
from safetensors import safe_open

from mental_r1_jax.models import hf_format
from mental_r1_jax.models.hf_config import decoder_config_from_hf, read_hf_config
from tests.parity.model_cases import CASES, hf_logits, make_hf_model, make_inputs, our_logits

torch = pytest.importorskip("torch", reason="compares with PyTorch")

# float32 on both sides; largest difference seen 5.5e-6, at logits up to 5.3 (see model_table.py).
TOLERANCE = 1e-4


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.name)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple:
    """A tiny transformers model and the folder it was saved to."""
    transformers.utils.logging.disable_progress_bar()
    model = make_hf_model(request.param)
    folder = tmp_path_factory.mktemp("hf")
    model.save_pretrained(folder)
    return model, folder


def read_file(file: Path) -> dict[str, np.ndarray]:
    """Read every tensor of one file."""
    with safe_open(file, framework="numpy") as opened:
        return {name: opened.get_tensor(name) for name in opened.keys()}


def read_all(folder: Path) -> dict[str, np.ndarray]:
    """Read every tensor of a folder, from all its files."""
    tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= read_file(file)
    return tensors


def assert_bit_equal(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> None:
    """Same names, shapes, dtypes and bytes."""
    assert sorted(ours) == sorted(theirs)
    for name, tensor in theirs.items():
        assert ours[name].shape == tensor.shape and ours[name].dtype == tensor.dtype, name
        assert ours[name].tobytes() == tensor.tobytes(), name


def test_logits_of_the_grouped_forward_equal_transformers(saved: tuple) -> None:
    model, folder = saved
    inputs = make_inputs(model.config.vocab_size)
    theirs, ours = hf_logits(model, inputs), our_logits(folder, inputs)
    assert np.abs(theirs).max() > 1  # else the tolerance would say little
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE)


def test_round_trip_is_bit_equal(saved: tuple, tmp_path: Path) -> None:
    _, folder = saved
    config = decoder_config_from_hf(read_hf_config(folder))
    params = hf_format.load_params(folder, config)
    hf_format.save_params(params, config, tmp_path, dtype="float32")
    assert_bit_equal(read_all(tmp_path), read_all(folder))


@pytest.mark.parametrize("saved", [CASES[6]], indirect=True, ids=["qwen3"])
def test_several_files_and_bfloat16_survive_both_directions(saved: tuple, tmp_path: Path) -> None:
    model, _ = saved
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    ours.mkdir()
    in_bfloat16 = type(model)(model.config)
    in_bfloat16.load_state_dict(model.state_dict())
    in_bfloat16.to(torch.bfloat16).save_pretrained(theirs, max_shard_size="10KB")
    assert len(list(theirs.glob("*.safetensors"))) > 2

    config = decoder_config_from_hf(read_hf_config(theirs))
    params = hf_format.load_params(theirs, config)
    hf_format.save_params(params, config, ours, dtype="bfloat16", max_shard_bytes=10_000)
    assert_bit_equal(read_all(ours), read_all(theirs))

    index = json.loads((ours / "model.safetensors.index.json").read_text())
    their_index = json.loads((theirs / "model.safetensors.index.json").read_text())
    assert sorted(index["weight_map"]) == sorted(their_index["weight_map"])
    assert index["metadata"]["total_size"] == their_index["metadata"]["total_size"]
    for file in ours.glob("*.safetensors"):
        # No file passes the limit by more than its header; a single tensor here is below it.
        assert sum(array.nbytes for array in read_file(file).values()) <= 10_000

    (ours / "config.json").write_text((theirs / "config.json").read_text())
    loaded = transformers.AutoModelForCausalLM.from_pretrained(ours)
    for name, parameter in in_bfloat16.named_parameters():
        assert torch.equal(parameter, loaded.get_parameter(name)), name
