"""How long `mental-r1 data` takes on real sets, for several checkouts in turns.

    python benchmarks/data_speed.py --data DATA --model HF_DIR \
        --checkout before=OLD_WORKTREE --checkout after=. --rounds 3

Every run is a process of its own that checks all sets, builds them in a new folder and counts the
tokens of their prompts. The checkouts run A B A B, for a machine's speed drifts, and medians are
compared. `busy` is the processor time of all threads: on a machine that others use as well it says
more than `wall`, which on two idle cores lies between a half of it and all of it. `--without-torch`
hides torch, which transformers imports where it finds it and which this project does not need.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

# Found by every Python whose path holds it, before anything is imported.
_HIDING = "import sys\nsys.modules['torch'] = None\n"
_RECIPE = "configs/smollm2_135m_all_sets.yaml"


def run_once(
    checkout: Path, recipe: str, overrides: Sequence[str], *, without_torch: bool
) -> dict[str, float]:
    """Wall and processor seconds of one `data` by the code in `checkout`.

    Raises:
        SystemExit: it failed; its output is shown.
    """
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, "-m", "mental_r1_jax", "data", recipe, *overrides]
        paths = [str(checkout)]
        if without_torch:
            Path(folder, "sitecustomize.py").write_text(_HIDING, encoding="utf-8")
            paths.append(folder)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        start = time.perf_counter()
        done = subprocess.run(
            [*words, f"data.tfds_dir={folder}/sets"],
            cwd=checkout,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        wall = time.perf_counter() - start
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        sys.exit(f"{' '.join(words)} failed in {checkout}:\n{done.stdout}\n{done.stderr}")
    busy = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall": wall, "busy": busy, "load": os.getloadavg()[0]}


def table(figures: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """Medians of each checkout as a Markdown table."""
    rows = ["| | busy (s) | wall (s) | load |", "|---|--:|--:|--:|"]
    for name, runs in figures.items():
        busy, wall, load = (
            statistics.median(run[key] for run in runs) for key in ("busy", "wall", "load")
        )
        rows.append(f"| {name} | {busy:.1f} | {wall:.1f} | {load:.1f} |")
    return "\n".join(rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, run in turns, print and write."""
    parser = argparse.ArgumentParser(description="Time `mental-r1 data` side by side.")
    parser.add_argument("--checkout", action="append", required=True, metavar="NAME=FOLDER")
    parser.add_argument("--data", required=True, metavar="FOLDER", help="folder with the sets")
    parser.add_argument("--model", required=True, metavar="FOLDER", help="its tokenizer counts")
    parser.add_argument("--recipe", default=_RECIPE, help="in each checkout, or absolute")
    parser.add_argument("--without-torch", action="store_true", help="hide it from transformers")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="where to write every run")
    options = parser.parse_args(arguments)
    checkouts = dict(item.split("=", 1) for item in options.checkout)
    overrides = [f"data.root={options.data}", f"model.path={options.model}"]
    figures: dict[str, list[dict[str, float]]] = {name: [] for name in checkouts}
    for turn in range(options.rounds):
        for name, folder in checkouts.items():
            place, hidden = Path(folder).resolve(), options.without_torch
            run = run_once(place, options.recipe, overrides, without_torch=hidden)
            figures[name].append(run)
            print(f"round {turn + 1}: {name} busy {run['busy']:.1f} s, wall {run['wall']:.1f} s")
            sys.stdout.flush()
    print(table(figures))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
