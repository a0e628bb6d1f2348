"""A model that was cut is the model without its last layers, as PyTorch runs it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from mental_r1_jax.models.tiny import make_tiny_model

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "cut_model.py"


def cut(model: Path, layers: int, out: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, SCRIPT, "--model", model, "--layers", str(layers), "--out", out]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


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


def test_more_layers_than_there_are_is_an_error(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    make_tiny_model(whole, ["a post of some words"], vocab_size=300, hidden_size=16, num_layers=1)
    done = cut(whole, 2, tmp_path / "small")
    assert done.returncode != 0
    assert "expected 1 to 1, got 2" in done.stderr
    assert not (tmp_path / "small").exists()
