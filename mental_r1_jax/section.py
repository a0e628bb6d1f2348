"""What the sections of a recipe have in common."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import pydantic
from pydantic import BeforeValidator, Field

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


class Section(pydantic.BaseModel):
    """Base of all sections: immutable, no unknown keys, no infinities."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
