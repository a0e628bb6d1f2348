"""`mental-r1 plan`: what a recipe takes on a TPU topology, on any machine.

1. the model's shape, from its `config.json` alone;
2. the very programs of a run (rollout, reference, update) are compiled for the topology;
3. memory, collectives and their bytes are read off the compiled programs;
4. a roofline gives the time of a step, and the cost of the whole recipe.

Compiling happens in a process of its own: the TPU compiler may end the process it runs in.
"""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from mental_r1_jax.config import ExperimentConfig
from mental_r1_jax.data.benchmarks import BENCHMARKS, SYNTHETIC_SPECS
from mental_r1_jax.data.loading import load_examples
from mental_r1_jax.errors import UserError
from mental_r1_jax.jobs.planner import make_plan
from mental_r1_jax.jobs.programs import open_shape
from mental_r1_jax.jobs.trainer import count_steps
from mental_r1_jax.planning.plan import Plan
from mental_r1_jax.planning.report import print_plan, sweep_table
from mental_r1_jax.topologies import Topology, parse_topology
from mental_r1_jax.training.progress import open_console

# Posts of the paper's eight training sets, as its 144 steps of 128 prompts imply.
PAPER_POSTS = 144 * 128

# How many changes to try for a recipe that does not fit.
MAX_REMEDIES = 6


def run(
    config: ExperimentConfig,
    *,
    name: str,
    topology: str | None,
    slices: int = 1,
    json_path: Path | None = None,
    sweep: bool = False,
) -> Plan:
    """Print the plan of a recipe, or of it on every mesh; returns it, or the best one.

    Args:
        config: the recipe.
        name: what to call it.
        topology: of one slice, `v5p:4x4x4` or `v5p-128`.
        slices: equal slices joined by the data-centre network.
        json_path: file to write the plan, or all plans of a sweep, to.
        sweep: try every mesh that the model and the batch allow, and rank them.

    Raises:
        UserError: no topology, an impossible one, or a recipe that does not go with it.
    """
    if topology is None:
        raise UserError(
            what="nothing says on which chips",
            expected="--topology with the layout of a slice, v5p:2x2x4, or its type, v5p-32",
            got="no --topology",
            remedy=f"try mental-r1 plan {name}.yaml --topology v5e-8",
        )
    target = parse_topology(topology, slices)
    steps = planned_steps(config)
    console = open_console()
    if sweep:
        plans = list(sweep_meshes(config, name, target, steps))
        plans.sort(key=lambda plan: (not plan.fits, plan.expected or float("inf")))
        console.print(sweep_table(plans))
        plan = plans[0]
        written: Any = [each.as_json() for each in plans]
    else:
        plan = plan_with_remedy(config, name, target, steps)
        written = plan.as_json()
    print_plan(plan, console)
    if json_path is not None:
        json_path.parent.mkdir(parents=True, exist_ok=True)
        json_path.write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
    return plan


def planned_steps(config: ExperimentConfig) -> tuple[int, str]:
    """Steps of the run, and where the number comes from."""
    if config.run.num_steps is not None:
        return config.run.num_steps, "run.num_steps"
    embedded = set(config.data.sets) <= set(SYNTHETIC_SPECS)
    if config.data.root is not None or embedded:
        return count_steps(config, load_examples(config, "train")), "from the posts"
    posts = round(PAPER_POSTS * len(config.data.sets) / len(BENCHMARKS))
    steps = max(1, round(config.run.num_epochs * posts / config.rollout.prompts_per_step))
    return steps, f"for {posts:,} posts, as the paper's sets have; data.root is not set"


def plan_with_remedy(
    config: ExperimentConfig, name: str, topology: Topology, steps: tuple[int, str]
) -> Plan:
    """A plan; where it does not fit, the first of a few growing changes with which it does."""
    plan = in_own_process(make_plan, config, name, topology, *steps)
    if plan.fits:
        return plan
    doubtful = [phase.phase for phase in plan.phases if phase.peak > plan.chip.memory]
    tried = []
    for _, (change, other) in zip(range(MAX_REMEDIES), changes(config, plan), strict=False):
        print(f"  {' and '.join(doubtful)} will not fit; trying {change}", flush=True)
        tried.append(change)
        if in_own_process(make_plan, other, name, topology, *steps, doubtful).fits:
            return plan.with_remedy(f"It fits with {change}.")
    return plan.with_remedy(
        f"Tried without success: {'; '.join(tried) or 'nothing is left to change'}. "
        "Choose a larger topology or chips with more memory."
    )


