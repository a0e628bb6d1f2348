"""The GGUF file in llama.cpp itself: the same tokens of a text, and the same greedy tokens.

llama-cpp-python is compiled when it is installed, which takes many minutes, so these tests run by
`make check-gguf`, which installs it, and skip elsewhere.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mental_r1_jax.models import hf_format
from mental_r1_jax.release.gguf_file import write_gguf
from mental_r1_jax.rollout.collect import pad_prompts
from mental_r1_jax.rollout.sampler import sample_completions, step_key
from mental_r1_jax.text.prompts import RenderedPrompt, render_prompt
from tests.release.gguf_models import (
    CASES,
    LONG,
    PREFIXED,
    STRETCHED,
    Case,
    make_folder,
    open_folder,
)
from tests.rollout.settings import make_settings

llama_cpp = pytest.importorskip("llama_cpp", reason="make check-gguf installs llama-cpp-python")

TEXTS = (
    "I haven't slept in 3 days, it's 2026 already.",
    "Don't  ask\n\n  why: naïve café, 你好 🙂",
    "tabs\tand trailing blanks  ",
    "<|im_start|>user\nthe nights<|im_end|>\n",
)
LENGTH = 40


def load(file: Path) -> llama_cpp.Llama:
    """The file with float32 keys and values, so that only float16 weights are rounded."""
    kind = llama_cpp.GGML_TYPE_F32
    return llama_cpp.Llama(
        str(file), n_ctx=1024, verbose=False, type_k=kind, type_v=kind, n_threads=2, seed=0
    )


def write(folder: Path, to: Path) -> tuple[Path, object]:
    """The file, and the weights that it holds: matrices as float16."""
    model = open_folder(folder)
    params = hf_format.load_params(folder, model.decoder)
    file = to / "model-f16.gguf"
    write_gguf(file, params, model, "f16")

    def half(path: tuple[object, ...], array: jax.Array) -> jax.Array:
        vector = "norm" in jax.tree_util.keystr(path) or "bias" in jax.tree_util.keystr(path)
        return array if vector else array.astype(jnp.float16).astype(jnp.float32)

    return file, jax.tree_util.tree_map_with_path(half, params)


def ours_greedy(folder: Path, params: object, prompt: RenderedPrompt) -> list[int]:
    model = open_folder(folder)
    eos, pad = model.tokenizer.eos_ids, model.tokenizer.pad_id
    settings = make_settings(max_completion_length=LENGTH, greedy=True, eos_ids=eos, pad_id=pad)
    batch = jax.tree.map(jnp.asarray, pad_prompts([prompt], len(prompt.ids), pad))
    sample = functools.partial(sample_completions, config=model.decoder, settings=settings)
    out = jax.jit(sample)(params, batch, step_key(0, 0))
    return np.asarray(out.completion_ids)[0, 0, : int(out.completion_mask[0, 0].sum())].tolist()


def theirs_greedy(
    llama: llama_cpp.Llama, prompt: RenderedPrompt, eos: tuple[int, ...]
) -> list[int]:
    tokens: list[int] = []
    for token in llama.generate(list(prompt.ids), temp=0.0, top_k=1, reset=True):
        tokens.append(token)
        if token in eos or len(tokens) == LENGTH:
            return tokens
    raise AssertionError("generate has no end of its own")


@pytest.mark.parametrize(
    "case", (*CASES, LONG, PREFIXED, STRETCHED), ids=lambda case: f"{case.name} {case.split[:10]}"
)
def test_tokens_and_greedy_text_of_tiny_models(case: Case, tmp_path: Path) -> None:
    folder = make_folder(case, tmp_path / "model")
    file, params = write(folder, tmp_path)
    tokenizer, llama = open_folder(folder).tokenizer, load(file)
    for text in TEXTS:
        theirs = llama.tokenize(text.encode(), add_bos=False, special=True)
        assert theirs == tokenizer.encode(text), text
    ids = tuple(tokenizer.encode(TEXTS[0]))
    prompt = RenderedPrompt(ids=ids, text=TEXTS[0], truncated=False)
    assert theirs_greedy(llama, prompt, tokenizer.eos_ids) == ours_greedy(folder, params, prompt)


@pytest.mark.parametrize("name", ["SMOLLM2_135M", "GEMMA3_270M"])
def test_real_models(name: str, tmp_path: Path) -> None:
    """`SMOLLM2_135M=FOLDER`, `GEMMA3_270M=FOLDER` name them."""
    folder = Path(os.environ.get(name, "nowhere"))
    if not folder.is_dir():
        pytest.skip(f"needs {name}=FOLDER with the real model")
    file, params = write(folder, tmp_path)
    tokenizer, llama = open_folder(folder).tokenizer, load(file)
    post = "people who have not slept for days often feel that everything is too much. "
    prompt = render_prompt(tokenizer, "How does the writer sleep? Statement: ", post * 3, 400)
    for text in (*TEXTS[:3], prompt.text):
        theirs = llama.tokenize(text.encode(), add_bos=False, special=True)
        assert theirs == tokenizer.encode(text), text
    assert theirs_greedy(llama, prompt, tokenizer.eos_ids) == ours_greedy(folder, params, prompt)
