"""Run several benchmarks in turns and compare the medians of what they report.

    python benchmarks/side_by_side.py --rounds 2 \
        --run ours='python benchmarks/step.py --model DIR --json {json}' \
        --run trl='TRL_VENV/bin/python benchmarks/trl_step.py --model DIR --json {json}' \
        --json side_by_side.json

A machine's speed drifts, so nothing is compared across time: the commands run A B A B, each round
gives one median of each, and the ratio of the first to every other is made of medians of rounds.
`{json}` is replaced by the file that a command must write. A report of another layout is read with
`--at NAME=path.to.step.seconds,path.to.peak.bytes`.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

STEP, MEMORY = "seconds.step.median", "peak_memory_bytes"


def look_up(report: Mapping[str, Any], path: str) -> float:
    """The number at a dotted path; a last part `*N` multiplies it."""
    path, _, factor = path.partition("*")
    value: Any = report
    for name in path.split("."):
        value = value[name]
    return float(value) * float(factor or 1)


def run_once(name: str, command: str) -> dict[str, Any]:
    """Run one command and return what it wrote.

    Raises:
        SystemExit: the command failed; its output is shown.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "report.json"
        words = [word.replace("{json}", str(file)) for word in shlex.split(command)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode or not file.is_file():
            sys.exit(f"{name} failed (exit {done.returncode}):\n{done.stdout}\n{done.stderr}")
        report: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return report


def compare(runs: Mapping[str, str], paths: Mapping[str, str], rounds: int) -> dict[str, Any]:
    """Run all in turns: figures by name, and the ratios of each one's to the first's."""
    figures: dict[str, dict[str, Any]] = {
        name: {"step_seconds": [], "peak_bytes": [], "load": [], "reports": []} for name in runs
    }
    for turn in range(rounds):
        for name, command in runs.items():
            load = os.getloadavg()[0]
            report = run_once(name, command)
            step, memory = (paths.get(name) or f"{STEP},{MEMORY}").split(",")
            found = figures[name]
            found["step_seconds"].append(look_up(report, step))
            found["peak_bytes"].append(look_up(report, memory))
            found["load"].append(load)
            found["reports"].append(report)
            print(f"round {turn + 1}: {name} {found['step_seconds'][-1]:.3f} s a step", flush=True)
    for found in figures.values():
        found["step_median"] = statistics.median(found["step_seconds"])
        found["peak_median"] = statistics.median(found["peak_bytes"])
    first = next(iter(figures.values()))
    for found in figures.values():
        found["times_slower"] = found["step_median"] / first["step_median"]
        found["times_memory"] = found["peak_median"] / first["peak_median"]
    return figures


def table(figures: Mapping[str, Mapping[str, Any]]) -> str:
    """The comparison as a Markdown table."""
    rows = ["| | step (s) | times ours | peak memory (MiB) | times ours |", "|---|---|---|---|---|"]
    rows += [
        f"| {name} | {found['step_median']:.2f} | {found['times_slower']:.2f} | "
        f"{found['peak_median'] / 2**20:.0f} | {found['times_memory']:.2f} |"
        for name, found in figures.items()
    ]
    return "\n".join(rows)


def pairs(values: Sequence[str]) -> dict[str, str]:
    """`NAME=REST` of each value."""
    return {name: rest for name, _, rest in (value.partition("=") for value in values)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, run, print and write."""
    parser = argparse.ArgumentParser(description="Compare benchmarks side by side.")
    parser.add_argument("--run", action="append", required=True, metavar="NAME=COMMAND")
    parser.add_argument("--at", action="append", default=[], metavar="NAME=STEP,MEMORY")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", type=Path, help="where to write everything")
    options = parser.parse_args(arguments)
    figures = compare(pairs(options.run), pairs(options.at), options.rounds)
    print(table(figures))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
