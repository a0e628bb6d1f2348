"""The text part of a model of images and text (Gemma 3 from 4B on): its config and its tensors.

What is read is a plain text model, and what is exported is one too: the towers for images are
neither trained nor copied.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

# model_type of the whole -> (model_type, architecture) of its text part.
_TEXT_PARTS = {"gemma3": ("gemma3_text", "Gemma3ForCausalLM")}
# Fields of the whole that hold for its text part, where that does not say otherwise.
_SHARED_FIELDS = (
    *("eos_token_id", "bos_token_id", "pad_token_id", "dtype", "torch_dtype"),
    *("quantization_config", "transformers_version"),
)

# How names of tensors begin in files of the whole -> how they begin in the text part's own files.
_TEXT_PREFIXES = {
    "language_model.model.": "model.",
    "language_model.lm_head.": "lm_head.",
    "model.language_model.": "model.",
}
_IMAGE_PREFIXES = (
    *("vision_tower.", "multi_modal_projector."),
    *("model.vision_tower.", "model.multi_modal_projector."),
)


def text_config(hf: Mapping[str, Any]) -> dict[str, Any]:
    """Return the `config.json` that the text part would have alone; of a text model its own."""
    text = hf.get("text_config")
    if hf.get("model_type") not in _TEXT_PARTS or not isinstance(text, dict):
        return dict(hf)
    model_type, architecture = _TEXT_PARTS[hf["model_type"]]
    shared = {name: hf[name] for name in _SHARED_FIELDS if name in hf}
    named = {"model_type": model_type, "architectures": [architecture]}
    # Whether the head is tied is a matter of the whole, which holds both.
    tied = {name: hf[name] for name in ("tie_word_embeddings",) if name in hf}
    return {**shared, **text, **tied, **named}


@dataclass(frozen=True)
class TextPart:
    """An open file of the whole, which shows the text part's tensors by its own names.

    Attributes:
        file: from `safetensors.safe_open`.
        names: the text part's name of a tensor -> the name in the file.
    """

    file: Any
    names: Mapping[str, str]

    @classmethod
    def of(cls, file: Any) -> TextPart:
        """Leave out what is for images; tensors of a plain text model keep their names."""
        return cls(file, {_own_name(n): n for n in file.keys() if not _is_for_images(n)})

    def keys(self) -> Iterable[str]:
        """Names of the tensors."""
        return self.names.keys()

    def get_slice(self, name: str) -> Any:
        """Return a tensor that is read slice by slice."""
        return self.file.get_slice(self.names[name])


def _own_name(name: str) -> str:
    """Name a tensor as a text model's file does."""
    for prefix, own in _TEXT_PREFIXES.items():
        if name.startswith(prefix):
            return own + name.removeprefix(prefix)
    return name


def _is_for_images(name: str) -> bool:
    return name.startswith(_IMAGE_PREFIXES)
