"""Choosing the mesh where the recipe leaves it open, and saying why."""

from __future__ import annotations

from dataclasses import dataclass

from mental_r1_jax.config import OptimizerConfig
from mental_r1_jax.footprint import GIB, bytes_per_parameter
from mental_r1_jax.models.decoder import DecoderConfig, parameter_count

# Shares of a device's memory that these may take; activations, caches and programs need the rest.
_TRAINING_SHARE = 1 / 3
_DECODING_SHARE = 1 / 4


@dataclass(frozen=True)
class MeshChoice:
    """Sizes of the axes `fsdp` and `tensor`, and the reason in a sentence."""

    fsdp: int
    tensor: int
    reason: str


def choose_mesh(
    model: DecoderConfig,
    devices: int,
    memory: float | None,
    optimizer: OptimizerConfig,
    *,
    fsdp: int | None = None,
    tensor: int | None = None,
) -> MeshChoice:
    """Choose the smallest `tensor`, then the smallest `fsdp`, with which the model fits well.

    Small axes are fast ones: `tensor` exchanges activations in every layer, `fsdp` weights, and
    copies of the model (`data`) only gradients, once a step.

    Args:
        model: its parameters set the size; `tensor` divides its key/value heads.
        devices: number of devices in one slice; both axes lie inside it.
        memory: bytes of one device, or None where the platform does not tell.
        optimizer: whose moments are counted.
        fsdp: size that the recipe gives, or None.
        tensor: size that the recipe gives, or None.
    """
    given = [f"{k}={v} as the recipe says" for k, v in (("fsdp", fsdp), ("tensor", tensor)) if v]
    if memory is None:
        free = [name for name, size in (("fsdp", fsdp), ("tensor", tensor)) if size is None]
        why = [f"{name}=1: this platform does not tell its memory" for name in free]
        return MeshChoice(fsdp or 1, tensor or 1, "; ".join(given + why))
    each = bytes_per_parameter(model, optimizer)
    training, decoding = (size * parameter_count(model) for size in each)
    reasons = given
    if tensor is None:
        sizes = [t for t in _divisors(devices // (fsdp or 1)) if model.num_kv_heads % t == 0]
        room = memory * _DECODING_SHARE
        tensor = _smallest(sizes, decoding, room)
        reasons.append(
            f"tensor={tensor}: the weights for decoding, {_gib(decoding / tensor)}, "
            f"beside {_gib(room)} (a quarter of a device)"
        )
    if fsdp is None:
        room = memory * _TRAINING_SHARE
        fsdp = _smallest(_divisors(devices // tensor), training / tensor, room)
        reasons.append(
            f"fsdp={fsdp}: weights, moments, gradients and reference, "
            f"{_gib(training / tensor / fsdp)}, beside {_gib(room)} (a third of a device)"
        )
    return MeshChoice(fsdp, tensor, "; ".join(reasons))


def _divisors(number: int) -> list[int]:
    """All of them, ascending."""
    return [d for d in range(1, max(1, number) + 1) if max(1, number) % d == 0]


def _smallest(sizes: list[int], total: float, room: float) -> int:
    """The first size that brings `total` under `room`, else the largest."""
    return next((size for size in sizes if total / size <= room), sizes[-1])


def _gib(size: float) -> str:
    """Bytes to read."""
    return f"{size / GIB:.1f} GiB"
