"""Plans as tables to read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table

from mental_r1_jax.footprint import GIB, MIB
from mental_r1_jax.planning.memory import PARTS
from mental_r1_jax.planning.plan import Plan
from mental_r1_jax.planning.roofline import ASSUMPTIONS


def print_plan(plan: Plan, console: Console) -> None:
    """Print memory, traffic, time and cost of one plan."""
    mesh = " x ".join(f"{axis} {size}" for axis, size in plan.work.mesh.items())
    console.print(f"{plan.recipe} on {plan.topology} ({plan.work.devices} x {plan.chip.name})")
    console.print(f"mesh {mesh}: {plan.mesh_reason}")
    console.print(memory_table(plan))
    console.print(f"[bold]{verdict(plan)}[/bold]")
    console.print(traffic_table(plan))
    console.print(
        f"weights for decoding: {plan.reshard_bytes / GIB:.3f} GiB sent by each chip, once a step"
    )
    for line in operation_lines(plan):
        console.print(line)
    console.print(time_table(plan))
    console.print(cost_line(plan))
    console.print("Assumptions: " + "; ".join(ASSUMPTIONS) + ".")


def verdict(plan: Plan) -> str:
    """Whether it fits, and if not, what would make it fit."""
    peak, room = plan.peak / GIB, plan.chip.memory / GIB
    if plan.fits:
        return f"fits: {peak:.2f} of {room:.2f} GiB a chip"
    return f"does not fit: {peak:.2f} of {room:.2f} GiB a chip. {plan.remedy}"


def memory_table(plan: Plan) -> Table:
    """GiB of a chip by part and phase."""
    phases = (phase.phase for phase in plan.phases)
    table = _table("memory of a chip, GiB", "part", right=phases)
    compiled = [phase.parts or {} for phase in plan.phases]
    for part in PARTS:
        if any(parts.get(part) for parts in compiled):
            cells = [f"{parts[part] / GIB:.3f}" if parts else "-" for parts in compiled]
            table.add_row(part, *cells)
    table.add_section()
    table.add_row("peak", *(f"{phase.peak / GIB:.3f}" for phase in plan.phases))
    return table


def traffic_table(plan: Plan) -> Table:
    """Collectives of each phase by kind."""
    sent = ("times", "over ICI, GiB", "over DCN, GiB")
    table = _table("collectives of one step, a chip", "phase", "kind", right=sent)
    for phase in plan.phases:
        for kind, row in phase.traffic.items():
            ici, dcn = (f"{row[key] / GIB:.3f}" for key in ("ici_bytes", "dcn_bytes"))
            table.add_row(phase.phase, kind, f"{row['times']:,.0f}", ici, dcn)
    return table


def time_table(plan: Plan) -> Table:
    """Seconds of each phase by what they are spent on."""
    columns = ("model FLOPs", "compute", "memory", "ICI", "DCN", "at best", "expected")
    table = _table("time of a step, seconds", "phase", right=columns)
    for phase in plan.phases:
        time = phase.time
        if time is None:
            table.add_row(phase.phase, *("-",) * len(columns))
            continue
        seconds = (time.compute, time.memory, time.ici, time.dcn, time.bound, time.expected)
        table.add_row(
            phase.phase, f"{time.model_flops:.3g}", *(f"{value:.3f}" for value in seconds)
        )
    table.add_section()
    table.add_row("step", *("",) * 5, f"{plan.bound:.3f}", f"{plan.expected:.3f}")
    return table


def operation_lines(plan: Plan) -> list[str]:
    """What a token of the rollout launches, and what is moved beside the method's own bytes."""
    lines = [
        f"a token of the {phase.phase} launches {phase.token.layer:.1f} operations a layer and "
        f"{phase.token.others:.0f} others, and moves {phase.token.layer_bytes / MIB:.2f} MiB a "
        f"layer and {phase.token.other_bytes / MIB:.2f} MiB otherwise, beside weights and caches"
        for phase in plan.phases
        if phase.token
    ]
    return lines + [
        f"operations of the {phase.phase} that compute nothing move "
        f"{phase.moved.only_moved / GIB:.2f} of its {phase.moved.all / GIB:.2f} GiB "
        f"({phase.moved.only_moved / phase.moved.all:.0%})"
        for phase in plan.phases
        if phase.moved and not phase.token
    ]


def cost_line(plan: Plan) -> str:
    """Throughput, length and price of the run."""
    prompts = plan.per_hour(plan.work.config.rollout.prompts_per_step)
    tokens = plan.per_hour(plan.work.completion_tokens)
    if prompts is None or tokens is None or any(phase.time is None for phase in plan.phases):
        return "no times: not every program compiled"
    return (
        f"{prompts:,.0f} prompts and {tokens:,.0f} completion tokens an hour; "
        f"{plan.steps} steps ({plan.steps_reason}): {plan.hours:.2f} hours, "
        f"{plan.chip_hours:.1f} chip-hours" + _rounds(plan)
    )


def _rounds(plan: Plan) -> str:
    """What dynamic sampling may add; how many rounds a step needs shows only in the run."""
    rollout = plan.work.config.rollout
    if rollout.keep_groups == "all":
        return ""
    return (
        f", with one round a step. rollout.keep_groups={rollout.keep_groups} draws up to "
        f"{rollout.max_rounds}; each further one takes {plan.further_round:.1f} s"
    )


def sweep_table(plans: Sequence[Plan]) -> Table:
    """Plans of several meshes, the best first."""
    names = ("data", "fsdp", "tensor", "peak GiB", "fits", "at best s", "expected s", "chip-hours")
    table = _table("meshes, fastest first", right=names)
    for plan in plans:
        table.add_row(
            *(str(size) for size in plan.work.mesh.values()),
            f"{plan.peak / GIB:.2f}",
            "yes" if plan.fits else "no",
            f"{plan.bound:.2f}",
            f"{plan.expected:.2f}",
            f"{plan.chip_hours:.1f}",
        )
    return table


def _table(title: str, *left: str, right: Iterable[str]) -> Table:
    """An empty table: columns of words, then columns of figures."""
    table = Table(title=title, title_justify="left")
    for name in left:
        table.add_column(name)
    for name in right:
        table.add_column(name, justify="right")
    return table
