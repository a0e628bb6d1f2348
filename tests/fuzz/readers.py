"""The readers of files that people give us, each with a sound file and the words of its format.

A reader is tried with mutations of the sound file and with any bytes. It may return, or raise
`UserError`; anything else is a fault. What comes back is looked at, too.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import random
from pathlib import Path

import numpy as np
from hypothesis import strategies as st
from safetensors.numpy import save

from mental_r1_jax.data.checked_sets import check_set
from mental_r1_jax.data.traces import read_traces, template_completion
from mental_r1_jax.errors import UserError
from mental_r1_jax.models import hf_format
from mental_r1_jax.models.decoder import DecoderConfig
from mental_r1_jax.models.hf_config import decoder_config_from_hf, read_hf_config
from mental_r1_jax.recipe import dump_config, parse_config
from mental_r1_jax.text.stages import GRAMMAR
from mental_r1_jax.training import checkpoint, manifest
from mental_r1_jax.training.metrics import open_writers, read_metrics, truncate_after
from tests.data.folders import MOOD, csv_text, made_up_rows
from tests.fuzz.posts import POSTS
from tests.fuzz.reader import JSON_WORDS, Reader

CONFIG = {
    "model_type": "llama",
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rope_theta": 10000.0,
    "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    "tie_word_embeddings": True,
    "eos_token_id": [1, 2],
}
RECIPE = """
model: {path: m, compute_dtype: float32}
data:
  sets: [Risk-Synthetic, Mine]
  custom_sets: {Mine: {labels: ["Yes", "No"], question: "Q?"}}
