"""Memory and descriptors of a long run: do they grow with the steps, or level off?

    python benchmarks/long_run.py --steps 3000

Trains a tiny model by CRPO with several prompt lengths, so that programs of several shapes run in
turns, with checkpoints and validations, as a command of its own. Every 100 steps its resident
memory (`VmRSS`, and `RssAnon`, the part that is not files) and its open descriptors are read from
/proc, so it needs Linux. Prints a table, and the growth per 1,000 steps over each third of the run.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from mental_r1_jax.jobs.quickstart import corpus
from mental_r1_jax.models.tiny import make_tiny_model
from mental_r1_jax.recipe import parse_config

RECIPE = """
model: {{path: {root}/tiny, compute_dtype: float32, remat: none}}
data: {{sets: [Stress-Synthetic, Depression-Synthetic], tfds_dir: {root}/data}}
rollout:
  prompts_per_step: 4
  num_generations: 2
  prompt_length_buckets: [304, 336, 368]
  max_prompt_length: 400
  max_completion_length: 8
crpo: {{kl_coef: 0.05}}
evaluate: {{batch_size: 8, bootstrap_samples: 20}}
run:
  output_dir: {root}/run
  num_steps: {steps}
  save_every: 250
  keep_checkpoints: 2
  eval_every: 500
  eval_limit_per_set: 4
  log_completions_every: 50
  compilation_cache: {root}/programs
"""
EVERY = 100


def main() -> None:
    """Make the run, and print what was seen."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--json", type=Path, help="write the readings here, too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="long-run-") as folder:
        readings = watch(Path(folder), options.steps)
    print(" step   VmRSS  RssAnon  descriptors   (MiB)")
    for one in readings:
        print("{step:5d} {VmRSS:7.1f} {RssAnon:8.1f} {descriptors:12d}".format(**one))
    third = max(2, len(readings) // 3)
    for start in range(0, len(readings) - 1, third):
        part = readings[start : start + third + 1]
        if len(part) < 3:
            continue
        steps, used = ([one[key] for one in part] for key in ("step", "RssAnon"))
        slope = 1000 * np.polyfit(steps, used, 1)[0]
        print(f"steps {steps[0]} to {steps[-1]}: {slope:+.1f} MiB of RssAnon per 1,000 steps")
    if options.json:
        options.json.write_text(json.dumps(readings, indent=1), encoding="utf-8")


def watch(root: Path, steps: int) -> list[dict[str, Any]]:
    """Readings every 100 steps of a run in `root`: sizes in MiB, and a number of descriptors."""
    text = RECIPE.format(root=root, steps=steps)
    sizes = {"vocab_size": 512, "hidden_size": 32, "intermediate_size": 64}
    make_tiny_model(root / "tiny", corpus(parse_config(text, source="long run")), **sizes)
    (root / "recipe.yaml").write_text(text, encoding="utf-8")
    command = [sys.executable, "-m", "mental_r1_jax", "train", str(root / "recipe.yaml")]
    environment = os.environ | {"JAX_PLATFORMS": os.environ.get("JAX_PLATFORMS", "cpu")}
    readings: list[dict[str, Any]] = []
    with (root / "out").open("w") as out:
        process = subprocess.Popen(command, env=environment, stdout=out)
        while process.poll() is None:
            step = steps_done(root / "run" / "metrics.jsonl")
            if step >= EVERY * (1 + len(readings)):
                readings.append({"step": step, **usage(process.pid)})
                print(readings[-1], file=sys.stderr, flush=True)
            time.sleep(0.1)
    if process.returncode:
        raise SystemExit(f"the run ended with {process.returncode}")
    return readings


def steps_done(metrics: Path) -> int:
    """The step of the last whole line, 0 before there is one."""
    if not metrics.exists():
        return 0
    with metrics.open("rb") as file:
        file.seek(max(0, metrics.stat().st_size - 20_000))
        lines = file.read().splitlines(keepends=True)
    whole = [line for line in lines[1:] if line.endswith(b"\n")]
    return int(json.loads(whole[-1])["step"]) if whole else 0


def usage(pid: int) -> dict[str, Any]:
    """Resident memory of a process in MiB, and how many descriptors it has."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines()
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    sizes = {name: int(fields[name].split()[0]) / 1024 for name in ("VmRSS", "RssAnon")}
    return {**sizes, "descriptors": len(os.listdir(f"/proc/{pid}/fd"))}


if __name__ == "__main__":
    main()
