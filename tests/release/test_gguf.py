"""The GGUF file against transformers' own reader of such files, which knows nothing of ours.

What llama.cpp makes of it is compared in `test_gguf_llama_cpp.py`, where that is installed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers

from mental_r1_jax.errors import UserError
from mental_r1_jax.models import hf_format
from mental_r1_jax.release.gguf_file import check_gguf, write_gguf
from mental_r1_jax.release.gguf_vocabulary import TokenType, gguf_vocabulary
from mental_r1_jax.text.tokenizer import load_tokenizer
from tests.release.gguf_models import CASES, LONG, NEMO, Case, make_folder, open_folder

torch = pytest.importorskip("torch", reason="compares with PyTorch")
gguf = pytest.importorskip("gguf")


def write(folder: Path, precision: Any) -> Path:
    model = open_folder(folder)
    file = folder / f"model-{precision}.gguf"
    params = hf_format.load_params(folder, model.decoder)
    write_gguf(file, params, model, precision)
    return file


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_transformers_reads_the_same_model_from_the_file(case: Case, tmp_path: Path) -> None:
    """Matrices were rounded to float16, so those of the folder are, too.

    That reader does not know every key (the width of Qwen3's heads, Gemma's windows), so it is
    given the config; what llama.cpp reads in them, its own test shows.
    """
    folder = make_folder(case, tmp_path)
    file = write(folder, "f16")
    ours = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in ours.parameters():
            if parameter.ndim > 1:
                parameter.copy_(parameter.half().float())
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=file.name, config=ours.config, dtype=torch.float32
    ).eval()
    ids = torch.from_numpy(np.random.default_rng(0).integers(0, 300, (2, 40)))
    with torch.no_grad():
        expected, got = ours(ids).logits, theirs(ids).logits
    assert float(expected.std()) > 0.1
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_the_file_names_tokens_ends_and_template(case: Case, tmp_path: Path) -> None:
    folder = make_folder(case, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "_name_or_path": "/home/me/base"}))
    reader = gguf.GGUFReader(write(folder, "f16"))
    fields = {name: field.contents() for name, field in reader.fields.items()}
    hf = transformers.AutoTokenizer.from_pretrained(folder)
    tokens = fields["tokenizer.ggml.tokens"]
    assert len(tokens) == case.vocab_size
    assert all(tokens[i] == text for text, i in hf.get_vocab().items())
    assert fields["tokenizer.ggml.eos_token_id"] == hf.eos_token_id
    assert fields["tokenizer.ggml.pre"] == case.pre
    assert fields["tokenizer.chat_template"] == hf.chat_template
    assert fields["tokenizer.ggml.add_bos_token"] == (case.family == "gemma3_text")
    types = fields["tokenizer.ggml.token_type"]
    assert types[hf.eos_token_id] == TokenType.CONTROL
    assert types[-1] == TokenType.UNUSED  # the embedding has a row more than there are tokens
    assert fields["general.architecture"] == case.architecture
    assert fields["general.name"] == "base"


def test_frequencies_for_long_contexts_are_in_the_file(tmp_path: Path) -> None:
    """llama.cpp divides the plain frequencies by these; transformers' reader leaves them out."""
    folder = make_folder(LONG, tmp_path)
    config = transformers.AutoConfig.from_pretrained(folder)
    scaled, _ = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = 500_000.0 ** (-np.arange(0, 16, 2) / 16)
    reader = gguf.GGUFReader(write(folder, "f16"))
    (tensor,) = (t for t in reader.tensors if t.name == "rope_freqs.weight")
    np.testing.assert_allclose(plain / tensor.data, scaled.numpy(), rtol=1e-6)
    assert tensor.data.max() == pytest.approx(8.0) and tensor.data.min() == pytest.approx(1.0)


def test_eight_bits_are_within_half_a_step_of_each_block(tmp_path: Path) -> None:
    """A block of 32 weights has the scale max|w| / 127, stored as float16."""
    folder = make_folder(CASES[2], tmp_path)
    reader = gguf.GGUFReader(write(folder, "q8_0"))
    (tensor,) = (t for t in reader.tensors if t.name == "blk.0.ffn_up.weight")
    assert tensor.tensor_type == gguf.GGMLQuantizationType.Q8_0
    read = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    exact = model.model.layers[0].mlp.up_proj.weight.detach().numpy()
    blocks = np.abs(exact).reshape(-1, 32).max(axis=1, keepdims=True)
    bound = blocks / 127 * (0.5 + 127 * 2**-11)
    assert (np.abs(read - exact).reshape(-1, 32) <= bound + 1e-8).all()
    (norm,) = (t for t in reader.tensors if t.name == "output_norm.weight")
    assert norm.tensor_type == gguf.GGMLQuantizationType.F32


def test_scores_merge_in_the_order_of_the_merges(tmp_path: Path) -> None:
    """SentencePiece, done by hand with the scores, gives the ids of the tokenizer."""
    (case,) = (case for case in CASES if case.family == "gemma3_text")
    tokenizer = load_tokenizer(make_folder(case, tmp_path))
    vocabulary = gguf_vocabulary(tokenizer, case.vocab_size)
    score = dict(zip(vocabulary.tokens, vocabulary.scores, strict=True))
    for text in ("sleepless nights and days", "the day after the night", "never ever ask why"):
        pieces = list(text.replace(" ", "▁"))
        while True:
            joined = [a + b for a, b in zip(pieces, pieces[1:], strict=False)]
            able = [(-score[t], i) for i, t in enumerate(joined) if t in score]
            if not able:
                break
            _, at = min(able)
            pieces[at : at + 2] = [joined[at]]
        assert [vocabulary.tokens.index(p) for p in pieces] == tokenizer.encode(text)
        assert len(pieces) < len(text)


def test_what_llama_cpp_would_run_otherwise_is_refused(tmp_path: Path) -> None:
    folder = make_folder(CASES[1], tmp_path / "windows")
    config = json.loads((folder / "config.json").read_text())
    config |= {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0}
    config.pop("layer_types", None)
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="sliding windows"):
        check_gguf(open_folder(folder))
    with pytest.raises(UserError, match="no tokenizer like this"):
        check_gguf(open_folder(make_folder(NEMO, tmp_path / "pre")))


def test_a_weight_beyond_float16_is_named(tmp_path: Path) -> None:
    folder = make_folder(CASES[1], tmp_path)
    model = open_folder(folder)
    params = hf_format.load_params(folder, model.decoder)
    params["embedding"] = params["embedding"].at[3, 5].set(7e4)
    with pytest.raises(UserError, match=r"embed_tokens.*65504"):
        write_gguf(tmp_path / "x.gguf", params, model, "f16")
