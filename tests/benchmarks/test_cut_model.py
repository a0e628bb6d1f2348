"""A model that was cut is the model without its last layers, as PyTorch runs it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from mental_r1_jax.models.tiny import make_tiny_model

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "cut_model.py"


def cut(model: Path, layers: int, out: Path, *more: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, SCRIPT, "--model", model, "--layers", str(layers), "--out", out]
    return subprocess.run(
        [*command, *more], capture_output=True, text=True, check=False, timeout=300
    )


def test_what_is_left_computes_what_the_first_layers_did(tmp_path: Path) -> None:
    whole, small = tmp_path / "whole", tmp_path / "small"
    make_tiny_model(whole, ["a post of some words"], vocab_size=300, hidden_size=16, num_layers=3)
    done = cut(whole, 2, small)
    assert done.returncode == 0, done.stderr
    expected = AutoModelForCausalLM.from_pretrained(whole, dtype=torch.float32)
    expected.model.layers = expected.model.layers[:2]
    found = AutoModelForCausalLM.from_pretrained(small, dtype=torch.float32)
    assert found.config.num_hidden_layers == 2
    ids = torch.tensor([AutoTokenizer.from_pretrained(small)("a post of words").input_ids])
    with torch.no_grad():
        assert torch.equal(found(ids).logits, expected(ids, use_cache=False).logits)


@pytest.mark.parametrize("tied", [True, False])
def test_a_smaller_vocabulary_has_the_rows_of_its_tokens(tmp_path: Path, tied: bool) -> None:
    """The texts are tokenised as before, and their logits are those of the whole model."""
    whole, small, texts = tmp_path / "whole", tmp_path / "small", tmp_path / "texts.csv"
    corpus = ["a post of some words about the weather", "another one on sleep and weather"] * 3
    sizes = {"vocab_size": 340, "hidden_size": 16, "num_layers": 2}
    make_tiny_model(whole, corpus, **sizes)
    if not tied:
        config = AutoConfig.from_pretrained(whole, tie_word_embeddings=False)
        AutoModelForCausalLM.from_config(config).save_pretrained(whole)
    texts.write_text("id,text\n1,some words about weather\n", encoding="utf-8")
    done = cut(whole, 2, small, "--texts", texts)
    assert done.returncode == 0, done.stderr
    before, after = (AutoTokenizer.from_pretrained(folder) for folder in (whole, small))
    assert 256 < len(after) < len(before)
    names = ("eos_token", "pad_token")
    assert [getattr(after, n) for n in names] == [getattr(before, n) for n in names]
    for line in texts.read_text(encoding="utf-8").splitlines():
        assert after.tokenize(line) == before.tokenize(line)
    other = "sleep, Sommer, \u591a"
    assert len(after.tokenize(other)) > len(before.tokenize(other))
    assert after.decode(after(other).input_ids) == other

    expected, found = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        for folder in (whole, small)
    )
    assert found.config.vocab_size == len(after)
    assert found.config.eos_token_id == after.eos_token_id
    kept = before.convert_tokens_to_ids(after.convert_ids_to_tokens(range(len(after))))
    ids, old_ids = (torch.tensor([t("some words").input_ids]) for t in (after, before))
    with torch.no_grad():
        logits = expected(old_ids).logits[..., kept]
        torch.testing.assert_close(found(ids).logits, logits, rtol=0, atol=1e-6)


def test_tokens_that_stand_too_seldom_go(tmp_path: Path) -> None:
    whole, texts = tmp_path / "whole", tmp_path / "texts.txt"
    make_tiny_model(whole, ["weather words"] * 3, vocab_size=320, hidden_size=8, num_layers=1)
    texts.write_text("weather words\nweather", encoding="utf-8")
    sizes = []
    for at_least in ("1", "2", "3"):
        small = tmp_path / at_least
        done = cut(whole, 1, small, "--texts", texts, "--at-least", at_least)
        assert done.returncode == 0, done.stderr
        sizes.append(len(AutoTokenizer.from_pretrained(small)))
        whole_word = len(AutoTokenizer.from_pretrained(small).tokenize("weather")) == 1
        assert whole_word == (at_least != "3")
    assert sizes[0] > sizes[1] > sizes[2]


def test_more_layers_than_there_are_is_an_error(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    make_tiny_model(whole, ["a post of some words"], vocab_size=300, hidden_size=16, num_layers=1)
    done = cut(whole, 2, tmp_path / "small")
    assert done.returncode != 0
    assert "expected 1 to 1, got 2" in done.stderr
    assert not (tmp_path / "small").exists()
