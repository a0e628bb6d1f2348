"""Keep the first layers of a Hugging Face model: a smaller start model for studies on a CPU.

    python benchmarks/cut_model.py --model HuggingFaceTB/SmolLM2-135M-Instruct --layers 8 --out OUT

Embedding, head and final norm stay, and so does the tokenizer. What is left speaks no longer: it is
a start for a cold start, better than random weights.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from mental_r1_jax.models import hf_format
from mental_r1_jax.models.hf_config import decoder_config_from_hf

# Beside the weights: what a tokenizer is read from.
KEPT_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def cut_model(model: str, layers: int, out: Path) -> None:
    """Write the first `layers` layers of `model`, in float32.

    Args:
        model: a Hugging Face folder, or an id of the hub.
        layers: how many are kept.
        out: folder to write.

    Raises:
        ValueError: the model has not so many layers.
    """
    folder = hf_format.resolve_model(model)
    hf_config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    whole = decoder_config_from_hf(hf_config)
    if not 0 < layers <= whole.num_layers:
        raise ValueError(f"--layers: expected 1 to {whole.num_layers}, got {layers}")
    params: Any = hf_format.load_params(folder, whole)
    kept = params | {"layers": jax.tree.map(lambda leaf: leaf[:layers], params["layers"])}
    small = hf_config | {"num_hidden_layers": layers}
    if "layer_types" in small:
        small["layer_types"] = small["layer_types"][:layers]
    out.mkdir(parents=True, exist_ok=True)
    for name in KEPT_FILES:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, out / name)
    (out / "config.json").write_text(json.dumps(small, indent=2) + "\n", encoding="utf-8")
    hf_format.save_params(kept, decoder_config_from_hf(small), out, dtype="float32")


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and write the folder."""
    parser = argparse.ArgumentParser(description="Keep the first layers of a model.")
    parser.add_argument("--model", required=True, help="Hugging Face folder or hub id")
    parser.add_argument("--layers", type=int, required=True, help="layers that are kept")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    options = parser.parse_args(arguments)
    cut_model(options.model, options.layers, options.out)
    print(f"wrote the first {options.layers} layers of {options.model} to {options.out}")


if __name__ == "__main__":
    main()
