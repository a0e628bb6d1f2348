"""Weights in the Hugging Face layout: errors are collected, shards are born where they live."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import jax
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from mental_r1_jax.errors import UserError
from mental_r1_jax.models import decoder, hf_format
from mental_r1_jax.sharding import make_mesh, param_shardings

# Every dimension is a multiple of 4, so that a 2 x 2 x 2 mesh shards what it can.
CONFIG = decoder.DecoderConfig(
    vocab_size=40,
    hidden_size=16,
    intermediate_size=24,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=6,
    qkv_bias=True,
    qk_norm=True,
)


@pytest.fixture(scope="module")
def params() -> dict:
    """Random numpy parameters of `CONFIG`, all different."""
    rng = np.random.default_rng(0)
    shapes = decoder.abstract_params(CONFIG)
    return jax.tree.map(lambda s: rng.standard_normal(s.shape, np.float32), shapes)


@pytest.fixture
def folder(params: dict, tmp_path: Path) -> Path:
    """The parameters, saved in several float32 files."""
    hf_format.save_params(params, CONFIG, tmp_path, dtype="float32", max_shard_bytes=8_000)
    return tmp_path


def test_layout_of_a_matrix_in_the_file(params: dict, folder: Path) -> None:
    """transformers keeps [outputs, inputs], the heads of an output side by side."""
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    name = "model.layers.1.self_attn.k_proj.weight"
    tensor = load_file(folder / index[name])[name]
    ours = params["layers"]["key"]["kernel"][1]  # [D, K, h]
    assert tensor.shape == (12, 16)
    np.testing.assert_array_equal(tensor[7], ours[:, 1, 1])  # row 7: head 1, its element 1


def test_load_gives_back_what_was_saved(params: dict, folder: Path) -> None:
    loaded = hf_format.load_params(folder, CONFIG)
    jax.tree.map(np.testing.assert_array_equal, loaded, params)


def test_parameters_are_born_sharded(params: dict, folder: Path) -> None:
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    axes = decoder.param_logical_axes(CONFIG)
    shardings = param_shardings(mesh, decoder.abstract_params(CONFIG), axes)
    loaded = hf_format.load_params(folder, CONFIG, shardings)
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    assert jax.tree.map(lambda leaf: leaf.sharding, loaded) == shardings
    query = loaded["layers"]["query"]["kernel"]  # [L, D, H, h], D over fsdp and H over tensor
    assert query.addressable_shards[0].data.shape == (3, 8, 2, 6)


class Recorder:
    """A file of tensors that notes which windows of which tensors were read."""

    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        self.arrays, self.windows = arrays, []

    def get_slice(self, name: str) -> Any:
        def read(window: tuple[slice, ...]) -> np.ndarray:
            self.windows.append((name, *(span.start for span in window)))
            return self.arrays[name][window]

        return type("Slice", (), {"__getitem__": lambda _, window: read(window)})()


def test_each_part_is_read_once_and_only_the_part(params: dict) -> None:
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    axes = decoder.param_logical_axes(CONFIG)
    shapes = decoder.abstract_params(CONFIG)
    sharding = param_shardings(mesh, shapes, axes)["layers"]["output"]["kernel"]
    tensors = [t for t in hf_format._tensors(CONFIG) if "self_attn.o_proj.weight" in t.hf]
    kernel = params["layers"]["output"]["kernel"]
    source = Recorder({t.hf: t.to_hf(kernel[t.layer]) for t in tensors})
    files = dict.fromkeys(source.arrays, source)
    result = hf_format._read_parameter(files, tensors, kernel.shape, sharding)
    corners = {(0, 0), (0, 12), (8, 0), (8, 12)}
    assert sorted(source.windows) == sorted((t.hf, *at) for t in tensors for at in corners)
    np.testing.assert_array_equal(result, kernel)


def test_all_differences_are_reported_at_once(params: dict, tmp_path: Path) -> None:
    hf_format.save_params(params, CONFIG, tmp_path, dtype="float32")
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.norm.weight"]
    tensors["model.layers.0.mlp.experts.weight"] = np.zeros((2, 2), np.float32)
    tensors["lm_head.weight"] = np.zeros((16, 40), np.float32)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(3, np.float32)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UserError) as raised:
        hf_format.load_params(tmp_path, CONFIG)
    message = str(raised.value)
    assert "missing: model.norm.weight" in message
    assert "unexpected: model.layers.0.mlp.experts.weight" in message
    assert "shape of lm_head.weight: expected (40, 16), got (16, 40)" in message
    assert "inv_freq" not in message


def test_a_truncated_file_is_named(folder: Path) -> None:
    file = sorted(folder.glob("model-*.safetensors"))[1]
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(UserError, match=file.name):
        hf_format.load_params(folder, CONFIG)


def test_a_folder_without_safetensors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="model.safetensors"):
        hf_format.load_params(tmp_path, CONFIG)


def test_no_file_passes_the_limit_and_a_tied_head_is_not_written(tmp_path: Path) -> None:
    tied = decoder.DecoderConfig(**{**CONFIG.__dict__, "tie_embeddings": True})
    shapes = decoder.abstract_params(tied)
    params = jax.tree.map(lambda s: np.ones(s.shape, np.float32), shapes)
    hf_format.save_params(params, tied, tmp_path, dtype="float16", max_shard_bytes=3_000)
    names, sizes = [], []
    for file in tmp_path.glob("*.safetensors"):
        with safe_open(file, framework="numpy") as opened:
            arrays = [opened.get_tensor(name) for name in opened.keys()]
            names += opened.keys()
            assert opened.metadata() == {"format": "pt"}
        assert {array.dtype for array in arrays} == {np.dtype("float16")}
        sizes.append(sum(array.nbytes for array in arrays))
    assert max(sizes) <= 3_000 and len(sizes) > 3
    assert "lm_head.weight" not in names and len(set(names)) == len(names)


def test_resolve_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert hf_format.resolve_model(str(tmp_path)) == tmp_path
    for wrong in ("no/such/folder/here", "owner-of-nothing/model-of-nothing"):
        with pytest.raises(UserError, match=wrong):
            hf_format.resolve_model(wrong)
    asked = {}

    def download(name: str, allow_patterns: list[str]) -> str:
        """Stand in for the hub."""
        asked[name] = allow_patterns
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert hf_format.resolve_model("owner/model") == tmp_path
    assert "*.safetensors" in asked["owner/model"] and "*.bin" not in asked["owner/model"]
