"""Weights of a Hugging Face folder <-> our parameters, both directions from their rows.

Reading holds one of our parameters in host memory at a time, and of it only what this process'
devices hold; writing fills one file at a time. Every problem is collected and raised once.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from jaxtyping import PyTree
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from mental_r1_jax.errors import UserError
from mental_r1_jax.json_files import read_json_object
from mental_r1_jax.models.architecture import DecoderConfig
from mental_r1_jax.models.hf_text_part import TextPart
from mental_r1_jax.models.parameters import Row, parameter_rows, parameter_tree, stacked_shape

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
# Integers and 8-bit floats under the names of weights are quantised: numbers without their scales.
_FLOATS = ("F32", "BF16", "F16", "F64")
# How names of tensors begin that were saved from inside a wrapper.
_FOREIGN_PREFIXES = {
    "_orig_mod.": "the model was saved while compiled (torch.compile)",
    "module.": "the model was saved while distributed (DistributedDataParallel)",
}
_WANTED_FILES = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt"]


@dataclass(frozen=True)
class _Tensor:
    """One tensor of the file and its place in our tree; `layer` is None outside the layers."""

    hf: str
    row: Row
    layer: int | None

    @property
    def _groups(self) -> tuple[tuple[int, ...], ...]:
        """Our axes, grouped as the file joins them: (inputs, outputs), (all,) or one by one."""
        if self.row.layout == "same":
            return tuple((size,) for size in self.row.shape)
        if self.row.layout == "vector":
            return (self.row.shape,)
        return self.row.shape[: self.row.num_inputs], self.row.shape[self.row.num_inputs :]

    @property
    def hf_shape(self) -> tuple[int, ...]:
        """Shape in the file."""
        joined = tuple(math.prod(group) for group in self._groups)
        return joined[::-1] if self.row.layout == "matrix" else joined

    def file_window(self, window: tuple[slice, ...]) -> tuple[slice, ...]:
        """Translate a window of our array into one of the file's.

        Raises:
            ValueError: the window shards an inner axis of a group, which no rule does.
        """
        bounds = [part.indices(size)[:2] for part, size in zip(window, self.row.shape, strict=True)]
        joined, first = [], 0
        for group in self._groups:
            (start, stop), *inner = bounds[first : first + len(group)]
            if any(bound != (0, size) for bound, size in zip(inner, group[1:], strict=True)):
                raise ValueError(f"{self.hf}: cannot take {window} out of the joined axes {group}")
            width = math.prod(group[1:])
            joined.append(slice(start * width, stop * width))
            first += len(group)
        return tuple(joined[::-1] if self.row.layout == "matrix" else joined)

    def to_ours(self, array: np.ndarray, window: tuple[slice, ...]) -> np.ndarray:
        """Bring the part of a file's tensor into the shape of our `window`, a view if possible."""
        sizes = [
            len(range(*part.indices(n))) for part, n in zip(window, self.row.shape, strict=True)
        ]
        array = array.T if self.row.layout == "matrix" else array
        return array.reshape(sizes)

    def to_hf(self, array: np.ndarray) -> np.ndarray:
        """Bring our array into the shape of the file."""
        if self.row.layout != "matrix":
            return array.reshape(self.hf_shape)
        return array.reshape(self.hf_shape[::-1]).T


def resolve_model(path_or_hub_id: str) -> Path:
    """Return a model folder: the path itself, or the hub's files in the local cache.

    Raises:
        UserError: neither a folder nor a model that the hub (or its cache) can give.
    """
    path = Path(path_or_hub_id).expanduser()
    if path.is_dir():
        return path
    try:
        return Path(huggingface_hub.snapshot_download(path_or_hub_id, allow_patterns=_WANTED_FILES))
    except (HFValidationError, HfHubHTTPError, OSError) as error:
        raise UserError(
            what=f"no model at {path_or_hub_id!r}",
            expected="a Hugging Face folder, or an id (owner/name) of the hub",
            got=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
            remedy="check the spelling, or download the model and give its folder",
        ) from error


def load_params(
    folder: Path, config: DecoderConfig, shardings: PyTree | None = None
) -> PyTree[jax.Array]:
    """Read float32 parameters from the safetensors files of a folder.

    Args:
        folder: a Hugging Face model folder.
        config: from `decoder_config_from_hf`.
        shardings: for every parameter its sharding, from `sharding.param_shardings`; the default
            device when None. Each process reads only the slices that its devices hold.

    Raises:
        UserError: lists every missing, unexpected and mis-shaped tensor and those that hold no
            floating-point numbers; or names one with weights that are not finite.
    """
    if shardings is None:
        device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        shardings = parameter_tree(config, lambda _: device)
    tensors = {tensor.hf: tensor for tensor in _tensors(config)}
    with ExitStack() as stack:
        files = _open_files(folder, stack)
        _check_tensors(folder, files, tensors, config)

        def read(row: Row) -> jax.Array:
            shape, where = stacked_shape(config, row), _lookup(shardings, row.path)
            return _read_parameter(files, _tensors_of(config, row), shape, where)

        return parameter_tree(config, read)


