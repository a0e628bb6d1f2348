"""The mesh of a run: the recipe's own, or chosen by the size of the model and of the devices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax
from jax.sharding import Mesh

from mental_r1_jax import sharding
from mental_r1_jax.config import ExperimentConfig
from mental_r1_jax.errors import UserError
from mental_r1_jax.models.decoder import DecoderConfig
from mental_r1_jax.opening.mesh_choice import choose_mesh


def open_mesh(
    config: ExperimentConfig,
    *,
    rows: dict[str, int],
    model: DecoderConfig | None = None,
) -> Mesh:
    """The mesh of the recipe; every count in `rows` must divide evenly over its batch axes.

    Args:
        config: the recipe.
        rows: name of a batch size -> its number of prompts.
        model: whose size decides what the recipe leaves open; without it such axes are 1.

    Raises:
        UserError: the axes do not multiply to the device count, or a batch does not divide.
    """
    if model is None or None not in (config.mesh.fsdp, config.mesh.tensor):
        sizes = config.mesh
        mesh = sharding.make_mesh(sizes.data, sizes.fsdp or 1, sizes.tensor or 1)
    else:
        memory = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
        mesh, reason = chosen_mesh(config, model, jax.devices(), memory)
        print(f"mesh: {reason}")
    check_rows(mesh, rows)
    return mesh


def chosen_mesh(
    config: ExperimentConfig,
    model: DecoderConfig,
    devices: Sequence[jax.Device],
    memory: float | None,
) -> tuple[Mesh, str]:
    """The recipe's mesh over `devices`, its open axes chosen by the model's size, and the reason.

    Args:
        config: the recipe.
        model: the architecture.
        devices: all of them; they may be other chips than this machine's, to compile for.
        memory: bytes of one device, None where it does not tell.
    """
    sizes, in_slice = config.mesh, len(devices) // sharding.count_slices(devices)
    choice = choose_mesh(
        model, in_slice, memory, config.optimizer, fsdp=sizes.fsdp, tensor=sizes.tensor
    )
    return sharding.make_mesh(sizes.data, choice.fsdp, choice.tensor, devices), choice.reason


def check_rows(mesh: Mesh, rows: Mapping[str, int]) -> None:
    """Refuse batches that do not divide evenly over the batch axes of `mesh`.

    Args:
        mesh: the devices.
        rows: name of a batch size -> its number of prompts.

    Raises:
        UserError: the first that does not.
    """
    shards = sharding.batch_shards(mesh)
    for name, count in rows.items():
        if count % shards:
            raise UserError(
                what=f"{name}={count} does not split over the mesh",
                expected=f"a multiple of mesh.data x mesh.fsdp = {shards}",
                got=str(count),
                remedy=f"use {max(1, round(count / shards)) * shards}, or change the mesh",
            )
