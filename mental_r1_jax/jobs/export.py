"""`mental-r1 export`: an Orbax checkpoint becomes a Hugging Face folder, ready to release."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from mental_r1_jax.bucket import push_folder
from mental_r1_jax.config import ExperimentConfig
from mental_r1_jax.models.decoder import merge_adapters
from mental_r1_jax.opening.devices import open_mesh
from mental_r1_jax.opening.model_source import load_checkpoint, open_model
from mental_r1_jax.opening.reading import for_reading
from mental_r1_jax.private_files import check_writable
from mental_r1_jax.release.export_manifest import write_manifest
from mental_r1_jax.release.gguf_file import check_gguf, write_gguf
from mental_r1_jax.release.hf_folder import (
    check_format,
    check_target,
    put_in_place,
    staging_of,
    write_beside,
)


def run(config: ExperimentConfig, *, verify: bool = False) -> Path:
    """Write the Hugging Face folder of the run and return its path.

    Args:
        config: the recipe; `export` says which checkpoint, where to and as what dtype.
        verify: compare with transformers before anything is replaced; so does `export.verify`.
    """
    config = for_reading(config)
    run_folder = config.run.output_dir
    target = config.export.output_dir or run_folder / "hf"
    check_target(target)
    for folder in (target, staging_of(target)):
        check_writable(folder)
    model = open_model(str(run_folder), config)
    check_format(model, config)
    if config.export.gguf:
        check_gguf(model)  # before weights are read
    # Adapters are merged into a float32 base: what is rounded, is rounded once.
    exact = dataclasses.replace(model.decoder, compute_dtype="float32")
    model = dataclasses.replace(model, decoder=exact)
    mesh = open_mesh(config, rows={}, model=model.decoder)
    params, step = load_checkpoint(model, mesh, which=config.export.checkpoint)
    staging = write_beside(target, params, model, config, step=step)
    if config.export.gguf:
        file = staging / f"model-{config.export.gguf}.gguf"
        write_gguf(file, merge_adapters(params, model.decoder), model, config.export.gguf)
    if verify or config.export.verify:
        # Imported here, because it needs the sampler and torch, which an export does not.
        from mental_r1_jax.release.verify import verify_export

        verify_export(staging, model, config)
    write_manifest(staging)
    put_in_place(staging, target)
    push_folder(target)
    of_step = "" if step is None else f"checkpoint of step {step} "
    print(f"{of_step}exported to {target}")
    return target