crpo: {kl_coef: 0.05, num_iterations: 2}
rewards: {custom: {"mine:reward": 1.0}}
optimizer: {learning_rate: 1.0e-3}
run: {output_dir: out, num_steps: 1}
"""
METRICS = (
    '{"step": 0, "eval/average/weighted_f1": 0.5}\n{"step": 1, "loss": "NaN", "reward": 0.25}\n'
)
COMPLETION = template_completion("tea with milk", "Calm", random.Random(0))


def read_csv(folder: Path, content: bytes) -> None:
    """A set of posts; whatever is wrong must be among its problems."""
    (folder / "Mood").mkdir(exist_ok=True)
    for stem in ("train", "val", "test"):
        (folder / "Mood" / f"{stem}_clean.csv").write_bytes(content)
    checked = check_set(folder, MOOD)
    assert checked.errors or checked.examples["train"]
    for problem in (*checked.errors, *checked.warnings):
        str(problem)


def read_recipe(folder: Path, content: bytes) -> None:
    """A recipe; one that is read survives being written and read again."""
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        return  # refused by `load_config`, which has a test
    config = parse_config(text, source="recipe.yaml")
    assert parse_config(dump_config(config), source="again") == config


def read_config(folder: Path, content: bytes) -> None:
    """The architecture of a start model."""
    (folder / "config.json").write_bytes(content)
    decoder = decoder_config_from_hf(read_hf_config(folder))
    assert min(decoder.num_layers, decoder.head_dim, decoder.vocab_size) > 0


def read_index(folder: Path, content: bytes) -> None:
    """An index of weights, beside a file that it may name."""
    (folder / "model.safetensors.index.json").write_bytes(content)
    (folder / "a.safetensors").write_bytes(_weights())
    hf_format.load_params(folder, SMALL)


def read_weights(folder: Path, content: bytes) -> None:
    """A file of weights."""
    (folder / "model.safetensors").write_bytes(content)
    hf_format.load_params(folder, SMALL)


def read_manifest(folder: Path, content: bytes) -> None:
    """The manifest of a checkpoint; what differs from the sound one is a problem."""
    step = folder / "3"
    step.mkdir(exist_ok=True)
    (step / "_CHECKPOINT_METADATA").write_text(json.dumps({"custom_metadata": manifest.SIGNED}))
    (step / "data").write_bytes(b"tea")
    (step / manifest.MANIFEST_FILE).write_bytes(content)
    found = manifest.problems(checkpoint.absolute(step), 3, thorough=True)
    assert all(isinstance(problem, str) for problem in found)


def read_metrics_file(folder: Path, content: bytes) -> None:
    """The metrics of a run, as a run that goes on reads them."""
    file = folder / "metrics.jsonl"
    file.write_bytes(content)
    truncate_after(file, 0)
    with open_writers(folder, tensorboard=False, config={}) as writers:
        writers.write(1, {"loss": 0.5})
    lines = read_metrics(file)
    assert lines[-1] == {"step": 1, "loss": 0.5}
    assert all(isinstance(value, (int, float)) for line in lines for value in line.values())
    assert max(line["step"] for line in lines) == 1


def read_traces_file(folder: Path, content: bytes) -> None:
    """Traces of a cold start."""
    file = folder / "traces.jsonl"
    file.write_bytes(content)
    for trace in read_traces(file):
        assert isinstance(trace.completion, str) and isinstance(trace.post, str)


CONFIG_PLAIN = {name: value for name, value in CONFIG.items() if name != "rope_scaling"}
SMALL: DecoderConfig = decoder_config_from_hf(CONFIG_PLAIN)


def _weights() -> bytes:
    """A sound file of weights of `SMALL`."""
    shapes = {"model.embed_tokens.weight": (32, 16), "model.norm.weight": (16,)}
    prefix = "model.layers.0."
    shapes |= {f"{prefix}{name}_layernorm.weight": (16,) for name in ("input", "post_attention")}
    shapes |= {
        f"{prefix}self_attn.{name}_proj.weight": shape
        for name, shape in {"q": (16, 16), "k": (8, 16), "v": (8, 16), "o": (16, 16)}.items()
    }
    shapes |= {
        f"{prefix}mlp.{name}_proj.weight": shape
        for name, shape in {"gate": (24, 16), "up": (24, 16), "down": (16, 24)}.items()
    }
    return save({name: np.ones(shape, np.float32) for name, shape in shapes.items()})


def _manifest() -> bytes:
    digest = hashlib.sha256(b"tea").hexdigest()
    content = {
        "step": 3,
        "algorithm": "sha256",
        "metadata": {"item_handlers": None, "custom_metadata": manifest.SIGNED},
        "files": {"data": {"bytes": 3, "sha256": digest}},
    }
    return json.dumps(content).encode()


READERS = {
    "csv": Reader(
        csv_text(made_up_rows("train", 4)).encode(),
        ('"', ",", "\r", "\n", '""', ";", "\t", "\0", "text", "label", "sep=", "Calm", "[3-4]"),
        read_csv,
    ),
    **POSTS,
    "recipe": Reader(
        RECIPE.encode(),
        (": ", "- ", "[", "]", "{", "}", "&a ", "*a", "<<: ", "!!int ", "? ", "null", "true", "-1")
        + (
            "1e3",
            "0x1",
            "|",
            ">",
            "'",
            '"',
            "#",
            "\t",
            "crpo",
            "base: r.yaml",
            ".inf",
            "2024-01-99",
        ),
        read_recipe,
    ),
    "config": Reader(
        json.dumps(CONFIG).encode(),
        (
            *JSON_WORDS,
            "rope_scaling",
            "head_dim",
            "layer_types",
            "sliding_window",
            "qwen3",
            "linear",
        ),
        read_config,
    ),
    "index": Reader(
        json.dumps({"metadata": {}, "weight_map": dict.fromkeys("xy", "a.safetensors")}).encode(),
        (*JSON_WORDS, "weight_map", "a.safetensors", "/", "..", "model.norm.weight"),
        read_index,
    ),
    "weights": Reader(
        _weights(),
        (*JSON_WORDS, "F32", "BF16", "I64", "BOOL", "shape", "data_offsets", "model.norm.weight"),
        read_weights,
    ),
    "manifest": Reader(
        _manifest(), (*JSON_WORDS, "files", "step", "../", "x" * 300), read_manifest
    ),
    "metrics": Reader(
        METRICS.encode(), (*JSON_WORDS, "step", "\n", "Infinity", "9" * 400), read_metrics_file
    ),
    "traces": Reader(
        (json.dumps({"prompt": "Q?", "completion": COMPLETION}) + "\n").encode(),
        (*JSON_WORDS, "prompt", "completion", "\n", *(f"</{s.name}>" for s in GRAMMAR.stages)),
        read_traces_file,
    ),
}


def mutations(reader: Reader) -> st.SearchStrategy[bytes]:
    """The sound file with pieces cut out, copied elsewhere, replaced by words, or bits flipped."""
    word = st.sampled_from([*reader.words]).map(str.encode) | st.binary(max_size=3)
    place = st.integers(0, len(reader.sound))
    change = st.tuples(
        place, st.integers(0, 12), word, st.sampled_from("replace insert copy cut".split())
    )

    def apply(changes: list[tuple[int, int, bytes, str]]) -> bytes:
        content = reader.sound
        for start, length, new, how in changes:
            piece = {"copy": content[start : start + 4 * length], "cut": b""}.get(how, new)
            stop = start + (0 if how in ("insert", "copy") else length)
            content = content[:start] + piece + content[stop:]
        return content

    few = st.lists(change, min_size=1, max_size=4).map(apply)
    torn = place.map(lambda length: reader.sound[:length])
    pieces = st.lists(word, max_size=20).map(b"".join)
    return few | few | torn | pieces | st.binary(max_size=60)


def attempt(reader: Reader, folder: Path, content: bytes) -> bool:
    """Whether `content` was read; refused by one error otherwise. Anything else is raised."""
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            reader.read(folder, content)
        except UserError as error:
            assert 0 < len(str(error)) < 100_000
            return False
    return True
