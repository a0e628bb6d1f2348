"""What the sections of a recipe have in common."""

from __future__ import annotations

from typing import Annotated

import pydantic
from pydantic import Field

Fraction = Annotated[float, Field(gt=0.0, le=1.0)]


class Section(pydantic.BaseModel):
    """Base of all sections: immutable, no unknown keys, no infinities."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
