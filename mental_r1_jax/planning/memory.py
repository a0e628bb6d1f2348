"""Where the memory of a chip goes in each phase of a step.

The sums are the compiler's: what a program is given, what it returns and what it needs besides.
Their parts are told apart by the shapes of the arrays that we know to be in them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import PyTree

from mental_r1_jax.planning.workload import Workload, cache_bytes

PARTS = (
    "parameters",
    "optimizer",
    "reference",
    "batch",
    "gradients",
    "activations",
    "decoding weights",
    "cache",
    "temporaries",
    "code",
)


@dataclass(frozen=True)
class ProgramMemory:
    """What the compiler says about a program, bytes on one chip.

    Attributes:
        arguments: given to it.
        outputs: returned by it.
        aliased: of the outputs, what takes over an argument's place.
        temporaries: needed while it runs.
        code: the program itself.
    """

    arguments: float
    outputs: float
    aliased: float
    temporaries: float
    code: float


@dataclass(frozen=True)
class Resident:
    """What stays on a chip from step to step, bytes."""

    parameters: float
    optimizer: float
    reference: float


def program_memory(compiled: Any) -> ProgramMemory:
    """Ask a compiled program."""
    stats = compiled.memory_analysis()
    return ProgramMemory(
        arguments=stats.argument_size_in_bytes,
        outputs=stats.output_size_in_bytes,
        aliased=stats.alias_size_in_bytes,
        temporaries=stats.temp_size_in_bytes,
        code=stats.generated_code_size_in_bytes,
    )


def shard_bytes(tree: PyTree, without: str | None = None) -> float:
    """Bytes of one device's share of arrays, or of their shapes with shardings.

    Args:
        tree: leaves with shape, dtype and a `NamedSharding`.
        without: a mesh axis that is taken not to cut anything.
    """
    total = 0
    for leaf in jax.tree.leaves(tree):
        where = leaf.sharding
        if without is not None:
            spec = PartitionSpec(*(None if axis == without else axis for axis in where.spec))
            where = NamedSharding(where.mesh, spec)
        total += math.prod(where.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    return float(total)


def phase_parts(
    phase: str,
    program: ProgramMemory,
    resident: Resident,
    decoding_weights: float,
    work: Workload,
    micro_batches: int,
) -> dict[str, float]:
    """Bytes of one chip while a phase runs, by part; they add up to its peak.

    Args:
        phase: `rollout`, `reference` or `update`.
        program: of that phase.
        resident: what the chip holds all the time, whether this program reads it or not.
        decoding_weights: the copy of the weights that decoding reads.
        work: sizes of the step.
        micro_batches: parts in which the update runs.
    """
    own = {
        "rollout": resident.parameters,
        "reference": resident.reference or resident.parameters,
        "update": resident.parameters + resident.optimizer,
    }[phase]
    parts = dict.fromkeys(PARTS, 0.0)
    parts |= {
        "parameters": resident.parameters,
        "optimizer": resident.optimizer,
        "reference": resident.reference or resident.parameters,
        "batch": max(0.0, program.arguments - own) + program.outputs - program.aliased,
        "code": program.code,
    }
    rest = program.temporaries
    for name, size in _known(phase, resident, decoding_weights, work, micro_batches).items():
        parts[name] = min(size, rest)
        rest -= parts[name]
    parts["temporaries"] = rest
    return parts


def peak(parts: Mapping[str, float]) -> float:
    """Bytes of all parts together."""
    return sum(parts.values())


def _known(
    phase: str,
    resident: Resident,
    decoding_weights: float,
    work: Workload,
    micro_batches: int,
) -> dict[str, float]:
    """Arrays among a program's temporaries whose size the shapes tell."""
    if phase == "rollout":
        return {"decoding weights": decoding_weights, "cache": sum(cache_bytes(work))}
    if phase == "reference":
        return {}
    rows = work.tokens / (work.data * work.fsdp) / micro_batches
    one_layer = rows * work.model.hidden_size * work.model.dtype.itemsize
    return {"gradients": resident.parameters, "activations": work.model.num_layers * one_layer}
