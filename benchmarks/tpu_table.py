"""The tables of docs/tpu.md: plans every recipe on the hardware its header names.

    python benchmarks/tpu_table.py docs         all, about an hour on two cores
    python benchmarks/tpu_table.py docs 0p6b    those with this in their name

Plans are kept in `DOCS/tpu_plans.json`; tables and the recipes' headers are written from there.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mental_r1_jax.planning.chips import GIB
from mental_r1_jax.planning.compile import in_own_process, make_plan
from mental_r1_jax.planning.steps import planned_steps
from mental_r1_jax.planning.topologies import parse_topology
from mental_r1_jax.recipe import load_config

PLANS_FILE = "tpu_plans.json"
PAGE = "tpu.md"


@dataclass(frozen=True)
class Row:
    """One plan to make.

    Attributes:
        recipe: stem of the recipe's file.
        topology: layout or type of one slice.
        slices: number of slices.
        overrides: changes of the recipe, `section.key=value`.
        table: which table it stands in, `plans` or `scale`.
    """

    recipe: str
    topology: str
    slices: int = 1
    overrides: tuple[str, ...] = ()
    table: str = "plans"

    @property
    def key(self) -> str:
        """What tells it from the others."""
        return f"{self.table} {self.recipe} {self.slices}x{self.topology}"


def _scale(chips: int, topology: str) -> Row:
    """The 8B recipe with two prompts of a micro-batch on each chip."""
    prompts = (f"rollout.prompts_per_step={8 * chips}", f"evaluate.batch_size={8 * chips}")
    mesh = ("mesh.fsdp=8", "mesh.tensor=1")
    return Row("qwen3_8b_crpo", topology, overrides=(*prompts, *mesh), table="scale")


ROWS = (
    *(Row("qwen3_8b_crpo", topology) for topology in ("v5p-32", "v5p-64", "v6e-32", "v5e-64")),
    Row("qwen3_8b_crpo", "v5p-32", slices=2),
    *(
        Row(recipe, topology)
        for recipe in (
            *("qwen3_0p6b_crpo", "qwen3_1p7b_crpo", "llama3p2_1b_crpo", "qwen3_8b_lora_crpo"),
            *("gemma3_1b_crpo", "gemma3_4b_lora_crpo"),
        )
        for topology in ("v5e-8", "v6e-8")
    ),
    Row("qwen3_32b_crpo", "v5p-128"),
    _scale(8, "v5p:2x2x2"),
    _scale(64, "v5p:4x4x4"),
    _scale(256, "v5p:4x8x8"),
    _scale(512, "v5p:8x8x8"),
)


def main(docs: Path, configs: Path, only: str) -> None:
    """Make the plans whose key contains `only`, then write tables and headers from all of them."""
    file = docs / PLANS_FILE
    plans = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    for row in ROWS:
        if only not in row.key:
            continue
        print(row.key, flush=True)
        config = load_config(configs / f"{row.recipe}.yaml", row.overrides)
        topology = parse_topology(row.topology, row.slices)
        plan = in_own_process(make_plan, config, row.recipe, topology, *planned_steps(config))
        plans[row.key] = plan.as_json()
        kept = {row.key: plans[row.key] for row in ROWS if row.key in plans}
        file.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    write_tables(docs / PAGE, plans)
    for recipe in sorted({row.recipe for row in ROWS if row.table == "plans"}):
        write_header(configs / f"{recipe}.yaml", recipe, plans)


def write_tables(page: Path, plans: dict[str, Any]) -> None:
    """Replace what stands between the marks of each table."""
    text = page.read_text(encoding="utf-8")
    for table, lines in (("plans", plan_lines(plans)), ("scale", scale_lines(plans))):
        begin, end = f"<!-- {table}: begin -->", f"<!-- {table}: end -->"
        before, _, rest = text.partition(begin)
        _, _, after = rest.partition(end)
        text = before + begin + "\n" + "\n".join(lines) + "\n" + end + after
    page.write_text(text, encoding="utf-8")


def plan_lines(plans: dict[str, Any]) -> list[str]:
    """The table of recipes."""
    head = (
        "| recipe | hardware | chips | data x fsdp x tensor | HBM peak, GiB | fits "
        "| sent a step, GiB | step, s | tokens/h | run, chip-hours | compiled in, s |"
    )
    lines = [head, "|" + "---|" * 11]
    for row, plan in _planned("plans", plans):
        lines.append(
            f"| `{row.recipe}` | {_hardware(row)} | {plan['chips']} | {_mesh(plan)} "
            f"| {_peak(plan)} | {'yes' if plan['fits'] else 'no'} | {_sent(plan)} "
            f"| {_seconds(plan)} "
            f"| {plan['completion_tokens_per_hour'] / 1e6:.0f} M | {plan['chip_hours']:.0f} "
            f"| {plan['compile_seconds']:.0f} |"
        )
    return lines


def scale_lines(plans: dict[str, Any]) -> list[str]:
    """The table of chip counts."""
    head = (
        "| chips | prompts a step | data x fsdp x tensor | rollout, GiB | update, GiB "
        "| rollout sends, GiB | update sends, GiB | step, s | prompts/h a chip |"
    )
    lines = [head, "|" + "---|" * 9]
    for _, plan in _planned("scale", plans):
        phases = {phase["phase"]: phase for phase in plan["phases"]}
        peaks, sent = (
            [f"{value(phases[name]):.1f}" for name in ("rollout", "update")]
            for value in (lambda p: p["peak_bytes"] / GIB, lambda p: sum(_traffic(p)) / GIB)
        )
        lines.append(
            f"| {plan['chips']} | {8 * plan['chips']} | {_mesh(plan)} | {' | '.join(peaks)} "
            f"| {' | '.join(sent)} "
            f"| {_seconds(plan)} "
            f"| {plan['prompts_per_hour'] / plan['chips']:,.0f} |"
        )
    return lines


def header_lines(recipe: str, plans: dict[str, Any]) -> list[str]:
    """Planned time and memory of a recipe on each hardware, as its header states them."""
    return [
        f"#            {_hardware(row)}: {_seconds(plan)} s, HBM {_peak(plan)} GiB a chip"
        for row, plan in _planned("plans", plans)
        if row.recipe == recipe
    ]


def write_header(recipe_file: Path, recipe: str, plans: dict[str, Any]) -> None:
    """Write the planned memory and time into the head of a recipe, below its duration."""
    block = "".join(f"{line}\n" for line in header_lines(recipe, plans))
    text = recipe_file.read_text(encoding="utf-8")
    text = re.sub(
        r"(# Duration: .*\n)(?:#            .*\n|# PLAN\n)*", lambda m: m[1] + block, text, count=1
    )
    recipe_file.write_text(text, encoding="utf-8")


def _planned(table: str, plans: dict[str, Any]) -> Iterator[tuple[Row, dict[str, Any]]]:
    """The rows of a table that have a plan, with it."""
    return ((row, plans[row.key]) for row in ROWS if row.table == table and row.key in plans)


def _seconds(plan: dict[str, Any]) -> str:
    return f"{plan['step_bound_seconds']:.1f} to {plan['step_expected_seconds']:.1f}"


def _hardware(row: Row) -> str:
    """The slice by its type, and how many."""
    kind = parse_topology(row.topology).accelerator_type
    return kind if row.slices == 1 else f"{row.slices} slices of {kind}"


def _mesh(plan: dict[str, Any]) -> str:
    return " x ".join(str(size) for size in plan["mesh"].values())


def _peak(plan: dict[str, Any]) -> str:
    return f"{plan['peak_bytes'] / GIB:.1f} of {plan['chip']['memory'] / GIB:.1f}"


def _traffic(phase: dict[str, Any]) -> tuple[float, float]:
    rows = phase["traffic"].values()
    return sum(row["ici_bytes"] for row in rows), sum(row["dcn_bytes"] for row in rows)


def _sent(plan: dict[str, Any]) -> str:
    ici, dcn = (sum(part) / GIB for part in zip(*map(_traffic, plan["phases"]), strict=True))
    return f"{ici:.1f}" if dcn == 0 else f"{ici:.1f}, and {dcn:.2f} between slices"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("docs", type=Path, help="the folder with tpu.md")
    parser.add_argument("only", nargs="?", default="", help="plans with this in their name")
    parser.add_argument("--configs", type=Path, default=Path("configs"), help="the recipes")
    options = parser.parse_args()
    main(options.docs, options.configs, options.only)
