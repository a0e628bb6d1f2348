"""A model that was cut is the model without its last layers, as PyTorch runs it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from mental_r1_jax.jobs.sft import collect_traces
from mental_r1_jax.models.tiny import make_tiny_model
from mental_r1_jax.recipe import load_config

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


RECIPE = """
model: {path: unused}
data: {sets: [Stress-Synthetic]}
sft: {traces_per_set: 20}
run: {output_dir: unused, num_steps: 1}
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose tokenizer knows words of the recipe's cold start, and others."""
    root = tmp_path_factory.mktemp("cut")
    recipe = root / "recipe.yaml"
    recipe.write_text(RECIPE, encoding="utf-8")
    traces = collect_traces(load_config(recipe))
    corpus = [trace.question + trace.post + trace.completion for trace in traces]
    corpus += ["Quite another thing: xylophones and zeppelins."] * 20
    sizes = {"vocab_size": 700, "hidden_size": 16, "num_layers": 2}
    make_tiny_model(root / "whole", corpus, **sizes)
    return root / "whole"


@pytest.mark.parametrize("tied", [True, False])
def test_a_smaller_vocabulary_has_the_rows_of_its_tokens(
    whole: Path, tmp_path: Path, tied: bool
) -> None:
    """What the recipe uses is tokenised as before, with the logits of the whole model."""
    recipe, model, small = whole.parent / "recipe.yaml", tmp_path / "model", tmp_path / "small"
    shutil.copytree(whole, model)
    if not tied:
        config = AutoConfig.from_pretrained(whole, tie_word_embeddings=False)
        AutoModelForCausalLM.from_config(config).save_pretrained(model)
    done = cut(model, 2, small, "--recipe", recipe)
    assert done.returncode == 0, done.stderr
    before, after = (AutoTokenizer.from_pretrained(folder) for folder in (model, small))
    assert 256 < len(after) < len(before)
    names = ("eos_token", "pad_token")
    assert [getattr(after, n) for n in names] == [getattr(before, n) for n in names]
    traces = collect_traces(load_config(recipe))
    for trace in traces:
        assert after.tokenize(trace.completion) == before.tokenize(trace.completion)
    other = "xylophones, zeppelins, \u591a"
    assert len(after.tokenize(other)) > len(before.tokenize(other))
    assert after.decode(after(other).input_ids) == other

    expected, found = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        for folder in (model, small)
    )
    assert found.config.vocab_size == len(after)
    assert found.config.eos_token_id == after.eos_token_id
    kept = before.convert_tokens_to_ids(after.convert_ids_to_tokens(range(len(after))))
    text = traces[0].completion
    ids, old_ids = (torch.tensor([t(text).input_ids]) for t in (after, before))
    with torch.no_grad():
        logits = expected(old_ids).logits[..., kept]
        torch.testing.assert_close(found(ids).logits, logits, rtol=0, atol=1e-6)


def test_tokens_that_are_used_too_seldom_go(whole: Path, tmp_path: Path) -> None:
    sizes = []
    for at_least in ("1", "3", "1000"):
        small, recipe = tmp_path / at_least, whole.parent / "recipe.yaml"
        done = cut(whole, 1, small, "--recipe", recipe, "--at-least", at_least)
        assert done.returncode == 0, done.stderr
        sizes.append(len(AutoTokenizer.from_pretrained(small)))
    added = len(AutoTokenizer.from_pretrained(whole).added_tokens_decoder)
    assert sizes[0] > sizes[1] > sizes[2] == 256 + added


def test_more_layers_than_there_are_is_an_error(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    make_tiny_model(whole, ["a post of some words"], vocab_size=300, hidden_size=16, num_layers=1)
    done = cut(whole, 2, tmp_path / "small")
    assert done.returncode != 0
    assert "expected 1 to 1, got 2" in done.stderr
    assert not (tmp_path / "small").exists()
