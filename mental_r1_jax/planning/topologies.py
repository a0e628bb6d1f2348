"""Names of TPU topologies, and their devices to compile for, on a machine without a TPU.

The TPU compiler is a library (libtpu, in the `tpu` extra) that needs no TPU. It describes the chips
of a topology as JAX devices; programs compile for them, and only running them fails.
"""

from __future__ import annotations

import importlib.util
import math
import os
import re
from dataclasses import dataclass

import jax
from jax.experimental import topologies as jax_topologies

from mental_r1_jax.errors import UserError

# Accelerator types are rented by TensorCores where a chip has two of them.
_CORES_PER_CHIP = {"v5e": 1, "v5p": 2, "v6e": 1}
# Number of chips -> layout, as the cloud lays accelerator types out.
_FLAT = {
    **{1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8"},
    **{128: "8x16", 256: "16x16"},
}
_CUBIC = {
    **{4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4", 128: "4x4x8"},
    **{256: "4x8x8", 512: "8x8x8"},
}
_LAYOUTS = {"v5e": _FLAT, "v5p": _CUBIC, "v6e": _FLAT}

# What keeps libtpu from asking a cloud machine's metadata server who it is, and from claiming the
# TPU of the machine, if any, for one process.
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


@dataclass(frozen=True)
class Topology:
    """Chips of one kind, in one or more slices of equal shape.

    Attributes:
        generation: `v5e`, `v5p` or `v6e`.
        shape: chips along the axes of a slice's torus.
        slices: number of slices, joined by the data-centre network.
    """

    generation: str
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def chips(self) -> int:
        """Chips of all slices together."""
        return math.prod(self.shape) * self.slices

    @property
    def layout(self) -> str:
        """One slice as the compiler names it: `v5p:2x2x4`."""
        return f"{self.generation}:{'x'.join(map(str, self.shape))}"

    @property
    def accelerator_type(self) -> str:
        """One slice as the cloud rents it: `v5p-32` counts the cores of 16 chips."""
        cores = math.prod(self.shape) * _CORES_PER_CHIP[self.generation]
        return f"{self.generation}-{cores}"

    def __str__(self) -> str:
        """The layout, and the number of slices if there are several."""
        return self.layout if self.slices == 1 else f"{self.slices} slices of {self.layout}"


def parse_topology(text: str, slices: int = 1) -> Topology:
    """Read `v5p:2x2x4`, or the same slice by its accelerator type, `v5p-32`.

    Args:
        text: generation and layout of a slice, or its accelerator type.
        slices: number of equal slices, joined by the data-centre network.

    Raises:
        UserError: the text is neither, or there are no chips or slices.
    """
    generation, size, layout = _split(text)
    if size is not None:
        layout = _LAYOUTS[generation].get(size // _CORES_PER_CHIP[generation], "")
    shape = tuple(int(n) for n in layout.split("x")) if layout else ()
    rank = 3 if _LAYOUTS[generation] is _CUBIC else 2
    if len(shape) != rank or 0 in shape or slices < 1:
        sizes = ", ".join(
            f"{generation}-{chips * _CORES_PER_CHIP[generation]}" for chips in _LAYOUTS[generation]
        )
        raise UserError(
            what=f"no topology {text!r} with {slices} slice(s)",
            expected=f"{rank} sizes ({generation}:{'x'.join('4' * rank)}), or one of {sizes}",
            got=f"{text!r}, slices={slices}",
            remedy="give the layout of one slice, and the number of slices separately",
        )
    return Topology(generation, shape, slices)


def topology_devices(topology: Topology) -> list[jax.Device]:
    """Return a device for every chip of `topology`, to compile for; nothing can run on them.

    Raises:
        UserError: libtpu is not installed, or knows no such topology.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            what="compiling for a TPU needs libtpu",
            expected="the package libtpu, which brings the TPU compiler to any Linux machine",
            got="no such package",
            remedy="pip install 'mental-r1-jax[tpu]'; no TPU is needed",
        )
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    settings: dict[str, object] = {}
    if topology.slices > 1:
        settings["num_slices"] = topology.slices
    if math.prod(topology.shape) == 1:  # machines have four chips or more, unless told otherwise
        settings["chips_per_host_bounds"] = (1, 1, 1)
    try:
        description = jax_topologies.get_topology_desc(
            platform="tpu", topology_name=topology.layout, **settings
        )
    except jax.errors.JaxRuntimeError as error:
        raise UserError(
            what=f"the TPU compiler knows no topology {topology}",
            expected=f"a layout that the cloud offers, for example {_offered(topology.generation)}",
            got=str(error),
            remedy="choose another layout",
        ) from error
    return list(description.devices)


def _split(text: str) -> tuple[str, int | None, str]:
    """(generation, number of cores or None, layout or "")."""
    found = re.fullmatch(r"(v5e|v5p|v6e)(?:-(\d+)|:([\dx]+))", text.strip().lower())
    if found is None or (found[3] and not re.fullmatch(r"\d+(x\d+)*", found[3])):
        raise UserError(
            what=f"cannot read the topology {text!r}",
            expected="generation and layout of a slice, `v5p:2x2x4`, or its type, `v5p-32`",
            got=repr(text),
            remedy=f"generations: {', '.join(_LAYOUTS)}",
        )
    return found[1], int(found[2]) if found[2] else None, found[3] or ""


def _offered(generation: str) -> str:
    """The layouts of the accelerator types, as a list to read."""
    return ", ".join(f"{generation}:{layout}" for layout in _LAYOUTS[generation].values())
