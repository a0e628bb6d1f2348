"""Opening a model to train, evaluate or export: tokenizer, architecture and weights.

A model is named by a Hugging Face folder, a hub id, or a run folder of ours. A run folder carries
`base_model/` (configuration and tokenizer, no weights), so it needs nothing outside itself.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from mental_r1_jax.config import ExperimentConfig
from mental_r1_jax.errors import UserError
from mental_r1_jax.json_files import read_json_object
from mental_r1_jax.models import decoder as network
from mental_r1_jax.models import hf_format
from mental_r1_jax.models.decoder import DecoderConfig
from mental_r1_jax.models.hf_config import decoder_config_from_hf, read_hf_config
from mental_r1_jax.recipe import load_config
from mental_r1_jax.text.prompts import check_grammar
from mental_r1_jax.text.tokenizer import Tokenizer, load_tokenizer
from mental_r1_jax.training.checkpoint import abstract_like, restore_params

BASE_MODEL = "base_model"
_COPIED_SUFFIXES = (".json", ".jinja", ".model", ".txt", ".md", ".tiktoken")
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
            remedy="set model.path to a folder or hub id of a Llama, Qwen, Mistral or Gemma model",
        )
    hf_config = read_hf_config(folder)
    decoder = decoder_config_from_hf(
        hf_config, compute_dtype=config.model.compute_dtype, remat=config.model.remat
    )
    tokenizer = load_tokenizer(folder)
    _check_ids(folder, tokenizer, decoder)
    check_grammar(tokenizer)
    return ModelSource(
        folder=folder,
        run_folder=run_folder,
        hf_config=hf_config,
        tokenizer=tokenizer,
        decoder=decoder,
    )


def load_weights(model: ModelSource, mesh: Mesh, which: str | int = "latest") -> Any:
    """Float32 parameters of `model`, born sharded on `mesh`."""
    shardings = network.param_shardings(model.decoder, mesh)
    if model.run_folder is None:
        return hf_format.load_params(model.folder, model.decoder, shardings)
    abstract = abstract_like(network.abstract_params(model.decoder), shardings)
    return restore_params(model.run_folder, which, abstract)[1]


def origin_of(model: str) -> str:
    """Follow run folders (a cold start, say) back to the model that the first one began with.

    Raises:
        UserError: they lead back to one of them.
    """
    seen: set[Path] = set()
    while (Path(model) / BASE_MODEL).is_dir():
        if Path(model).resolve() in seen:
            raise UserError(
                what=f"the run {model} has itself as its start model",
                expected="a chain of runs that begins with a model",
                got=" -> ".join(str(path) for path in seen),
                remedy="correct model.path in the config.yaml of one of these runs",
            )
        seen.add(Path(model).resolve())
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
    copy_model_files(model.folder, staging)
    staging.rename(target)


def copy_model_files(source: Path, target: Path) -> None:
    """Copy configuration, tokenizer and licence, but neither weights nor anything that is run.

    Code of a start model is never run here, and who loads our export is not to be asked to: files
    of other kinds stay behind, and so does `auto_map`, which names classes in them.
    """
    for path in source.iterdir():
        licence = path.name.upper().startswith(("LICENSE", "LICENCE", "NOTICE"))
        wanted = path.suffix in _COPIED_SUFFIXES or (licence and path.suffix in ("", ".txt"))
        if not wanted or not path.is_file() or path.name.endswith(_WEIGHT_SUFFIXES):
            continue
        shutil.copy2(path, target / path.name)
        if path.name in ("config.json", "tokenizer_config.json", "processor_config.json"):
            content = read_json_object(path)
            if content.pop("auto_map", None) is not None:
                text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
                (target / path.name).write_text(text, encoding="utf-8")


def _check_ids(folder: Path, tokenizer: Tokenizer, decoder: DecoderConfig) -> None:
    """Refuse ids of the tokenizer that the model has no row for."""
    ids = {
        **{f"EOS {i}": i for i in tokenizer.eos_ids},
        f"pad {tokenizer.pad_id}": tokenizer.pad_id,
    }
    outside = [name for name, i in ids.items() if not 0 <= i < decoder.vocab_size]
    if outside:
        raise UserError(
            what=f"the tokenizer in {folder} does not belong to the model",
            expected=f"ids of EOS and padding below vocab_size = {decoder.vocab_size}",
            got=", ".join(outside),
            remedy="correct generation_config.json or the tokenizer's files",
        )
