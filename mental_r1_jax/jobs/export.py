"""`mental-r1 export`: an Orbax checkpoint becomes a Hugging Face folder, ready to release.

The folder is written beside its final place and renamed at the end, so it is there whole or not at
all; a folder that `export` did not make is never touched.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import mental_r1_jax
from mental_r1_jax.config import ExperimentConfig
from mental_r1_jax.data.loading import label_counts, load_examples, set_spec
from mental_r1_jax.errors import UserError
from mental_r1_jax.jobs.model_card import CardSet, model_card
from mental_r1_jax.jobs.policy import (
    Policy,
    load_weights,
    open_mesh,
    open_policy,
    origin_of,
    public_name,
)
from mental_r1_jax.models import hf_format

MARKER = "mental_r1_export.json"


def run(config: ExperimentConfig) -> Path:
    """Write the Hugging Face folder of the run, verify it if asked, and return its path."""
    run_folder = config.run.output_dir
    target = config.export.output_dir or run_folder / "hf"
    check_target(target)
    policy = open_policy(str(run_folder), config)
    mesh = open_mesh(config, rows={})
    params = load_weights(policy, mesh, which=config.export.checkpoint)

    target.parent.mkdir(parents=True, exist_ok=True)
    staging = target.with_name(f".{target.name}.partial")
    shutil.rmtree(staging, ignore_errors=True)
    shutil.copytree(policy.folder, staging)
    hf_format.save_params(
        params,
        policy.config,
        staging,
        dtype=config.export.dtype,
        max_shard_bytes=config.export.max_shard_megabytes * 10**6,
    )
    write_configs(policy, staging, config)
    (staging / "README.md").write_text(card_of(config), encoding="utf-8")
    marker = {"made_by": "mental-r1 export", "version": mental_r1_jax.__version__}
    (staging / MARKER).write_text(json.dumps(marker), encoding="utf-8")
    if config.export.verify:
        from mental_r1_jax.jobs.verify import verify_export

        verify_export(staging, policy, config)
    put_in_place(staging, target)
    print(f"exported to {target}")
    return target


def check_target(target: Path) -> None:
    """Refuse a non-empty folder that an export did not make.

    Raises:
        UserError: `target` is such a folder, or a file; nothing is touched.
    """
    ours = (target / MARKER).is_file()
    empty = target.is_dir() and not any(target.iterdir())
    if target.exists() and not ours and not empty:
        raise UserError(
            what=f"{target} exists and was not made by `mental-r1 export`",
            expected="a new or empty folder, or an earlier export to replace",
            got=f"a file or folder without {MARKER}",
            remedy="choose another export.output_dir; nothing was touched",
        )


def put_in_place(staging: Path, target: Path) -> None:
    """Rename `staging` to `target`; an earlier export there goes only once the new one stands."""
    retired = target.with_name(f".{target.name}.retired")
    shutil.rmtree(retired, ignore_errors=True)
    if target.exists():
        target.rename(retired)
    staging.rename(target)
    shutil.rmtree(retired, ignore_errors=True)


def write_configs(policy: Policy, folder: Path, config: ExperimentConfig) -> None:
    """`config.json` with the dtype of the weights, and a `generation_config.json` that stops."""
    hf_config: dict[str, Any] = dict(policy.hf_config)
    hf_config.pop("torch_dtype", None)
    hf_config["dtype"] = config.export.dtype
    _write_json(folder / "config.json", hf_config)
    file = folder / "generation_config.json"
    generation = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    eos = list(policy.tokenizer.eos_ids)
    generation |= {
        "eos_token_id": eos[0] if len(eos) == 1 else eos,
        "pad_token_id": policy.tokenizer.pad_id,
        "max_new_tokens": config.rollout.max_completion_length,
        "do_sample": False,
    }
    # Sampling settings of the base model contradict greedy decoding, and transformers warns.
    for key in ("temperature", "top_p", "top_k", "max_length"):
        generation.pop(key, None)
    _write_json(file, generation)


def card_of(config: ExperimentConfig) -> str:
    """The model card, from the recipe and the newest evaluation of the run."""
    run_folder = config.run.output_dir
    evaluations = sorted(
        run_folder.glob("evaluation/*/metrics.json"), key=lambda path: path.stat().st_mtime
    )
    metrics = json.loads(evaluations[-1].read_text(encoding="utf-8")) if evaluations else None
    counts = label_counts(load_examples(config, "train"))
    specs = [set_spec(config.data, name) for name in config.data.sets]
    sets = [
        CardSet(
            name=spec.name,
            asks_for=spec.asks_for,
            question=spec.question,
            labels=spec.labels,
            counts=counts[spec.name],
        )
        for spec in specs
    ]
    return model_card(
        config.model_dump(mode="json"),
        metrics,
        base_model=public_name(origin_of(config.model.path)),
        sets=sets,
        facts={"mental_r1_jax": mental_r1_jax.__version__, "weights": config.export.dtype},
    )


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
