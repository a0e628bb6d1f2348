"""The Hugging Face folder of a run: weights, configuration, tokenizer and model card.

Of a run with adapters it is a whole model, with the adapters merged into its weights, or a PEFT
folder, with the adapters alone and the name of the model under them.

The folder is written beside its final place and renamed at the end, so it is there whole or not at
all; a folder that `export` did not make is never touched.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import mental_r1_jax
from mental_r1_jax.addresses import address_of, shown_place
from mental_r1_jax.bucket import names_in
from mental_r1_jax.config import ExperimentConfig
from mental_r1_jax.data.loading import worded_spec
from mental_r1_jax.errors import UserError
from mental_r1_jax.json_files import read_json_object
from mental_r1_jax.models import decoder as network
from mental_r1_jax.models import hf_format, peft_format
from mental_r1_jax.opening.model_source import (
    ModelSource,
    copy_model_files,
    origin_of,
    public_name,
)
from mental_r1_jax.release.export_manifest import CARD, MARKER, write_marker
from mental_r1_jax.release.model_card import model_card, shown_name
from mental_r1_jax.release.run_record import read_record
from mental_r1_jax.release.tripod import tripod_block


def check_target(target: Path) -> None:
    """Refuse a non-empty folder that an export did not make, here or in the run's bucket.

    Raises:
        UserError: `target` is such a folder, or a file; nothing is touched.
    """
    ours = (target / MARKER).is_file()
    foreign = target.exists() and not ours and not _is_empty(target)
    in_bucket = names_in(target) if address_of(target) is not None else []
    if foreign or (in_bucket and MARKER not in in_bucket):
        raise UserError(
            what=f"{shown_place(target)} exists and was not made by `mental-r1 export`",
            expected="a new or empty folder, or an earlier export to replace",
            got=f"a file or folder without {MARKER}",
            remedy="choose another export.output_dir; nothing was touched",
        )


def staging_of(target: Path) -> Path:
    """Where the folder is prepared that becomes `target`: beside it, under a name of its own."""
    return target.with_name(f".{target.name}.partial")


def write_beside(
    target: Path, params: Any, model: ModelSource, config: ExperimentConfig, *, step: int | None
) -> Path:
    """Write the whole folder beside `target`; returns its path, for `put_in_place`.

    Args:
        target: the final place, from `check_target`.
        params: float32 weights, on any mesh; written as `export.dtype`. Adapters among them are
            merged, or written alone, as `export.format` says.
        model: the model's configuration and tokenizer; their files are copied.
        config: the recipe of the run.
        step: of the checkpoint that `params` are from.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = staging_of(target)
    _remove_ours(staging)
    staging.mkdir()
    write_marker(staging)  # first, so that what a kill leaves is known as ours
    copy_model_files(model.folder, staging)
    if config.export.format == "peft":
        _write_peft(params, model, staging)
    else:
        hf_format.save_params(
            network.merge_adapters(params, model.decoder),
            model.decoder,
            staging,
            dtype=config.export.dtype,
            max_shard_bytes=config.export.max_shard_megabytes * 10**6,
        )
        write_configs(model, staging, config)
    (staging / CARD).write_text(card_of(config, model, step), encoding="utf-8")
    write_marker(staging)  # the start model may have had one of its own
    return staging


def check_format(model: ModelSource, config: ExperimentConfig) -> None:
    """Refuse to write a PEFT folder where there are no adapters, or none under which peft finds a
    model.

    Raises:
        UserError: the run trained all weights, or its base is a run folder of ours.
    """
    if config.export.format == "merged" or (model.base and model.base.run_folder is None):
        return
    base = model.base.name if model.base else None
    raise UserError(
        what="this run cannot be exported as a PEFT folder",
        expected="a run with model.lora whose frozen model is a Hugging Face folder or hub id",
        got=f"adapters on the run {base}" if base else "a run that trained all weights",
        remedy="set export.format=merged, which writes a whole model",
    )


