"""Real runs of the command line as several processes on this machine, joined over gloo."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from mental_r1_jax.training.metrics import read_metrics
from tests.hosts.rewards import TRIAL

ROOT = Path(__file__).resolve().parents[2]
# Wall-clock times may differ from run to run, and what one process has compiled so far: a step that
# draws in rounds needs further programs only where it does.
CLOCKS = ("time/", "tokens_per_second", "compiled_programs")


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a process ended: exit status, its output, and seconds after the first one's end."""

    status: int
    out: str
    err: str
    seconds: float


@dataclasses.dataclass(frozen=True)
class Cluster:
    """A way to run recipes; all runs share compiled programs.

    Attributes:
        recipe: the YAML file.
        folder: for run folders and logs.
    """

    recipe: Path
    folder: Path

    def run(
        self,
        verb: str,
        name: str,
        processes: int,
        devices: int,
        *overrides: str,
        trial: str | None = None,
    ) -> list[Ended]:
        """Run a verb to its end in `processes` processes of `devices` virtual devices each."""
        command = [sys.executable, "-m", "mental_r1_jax", verb, str(self.recipe)]
        command += [f"run.output_dir={self.folder / name}", *overrides]
        address = f"127.0.0.1:{free_port()}"
        running = []
        for index in range(processes):
            environment = os.environ | {
                "JAX_NUM_CPU_DEVICES": str(devices),
                "PYTHONPATH": str(ROOT),
                **({} if trial is None else {TRIAL: trial}),
            }
            if processes > 1:
                environment |= {
                    "MENTAL_R1_COORDINATOR": address,
                    "MENTAL_R1_NUM_PROCESSES": str(processes),
                    "MENTAL_R1_PROCESS_ID": str(index),
                }
            logs = [self.folder / f"{name}.{verb}.{index}.{kind}" for kind in ("out", "err")]
            with logs[0].open("w") as out, logs[1].open("w") as err:
                process = subprocess.Popen(
                    command, cwd=ROOT, env=environment, stdout=out, stderr=err
                )
            running.append((process, *logs))
        return wait(running)

    def metrics(self, name: str) -> list[dict[str, float]]:
        """The metrics of a run, without wall-clock times."""
        return [
            {key: value for key, value in line.items() if not key.startswith(CLOCKS)}
            for line in read_metrics(self.folder / name / "metrics.jsonl")
        ]

    def completions(self, name: str) -> list[Any]:
        """The completion tables of a run, one a step."""
        files = sorted((self.folder / name / "completions").iterdir())
        return [pq.read_table(file) for file in files]

    def scores(self, name: str) -> Mapping[str, Any]:
        """The metrics of an evaluation on the test split."""
        file = self.folder / name / "evaluation" / "test" / "metrics.json"
        return json.loads(file.read_text(encoding="utf-8"))


def wait(running: list[tuple[subprocess.Popen[bytes], Path, Path]], limit: float = 300) -> Any:
    """Wait for all processes; one that is left after `limit` seconds is killed, and fails."""
    ends: dict[int, float] = {}
    started = time.monotonic()
    while len(ends) < len(running) and time.monotonic() - started < limit:
        for index, (process, *_) in enumerate(running):
            if index not in ends and process.poll() is not None:
                ends[index] = time.monotonic()
        time.sleep(0.05)
    for process, *_ in running:
        if process.poll() is None:
            process.kill()
    assert len(ends) == len(running), [path.read_text()[-2000:] for *_, path in running]
    first = min(ends.values())
    return [
        Ended(process.wait(), out.read_text(), err.read_text(), ends[index] - first)
        for index, (process, out, err) in enumerate(running)
    ]


def free_port() -> int:
    """A port that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def assert_same_run(ours: Cluster, name: str, other: str) -> None:
    """Two runs sampled the same text and had the same metrics, up to float32 rounding."""
    tables, others = ours.completions(name), ours.completions(other)
    assert len(tables) == len(others) and len(tables) > 1
    assert tables == others
    assert_same_metrics(ours, name, other)


def assert_same_metrics(ours: Cluster, name: str, other: str) -> None:
    """Two runs had the same metrics, up to float32 rounding."""
    lines, theirs = ours.metrics(name), ours.metrics(other)
    assert [line["step"] for line in lines] == [line["step"] for line in theirs]
    for line, their in zip(lines, theirs, strict=True):
        assert line.keys() == their.keys()
        for key, value in their.items():
            np.testing.assert_allclose(line[key], value, rtol=1e-5, atol=1e-5, err_msg=key)
