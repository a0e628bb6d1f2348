"""From a recipe to its plan: compiling a step for a topology, and reading the programs."""

from __future__ import annotations

import multiprocessing
import os
import re
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import jax

from mental_r1_jax.config import ExperimentConfig
from mental_r1_jax.errors import UserError
from mental_r1_jax.footprint import Footprint, compute_weights, footprint, shard_bytes
from mental_r1_jax.opening.devices import check_rows, chosen_mesh
from mental_r1_jax.planning.chips import CHIPS, Chip
from mental_r1_jax.planning.hlo import parse_program
from mental_r1_jax.planning.known_models import planned_decoder
from mental_r1_jax.planning.memory import phase_parts
from mental_r1_jax.planning.operations import moved_bytes, token_operations
from mental_r1_jax.planning.plan import PhasePlan, Plan
from mental_r1_jax.planning.roofline import phase_time
from mental_r1_jax.planning.topologies import Topology, topology_devices
from mental_r1_jax.planning.traffic import by_kind, collectives
from mental_r1_jax.planning.workload import Workload
from mental_r1_jax.programs.step_programs import PHASES, ProgramCall, step_programs

# Constants in the programs, whose values change neither memory nor time.
_EOS_IDS, _PAD_ID = (2,), 0


def in_own_process(function: Callable[..., Plan], *arguments: Any) -> Plan:
    """Call `function` in a fresh process, which the TPU compiler may end without ending ours.

    That process touches no accelerator of this machine, and no cache of compiled programs: one for
    a topology cannot be read again where its devices are not. If ours is killed, it ends as well,
    in the middle of a compilation.

    Raises:
        UserError: the function's own, or the process died.
    """
    settings = {"JAX_PLATFORMS": "cpu", "JAX_ENABLE_COMPILATION_CACHE": "false"}
    before = {name: os.environ.get(name) for name in settings}
    os.environ |= settings  # which the new process takes over
    spawn = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(1, spawn, _end_with_parent, (os.getpid(),)) as pool:
            return pool.submit(function, *arguments).result()
    except BrokenProcessPool as error:
        raise UserError(
            what="the TPU compiler crashed",
            expected="a program, or a reason why there is none",
            got="the compiling process ended by itself; its last words stand above",
            remedy="try another mesh (mental-r1 plan --sweep) or another version of jax[tpu]",
        ) from error
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            os.environ |= {} if value is None else {name: value}


def _end_with_parent(parent: int) -> None:
    """Watch the process that started this one, from a thread; compiling lets threads run."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


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
        name: name of the recipe, to print.
        topology: chips to compile for.
        steps: number of steps of the run.
        steps_reason: where that number comes from.
        doubtful: phases to compile first; the others follow only if these fit.

    Raises:
        UserError: no such topology or model, or a mesh or batch that does not fit them.
    """
    model, chip = planned_decoder(config), CHIPS[topology.generation]
    mesh, reason = chosen_mesh(config, model, topology_devices(topology), chip.memory)
    per_update = config.rollout.prompts_per_step // config.run.micro_batches
    check_rows(mesh, {"rollout.prompts_per_step / run.micro_batches": per_update})
    work = Workload(config, model, dict(mesh.shape))
    held = footprint(config, model, mesh)
    updates = steps * config.crpo.num_iterations
    programs = step_programs(config, model, mesh, updates, eos_ids=_EOS_IDS, pad_id=_PAD_ID)
    phases: list[PhasePlan] = []
    # With several updates a rollout the policy scores like the reference: one stands for both.
    once = {program.phase: program for program in reversed(programs)}
    for phase in sorted(once, key=lambda each: (each not in doubtful, PHASES.index(each))):
        if doubtful and any(each.peak > chip.memory for each in phases):
            break
        phases.append(plan_phase(once[phase], held, work, chip, topology.slices))
        print(f"  compiled {phase} in {phases[-1].compile_seconds:.0f} s", flush=True)
    return Plan(
        recipe=name,
        topology=str(topology),
        chip=chip,
        work=work,
        mesh_reason=reason,
        phases=tuple(phases),
        reshard_bytes=held.decoding_weights - shard_bytes(compute_weights(model, mesh)),
        steps=steps,
        steps_reason=steps_reason,
    )


def plan_phase(
    program: ProgramCall, held: Footprint, work: Workload, chip: Chip, slices: int
) -> PhasePlan:
    """Compile one program and read its memory, its traffic and what it launches.

    Raises:
        UserError: the compiler refuses it for another reason than its memory.
    """
    phase, started = program.phase, time.perf_counter()
    try:
        compiled = program.compile()
    except jax.errors.JaxRuntimeError as error:
        seconds = time.perf_counter() - started
        return PhasePlan(phase, None, memory_asked_for(error), {}, None, seconds)
    seconds = time.perf_counter() - started
    read = parse_program(compiled.as_text())
    found = collectives(read, work.devices, slices)
    layers, tokens = work.model.num_layers, work.config.rollout.max_completion_length
    token, moved = None, moved_bytes(read)
    beside = moved.only_moved
    if phase == "rollout":
        token = token_operations(read, layers)
        beside = tokens * (layers * token.layer_bytes + token.other_bytes)
    return PhasePlan(
        phase=phase,
        parts=phase_parts(phase, compiled.memory_analysis(), held),
        needed=None,
        traffic=by_kind(found),
        time=phase_time(phase, work, chip, found, beside),
        compile_seconds=seconds,
        token=token,
        moved=moved,
    )


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