def changes(config: ExperimentConfig, plan: Plan) -> Iterator[tuple[str, ExperimentConfig]]:
    """Ways to need less memory, those that cost least first."""

    def with_values(section: str, **values: Any) -> ExperimentConfig:
        part = getattr(config, section).model_copy(update=values)
        return config.model_copy(update={section: part})

    work = plan.work
    if config.model.compute_dtype == "float32":
        yield "model.compute_dtype=bfloat16", with_values("model", compute_dtype="bfloat16")
    if config.model.remat != "layers":
        yield "model.remat=layers", with_values("model", remat="layers")
    micro = 2 * config.run.micro_batches
    while config.rollout.prompts_per_step % (micro * work.data * work.fsdp) == 0:
        yield f"run.micro_batches={micro}", with_values("run", micro_batches=micro)
        micro *= 2
    for fsdp, tensor in _larger_cuts(plan):
        mesh = {"data": None, "fsdp": fsdp, "tensor": tensor}
        yield f"mesh.fsdp={fsdp} mesh.tensor={tensor}", with_values("mesh", **mesh)
    half = config.rollout.prompts_per_step // 2
    if half and half % (work.data * work.fsdp * config.run.micro_batches) == 0:
        yield f"rollout.prompts_per_step={half}", with_values("rollout", prompts_per_step=half)


def _larger_cuts(plan: Plan) -> Iterator[tuple[int, int]]:
    """(fsdp, tensor) that cut the model into more parts, or more of it over `tensor`."""
    work = plan.work
    if work.data % 2 == 0 and work.data > 1:
        yield work.fsdp * 2, work.tensor
    if work.fsdp % 2 == 0 and work.model.num_kv_heads % (work.tensor * 2) == 0:
        yield work.fsdp // 2, work.tensor * 2


def sweep_meshes(
    config: ExperimentConfig, name: str, topology: Topology, steps: tuple[int, str]
) -> Iterator[Plan]:
    """Plans on every mesh over which the batch and the model's heads divide evenly."""
    rows = config.rollout.prompts_per_step // config.run.micro_batches
    per_slice = topology.chips // topology.slices
    sizes = [n for n in range(1, per_slice + 1) if per_slice % n == 0]
    heads = open_shape(config).config.num_kv_heads
    found = 0
    for tensor in (n for n in sizes if heads % n == 0):
        for fsdp in (n for n in sizes if per_slice % (n * tensor) == 0):
            data = topology.chips // (fsdp * tensor)
            if rows % (data * fsdp):
                continue
            mesh = config.mesh.model_copy(update={"data": data, "fsdp": fsdp, "tensor": tensor})
            print(f"mesh {data} x {fsdp} x {tensor}", flush=True)
            other = config.model_copy(update={"mesh": mesh})
            try:
                yield in_own_process(make_plan, other, name, topology, *steps)
            except UserError as error:
                print(f"  {error.what}", flush=True)
                continue
            found += 1
    if not found:
        raise UserError(
            what=f"no mesh of {topology} suits the recipe",
            expected="prompts and heads that divide over some mesh",
            got=f"{rows} prompts in a micro-batch on {topology.chips} chips",
            remedy="raise rollout.prompts_per_step or lower run.micro_batches",
        )


def in_own_process(function: Callable[..., Plan], *arguments: Any) -> Plan:
    """Call `function` in a fresh process, for which no accelerator of this machine is touched.

    Raises:
        UserError: the function's own, or the process died.
    """
    os.environ["JAX_PLATFORMS"] = "cpu"
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=spawn) as pool:
        try:
            return pool.submit(function, *arguments).result()
        except BrokenProcessPool as error:
            raise UserError(
                what="the TPU compiler crashed",
                expected="a program, or a reason why there is none",
                got="the compiling process ended by itself; its last words stand above",
                remedy="try another mesh (mental-r1 plan --sweep) or another version of jax[tpu]",
            ) from error
