"""How a field of the recipe is shown to matter."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from mental_r1_jax.config import ExperimentConfig
from tests.every_field.lab import Lab


@dataclasses.dataclass(frozen=True)
class Field:
    """How one field is shown to matter to one part that reads it.

    Attributes:
        value: another value than that of the common recipe.
        probe: the part, and what of it must change.
        given: other keys to set first, where the field alone is not read.
    """

    value: Any
    probe: Callable[[Lab, ExperimentConfig], Any]
    given: Mapping[str, Any] = dataclasses.field(default_factory=dict)


Probe = Callable[[Lab, ExperimentConfig], Any]


def everywhere(
    value: Any, *probes: Probe | tuple[Probe, Mapping[str, Any]], given: Any = None
) -> tuple[Field, ...]:
    """The same value for several parts; a probe may come with keys of its own to set first."""
    pairs = [one if isinstance(one, tuple) else (one, given or {}) for one in probes]
    return tuple(Field(value, probe, keys) for probe, keys in pairs)
