"""`mental-r1 plan`: what a recipe takes on a TPU topology, on any machine.

1. the model's shape, from its `config.json` alone;
2. the very programs of a run (rollout, reference, update) are compiled for the topology;
3. memory, collectives and their bytes are read off the compiled programs;
4. a roofline gives the time of a step, and the cost of the whole recipe.

Compiling happens in a process of its own: the TPU compiler may end the process it runs in.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mental_r1_jax.config import ExperimentConfig
from mental_r1_jax.console.progress import open_console
from mental_r1_jax.errors import UserError
from mental_r1_jax.planning.plan import Plan
from mental_r1_jax.planning.report import print_plan, sweep_table
from mental_r1_jax.planning.search import plan_with_remedy, sweep_meshes
from mental_r1_jax.planning.steps import planned_steps
from mental_r1_jax.planning.topologies import parse_topology


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
        name: name of the recipe, to print.
        topology: layout or type of one slice, `v5p:4x4x4` or `v5p-128`.
        slices: number of equal slices, joined by the data-centre network.
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
        plans = sweep_meshes(config, name, target, steps)
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
