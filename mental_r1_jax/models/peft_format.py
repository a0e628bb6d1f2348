"""Adapters as a PEFT folder: `adapter_config.json` and `adapter_model.safetensors`, both ways.

Only plain LoRA on the projections of the layers is read: what else the file may ask for would be
computed wrongly, so it is refused by name.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from mental_r1_jax.errors import UserError
from mental_r1_jax.json_files import read_json_object
from mental_r1_jax.models.architecture import DecoderConfig, Lora
from mental_r1_jax.models.lora import adapter_rows
from mental_r1_jax.models.parameters import Row, row_tree, stacked_shape

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

# Fields that change what is computed -> the values with which they do not.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none", None),
    "init_lora_weights": (True, False, "gaussian", None),
    **dict.fromkeys(
        (
            *("use_rslora", "use_dora", "use_qalora", "use_bdlora", "fan_in_fan_out", "lora_bias"),
            *("modules_to_save", "rank_pattern", "alpha_pattern", "layers_to_transform"),
            *("layers_pattern", "exclude_modules", "target_parameters", "layer_replication"),
            *("trainable_token_indices", "alora_invocation_tokens"),
        ),
        (None, False, {}, [], 0),
    ),
}


@dataclass(frozen=True)
class PeftConfig:
    """What an `adapter_config.json` says.

    Attributes:
        lora: rank, alpha and targets.
        base: hub id or folder of the model that the adapters belong to.
        content: the whole file.
    """

    lora: Lora
    base: str
    content: Mapping[str, Any]


def read_peft_config(folder: Path) -> PeftConfig:
    """Read `adapter_config.json`.

    Raises:
        UserError: it is not one, or asks for more than plain LoRA on the layers' projections.
    """
    file = folder / CONFIG_FILE
    content = read_json_object(file)
    problems = [
        f"{name} = {content.get(name)!r:.80}"
        for name, neutral in _NEUTRAL.items()
        if content.get(name) not in neutral and (name in content or None not in neutral)
    ]
    rank, alpha = content.get("r"), content.get("lora_alpha")
    targets, base = content.get("target_modules"), content.get("base_model_name_or_path")
    if not isinstance(rank, int) or rank < 1:
        problems.append(f"r = {rank!r:.80}")
    if not isinstance(alpha, int | float) or not math.isfinite(alpha) or alpha <= 0:
        problems.append(f"lora_alpha = {alpha!r:.80}")
    if not isinstance(base, str) or not base:
        problems.append(f"base_model_name_or_path = {base!r:.80}")
    names = targets if isinstance(targets, list) else []
    found = {str(name).rpartition(".")[2] for name in names}
    if not found or not found <= set(TARGETS):
        problems.append(f"target_modules = {targets!r:.200}")
    if problems:
        raise UserError(
            what=f"the adapters of {file} are none that can be computed here",
            expected=f"plain LoRA with target_modules among {', '.join(TARGETS)}",
            got="; ".join(problems),
            remedy="merge them into their model with peft (merge_and_unload), and start from that",
        )
    ordered = tuple(name for name in TARGETS if name in found)
    return PeftConfig(Lora(rank, float(alpha), ordered), base, content)


def write_peft_config(folder: Path, lora: Lora, base: str, **more: Any) -> None:
    """Write `adapter_config.json` for adapters of the model `base`, with further fields."""
    content = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "target_modules": list(lora.targets),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
    }
    text = json.dumps(content | more, indent=2, ensure_ascii=False) + "\n"
    (folder / CONFIG_FILE).write_text(text, encoding="utf-8")


def load_adapters(folder: Path, config: DecoderConfig, shardings: PyTree) -> PyTree[jax.Array]:
    """Read float32 adapters from `adapter_model.safetensors`; see `abstract_adapters`.

    Raises:
        UserError: lists every missing, unexpected and mis-shaped tensor, or the first that is not
            finite.
    """
    file = folder / WEIGHTS_FILE
    try:
        tensors = load_file(file)
    except (OSError, SafetensorError) as error:
        raise UserError(
            what=f"cannot read {file}",
            expected="the adapters of a PEFT folder, as safetensors",
            got=str(error),
            remedy="save them again with peft's save_pretrained; pickled .bin files are not read",
        ) from error
    rows = adapter_rows(config)
    wanted = {name: _file_shape(row) for row in rows for name in _names(config, row)}
    problems = [f"missing: {name}" for name in wanted if name not in tensors]
    problems += [f"unexpected: {name}" for name in sorted(set(tensors) - set(wanted))]
    problems += [
        f"{name}: expected shape {shape}, got {tensors[name].shape}"
        for name, shape in wanted.items()
        if name in tensors and tensors[name].shape != shape
    ]
    problems += [f"{name}: NaN or infinity" for name in wanted if not _is_finite(tensors.get(name))]
    if problems:
        more = [f"... and {len(problems) - 10} more"] if len(problems) > 10 else []
        raise UserError(
            what=f"the adapters in {file} do not fit",
            expected=f"{len(wanted)} tensors, as its adapter_config.json and the model describe",
            got="\n" + "\n".join(f"  - {problem}" for problem in [*problems[:10], *more]),
            remedy="use adapters that were trained on this very model",
        )

    def place(row: Row) -> np.ndarray:
        parts = [tensors[name].astype(np.float32).T for name in _names(config, row)]
        return np.stack(parts).reshape(stacked_shape(config, row))

    return jax.tree.map(
        lambda array, where: jax.make_array_from_callback(array.shape, where, array.__getitem__),
        row_tree(rows, place),
        shardings,
    )


def save_adapters(adapters: PyTree, config: DecoderConfig, folder: Path) -> None:
    """Write `adapter_model.safetensors`, float32 as they were trained."""
    tensors: dict[str, np.ndarray] = {}
    for row in adapter_rows(config):
        node = adapters
        for key in row.path:
            node = node[key]
        for name, layer in zip(_names(config, row), np.asarray(node, np.float32), strict=True):
            rows = layer.reshape(_file_shape(row)[::-1])
            tensors[name] = np.ascontiguousarray(rows.T)
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})


def _names(config: DecoderConfig, row: Row) -> list[str]:
    """Names of the tensors of one row, layer by layer."""
    return [row.hf_name.format(i=i) for i in range(config.num_layers)]


def _file_shape(row: Row) -> tuple[int, int]:
    """``[outputs, inputs]`` of a factor in the file."""
    n = row.num_inputs
    return math.prod(row.shape[n:]), math.prod(row.shape[:n])


def _is_finite(tensor: np.ndarray | None) -> bool:
    """Whether all numbers are; a tensor that is missing is another problem."""
    return tensor is None or bool(np.isfinite(tensor.astype(np.float32)).all())
