"""What the sections of a recipe have in common."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import pydantic
from pydantic import BeforeValidator, Field, PlainSerializer

from mental_r1_jax.addresses import is_address, shown_place, training_folder

Fraction = Annotated[float, Field(gt=0.0, le=1.0)]


def refuse_address(value: Any) -> Any:
    """Return `value`, unless it is an address such as `gs://bucket/run`.

    A path would be made of it all the same: the folder `gs:` in the working directory.

    Raises:
        ValueError: it is one.
    """
    if isinstance(value, str) and (scheme := re.match(r"\s*([A-Za-z][\w+.-]*)://", value)):
        raise ValueError(
            f"{value[:200]!r} is an address, and only paths of this machine are read and written; "
            + (
                "mount the bucket and give the path of the folder there (docs/tpu.md)"
                if scheme[1].lower() in ("gs", "s3")
                else f"leave {scheme[0].strip()} out, or download it and give its path"
            )
        )
    return value


LocalPath = Annotated[Path, BeforeValidator(refuse_address)]
# A path, or a name that is none, as that of a model on the hub.
LocalName = Annotated[str, BeforeValidator(refuse_address)]


def _place_of_run(value: Any) -> Any:
    """The local folder of a run's address; other addresses are refused."""
    if isinstance(value, str) and is_address(value):
        return training_folder(value)
    return refuse_address(value)


def _name_of_model(value: Any) -> Any:
    """A name, or the address of a run as it is; other addresses are refused."""
    if isinstance(value, str) and is_address(value):
        training_folder(value)
        return value.strip().rstrip("/")
    return refuse_address(value)


# A run's folder. In a recipe it may be an address, `gs://BUCKET/RUN`, and is written as that again.
RunFolder = Annotated[
    Path,
    BeforeValidator(_place_of_run),
    PlainSerializer(shown_place, return_type=str, when_used="json"),
]
# A name as above, or the address of a run.
ModelName = Annotated[str, BeforeValidator(_name_of_model)]


class Section(pydantic.BaseModel):
    """Base of all sections: immutable, no unknown keys, no infinities."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
