"""The manifest of an exported folder: the SHA-256 of every file that `export` wrote.

It is part of the file by which a folder is known as an export of ours. `push` compares before it
sends anything, so a folder that lost a shard, or gained a file of posts, is not published.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import mental_r1_jax
from mental_r1_jax.errors import UserError
from mental_r1_jax.json_files import read_json_object
from mental_r1_jax.models.peft_format import CONFIG_FILE as ADAPTER_CONFIG

MARKER = "mental_r1_export.json"
CARD = "README.md"
BASE = "base_model_name_or_path"
GGUF = re.compile(r"model-(f16|q8_0)\.gguf")
_WEIGHTS = re.compile(r"(model(-\d{5}-of-\d{5})?|adapter_model)\.safetensors")
# What may lie in the folder of a released model. An export copies the documents of its start model
# by their suffix, and in a folder of one's own those may be posts or notes.
_OF_A_MODEL = re.compile(
    rf"""{re.escape(MARKER)} | {re.escape(CARD)} | {_WEIGHTS.pattern} | {GGUF.pattern}
    | model\.safetensors\.index\.json | adapter_config\.json | (generation_)?config\.json
    | (pre)?processor_config\.json | (tokenizer|tokenizer_config|special_tokens_map)\.json
    | (added_tokens|vocab|tekken)\.json | (vocab|merges)\.txt | chat_template\.(json|jinja)
    | (tokenizer|spiece|sentencepiece(\.bpe)?)\.model | tokenizer\.tiktoken
    | (?i:licen[cs]e|notice|use_policy)[\w-]*(\.txt|\.md)?""",
    re.VERBOSE | re.ASCII,
)


@dataclasses.dataclass(frozen=True)
class ExportedFile:
    """A file of an export: its name in the folder, where it is, its size, and its SHA-256."""

    name: str
    path: Path
    num_bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class ExportedFolder:
    """An export as it is on disk, compared with its manifest.

    Attributes:
        files: every file, sorted by name.
        card_edited: whether the model card was changed after the export, as it may be.
        base: of a PEFT folder, the model that it names; None for a whole model.
        version: of the package that wrote it.
    """

    files: tuple[ExportedFile, ...]
    card_edited: bool
    base: str | None
    version: str


def write_marker(folder: Path, manifest: dict[str, str] | None = None) -> None:
    """Mark `folder` as an export of ours; without a manifest, as one under way."""
    content: dict[str, Any] = {
        "made_by": "mental-r1 export",
        "version": mental_r1_jax.__version__,
        **({} if manifest is None else {"sha256": manifest}),
    }
    (folder / MARKER).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def write_manifest(folder: Path) -> None:
    """Record every file of an export that is complete."""
    paths = sorted(path for path in folder.iterdir() if path.name != MARKER)
    write_marker(folder, {path.name: _digest(_describe(path)) for path in paths})


def read_export(folder: Path) -> ExportedFolder:
    """Compare an exported folder with its manifest, every byte.

    Two changes are allowed. The model card may be edited, for its licence is to be filled in; and
    so may the name of the base in `adapter_config.json`, where it is a local folder. A file that is
    not one of a model's may have been removed.

    Raises:
        UserError: not an export, not a finished one, changed since, or with a file that does not
            belong to a released model.
    """
    manifest, version = _read_marker(folder)
    paths = {path.name: path for path in sorted(folder.iterdir())}
    strange = [name for name, path in paths.items() if not _belongs(path, manifest)]
    if strange:
        raise UserError(
            what=f"{folder} holds what is not part of a released model",
            expected="weights, configuration, tokenizer, licence and model card, as exported",
            got=", ".join(strange[:5]) + (f" and {len(strange) - 5} more" if strange[5:] else ""),
            remedy="look into it and move it away; nothing was sent",
        )
    files = {name: _describe(path) for name, path in paths.items()}
    problems = [
        *(_problem_of(name, wanted, files.get(name)) for name, wanted in manifest.items()),
        None if any(_WEIGHTS.fullmatch(name) for name in files) else "there are no weights",
    ]
    if found := [problem for problem in problems if problem]:
        raise UserError(
            what=f"{folder} is not what `mental-r1 export` wrote",
            expected=f"every file as {MARKER} records it",
            got="; ".join(found[:5]),
            remedy="export again; nothing was sent",
        )
    adapters = paths.get(ADAPTER_CONFIG)
    return ExportedFolder(
        files=tuple(files.values()),
        card_edited=files[CARD].sha256 != manifest[CARD],
        base=str(read_json_object(adapters).get(BASE)) if adapters else None,
        version=version,
    )


def _read_marker(folder: Path) -> tuple[dict[str, str], str]:
    """Digests of the manifest by name, and the version that wrote it."""
    if not (folder / MARKER).is_file():
        raise UserError(
            what=f"{folder} is not an exported folder",
            expected="a folder that `mental-r1 export` wrote, such as runs/NAME/hf",
            got=f"no {MARKER} in it" if folder.is_dir() else "no folder of this name",
            remedy="export the run first; nothing was sent",
        )
    content = read_json_object(folder / MARKER)
    manifest = content.get("sha256")
    if not isinstance(manifest, dict) or CARD not in manifest:
        raise UserError(
            what=f"the export in {folder} has no manifest",
            expected="the SHA-256 of its files, which `export` records when it has finished",
            got="an export that did not finish, or one of an older version",
            remedy="export again; nothing was sent",
        )
    return manifest, str(content.get("version"))


def _belongs(path: Path, manifest: dict[str, str]) -> bool:
    """Whether a file is a plain one that was exported, and one of a model's."""
    if path.is_symlink() or not path.is_file():
        return False
    exported = path.name == MARKER or path.name in manifest
    return exported and _OF_A_MODEL.fullmatch(path.name) is not None


def _problem_of(name: str, wanted: str, file: ExportedFile | None) -> str | None:
    """What is wrong with a file of the manifest, None where it may be published."""
    if file is None:
        return f"{name} is missing" if _OF_A_MODEL.fullmatch(name) else None
    if name == CARD or _digest(file) == wanted:
        return None
    return f"{name} has changed"


def _describe(path: Path) -> ExportedFile:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return ExportedFile(path.name, path, path.stat().st_size, digest)


def _digest(file: ExportedFile) -> str:
    """SHA-256 of a file; of `adapter_config.json`, of what it says but for the name of the base."""
    if file.name != ADAPTER_CONFIG:
        return file.sha256
    content = read_json_object(file.path)
    content.pop(BASE, None)
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
