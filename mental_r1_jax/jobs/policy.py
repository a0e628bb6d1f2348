"""Opening a model to train, evaluate or export: tokenizer, architecture, mesh and weights.

A model is named by a Hugging Face folder, a hub id, or a run folder of ours. A run folder carries
`base_model/` (configuration and tokenizer, no weights), so it needs nothing outside itself.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from mental_r1_jax import sharding
from mental_r1_jax.config import ExperimentConfig
from mental_r1_jax.errors import UserError
from mental_r1_jax.models import decoder, hf_format
from mental_r1_jax.planning.mesh_choice import choose_mesh
from mental_r1_jax.recipe import load_config
from mental_r1_jax.text.prompts import check_grammar
from mental_r1_jax.text.tokenizer import Tokenizer, load_tokenizer
from mental_r1_jax.training.checkpoint import abstract_like, restore_params
from mental_r1_jax.training.train_step import param_shardings

BASE_MODEL = "base_model"
_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pth", ".pt", ".gguf", ".index.json")


@dataclasses.dataclass(frozen=True)
class Policy:
    """A model without its weights.

    Attributes:
        folder: configuration and tokenizer files in the Hugging Face layout.
        run_folder: the run whose checkpoints hold the weights, or None when `folder` holds them.
        hf_config: the parsed `config.json`.
        tokenizer: the model's own.
        config: the architecture as our decoder reads it.
    """

    folder: Path
    run_folder: Path | None
    hf_config: dict[str, Any]
    tokenizer: Tokenizer
    config: decoder.DecoderConfig


def open_policy(name: str, experiment: ExperimentConfig) -> Policy:
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
    hf_config = json.loads(file.read_text(encoding="utf-8"))
    tokenizer = load_tokenizer(folder)
    check_grammar(tokenizer)
    return Policy(
        folder=folder,
        run_folder=run_folder,
        hf_config=hf_config,
        tokenizer=tokenizer,
        config=hf_format.decoder_config_from_hf(
            hf_config,
            compute_dtype=experiment.model.compute_dtype,
            remat=experiment.model.remat,
        ),
    )


def load_weights(policy: Policy, mesh: Mesh, which: str | int = "latest") -> Any:
    """Float32 parameters of `policy`, born sharded on `mesh`."""
    shardings = param_shardings(policy.config, mesh)
    if policy.run_folder is None:
        return hf_format.load_params(policy.folder, policy.config, shardings)
    abstract = abstract_like(decoder.abstract_params(policy.config), shardings)
    return restore_params(policy.run_folder, which, abstract)[1]


def origin_of(model: str) -> str:
    """Follow run folders (a cold start, say) back to the model that the first one began with."""
    while (Path(model) / BASE_MODEL).is_dir():
        model = load_config(model).model.path
    return model


def public_name(model: str) -> str:
    """A hub id as it is; of a local folder only its own name, not where it lies."""
    return Path(model).resolve().name if Path(model).exists() else model


def open_mesh(
    experiment: ExperimentConfig,
    *,
    rows: dict[str, int],
    model: decoder.DecoderConfig | None = None,
) -> Mesh:
    """The mesh of the recipe; every count in `rows` must split evenly over its prompts axis.

    Args:
        experiment: the recipe.
        rows: name of a batch size -> its number of prompts.
        model: whose size decides what the recipe leaves open; without it such axes are 1.

    Raises:
        UserError: the axes do not multiply to the device count, or a batch does not divide.
    """
    sizes = experiment.mesh
    if model is None or None not in (sizes.fsdp, sizes.tensor):
        mesh = sharding.make_mesh(sizes.data, sizes.fsdp or 1, sizes.tensor or 1)
    else:
        memory = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
        in_slice = jax.device_count() // sharding.count_slices(jax.devices())
        choice = choose_mesh(model, in_slice, memory, fsdp=sizes.fsdp, tensor=sizes.tensor)
        print(f"mesh: {choice.reason}")
        mesh = sharding.make_mesh(sizes.data, choice.fsdp, choice.tensor)
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    for name, count in rows.items():
        if count % shards:
            raise UserError(
                what=f"{name}={count} does not split over the mesh",
                expected=f"a multiple of mesh.data x mesh.fsdp = {shards}",
                got=str(count),
                remedy=f"use {max(1, round(count / shards)) * shards}, or change the mesh",
            )
    return mesh


def save_base_model(policy: Policy, run_folder: Path) -> None:
    """Copy configuration and tokenizer into the run folder, so that it stands on its own."""
    target = run_folder / BASE_MODEL
    if target.is_dir():
        return
    staging = run_folder / f".{BASE_MODEL}.partial"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    for path in policy.folder.iterdir():
        if path.is_file() and not path.name.endswith(_WEIGHT_SUFFIXES):
            shutil.copy2(path, staging / path.name)
    staging.rename(target)
