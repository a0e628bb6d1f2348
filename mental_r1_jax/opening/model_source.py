"""Opening a model to train, evaluate or export: tokenizer, architecture and weights.

A model is named by a Hugging Face folder, a hub id, a PEFT folder, or a run folder of ours. A run
folder carries `base_model/` (configuration and tokenizer, no weights), so it needs nothing outside
itself, unless the run trains adapters: those need the frozen model under them.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from mental_r1_jax.addresses import is_address
from mental_r1_jax.config import ExperimentConfig
from mental_r1_jax.errors import UserError
from mental_r1_jax.json_files import read_json_object
from mental_r1_jax.models import decoder as network
from mental_r1_jax.models import hf_format, peft_format
from mental_r1_jax.models.architecture import Lora
from mental_r1_jax.models.decoder import DecoderConfig
from mental_r1_jax.models.hf_config import decoder_config_from_hf, read_hf_config
from mental_r1_jax.opening.adapters import (
    BASE_MODEL,
    BaseSource,
    base_of_adapters,
    check_recorded,
    has_adapters,
    open_base,
    record_base,
    run_folder_of,
)
from mental_r1_jax.recipe import load_config
from mental_r1_jax.text.prompts import check_grammar
from mental_r1_jax.text.tokenizer import Tokenizer, load_tokenizer
from mental_r1_jax.text.wording import grammar_of
from mental_r1_jax.training.checkpoint import abstract_like, restore_params

_COPIED_SUFFIXES = (".json", ".jinja", ".model", ".txt", ".md", ".tiktoken")
_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pth", ".pt", ".gguf", ".index.json")


@dataclasses.dataclass(frozen=True)
class ModelSource:
    """Where a model comes from, and everything about it but its weights.

    Attributes:
        folder: configuration and tokenizer files in the Hugging Face layout.
        run_folder: the run whose checkpoints hold the weights (adapters, where there is a `base`),
            or None when a folder holds them.
        hf_config: the parsed `config.json`.
        tokenizer: the model's own.
        decoder: its architecture.
        base: the frozen weights under its adapters; None where it has none.
        peft_folder: the folder that its adapters are read from, or None.
    """

    folder: Path
    run_folder: Path | None
    hf_config: dict[str, Any]
    tokenizer: Tokenizer
    decoder: DecoderConfig
    base: BaseSource | None = None
    peft_folder: Path | None = None

    @property
    def continues(self) -> bool:
        """Whether it has adapters that were trained before."""
        return self.base is not None and (self.run_folder or self.peft_folder) is not None


def open_start_model(config: ExperimentConfig) -> ModelSource:
    """Open the model that training starts from, with the adapters that `model.lora` asks for.

    A whole model gets fresh ones; those of a run or a PEFT folder are trained on.

    Raises:
        UserError: `open_model`'s, or the start model's adapters are others than the recipe's.
    """
    model, wanted = open_model(config.model.path, config), config.model.lora
    lora = wanted_adapters(config)
    fresh = model.base is None and lora is not None
    if (not fresh and model.decoder.lora != lora) or (fresh and wanted and wanted.base):
        raise UserError(
            what=f"the adapters of {config.model.path} are not those of the recipe",
            expected=f"model.lora: {_in_words(model.decoder.lora)}",
            got=_in_words(lora) + (f", base {wanted.base}" if fresh and wanted else ""),
            remedy="write model.lora as the start model has it; or export that (merged), and start "
            "from the exported folder",
        )
    if not fresh:
        return model
    return dataclasses.replace(
        model,
        run_folder=None,
        decoder=dataclasses.replace(model.decoder, lora=lora),
        base=open_base(config.model.path),
    )


def wanted_adapters(config: ExperimentConfig) -> Lora | None:
    """What `model.lora` asks for, its targets in the order of a layer."""
    wanted = config.model.lora
    if wanted is None:
        return None
    ordered = tuple(name for name in peft_format.TARGETS if name in wanted.targets)
    return Lora(wanted.rank, wanted.alpha, ordered)


def open_model(name: str, config: ExperimentConfig) -> ModelSource:
    """Read configuration and tokenizer of `name`, and of its base if it has adapters.

    Weights are left alone, but for the fingerprint of a base.

    Raises:
        UserError: nothing of that name, or a model that the decoder would compute wrongly, or
            adapters whose base is another model than theirs.
    """
    run_folder = run_folder_of(name)
    folder = run_folder / BASE_MODEL if run_folder else hf_format.resolve_model(name)
    lora, base, peft_folder = None, None, None
    if has_adapters(folder):
        found = peft_format.read_peft_config(folder)
        moved = config.model.lora.base if config.model.lora else None
        lora, base = found.lora, base_of_adapters(folder, found, moved)
        if run_folder is None:
            peft_folder, folder = folder, base.folder
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
    decoder = dataclasses.replace(decoder, lora=lora, decode_kernel=config.model.decode_kernel)
    tokenizer = load_tokenizer(folder)
    _check_ids(folder, tokenizer, decoder)
    check_grammar(tokenizer, grammar_of(config.text))
    return ModelSource(
        folder=folder,
        run_folder=run_folder,
        hf_config=hf_config,
        tokenizer=tokenizer,
        decoder=decoder,
        base=base,
        peft_folder=peft_folder,
    )


def load_weights(model: ModelSource, mesh: Mesh, which: str | int = "best") -> Any:
    """Float32 parameters of `model`, born sharded on `mesh`; of a run, its checkpoint `which`.

    Of a model with adapters: they, float32, among the frozen weights, see `load_frozen`.
    """
    return load_checkpoint(model, mesh, which)[0]


def load_checkpoint(
    model: ModelSource, mesh: Mesh, which: str | int = "best"
) -> tuple[Any, int | None]:
    """As `load_weights`, and the step of the checkpoint they are of; None if `model` is no run."""
    if model.base is not None:
        adapters, step = _load_adapters(model, mesh, which)
        return network.join_weights(load_frozen(model, mesh), adapters), step
    return _load_params(model.decoder, mesh, model.folder, model.run_folder, which)


def load_frozen(model: ModelSource, mesh: Mesh) -> Any:
    """Weights under the adapters of `model`, matrices rounded to the compute dtype.

    The forward pass would round them there anyway.
    """
    base, decoder = model.base, model.decoder
    assert base is not None
    which = "best" if base.step is None else base.step
    params, _ = _load_params(decoder, mesh, base.folder, base.run_folder, which)
    if decoder.dtype == jnp.float32:
        return params
    return jax.jit(network.cast_matrices, static_argnums=1)(params, decoder)


def load_adapters(model: ModelSource, mesh: Mesh, which: str | int = "best") -> Any:
    """Float32 adapters of `model`, which `continues` those of a run or of a PEFT folder."""
    return _load_adapters(model, mesh, which)[0]


def _load_adapters(model: ModelSource, mesh: Mesh, which: str | int) -> tuple[Any, int | None]:
    """The adapters of a run's checkpoint and its step, or of a PEFT folder and None."""
    shardings = network.trained_shardings(model.decoder, mesh)
    if model.peft_folder is not None:
        return peft_format.load_adapters(model.peft_folder, model.decoder, shardings), None
    assert model.run_folder is not None
    abstract = abstract_like(network.abstract_trained(model.decoder), shardings)
    step, adapters = restore_params(model.run_folder, which, abstract)
    return adapters, step