def save_params(
    params: PyTree[jax.Array | np.ndarray],
    config: DecoderConfig,
    folder: Path,
    dtype: str = "bfloat16",
    max_shard_bytes: int = 5_000_000_000,
) -> None:
    """Write the weights as transformers does: safetensors, with an index when there are several.

    A tied head is not written. Matrices and vectors alike get `dtype`, rounded to nearest.

    Args:
        params: the parameters; they must be readable from this process.
        config: architecture whose parameters these are.
        folder: existing folder; files of these names in it are overwritten.
        dtype: `float32`, `bfloat16` or `float16`.
        max_shard_bytes: size that no file exceeds, unless a single tensor does.
    """
    target = jnp.dtype(dtype)
    shards: list[list[_Tensor]] = [[]]
    size = total = 0
    for tensor in _tensors(config):
        num_bytes = math.prod(tensor.row.shape) * target.itemsize
        if shards[-1] and size + num_bytes > max_shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size, total = size + num_bytes, total + num_bytes
    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        file = SINGLE_FILE if len(shards) == 1 else name
        arrays = {tensor.hf: _fetch(params, tensor, target) for tensor in shard}
        # The key "format" is what transformers asks for before it opens a file.
        save_file(arrays, folder / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(arrays, file))
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def hf_tensors(params: PyTree, config: DecoderConfig) -> Iterator[tuple[str, np.ndarray]]:
    """Every tensor of a Hugging Face folder by name, float32, one at a time on the host."""
    for tensor in _tensors(config):
        yield tensor.hf, _fetch(params, tensor, np.dtype(np.float32))


