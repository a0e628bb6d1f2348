"""Opening a model to train, evaluate or export: tokenizer, architecture and weights.

A model is named by a Hugging Face folder, a hub id, or a run folder of ours. A run folder carries
`base_model/` (configuration and tokenizer, no weights), so it needs nothing outside itself.
"""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from mental_r1_jax.config import ExperimentConfig
from mental_r1_jax.errors import UserError
from mental_r1_jax.models import decoder as network
from mental_r1_jax.models import hf_format
from mental_r1_jax.models.decoder import DecoderConfig
from mental_r1_jax.models.hf_config import decoder_config_from_hf, read_hf_config
from mental_r1_jax.recipe import load_config
from mental_r1_jax.text.prompts import check_grammar
from mental_r1_jax.text.tokenizer import Tokenizer, load_tokenizer
from mental_r1_jax.training.checkpoint import abstract_like, restore_params

BASE_MODEL = "base_model"
_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pth", ".pt", ".gguf", ".index.json")


@dataclasses.dataclass(frozen=True)
class ModelSource:
    """Where a model comes from, and everything about it but its weights.

    Attributes:
        folder: configuration and tokenizer files in the Hugging Face layout.
        run_folder: the run whose checkpoints hold the weights, or None when `folder` holds them.
        hf_config: the parsed `config.json`.
        tokenizer: the model's own.
        decoder: its architecture.
    """

    folder: Path
    run_folder: Path | None
    hf_config: dict[str, Any]
    tokenizer: Tokenizer
    decoder: DecoderConfig


def open_model(name: str, config: ExperimentConfig) -> ModelSource:
    """Read configuration and tokenizer of `name`; weights are left alone.

    Raises:
        UserError: nothing of that name, or a model that the decoder would compute wrongly.
    """
    run_folder = Path(name) if (Path(name) / BASE_MODEL).is_dir() else None
    folder = run_folder / BASE_MODEL if run_folder else hf_format.resolve_model(name)
    file = folder / "config.json"
    if not file.is_file():
        raise UserError(
            what=f"{folder} has no config.json",
            expected="a Hugging Face model folder or one of our run folders",
            got=f"files {sorted(path.name for path in folder.iterdir())[:8]}",
            remedy="set model.path to a folder or hub id of a Llama, Qwen2, Qwen3 or Mistral model",
        )
    hf_config = read_hf_config(folder)
    tokenizer = load_tokenizer(folder)
    check_grammar(tokenizer)
    return ModelSource(
        folder=folder,
        run_folder=run_folder,
        hf_config=hf_config,
        tokenizer=tokenizer,
        decoder=decoder_config_from_hf(
            hf_config,
            compute_dtype=config.model.compute_dtype,
            remat=config.model.remat,
        ),
    )


def load_weights(model: ModelSource, mesh: Mesh, which: str | int = "latest") -> Any:
    """Float32 parameters of `model`, born sharded on `mesh`."""
    shardings = network.param_shardings(model.decoder, mesh)
    if model.run_folder is None:
        return hf_format.load_params(model.folder, model.decoder, shardings)
    abstract = abstract_like(network.abstract_params(model.decoder), shardings)
    return restore_params(model.run_folder, which, abstract)[1]


def origin_of(model: str) -> str:
    """Follow run folders (a cold start, say) back to the model that the first one began with."""
    while (Path(model) / BASE_MODEL).is_dir():
        model = load_config(model).model.path
    return model


def public_name(model: str) -> str:
    """A hub id as it is; of a local folder only its own name, not where it lies."""
    return Path(model).resolve().name if Path(model).exists() else model


def save_base_model(model: ModelSource, run_folder: Path) -> None:
    """Copy configuration and tokenizer into the run folder, so that it stands on its own."""
    target = run_folder / BASE_MODEL
    if target.is_dir():
        return
    staging = run_folder / f".{BASE_MODEL}.partial"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    for path in model.folder.iterdir():
        if path.is_file() and not path.name.endswith(_WEIGHT_SUFFIXES):
            shutil.copy2(path, staging / path.name)
    staging.rename(target)
