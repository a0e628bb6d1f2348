"""Write a random model of a well-known shape as a Hugging Face folder, to measure with.

    python benchmarks/random_model.py --like Qwen/Qwen3-0.6B --out /tmp/qwen3-0.6b

Speed does not depend on the weights, and a random model never ends a completion by itself. The
tokenizer is a small one trained on the spot; token ids beyond it decode to nothing.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from mental_r1_jax.models import decoder, hf_format
from mental_r1_jax.models.hf_config import decoder_config_from_hf
from mental_r1_jax.models.tiny import make_tiny_model
from mental_r1_jax.planning.known_models import KNOWN_CONFIGS

# The shape that the tables call `5M`.
SMALL = {
    "vocab_size": 8192,
    "hidden_size": 256,
    "intermediate_size": 688,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "tie_word_embeddings": True,
}


def write_model(like: str, folder: Path, dtype: str) -> None:
    """Write tokenizer, configuration and random weights in the shape of `like`."""
    write_shape(SMALL if like == "5M" else dict(KNOWN_CONFIGS[like]), folder, dtype)


def write_shape(shape: Mapping[str, Any], folder: Path, dtype: str = "float32") -> None:
    """Write tokenizer, configuration and random weights of these sizes."""
    make_tiny_model(folder, ["a b c d e f g"], vocab_size=300, hidden_size=8, num_layers=1)
    file = folder / "config.json"
    small = json.loads(file.read_text(encoding="utf-8"))
    ends = {name: small[name] for name in ("eos_token_id", "pad_token_id")}
    hf_config = small | dict(shape) | ends | {"initializer_range": 0.02, "dtype": dtype}
    file.write_text(json.dumps(hf_config, indent=2) + "\n", encoding="utf-8")
    config = decoder_config_from_hf(hf_config)
    params = jax.jit(decoder.init_params, static_argnums=0)(config, jax.random.key(0))
    hf_format.save_params(params, config, folder, dtype=dtype)


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and write the folder."""
    parser = argparse.ArgumentParser(description="Write a random model.")
    parser.add_argument("--like", default="5M", choices=["5M", *sorted(KNOWN_CONFIGS)])
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    options = parser.parse_args(arguments)
    write_model(options.like, options.out, options.dtype)
    print(f"wrote a random {options.like} to {options.out}")


if __name__ == "__main__":
    main()
