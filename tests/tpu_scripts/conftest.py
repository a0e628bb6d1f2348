from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tpu_scripts import stand_in

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "tpu_scripts"

# What every verb needs, as a user would set it once.
PLACE = {
    "TPU_PROJECT": "my-project",
    "TPU_ZONE": "us-east5-a",
    "TPU_NAME": "my-tpu",
    "TPU_BUCKET": "gs://my-bucket/",
    "TPU_ACCELERATOR": "v6e-8",
    "TPU_POLL": "0.1",
}


class Laptop:
    """A clone of the repository, and a cloud that only records."""

    def __init__(self, folder: Path, repository: Path) -> None:
        self.folder = folder
        self.cloud = folder / "cloud"
        self.repository = repository
        self.mount = self.cloud / "mount"
        self.environment = {
            "PATH": f"{self.cloud}/bin:{os.environ['PATH']}",
            "HOME": str(folder / "home"),
            "TMPDIR": str(folder),
            "TPU_MOUNT": str(self.mount),
            **PLACE,
        }
        (folder / "home").mkdir()
        stand_in.install(self.cloud)
        (self.cloud / "states").write_text("WAITING_FOR_RESOURCES PROVISIONING ACTIVE")
        (self.cloud / "jobs").write_text("finish")

    def make_ready(self) -> None:
        """An ACTIVE request with two workers that have been set up, without the calls."""
        (self.cloud / "request.json").write_text('{"states": ["ACTIVE"], "slices": 1}')
        self.mount.symlink_to(self.cloud / "bucket")
        for worker in ("s0-w0", "s0-w1"):
            home = self.cloud / "workers" / worker / "mental-r1"
            shutil.copytree(SCRIPTS, home / "source/tpu_scripts")
            shutil.copytree(self.cloud / "bin", home / "venv/bin")

    def run(
        self, verb: str, *words: str, stdin: str = "", **changes: str | None
    ) -> subprocess.CompletedProcess[str]:
        """Run `verb.sh` in the clone; a variable changed to None is not set."""
        environment = {k: v for k, v in {**self.environment, **changes}.items() if v is not None}
        return subprocess.run(
            [f"tpu_scripts/{verb}.sh", *words],
            cwd=self.repository,
            env=environment,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def ok(self, verb: str, *words: str, **changes: str | None) -> str:
        """Run `verb.sh`, which must succeed, and return what it prints."""
        done = self.run(verb, *words, **changes)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def calls(self, tool: str | None = None, host: str = "laptop") -> list[list[str]]:
        """Arguments of the recorded calls on `host`, of one tool or (with its name) of all."""
        file = self.cloud / "calls.jsonl"
        lines = file.read_text().splitlines() if file.exists() else []
        records = [r for r in map(json.loads, lines) if r["host"] == host]
        if tool:
            return [r["argv"] for r in records if r["tool"] == tool]
        return [[r["tool"], *r["argv"]] for r in records]

    def outline(self) -> list[str]:
        """The laptop's calls in short: `create`, `ssh start.sh`, `cp`, `export`, ..."""
        return [_short(call) for call in self.calls()]

    def dry(self, verb: str, *words: str, **changes: str | None) -> list[list[str]]:
        """The commands that a dry run prints, as words; every line must be one for bash."""
        printed = self.ok(verb, *words, DRY_RUN="1", **changes)
        assert subprocess.run(["bash", "-n", "-c", printed]).returncode == 0
        words_of = [shlex.split(line, comments=True) for line in printed.splitlines()]
        return [line for line in words_of if line]


def _short(call: list[str]) -> str:
    if call[:4] == ["gcloud", "compute", "tpus", "queued-resources"]:
        command = next((a for a in call if a.startswith("--command=")), "")
        script = [Path(w).name for w in command.split() if "/tpu_scripts/worker/" in w]
        return " ".join([call[4], *script[-1:]])
    if call[:2] == ["gcloud", "storage"]:
        return call[2]
    return " ".join(call[:2])


@pytest.fixture(scope="session")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A git clone with one commit; not to be written to."""
    folder = tmp_path_factory.mktemp("repository") / "clone"
    shutil.copytree(SCRIPTS, folder / "tpu_scripts")
    shutil.copytree(ROOT / "configs", folder / "configs")
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@t", "-c", "commit.gpgsign=false"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "all"]):
        subprocess.run([*git, *words], cwd=folder, check=True)
    return folder


@pytest.fixture
def laptop(tmp_path: Path, clone: Path) -> Iterator[Laptop]:
    machine = Laptop(tmp_path, clone)
    yield machine
    for pid_file in machine.cloud.glob("workers/*/.pid"):
        stand_in.kill(int(pid_file.read_text()), signal.SIGKILL)
