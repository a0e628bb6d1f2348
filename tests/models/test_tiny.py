"""The tiny model is an ordinary Hugging Face folder to transformers and to us."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import transformers
from safetensors.numpy import load_file

from mental_r1_jax.models.hf_config import decoder_config_from_hf, read_hf_config
from mental_r1_jax.models.hf_format import load_params
from mental_r1_jax.models.tiny import END, PAD, START, make_tiny_model

CORPUS = ["the river is calm today", "<think>\n<stimulus>the river</stimulus></think>"] * 30


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model."""
    return make_tiny_model(tmp_path_factory.mktemp("tiny"), CORPUS, vocab_size=300, hidden_size=32)


def test_transformers_opens_the_folder(folder: Path) -> None:
    torch = pytest.importorskip("torch", reason="compares with PyTorch")
    transformers.utils.logging.disable_progress_bar()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.tensor([tokenizer("the river").input_ids])
    with torch.no_grad():
        logits = model(ids).logits
    assert logits.shape[-1] == len(tokenizer) and torch.isfinite(logits).all()
    assert model.config.eos_token_id == tokenizer.eos_token_id


def test_we_open_the_folder(folder: Path) -> None:
    config = decoder_config_from_hf(read_hf_config(folder))
    assert config.qk_norm and config.tie_embeddings and config.num_layers == 2
    params = load_params(folder, config)
    assert params["embedding"].shape == (config.vocab_size, 32)
    assert abs(float(params["layers"]["up"]["kernel"].std()) - 0.08) < 0.002


def test_tokenizer_gives_every_text_back_and_knows_its_special_tokens(folder: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    for text in (CORPUS[1], "Zoë’s 🦊\n\n  two  spaces, and don 't join ' s", "\x00\t"):
        assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert (tokenizer.eos_token, tokenizer.pad_token) == (END, PAD)
    for special in (START, END, PAD):
        (token_id,) = tokenizer(special).input_ids
        assert tokenizer.decode([token_id], skip_special_tokens=True) == ""
    # Tags are plain text: decoding without special tokens keeps them.
    ids = tokenizer("<think><stimulus>").input_ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == "<think><stimulus>"
    # Learnt merges: a word of the corpus is a token or two, not nine bytes.
    assert len(tokenizer("the river").input_ids) <= 3


def test_chat_template_ends_where_the_assistant_begins(folder: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == (
        "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_the_seed_decides_the_weights_and_nothing_else(folder: Path, tmp_path: Path) -> None:
    same = make_tiny_model(tmp_path / "same", CORPUS, vocab_size=300, hidden_size=32)
    other = make_tiny_model(tmp_path / "other", CORPUS, vocab_size=300, hidden_size=32, seed=1)
    for name in ("tokenizer.json", "config.json", "model.safetensors"):
        assert (same / name).read_bytes() == (folder / name).read_bytes()
    assert (other / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    weights = [
        load_file(f / "model.safetensors")["model.embed_tokens.weight"] for f in (other, folder)
    ]
    assert not np.allclose(*weights)
