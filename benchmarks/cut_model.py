"""Keep the first layers of a Hugging Face model, and the tokens that a recipe's posts need.

    python benchmarks/cut_model.py --model HuggingFaceTB/SmolLM2-135M-Instruct --layers 8 --out OUT
    python benchmarks/cut_model.py --model ... --layers 8 --out OUT \\
        --recipe RECIPE.yaml data.root=DATA

A smaller start model for studies on a CPU. Embedding, head and final norm stay. What is left speaks
no longer: it is a start for a cold start, better than random weights. With `--recipe` the
vocabulary loses every token that the recipe's cold start does not use: its prompts and traces are
tokenised as before, and other words fall into smaller pieces, bytes at worst.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from mental_r1_jax.config import ExperimentConfig
from mental_r1_jax.jobs.sft import collect_traces, encode_traces
from mental_r1_jax.models import hf_format
from mental_r1_jax.models.hf_config import decoder_config_from_hf
from mental_r1_jax.recipe import load_config
from mental_r1_jax.text.tokenizer import Tokenizer, load_tokenizer

# Beside the weights: what a tokenizer is read from.
KEPT_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def used_tokens(tokenizer: Tokenizer, config: ExperimentConfig) -> Counter[int]:
    """Count the ids of the prompts and traces of a cold start."""
    counts: Counter[int] = Counter()
    for prompt, completion in encode_traces(tokenizer, config, collect_traces(config)):
        counts.update([*prompt.ids, *completion])
    return counts


def needed_tokens(
    tokenizer: Mapping[str, Any], counts: Mapping[int, int], at_least: int
) -> list[int]:
    """Return the old ids of the tokens to keep, ascending.

    These are the tokens that are no merge (single bytes, added tokens), those that are used so
    often, and all that these are merged from on the way.

    Args:
        tokenizer: what `tokenizer.json` holds.
        counts: id -> how often it is used.
        at_least: how often it must be.

    Raises:
        ValueError: no byte-level BPE tokenizer.
    """
    model = tokenizer["model"]
    if model["type"] != "BPE" or model.get("byte_fallback"):
        raise ValueError(f"--recipe: expected a byte-level BPE tokenizer, got {model['type']}")
    vocabulary: dict[str, int] = model["vocab"]
    parts = {"".join(pair): pair for pair in map(_pair, model["merges"])}
    wanted = [token for token in parts if counts.get(vocabulary[token], 0) >= at_least]
    kept = set(vocabulary) - set(parts)
    while wanted:
        token = wanted.pop()
        if token not in kept:
            kept.add(token)
            wanted += [part for part in parts[token] if part in parts]
    added = [one["id"] for one in tokenizer["added_tokens"]]
    return sorted({*(vocabulary[token] for token in kept), *added})


def smaller_tokenizer(tokenizer: Mapping[str, Any], kept: Sequence[int]) -> dict[str, Any]:
    """Return the tokenizer with these tokens alone, numbered anew in the old order."""
    new = {old: number for number, old in enumerate(kept)}
    model = tokenizer["model"]
    vocabulary = {token: new[old] for token, old in model["vocab"].items() if old in new}
    merges = [
        pair
        for pair in map(_pair, model["merges"])
        if all(token in vocabulary for token in (*pair, "".join(pair)))
    ]
    added = [one | {"id": new[one["id"]]} for one in tokenizer["added_tokens"]]
    smaller = dict(model) | {"vocab": vocabulary, "merges": merges}
    return dict(tokenizer) | {"model": smaller, "added_tokens": added}


def _pair(merge: str | Sequence[str]) -> list[str]:
    """A merge as both spellings of tokenizer files have it."""
    return merge.split(" ") if isinstance(merge, str) else list(merge)


def renumbered(hf_config: Mapping[str, Any], kept: Sequence[int]) -> dict[str, Any]:
    """Return a configuration whose vocabulary and special tokens are those of `kept`."""
    new = {old: number for number, old in enumerate(kept)}
    changed: dict[str, Any] = {"vocab_size": len(kept)}
    for name, value in hf_config.items():
        if name.endswith("_token_id") and value is not None:
            changed[name] = [new[one] for one in value] if isinstance(value, list) else new[value]
    return dict(hf_config) | changed


def cut_model(
    model: str, layers: int, out: Path, recipe: ExperimentConfig | None = None, at_least: int = 1
) -> int:
    """Write the first `layers` layers of `model`, in float32; return the size of its vocabulary.

    Args:
        model: a Hugging Face folder, or an id of the hub.
        layers: how many are kept.
        out: folder to write.
        recipe: tokens of its cold start are kept; None: all tokens are.
        at_least: how often a token must stand there.

    Raises:
        ValueError: the model has not so many layers, or another kind of tokenizer.
    """
    folder = hf_format.resolve_model(model)
    hf_config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    whole = decoder_config_from_hf(hf_config)
    if not 0 < layers <= whole.num_layers:
        raise ValueError(f"--layers: expected 1 to {whole.num_layers}, got {layers}")
    small = hf_config | {"num_hidden_layers": layers}
    if "layer_types" in small:
        small["layer_types"] = small["layer_types"][:layers]
    params: Any = hf_format.load_params(folder, whole)
    params = params | {"layers": jax.tree.map(lambda leaf: leaf[:layers], params["layers"])}
    files = {name: (folder / name).read_text("utf-8") for name in _present(folder)}
    if recipe is not None:
        tokenizer = json.loads(files["tokenizer.json"])
        kept = needed_tokens(tokenizer, used_tokens(load_tokenizer(folder), recipe), at_least)
        small, rows = renumbered(small, kept), jnp.asarray(kept)
        params["embedding"] = params["embedding"][rows]
        if "unembedding" in params:
            params["unembedding"] = params["unembedding"][:, rows]
        files["tokenizer.json"] = json.dumps(smaller_tokenizer(tokenizer, kept), ensure_ascii=False)
    out.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (out / name).write_text(text, encoding="utf-8")
    (out / "config.json").write_text(json.dumps(small, indent=2) + "\n", encoding="utf-8")
    hf_format.save_params(params, decoder_config_from_hf(small), out, dtype="float32")
    return int(small["vocab_size"])


def _present(folder: Path) -> list[str]:
    """Those of the kept files that the model has."""
    return [name for name in KEPT_FILES if (folder / name).is_file()]


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and write the folder."""
    parser = argparse.ArgumentParser(description="Keep the first layers of a model.")
    parser.add_argument("--model", required=True, help="Hugging Face folder or hub id")
    parser.add_argument("--layers", type=int, required=True, help="layers that are kept")
    parser.add_argument(
        "--recipe", nargs="+", help="recipe and overrides: keep the tokens of its cold start alone"
    )
    parser.add_argument("--at-least", type=int, default=1, help="times a token stands in it")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    options = parser.parse_args(arguments)
    recipe = None
    if options.recipe:
        file, *overrides = options.recipe
        recipe = load_config(Path(file), overrides)
    size = cut_model(options.model, options.layers, options.out, recipe, options.at_least)
    print(
        f"wrote the first {options.layers} layers of {options.model} with {size} tokens to "
        f"{options.out}"
    )


if __name__ == "__main__":
    main()
