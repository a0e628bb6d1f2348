"""Plans of other settings than the recipe's: what would make it fit, and every mesh, ranked."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from mental_r1_jax.config import ExperimentConfig
from mental_r1_jax.errors import UserError
from mental_r1_jax.planning.compile import in_own_process, make_plan
from mental_r1_jax.planning.known_models import planned_decoder
from mental_r1_jax.planning.plan import Plan
from mental_r1_jax.planning.topologies import Topology

# How many changes to try for a recipe that does not fit.
MAX_REMEDIES = 8


def plan_with_remedy(
    config: ExperimentConfig, name: str, topology: Topology, steps: tuple[int, str]
) -> Plan:
    """A plan; where it does not fit, with the first of a few growing changes with which it does."""
    plan = in_own_process(make_plan, config, name, topology, *steps)
    if plan.fits:
        return plan
    doubtful = [phase.phase for phase in plan.phases if phase.peak > plan.chip.memory]
    tried = []
    for _, (change, other) in zip(range(MAX_REMEDIES), changes(plan), strict=False):
        print(f"  {' and '.join(doubtful)} will not fit; trying {change}", flush=True)
        tried.append(change)
        if in_own_process(make_plan, other, name, topology, *steps, doubtful).fits:
            return dataclasses.replace(plan, remedy=f"It fits with {change}.")
    failed = f"Tried without success: {'; '.join(tried) or 'nothing is left to change'}. "
    advice = "Choose a larger topology or chips with more memory."
    return dataclasses.replace(plan, remedy=failed + advice)


def changes(plan: Plan) -> Iterator[tuple[str, ExperimentConfig]]:
    """Settings with which the plan's recipe needs less memory, those that cost least time first."""
    config = plan.work.config

    def changed(section: str, **values: Any) -> tuple[str, ExperimentConfig]:
        part = getattr(config, section).model_copy(update=values)
        words = " ".join(f"{section}.{k}={v}" for k, v in values.items() if v is not None)
        return words, config.model_copy(update={section: part})

    if config.model.compute_dtype == "float32":
        yield changed("model", compute_dtype="bfloat16")
    if config.model.remat != "layers":
        yield changed("model", remat="layers")
    prompts, shards = config.rollout.prompts_per_step, plan.work.row_shards
    micro = 2 * config.run.micro_batches
    while prompts % (micro * shards) == 0:
        yield changed("run", micro_batches=micro)
        micro *= 2
    adamw = config.optimizer.name == "adamw"
    if adamw and config.optimizer.first_moment == "float32":
        yield changed("optimizer", first_moment="bfloat16")
    for fsdp, tensor in _more_sharded(plan):
        yield changed("mesh", data=None, fsdp=fsdp, tensor=tensor)
    if not config.optimizer.offload_moments:
        yield changed("optimizer", offload_moments=True)
    if adamw:
        yield changed("optimizer", name="adafactor")
    half = prompts // 2
    if half and half % (shards * config.run.micro_batches) == 0:
        yield changed("rollout", prompts_per_step=half)


def _more_sharded(plan: Plan) -> Iterator[tuple[int, int]]:
    """(fsdp, tensor) that shard the model over more devices, or more of it over `tensor`."""
    data, fsdp, tensor = plan.work.mesh.values()
    if data % 2 == 0 and data > 1:
        yield fsdp * 2, tensor
    if fsdp % 2 == 0 and plan.work.model.num_kv_heads % (tensor * 2) == 0:
        yield fsdp // 2, tensor * 2


def sweep_meshes(
    config: ExperimentConfig, name: str, topology: Topology, steps: tuple[int, str]
) -> list[Plan]:
    """Plans on every mesh over which batch and heads divide evenly, the fastest that fits first.

    A mesh that turns out to be impossible is printed with the reason and left out.

    Raises:
        UserError: no mesh is possible.
    """
    rows = config.rollout.prompts_per_step // config.run.micro_batches
    per_slice = topology.chips // topology.slices
    sizes = [n for n in range(1, per_slice + 1) if per_slice % n == 0]
    heads = planned_decoder(config).num_kv_heads
    plans = []
    for tensor in (n for n in sizes if heads % n == 0):
        for fsdp in (n for n in sizes if per_slice % (n * tensor) == 0):
            data = topology.chips // (fsdp * tensor)
            if rows % (data * fsdp):
                continue
            mesh = config.mesh.model_copy(update={"data": data, "fsdp": fsdp, "tensor": tensor})
            print(f"mesh {data} x {fsdp} x {tensor}", flush=True)
            other = config.model_copy(update={"mesh": mesh})
            try:
                plans.append(in_own_process(make_plan, other, name, topology, *steps))
            except UserError as error:
                print(f"  {error.what}", flush=True)
    if not plans:
        raise UserError(
            what=f"no mesh of {topology} suits the recipe",
            expected="prompts and heads that divide over some mesh",
            got=f"{rows} prompts in a micro-batch on {topology.chips} chips",
            remedy="raise rollout.prompts_per_step or lower run.micro_batches",
        )
    return sorted(plans, key=lambda plan: (not plan.fits, plan.expected or float("inf")))
