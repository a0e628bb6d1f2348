"""The runs that the chaos disturbs: recipes, processes, and what they made."""

from __future__ import annotations

import dataclasses
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import pyarrow.parquet as pq

from mental_r1_jax.jobs.quickstart import corpus
from mental_r1_jax.models.tiny import make_tiny_model
from mental_r1_jax.recipe import parse_config
from mental_r1_jax.training.metrics import read_metrics
from tests.hosts.cluster import CLOCKS, ROOT, free_port

RECIPE = """
model: {{path: {root}/tiny, compute_dtype: float32, remat: none}}
data:
  sets: [Stress-Synthetic, Depression-Synthetic]
  tfds_dir: {root}/data
  limit_per_set: 40
rollout:
  prompts_per_step: 8
  num_generations: 2
  max_prompt_length: 400
  max_completion_length: 8
rewards: {{custom: {{"tests.hosts.rewards:vowels": 1.0}}}}
crpo: {{num_iterations: 2, kl_coef: 0.05}}
sft: {{batch_size: 8, num_steps: 14, traces_per_set: 16}}
evaluate: {{batch_size: 8, bootstrap_samples: 20}}
optimizer: {{learning_rate: 1.0e-3}}
run:
  output_dir: {root}/unused
  num_steps: 14
  micro_batches: 2
  save_every: 2
  keep_checkpoints: 4
  eval_every: 7
  eval_limit_per_set: 2
  log_completions_every: 3
  compilation_cache: {root}/programs
"""
# Programs here run for milliseconds and compile for seconds: compile faster, and keep every one.
FAST = {
    "JAX_NUM_CPU_DEVICES": "1",
    "XLA_FLAGS": "--xla_backend_optimization_level=0",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}
STOPPERS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@dataclasses.dataclass(frozen=True)
class Scenario:
    """A command that is disturbed.

    Attributes:
        name: of it and of its folders.
        verb: of the command line.
        processes: that make the run together.
        overrides: keys that differ from the recipe.
    """

    name: str
    verb: str
    processes: int = 1
    overrides: tuple[str, ...] = ()


SCENARIOS = {
    # Two iterations, KL penalty, micro-batches.
    "train": Scenario("train", "train"),
    "sft": Scenario("sft", "sft", overrides=("rollout.max_completion_length=96",)),
    "hosts": Scenario("hosts", "train", processes=2, overrides=("run.num_steps=8",)),
}


@dataclasses.dataclass
class Command:
    """Running processes of one command, with the files of their output."""

    processes: list[subprocess.Popen[bytes]]
    outputs: list[tuple[Path, Path]]
    started: float

    def running(self) -> bool:
        return any(process.poll() is None for process in self.processes)

    def wait(self, seconds: float) -> bool:
        """Whether all ended within `seconds`; those that did not are killed."""
        until = time.monotonic() + seconds
        while self.running() and time.monotonic() < until:
            time.sleep(0.02)
        ended = not self.running()
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait()
        return ended

    def statuses(self) -> list[int | None]:
        return [process.poll() for process in self.processes]

    def out(self) -> str:
        return "".join(out.read_text(errors="replace") for out, _ in self.outputs)

    def err(self) -> str:
        return "".join(err.read_text(errors="replace") for _, err in self.outputs)


def prepare(root: Path) -> Path:
    """The tiny start model and the recipe, in `root`; returns the recipe's path."""
    text = RECIPE.format(root=root)
    recipe = root / "recipe.yaml"
    if not recipe.exists():
        sizes = {"vocab_size": 512, "hidden_size": 32, "intermediate_size": 64}
        make_tiny_model(root / "tiny", corpus(parse_config(text, source="chaos")), **sizes)
        recipe.write_text(text, encoding="utf-8")
    return recipe


def start(
    scenario: Scenario, recipe: Path, run: Path, logs: Path, file_limit: int | None = None
) -> Command:
    """Start the command of a scenario on the run folder `run`.

    Args:
        file_limit: bytes that no file may exceed, instead of a full disk; None for no limit.
    """
    command = [sys.executable, "-m", "mental_r1_jax", scenario.verb, str(recipe)]
    command += [f"run.output_dir={run}", *scenario.overrides]
    address, processes, outputs = f"127.0.0.1:{free_port()}", [], []
    for index in range(scenario.processes):
        environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
        environment |= FAST
        if scenario.processes > 1:
            environment |= {
                "MENTAL_R1_COORDINATOR": address,
                "MENTAL_R1_NUM_PROCESSES": str(scenario.processes),
                "MENTAL_R1_PROCESS_ID": str(index),
            }
        paths = (logs / f"{index}.out", logs / f"{index}.err")
        with paths[0].open("wb") as out, paths[1].open("wb") as err:
            processes.append(
                subprocess.Popen(
                    command,
                    cwd=ROOT,
                    env=environment,
                    stdout=out,
                    stderr=err,
                    stdin=subprocess.DEVNULL,
                )
            )
        if file_limit is not None:
            resource.prlimit(processes[-1].pid, resource.RLIMIT_FSIZE, (file_limit, file_limit))
        outputs.append(paths)
    return Command(processes, outputs, time.time())


def steps_of(run: Path) -> list[int]:
    """Numbers of the checkpoints of a run, ascending."""
    folder = run / "checkpoints"
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(name) for name in names if name.isdecimal())


def result(run: Path) -> dict[str, Any]:
    """All that a finished run has to agree on: newest state, progress, metrics, completions."""
    (*_, step) = steps_of(run)
    folder = run / "checkpoints" / str(step)
    lines = read_metrics(run / "metrics.jsonl")
    return {
        "step": step,
        "params": _arrays(folder / "params"),
        "optimizer": _arrays(folder / "optimizer"),
        "progress": (folder / "progress" / "metadata").read_text(encoding="utf-8"),
        "score": (folder / "metrics" / "metrics").read_text(encoding="utf-8"),
        "metrics": [
            {name: value for name, value in line.items() if not name.startswith(CLOCKS)}
            for line in lines
        ],
        "completions": {
            path.name: pq.read_table(path) for path in sorted(run.glob("completions/*.parquet"))
        },
    }


def _arrays(folder: Path) -> dict[str, np.ndarray]:
    """The arrays of a checkpoint's item by name, on whatever devices they were saved."""
    handler = ocp.PyTreeCheckpointHandler()
    tree = handler.metadata(folder).tree
    wanted = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
    restored = handler.restore(folder, args=ocp.args.PyTreeRestore(restore_args=wanted))
    flat, _ = jax.tree_util.tree_flatten_with_path(restored)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in flat}


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """What differs between two results, bit by bit; nothing where they are equal."""
    found = [
        name for name in ("step", "progress", "score", "completions") if one[name] != other[name]
    ]
    for item in ("params", "optimizer"):
        if one[item].keys() != other[item].keys():
            found.append(f"names of {item}")
            continue
        found += [
            f"{item}{name}"
            for name, value in one[item].items()
            if value.tobytes() != other[item][name].tobytes()
        ]
    if len(one["metrics"]) != len(other["metrics"]):
        found.append(f"{len(one['metrics'])} and {len(other['metrics'])} lines of metrics")
    for line, their in zip(one["metrics"], other["metrics"], strict=False):
        # repr, because NaN differs from itself.
        found += [
            f"metric {name} of step {line['step']}"
            for name in line.keys() | their.keys()
            if repr(line.get(name)) != repr(their.get(name))
        ]
    return found
