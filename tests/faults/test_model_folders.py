"""Model folders of strangers: read as transformers reads them, or refused with one error."""

from __future__ import annotations

import json
import os
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from mental_r1_jax.errors import UserError
from mental_r1_jax.models import decoder, hf_format
from mental_r1_jax.models.hf_config import decoder_config_from_hf, read_hf_config
from mental_r1_jax.opening.model_source import _check_ids, copy_model_files, origin_of
from mental_r1_jax.text.tokenizer import _generation_eos_ids, load_tokenizer

LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
TIED = decoder_config_from_hf({**LLAMA, "tie_word_embeddings": True})
UNTIED = decoder_config_from_hf(LLAMA)


def weights(config: decoder.DecoderConfig, seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    shapes = decoder.abstract_params(config)
    import jax

    return jax.tree.map(lambda s: rng.standard_normal(s.shape, np.float32), shapes)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An untied model in one file."""
    (tmp_path / "config.json").write_text(json.dumps(LLAMA), encoding="utf-8")
    hf_format.save_params(weights(UNTIED, 0), UNTIED, tmp_path, dtype="float32")
    return tmp_path


# --- config.json -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "payload",
    [
        b"\xef\xbb\xbf" + json.dumps(LLAMA).encode(),
        json.dumps(LLAMA).encode()[:-9],
        json.dumps([LLAMA]).encode(),
        b"",
        b"null",
        b"\xff\xfe{",
        b"[" * 100_000,
        b'{"vocab_size": ' + b"9" * 10_000 + b"}",
    ],
    ids=["mark", "torn", "list", "empty", "null", "UTF-16", "nested", "digits"],
)
def test_a_broken_config_is_one_error(tmp_path: Path, payload: bytes) -> None:
    (tmp_path / "config.json").write_bytes(payload)
    with pytest.raises(UserError, match="config.json"):
        read_hf_config(tmp_path)


def test_a_pipe_is_not_waited_for(folder: Path) -> None:
    for name in ("config.json", SINGLE):
        (folder / name).unlink()
        os.mkfifo(folder / name)
    with pytest.raises(UserError, match="pipe"):
        read_hf_config(folder)
    with pytest.raises(UserError, match="pipe|names"):
        hf_format.load_params(folder, UNTIED)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("head_dim", "64"),
        ("head_dim", 0),
        ("head_dim", [8]),
        ("rms_norm_eps", None),
        ("rms_norm_eps", "1e-5"),
        ("num_hidden_layers", "two"),
        ("num_hidden_layers", 10**9),
        ("num_hidden_layers", -1),
        ("vocab_size", 32.5),
        ("vocab_size", True),
        ("vocab_size", 10**30),
        ("hidden_size", {}),
        ("num_key_value_heads", "2"),
        ("rope_parameters", "default"),
        ("rope_parameters", {"rope_type": "linear", "factor": "2"}),
        ("rope_scaling", [1]),
        ("rope_theta", "10000"),
        ("rope_theta", float("nan")),
        ("tie_word_embeddings", "false"),
        ("eos_token_id", "</s>"),
        ("eos_token_id", [1, "2"]),
        ("architectures", "LlamaForCausalLM"),
        ("architectures", [None]),
        ("layer_types", "full_attention"),
        ("sliding_window", "4096"),
        ("initializer_range", None),
        ("model_type", ["llama"]),
    ],
)
def test_a_field_of_another_type_is_named(field: str, value: Any) -> None:
    with pytest.raises(UserError) as caught:
        decoder_config_from_hf({**LLAMA, field: value})
    assert f"{field}" in str(caught.value) and "cannot be right" in str(caught.value)


def test_null_means_missing_where_transformers_writes_it() -> None:
    nulls = ("head_dim", "rope_scaling", "rope_parameters", "num_key_value_heads", "pad_token_id")
    config = decoder_config_from_hf({**LLAMA, **dict.fromkeys(nulls)})
    assert (config.head_dim, config.num_kv_heads, config.rope_theta) == (4, 4, 10_000.0)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 40) | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=4,
)
NAMES = ["rope_theta", "head_dim", "layer_types", "sliding_window", "use_sliding_window"]
NAMES += ["rope_scaling", "hidden_act", "partial_rotary_factor", "max_window_layers", *LLAMA]
ROTARY = st.dictionaries(
    st.sampled_from(["rope_type", "type", "factor", "rope_theta", "low_freq_factor"]),
    VALUES | st.sampled_from(["linear", "llama3", "default"]),
)


@settings(max_examples=80)
@given(
    st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=3),
    st.none() | ROTARY,
    st.sampled_from(["llama", "qwen2", "qwen3", "mistral", "gemma3_text"]),
)
def test_any_config_is_translated_or_refused(fields: dict, rotary: Any, family: str) -> None:
    hf = {**LLAMA, "model_type": family, "rope_parameters": rotary, **fields}
    try:
        decoder = decoder_config_from_hf(hf)
    except UserError as error:
        assert "config" in str(error)
    else:
        assert min(decoder.num_layers, decoder.head_dim, decoder.vocab_size) > 0


# --- weights ---------------------------------------------------------------------------------


def test_of_a_single_file_and_an_index_the_single_file_counts(folder: Path) -> None:
    """As in transformers, whose embedding is compared; the index names other, older weights."""
    old = {name: value + 1 for name, value in load_file(folder / SINGLE).items()}
    save_file(old, folder / "model-00001-of-00001.safetensors", metadata={"format": "pt"})
    save_file(load_file(folder / SINGLE), folder / SINGLE, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": dict.fromkeys(old, "model-00001-of-00001.safetensors")}
    (folder / INDEX).write_text(json.dumps(index), encoding="utf-8")
    ours = np.asarray(hf_format.load_params(folder, UNTIED)["embedding"])
    np.testing.assert_array_equal(ours, weights(UNTIED, 0)["embedding"])
    pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(folder).get_input_embeddings().weight
    np.testing.assert_array_equal(ours, theirs.detach().numpy())


def test_a_head_beside_tied_embeddings_must_be_the_embedding(tmp_path: Path) -> None:
    hf_format.save_params(weights(TIED, 0), TIED, tmp_path, dtype="float32")
    tensors = load_file(tmp_path / SINGLE)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    save_file(tensors, tmp_path / SINGLE)
    hf_format.load_params(tmp_path, TIED)
    tensors["lm_head.weight"][-1, -1] += 1
    save_file(tensors, tmp_path / SINGLE)
    with pytest.raises(UserError, match=r"lm_head\.weight.*differs.*tie_word_embeddings"):
        hf_format.load_params(tmp_path, TIED)


@pytest.mark.parametrize(
    ("rename", "remedy"),
    [
        (lambda name: f"_orig_mod.{name}", "torch.compile"),
        (lambda name: f"module.{name}", "DistributedDataParallel"),
        (lambda name: name.removeprefix("model."), "without its head"),
        (lambda name: name.replace("_proj", "_proj.base_layer"), "merge them"),
    ],
    ids=["compiled", "distributed", "headless", "adapters"],
)
def test_the_remedy_fits_the_names(folder: Path, rename: Any, remedy: str) -> None:
    tensors = load_file(folder / SINGLE)
    tensors.pop("lm_head.weight")
    save_file({rename(name): value for name, value in tensors.items()}, folder / SINGLE)
    with pytest.raises(UserError, match=remedy):
        hf_format.load_params(folder, UNTIED)


def test_extra_tensors_are_named_with_the_way_out(folder: Path) -> None:
    tensors = {**load_file(folder / SINGLE), "model.vision.weight": np.ones(3, np.float32)}
    save_file(tensors, folder / SINGLE)
    with pytest.raises(UserError, match="(?s)unexpected: model.vision.weight.*further tensors"):
        hf_format.load_params(folder, UNTIED)


INDEXES = [
    {"weight_map": {"x": "../other/model.safetensors"}},
    {"weight_map": {"x": "/etc/passwd"}},
    {"weight_map": {"x": "pipe"}},
    {"weight_map": {"x": "pipe.safetensors"}},
    {"weight_map": {"x": 3}},
    {"weight_map": {"x": None}},
    {"weight_map": {"x": ["model.safetensors"]}},
    {"weight_map": ["model.safetensors"]},
    {"weight_map": {}},
    {"weight_map": 3},
    {},
    [],
    "no JSON",
]


@pytest.mark.parametrize("content", INDEXES, ids=map(str, range(len(INDEXES))))
def test_an_index_that_cannot_be_right_is_one_error(folder: Path, content: Any) -> None:
    (folder / SINGLE).unlink()
    for name in ("pipe", "pipe.safetensors"):
        os.mkfifo(folder / name)
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / INDEX).write_text(text, encoding="utf-8")
    with pytest.raises(UserError):
        hf_format.load_params(folder, UNTIED)


@settings(max_examples=40)
@given(st.dictionaries(st.text(max_size=3), VALUES, max_size=2) | VALUES | st.binary(max_size=20))
def test_any_index_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, content) -> None:
    folder = tmp_path_factory.mktemp("index")
    wrapped = (
        content if isinstance(content, bytes) else json.dumps({"weight_map": content}).encode()
    )
    (folder / INDEX).write_bytes(wrapped)
    with pytest.raises(UserError):
        hf_format.load_params(folder, UNTIED)


# --- tokenizer, copies, chains ---------------------------------------------------------------


@pytest.mark.parametrize("eos", ["</s>", ["2"], [True], -1, 1.5, {"id": 2}])
def test_eos_ids_that_are_none_are_refused(tmp_path: Path, eos: Any) -> None:
    file = tmp_path / "generation_config.json"
    file.write_text(json.dumps({"eos_token_id": eos}), encoding="utf-8")
    with pytest.raises(UserError, match="eos_token_id"):
        _generation_eos_ids(file)


def test_broken_tokenizer_files_are_one_error(tmp_path: Path) -> None:
    for content in ("{", "[]", json.dumps({"version": "9.0", "model": {"type": "New"}})):
        (tmp_path / "tokenizer.json").write_text(content, encoding="utf-8")
        with pytest.raises(UserError, match="cannot be loaded"):
            load_tokenizer(tmp_path)


@pytest.mark.parametrize(("eos", "pad", "named"), [((2, 32), 0, "EOS 32"), ((2,), -1, "pad -1")])
def test_ids_outside_the_vocabulary_are_refused(tmp_path: Path, eos, pad, named) -> None:
    tokenizer: Any = types.SimpleNamespace(eos_ids=eos, pad_id=pad)
    with pytest.raises(UserError, match=named):
        _check_ids(tmp_path, tokenizer, UNTIED)
    _check_ids(tmp_path, types.SimpleNamespace(eos_ids=(31,), pad_id=0), UNTIED)  # type: ignore[arg-type]


def test_code_of_a_start_model_is_not_copied(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    for name in ("modeling_evil.py", "run.sh", "weights.pkl", "model.safetensors", "LICENSE"):
        (source / name).write_text("x", encoding="utf-8")
    mapped = {**LLAMA, "auto_map": {"AutoModelForCausalLM": "modeling_evil.Evil"}}
    for name in ("config.json", "tokenizer_config.json"):
        (source / name).write_text(json.dumps(mapped), encoding="utf-8")
    (source / "chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")
    copy_model_files(source, target)
    names = {"config.json", "tokenizer_config.json", "chat_template.jinja", "LICENSE"}
    assert {path.name for path in target.iterdir()} == names
    for name in ("config.json", "tokenizer_config.json"):
        assert json.loads((target / name).read_text(encoding="utf-8")) == LLAMA


def test_a_run_that_begins_with_itself_is_one_error(tmp_path: Path) -> None:
    for name, start in (("a", "b"), ("b", "a")):
        (tmp_path / name / "base_model").mkdir(parents=True)
        recipe = f"model: {{path: {tmp_path / start}}}\ndata: {{sets: [Risk-Synthetic]}}\n"
        recipe += f"run: {{output_dir: {tmp_path / name}, num_steps: 1}}\n"
        (tmp_path / name / "config.yaml").write_text(recipe, encoding="utf-8")
    with pytest.raises(UserError, match="itself as its start model"):
        origin_of(str(tmp_path / "a"))