def _write_peft(params: Any, model: ModelSource, folder: Path) -> None:
    """`adapter_config.json` and the adapters; the files of a whole model stay away."""
    assert model.base is not None and model.decoder.lora is not None
    for name in ("config.json", "generation_config.json"):
        (folder / name).unlink(missing_ok=True)
    peft_format.write_peft_config(folder, model.decoder.lora, model.base.name)
    peft_format.save_adapters(params, model.decoder, folder)


def put_in_place(staging: Path, target: Path) -> None:
    """Rename `staging` to `target`; an earlier export there goes only once the new one stands."""
    retired = target.with_name(f".{target.name}.retired")
    _remove_ours(retired)
    if target.exists():
        target.rename(retired)
    staging.rename(target)
    shutil.rmtree(retired, ignore_errors=True)


def _remove_ours(folder: Path) -> None:
    """Remove what an earlier export left at `folder`, and nothing else."""
    if not folder.exists() and not folder.is_symlink():
        return
    if folder.is_symlink() or not ((folder / MARKER).is_file() or _is_empty(folder)):
        raise UserError(
            what=f"{folder} is in the way, and was not made by `mental-r1 export`",
            expected="nothing of this name, or what an earlier export left",
            got=f"something without {MARKER}",
            remedy="move it away, or choose another export.output_dir; nothing was touched",
        )
    shutil.rmtree(folder)


def _is_empty(folder: Path) -> bool:
    return folder.is_dir() and not any(folder.iterdir())


def write_configs(model: ModelSource, folder: Path, config: ExperimentConfig) -> None:
    """`config.json` with the dtype of the weights, and a `generation_config.json` that stops."""
    hf_config: dict[str, Any] = dict(model.hf_config)
    hf_config.pop("torch_dtype", None)
    hf_config.pop("auto_map", None)
    hf_config.pop("_name_or_path", None)  # where it was once loaded from, on somebody's machine
    hf_config["dtype"] = config.export.dtype
    if model.hf_config["model_type"] != read_json_object(folder / "config.json").get("model_type"):
        # Of a model of images and text only the text part is trained: the folder is a text model.
        for file in folder.glob("*processor_config.json"):
            file.unlink()
    _write_json(folder / "config.json", hf_config)
    file = folder / "generation_config.json"
    generation = read_json_object(file) if file.is_file() else {}
    eos = list(model.tokenizer.eos_ids)
    generation |= {
        "eos_token_id": eos[0] if len(eos) == 1 else eos,
        "pad_token_id": model.tokenizer.pad_id,
        "max_new_tokens": config.rollout.max_completion_length,
        "do_sample": False,
    }
    # Sampling settings of the base model contradict greedy decoding, and transformers warns.
    for key in ("temperature", "top_p", "top_k", "max_length"):
        generation.pop(key, None)
    _write_json(file, generation)


def card_of(config: ExperimentConfig, model: ModelSource, step: int | None) -> str:
    """The model card, from the recipe, its training posts and the newest evaluation of the run.

    `step` is that of the exported checkpoint.
    """
    evaluations = sorted(
        config.run.output_dir.glob("evaluation/*/metrics.json"),
        key=lambda path: path.stat().st_mtime,
    )
    newest = evaluations[-1] if evaluations else None
    metrics = json.loads(newest.read_text(encoding="utf-8")) if newest else None
    base = public_name(origin_of(config.model.path))
    sets = [worded_spec(config, name) for name in config.data.sets]
    record = read_record(config, model, newest)
    return model_card(
        config,
        metrics,
        base_model=base,
        sets=sets,
        counts=record.counts["train"],
        step=step,
        reporting=tripod_block(config, record, metrics, sets, base=shown_name(base)),
        facts={
            "mental_r1_jax": mental_r1_jax.__version__,
            **({} if step is None else {"checkpoint": f"step {step}"}),
            "weights": "float32 adapters, loaded with peft"
            if config.export.format == "peft"
            else config.export.dtype,
        },
    )


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