def hf_shapes(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of a Hugging Face folder, in the order of `hf_tensors`."""
    return {tensor.hf: tensor.hf_shape for tensor in _tensors(config)}


def _tensors(config: DecoderConfig) -> list[_Tensor]:
    """List the tensors of a model of this architecture, one parameter after the other."""
    return [tensor for row in parameter_rows(config) for tensor in _tensors_of(config, row)]


def _tensors_of(config: DecoderConfig, row: Row) -> list[_Tensor]:
    """List the tensors of one parameter: one a layer, or one."""
    if not row.stacked:
        return [_Tensor(row.hf_name, row, None)]
    return [_Tensor(row.hf_name.format(i=i), row, i) for i in range(config.num_layers)]


def _open_files(folder: Path, stack: ExitStack) -> dict[str, Any]:
    """Map the name of every tensor in the folder to the open file that holds it.

    Where there are a single file and an index, the single file counts, as in transformers.
    """
    names = {SINGLE_FILE}
    if not (folder / SINGLE_FILE).is_file() and (folder / INDEX_FILE).exists():
        names = _indexed_files(folder / INDEX_FILE)
    where = {}
    for name in sorted(names):
        try:
            if (folder / name).exists() and not (folder / name).is_file():
                raise OSError("a folder, pipe or device, not a file")
            opened = stack.enter_context(safe_open(folder / name, framework="numpy"))
        except (OSError, SafetensorError) as error:
            raise UserError(
                what=f"cannot read {folder / name}",
                expected="model.safetensors, or every file that its index names",
                got=str(error),
                remedy="download the model again; weights in other formats need converting first",
            ) from error
        of_text = TextPart.of(opened)
        where.update(dict.fromkeys(of_text.keys(), of_text))
    return where


def _indexed_files(index: Path) -> set[str]:
    """Return the names of the files in an index; all must lie beside it."""
    weight_map = read_json_object(index).get("weight_map")
    names = set(map(str, weight_map.values())) if isinstance(weight_map, dict) else set()
    texts = isinstance(weight_map, dict) and all(isinstance(n, str) for n in weight_map.values())
    outside = sorted(n for n in names if not _is_of_weights(n))
    if not names or not texts or outside:
        raise UserError(
            what=f"{index} is not an index of weights",
            expected="weight_map, an object of tensor names to .safetensors files in this folder",
            got=f"{outside[0]!r:.80}" if texts and outside else f"weight_map = {weight_map!r:.80}",
            remedy="download the model again",
        )
    return names


def _is_of_weights(name: str) -> bool:
    """Whether a name is that of a file of weights in the same folder.

    JSON can hold halves of characters, and NUL, which no name of a file has.
    """
    plain = Path(name).name == name and name.endswith(".safetensors") and "\0" not in name
    return plain and name.encode("utf-8", "replace").decode("utf-8") == name


def _check_tensors(
    folder: Path, files: Mapping[str, Any], tensors: Mapping[str, _Tensor], config: DecoderConfig
) -> None:
    """Compare names, shapes and dtypes in the files with the config; raise all differences."""
    ignored = {"lm_head.weight"} if config.tie_embeddings else set()
    problems = [f"missing: {name}" for name in tensors if name not in files]
    for name in sorted(set(files) - set(tensors) - ignored):
        if not name.endswith(".rotary_emb.inv_freq"):  # old exports store this constant
            problems.append(f"unexpected: {name}")
    for name, tensor in tensors.items():
        if name in files:
            stored = files[name].get_slice(name)
            shape, dtype = tuple(stored.get_shape()), stored.get_dtype()
            if dtype not in _FLOATS:
                problems.append(
                    f"dtype of {name}: expected one of {', '.join(_FLOATS)}, got {dtype}"
                )
            if shape != tensor.hf_shape:
                problems.append(f"shape of {name}: expected {tensor.hf_shape}, got {shape}")
    if not problems and config.tie_embeddings and "lm_head.weight" in files:
        _check_tied_head(folder, files)
    if problems:
        raise UserError(
            what=f"the weights in {folder} do not fit its config.json",
            expected=f"{len(tensors)} tensors as config.json describes them",
            got="\n" + "\n".join(f"  - {problem}" for problem in problems),
            remedy=_remedy(set(files), set(tensors)),
        )


def _remedy(there: set[str], wanted: set[str]) -> str:
    """Say how weights come by such names, and how to save them under their own."""
    for prefix, origin in _FOREIGN_PREFIXES.items():
        if any(name.startswith(prefix) for name in there):
            return f"{origin}: take {prefix!r} off the names, or save the model inside it"
    if any(".lora_" in name or ".base_layer." in name for name in there):
        return "these are adapters (PEFT): merge them into the model (merge_and_unload), save that"
    if not there & wanted and {f"model.{name}" for name in there} & wanted:
        return "the model was saved without its head: save the ...ForCausalLM that holds it"
    if wanted < there:
        return "remove the further tensors, or take the config.json that describes them"
    return "use the config.json and the weights of one and the same model"


def _check_tied_head(folder: Path, files: Mapping[str, Any]) -> None:
    """Refuse a head saved beside an embedding that it is said to share, but differs from.

    transformers then takes the head, with a warning, in version 5, and the embedding in version 4.
    """
    head, embedding = (
        files[name].get_slice(name) for name in ("lm_head.weight", "model.embed_tokens.weight")
    )
    rows = embedding.get_shape()[0]
    same = head.get_shape() == embedding.get_shape() and all(
        np.array_equal(head[at : min(at + 4096, rows)], embedding[at : min(at + 4096, rows)])
        for at in range(0, rows, 4096)
    )
    if not same:
        raise UserError(
            what=f"lm_head.weight in {folder} differs from the embedding",
            expected="the same numbers, for config.json says tie_word_embeddings: true",
            got="a head of its own",
            remedy="set tie_word_embeddings to false in config.json if the head is meant, or "
            "remove lm_head.weight",
        )


def _read_parameter(
    files: Mapping[str, Any], tensors: Sequence[_Tensor], shape: tuple[int, ...], sharding: Any
) -> jax.Array:
    """Read one of our parameters, float32, from its tensor or from those of its layers.

    No program runs for it: a start-up would have to compile one for every shape.
    """
    parts: dict[str, np.ndarray] = {}  # devices may hold the same part; it is read once

    def read(window: tuple[slice, ...] | None) -> np.ndarray:
        """Return the part `window` of our array; None would be all of a scalar."""
        window = window or ()
        if str(window) not in parts:
            stacked = tensors[0].layer is not None
            layers, inner = (window[0], window[1:]) if stacked else (slice(None), window)
            chosen = tensors[layers]
            sizes = [
                len(range(*span.indices(size))) for span, size in zip(window, shape, strict=True)
            ]
            part = parts[str(window)] = np.empty(sizes, np.float32)
            for place, tensor in zip(part if stacked else [part], chosen, strict=True):
                source = files[tensor.hf].get_slice(tensor.hf)
                place[...] = tensor.to_ours(source[tensor.file_window(inner)], inner)
                if not np.isfinite(place).all():
                    raise _not_finite(tensor.hf, place)
        return parts[str(window)]

    return jax.make_array_from_callback(shape, sharding, read)


def _not_finite(name: str, values: np.ndarray) -> UserError:
    """A model with one such weight computes no number at all."""
    count = values.size - int(np.isfinite(values).sum())
    return UserError(
        what=f"the tensor {name} of the start model has weights that are no numbers",
        expected="finite weights",
        got=f"{count} of {values.size} are NaN or infinite as float32",
        remedy="download the model again, or choose another one in model.path",
    )


def _fetch(params: PyTree, tensor: _Tensor, dtype: np.dtype) -> np.ndarray:
    """Bring one tensor to the host in the file's shape and dtype."""
    array = _lookup(params, tensor.row.path)
    array = array if tensor.layer is None else array[tensor.layer]
    return np.ascontiguousarray(tensor.to_hf(np.asarray(array)).astype(dtype))


def _lookup(tree: Any, path: tuple[str, ...]) -> Any:
    """Follow a path in nested dictionaries."""
    for key in path:
        tree = tree[key]
    return tree
