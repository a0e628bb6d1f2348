"""Models with low-rank adapters: the base they belong to, and proof that it is still the same.

Adapters are a few percent of a model and worth nothing beside another one. So a run records where
its base lies and a fingerprint of the base's weights, in the `adapter_config.json` of its
`base_model/`, and whoever opens the run compares them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from etils import epath

from mental_r1_jax.bucket import checkpoints_of, opened
from mental_r1_jax.errors import UserError
from mental_r1_jax.models import hf_format, peft_format
from mental_r1_jax.models.architecture import Lora
from mental_r1_jax.models.peft_format import PeftConfig
from mental_r1_jax.training.checkpoint import find_step
from mental_r1_jax.training.manifest import names_below

BASE_MODEL = "base_model"
# Our own field of `adapter_config.json`.
_RECORD = "mental_r1_base"

# Parts of each file that go into a fingerprint: all of a small one, a thousandth of a large one.
_HEAD_BYTES, _PART_BYTES, _PARTS = 1 << 16, 1 << 12, 1 << 8


@dataclass(frozen=True)
class BaseSource:
    """Where the frozen weights under adapters come from.

    Attributes:
        name: hub id or path, as the recipe or the adapters say.
        folder: configuration and tokenizer; weights, too, unless `run_folder` holds them.
        run_folder: the run whose checkpoint holds the weights, or None.
        step: of that checkpoint.
        fingerprint: of the files of the weights, see `files_fingerprint`.
    """

    name: str
    folder: Path
    run_folder: Path | None
    step: int | None
    fingerprint: str


def has_adapters(folder: Path) -> bool:
    """Whether this is a PEFT folder, or the `base_model/` of a run with adapters."""
    return (folder / peft_format.CONFIG_FILE).is_file()


def run_folder_of(name: str) -> Path | None:
    """The local folder of the run that `name` is, a path or an address; None: it is no run.

    Raises:
        UserError: there is no run at that address.
    """
    folder = opened(name)
    return folder if (folder / BASE_MODEL).is_dir() else None


def open_base(name: str, step: int | None = None) -> BaseSource:
    """Find the weights of the model `name`, a Hugging Face folder, a hub id or a run of ours.

    Args:
        name: of the model.
        step: the checkpoint of a run; None: its best by validation.

    Raises:
        UserError: nothing of that name, a run without a sound checkpoint, or a model that has
            adapters itself.
    """
    run_folder = run_folder_of(name)
    folder = run_folder / BASE_MODEL if run_folder else hf_format.resolve_model(name)
    if has_adapters(folder):
        raise UserError(
            what=f"the base {name} has adapters itself",
            expected="a whole model under the adapters",
            got=f"{peft_format.CONFIG_FILE} in {folder}",
            remedy="export it (mental-r1 export writes it merged), and use the exported folder",
        )
    if run_folder is None:
        weights = sorted(folder.glob("*.safetensors"))
        return BaseSource(name, folder, None, None, files_fingerprint(weights))
    checkpoints = checkpoints_of(run_folder)
    if step is None:
        step = find_step(run_folder, "best")
    items = checkpoints / str(step) / "params"
    files = sorted(items / name for name in names_below(items)) if items.is_dir() else []
    if not files:
        raise UserError(
            what=f"the base of the adapters, {name}, has no weights",
            expected=f"files in {items}",
            got="none",
            remedy="keep this checkpoint as long as adapters belong to it, or export it first",
        )
    return BaseSource(name, folder, run_folder, step, files_fingerprint(files))


def files_fingerprint(files: Iterable[Path | epath.Path]) -> str:
    """SHA-256 over name, size, beginning and evenly spaced parts of every file.

    Training changes nearly every number, so parts are enough to tell models apart, and take no
    time; a single bit that has flipped between them is not noticed.
    """
    digest = hashlib.sha256()
    for file in map(epath.Path, files):
        size = file.stat().length
        digest.update(f"{file.name} {size}\n".encode())
        step = max(_PART_BYTES, size // _PARTS)
        with file.open("rb") as stream:
            digest.update(stream.read(_HEAD_BYTES))
            for start in range(_HEAD_BYTES, size, step):
                stream.seek(start)
                digest.update(stream.read(_PART_BYTES))
    return digest.hexdigest()


def base_of_adapters(folder: Path, found: PeftConfig, moved: str | None) -> BaseSource:
    """Find the base that the adapters in `folder` belong to, and compare its fingerprint.

    Args:
        folder: holds their `adapter_config.json`.
        found: its content.
        moved: where the base is now, if not where they say.

    Raises:
        UserError: it is not there, or it is another model than the recorded one.
    """
    record = _record_of(found)
    base = open_base(moved or found.base, record.get("step"))
    _compare(folder, record, base)
    return base


def record_base(folder: Path, lora: Lora, base: BaseSource) -> None:
    """Write the identity of the base into `folder`, the `base_model/` of a run."""
    record = {"step": base.step, "sha256": base.fingerprint}
    peft_format.write_peft_config(folder, lora, base.name, **{_RECORD: record})


def check_recorded(folder: Path, base: BaseSource | None) -> None:
    """Refuse to go on with a run whose recorded base, in its `base_model/`, is another one.

    Raises:
        UserError: the fingerprints differ.
    """
    if base is not None and has_adapters(folder):
        _compare(folder, _record_of(peft_format.read_peft_config(folder)), base)


def _record_of(found: PeftConfig) -> dict[str, Any]:
    """What a run of ours has recorded about its base; nothing in a stranger's PEFT folder."""
    record = found.content.get(_RECORD)
    return record if isinstance(record, dict) else {}


def _compare(folder: Path, record: dict[str, Any], base: BaseSource) -> None:
    wanted = record.get("sha256", base.fingerprint)
    if wanted != base.fingerprint:
        raise UserError(
            what=f"{base.name} is not the model that the adapters of {folder} were trained on",
            expected=f"weights with the fingerprint {str(wanted):.16}...",
            got=f"{base.fingerprint:.16}...",
            remedy="bring that model back, or say with model.lora.base where it is now",
        )