def _load_params(
    decoder: DecoderConfig, mesh: Mesh, folder: Path, run_folder: Path | None, which: str | int
) -> tuple[Any, int | None]:
    """Float32 parameters of a run's checkpoint and its step, or of a Hugging Face folder, None."""
    shardings = network.param_shardings(decoder, mesh)
    if run_folder is None:
        return hf_format.load_params(folder, decoder, shardings), None
    abstract = abstract_like(network.abstract_params(decoder), shardings)
    step, params = restore_params(run_folder, which, abstract)
    return params, step


def origin_of(model: str) -> str:
    """Follow run folders (a cold start, say) back to the model that the first one began with.

    Raises:
        UserError: they lead back to one of them.
    """
    seen: set[Path] = set()
    while folder := run_folder_of(model):
        if folder.resolve() in seen:
            raise UserError(
                what=f"the run {model} has itself as its start model",
                expected="a chain of runs that begins with a model",
                got=" -> ".join(str(path) for path in seen),
                remedy="correct model.path in the config.yaml of one of these runs",
            )
        seen.add(folder.resolve())
        model = load_config(folder).model.path
    if has_adapters(Path(model)):
        return peft_format.read_peft_config(Path(model)).base
    return model


def public_name(model: str) -> str:
    """A hub id as it is; of a folder or an address only its own name, not where it lies."""
    if is_address(model):
        return model.rpartition("/")[2]
    return Path(model).resolve().name if Path(model).exists() else model


def save_base_model(model: ModelSource, run_folder: Path) -> None:
    """Copy configuration and tokenizer into the run folder, so that it stands on its own.

    Of a model with adapters, where the frozen weights are is recorded beside them.
    """
    target = run_folder / BASE_MODEL
    if target.is_dir():
        return
    staging = run_folder / f".{BASE_MODEL}.partial"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    copy_model_files(model.folder, staging)
    if model.base is not None and model.decoder.lora is not None:
        record_base(staging, model.decoder.lora, model.base)
    staging.rename(target)


def check_base_model(model: ModelSource, run_folder: Path) -> None:
    """Refuse to go on with a run whose frozen weights have changed under its adapters.

    Raises:
        UserError: they are not those that the run folder has recorded.
    """
    check_recorded(run_folder / BASE_MODEL, model.base)


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
        if path.name == peft_format.CONFIG_FILE:  # with it, a merged model would be adapted again
            continue
        shutil.copy2(path, target / path.name)
        if path.name in ("config.json", "tokenizer_config.json", "processor_config.json"):
            content = read_json_object(path)
            if content.pop("auto_map", None) is not None:
                text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
                (target / path.name).write_text(text, encoding="utf-8")


def _in_words(lora: Lora | None) -> str:
    """Adapters as a recipe writes them."""
    if lora is None:
        return "null"
    return f"{{rank: {lora.rank}, alpha: {lora.alpha:g}, targets: [{', '.join(lora.targets)}]}}"


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
