"""Compiling a recipe's step for a topology and reading the programs: the work behind `plan`."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence

import jax
from jax.sharding import Mesh

from mental_r1_jax import sharding
from mental_r1_jax.config import ExperimentConfig
from mental_r1_jax.errors import UserError
from mental_r1_jax.jobs.policy import Policy
from mental_r1_jax.jobs.programs import (
    PHASES,
    StepProgram,
    abstract_reference,
    open_shape,
    step_programs,
)
from mental_r1_jax.planning.chips import CHIPS, Chip
from mental_r1_jax.planning.hlo import parse_program
from mental_r1_jax.planning.memory import Resident, phase_parts, program_memory, shard_bytes
from mental_r1_jax.planning.mesh_choice import choose_mesh
from mental_r1_jax.planning.plan import PhasePlan, Plan
from mental_r1_jax.planning.roofline import phase_times
from mental_r1_jax.planning.traffic import Collective, by_kind, collectives
from mental_r1_jax.planning.workload import Workload
from mental_r1_jax.topologies import Topology, topology_devices


def make_plan(
    config: ExperimentConfig,
    name: str,
    topology: Topology,
    steps: int,
    steps_reason: str,
    doubtful: Sequence[str] = (),
) -> Plan:
    """Compile the programs of one step for `topology`, and say what they take.

    Args:
        config: the recipe.
        name: of the recipe.
        topology: to compile for.
        steps: of the run.
        steps_reason: where that number comes from.
        doubtful: phases to compile first; the others follow only if these fit.

    Raises:
        UserError: no such topology or model, or a mesh or batch that does not fit them.
    """
    policy = open_shape(config)
    devices = topology_devices(topology)
    chip = CHIPS[topology.generation]
    mesh, reason = plan_mesh(config, policy, devices, chip)
    check_rows(config, mesh)
    work = workload(config, policy, mesh)
    reference = abstract_reference(policy, mesh)
    decoding = shard_bytes(reference, without="fsdp")
    programs = step_programs(config, policy, mesh, steps * config.crpo.num_iterations)
    state = programs[-1].arguments[0]
    resident = Resident(
        parameters=shard_bytes(state.params),
        optimizer=shard_bytes(state.opt_state),
        reference=shard_bytes(reference) if work.has_reference else 0.0,
    )
    phases: list[PhasePlan] = []
    # With several updates a rollout the policy scores like the reference: one stands for both.
    once = {program.phase: program for program in reversed(programs)}
    for program in sorted(once.values(), key=lambda each: _order(each.phase, doubtful)):
        if doubtful and any(phase.peak > chip.memory for phase in phases):
            break
        phases.append(plan_phase(program, resident, decoding, work, config, chip, topology.slices))
        print(f"  compiled {program.phase} in {phases[-1].compile_seconds:.0f} s", flush=True)
    return Plan(
        recipe=name,
        topology=str(topology),
        chip=chip,
        mesh=dict(mesh.shape),
        mesh_reason=reason,
        work=work,
        phases=tuple(phases),
        reshard_bytes=decoding - shard_bytes(reference),
        steps=steps,
        steps_reason=steps_reason,
    )


def _order(phase: str, doubtful: Sequence[str]) -> tuple[bool, int]:
    """Doubtful phases first, otherwise as a step runs them."""
    return phase not in doubtful, PHASES.index(phase)


def plan_phase(
    program: StepProgram,
    resident: Resident,
    decoding_weights: float,
    work: Workload,
    config: ExperimentConfig,
    chip: Chip,
    slices: int,
) -> PhasePlan:
    """Compile one program and read its memory and its traffic."""
    started = time.perf_counter()
    try:
        compiled = program.compile()
    except jax.errors.JaxRuntimeError as error:
        seconds = time.perf_counter() - started
        return PhasePlan(program.phase, None, memory_asked_for(error), {}, None, seconds)
    seconds = time.perf_counter() - started
    found = collectives(parse_program(compiled.as_text()), work.devices, slices)
    parts = phase_parts(
        program.phase,
        program_memory(compiled),
        resident,
        decoding_weights,
        work,
        config.run.micro_batches,
    )
    traffic: dict[str, Sequence[Collective]] = {program.phase: found}
    times = phase_times(work, chip, traffic)
    return PhasePlan(program.phase, parts, None, by_kind(found), times[program.phase], seconds)


def memory_asked_for(error: Exception) -> float:
    """Bytes that a program would have needed, from the compiler's complaint.

    Raises:
        UserError: the complaint is about something else.
    """
    text = str(error)
    found = re.search(r"\(([\d.]+)([KMGT])\) exceeds", text) or re.search(
        r"Used ([\d.]+)([KMGT]) of", text
    )
    if "RESOURCE_EXHAUSTED" not in text or not found:
        raise UserError(
            what="the TPU compiler refused a program",
            expected="a program for every phase of the step",
            got=text.splitlines()[0][:500],
            remedy="try another mesh or another version of jax[tpu]",
        ) from error
    return float(found[1]) * 1024.0 ** (1 + "KMGT".index(found[2]))


def plan_mesh(
    config: ExperimentConfig, policy: Policy, devices: Sequence[jax.Device], chip: Chip
) -> tuple[Mesh, str]:
    """The recipe's mesh, with open axes chosen as at the start of a run."""
    slices = sharding.count_slices(devices)
    sizes = config.mesh
    choice = choose_mesh(
        policy.config,
        len(devices) // slices,
        chip.memory,
        fsdp=sizes.fsdp,
        tensor=sizes.tensor,
    )
    return sharding.make_mesh(sizes.data, choice.fsdp, choice.tensor, devices), choice.reason


def check_rows(config: ExperimentConfig, mesh: Mesh) -> None:
    """Refuse a batch that does not split over the mesh, as a run would."""
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    rows = config.rollout.prompts_per_step // config.run.micro_batches
    if rows % shards:
        raise UserError(
            what=f"rollout.prompts_per_step / run.micro_batches = {rows} does not split",
            expected=f"a multiple of mesh.data x mesh.fsdp = {shards}",
            got=str(rows),
            remedy="change one of them, or give some of the devices to mesh.tensor",
        )


def workload(config: ExperimentConfig, policy: Policy, mesh: Mesh) -> Workload:
    """Sizes of a step."""
    rollout = config.rollout
    return Workload(
        model=policy.config,
        prompts=rollout.prompts_per_step,
        group=rollout.num_generations,
        prompt_length=rollout.max_prompt_length,
        completion_length=rollout.max_completion_length,
        num_iterations=config.crpo.num_iterations,
        has_reference=config.crpo.kl_coef > 0,
        data=mesh.shape["data"],
        fsdp=mesh.shape["fsdp"],
        tensor=mesh.shape["tensor"],
    )
