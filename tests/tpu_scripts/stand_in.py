"""A recording stand-in for every program that tpu_scripts/ and its workers call.

`install(folder)` links it into `folder/bin` under many names; put that first in PATH. Each call is
appended to `folder/calls.jsonl` as `{"tool", "host", "argv"}`. It keeps a small Google Cloud: a
queued resource that goes WAITING -> PROVISIONING -> ACTIVE, a bucket (a folder), and workers (home
folders) on which `gcloud ... ssh` really runs the command in bash, after `bash -n`. What the n-th
training job on a worker does is the n-th word of `folder/jobs`, the last one for ever:

    finish   resume from the newest checkpoint, train to the end
    preempt  save a checkpoint, then the whole request becomes SUSPENDED
    crash    exit status 1
    mistake  exit status 2
    wait     train until SIGTERM, then save a checkpoint and end with 143
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

LOCAL_TOOLS = ("gcloud", "hf", "mental-r1", "kubectl", "xpk", "docker")
WORKER_TOOLS = ("systemd-run", "systemctl", "curl", "apt-get", "uv", "python")
# Small ones, called often: in the shell they are fast, and nobody asks for a record of them.
SHELL_TOOLS = {
    "hostname": 'echo "${FAKE_HOST:-laptop}"',
    "lsb_release": "echo jammy",
    "mountpoint": 'test -L "$2"',
    "sudo": 'if [ "$1" = tee ]; then cat >/dev/null; else exec "$@"; fi',
}


def install(folder: Path) -> None:
    """Make the tools in `folder/bin`, an empty bucket, and no request."""
    (folder / "bin").mkdir(parents=True)
    (folder / "bucket").mkdir()
    for tool in (*LOCAL_TOOLS, *WORKER_TOOLS):
        make_tool(folder, folder / "bin" / tool)
    for tool, body in SHELL_TOOLS.items():
        (folder / "bin" / tool).write_text(f"#!/bin/sh\n{body}\n")
        (folder / "bin" / tool).chmod(0o755)


def make_tool(folder: Path, path: Path) -> None:
    """A program at `path` that comes here under its own name."""
    path.write_text(
        f'#!/bin/sh\nFAKE_CLOUD="{folder}" exec "{sys.executable}" -SE "{__file__}" '
        f'{path.name} "$@"\n'
    )
    path.chmod(0o755)


class Cloud:
    """One call of one tool."""

    def __init__(self, folder: Path, tool: str, argv: list[str]) -> None:
        self.folder, self.tool, self.argv = folder, tool, argv
        self.host = os.environ.get("FAKE_HOST", "laptop")
        self.home = Path(os.environ["HOME"])
        self.request = folder / "request.json"
        line = json.dumps({"tool": tool, "host": self.host, "argv": argv})
        with (folder / "calls.jsonl").open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def run(self) -> int:
        if self.tool == "gcloud":
            return self.gcloud()
        method = getattr(self, self.tool.replace("-", "_"), None)
        return method() if method else 0

    # -- Google Cloud ---------------------------------------------------------------------------

    def gcloud(self) -> int:
        if self.argv[:3] == ["compute", "tpus", "queued-resources"]:
            return getattr(self, "queue_" + self.argv[3])()
        assert self.argv[0] == "storage", self.argv
        return getattr(self, "storage_" + self.argv[1])()

    def flag(self, name: str, default: str = "") -> str:
        found = [a.partition("=")[2] for a in self.argv if a.startswith(f"--{name}=")]
        return found[0] if found else default

    def queue_create(self) -> int:
        if self.request.exists():
            return fail("ERROR: (gcloud) ALREADY_EXISTS: the request exists")
        slices = int(self.flag("node-count", "1"))
        states = (self.folder / "states").read_text().split()
        self.request.write_text(json.dumps({"states": states, "slices": slices}))
        for number in range(slices):
            for worker in range(2):
                (self.folder / f"workers/s{number}-w{worker}").mkdir(parents=True)
        return 0

    def queue_describe(self) -> int:
        broken = self.folder / "broken_once"
        if broken.exists():
            message = broken.read_text()
            broken.unlink()
            return fail(f"ERROR: (gcloud) {message}")
        if not self.request.exists():
            return fail("ERROR: (gcloud) NOT_FOUND: Resource was not found")
        if "yaml" in self.flag("format"):
            print("state:\n  failedData:\n    error:\n      message: no quota")
            return 0
        content = json.loads(self.request.read_text())
        states = content["states"]
        print("some notice of gcloud", file=sys.stderr)
        print(states[0])
        content["states"] = states[1:] or states
        self.request.write_text(json.dumps(content))
        if states[0] == "DELETING":
            self.request.unlink()
        return 0

    def queue_delete(self) -> int:
        if not self.request.exists():
            return fail("ERROR: (gcloud) NOT_FOUND: Resource was not found")
        for pid_file in self.folder.glob("workers/*/.pid"):
            kill(int(pid_file.read_text()), signal.SIGKILL)
        shutil.rmtree(self.folder / "workers")
        (self.folder / "mount").unlink(missing_ok=True)
        self.request.unlink()
        return 0

    def queue_ssh(self) -> int:
        if json.loads(self.request.read_text())["states"][0] != "ACTIVE":
            return fail("ERROR: (gcloud) the TPU is not reachable", status=255)
        command = self.flag("command")
        if "state.sh" in command and (self.folder / "silent").exists():
            return fail("ssh: connection timed out", status=255)
        subprocess.run(["bash", "-n", "-c", command], check=True)
        node, worker = self.flag("node"), self.flag("worker")
        status = 0
        for home in sorted((self.folder / "workers").iterdir()):
            number, _, index = home.name[1:].partition("-w")
            if node in ("all", number) and worker in ("all", index):
                environment = os.environ | {"HOME": str(home), "FAKE_HOST": home.name}
                done = subprocess.run(["bash", "-c", command], cwd=home, env=environment)
                status = status or done.returncode
        return status

    def at(self, url: str) -> Path:
        """The file behind gs://my-bucket/..., or a local path."""
        prefix = "gs://my-bucket"
        return (
            self.folder / "bucket" / url[len(prefix) + 1 :] if url.startswith(prefix) else Path(url)
        )

    def storage_buckets(self) -> int:
        if self.argv[2] == "create":
            (self.folder / "hierarchical").touch()
        else:
            print((self.folder / "hierarchical").exists())
        return 0

    def storage_cp(self) -> int:
        source, target = (self.at(a) for a in self.argv[2:] if not a.startswith("--"))
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)
        return 0

    def storage_rsync(self) -> int:
        source, target = (self.at(a) for a in self.argv[2:] if not a.startswith("--"))
        exclude = re.compile(self.flag("exclude", "$^"))
        for file in source.rglob("*"):
            name = file.relative_to(source)
            if file.is_file() and not exclude.match(str(name)):
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, target / name)
        return 0

    def storage_cat(self) -> int:
        path = self.at(self.argv[-1].removesuffix("/**"))
        for file in sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]:
            if not file.exists():
                return fail("ERROR: (gcloud) The following URLs matched no objects or files")
            sys.stdout.buffer.write(file.read_bytes())
        return 0

    def storage_ls(self) -> int:
        for path in sorted(self.at(self.argv[2]).iterdir()):
            print(f"{self.argv[2]}{path.name}/")
        return 0

    # -- on the workers -------------------------------------------------------------------------

    def apt_get(self) -> int:
        if "install" in self.argv:
            make_tool(self.folder, self.folder / "bin" / self.argv[-1])
        return 0

    def gcsfuse(self) -> int:
        bucket, mount = self.argv[-2:]
        assert bucket == "my-bucket", bucket
        Path(mount).rmdir()
        Path(mount).symlink_to(self.folder / "bucket")
        return 0

    def curl(self) -> int:
        """The installer of uv, as a script for `sh`."""
        if "astral.sh" in self.argv[-1]:
            print(f'mkdir -p "$UV_INSTALL_DIR" && cp "{self.folder}/bin/uv" "$UV_INSTALL_DIR/uv"')
        return 0

    def uv(self) -> int:
        if self.argv == ["--version"]:
            print("uv 0.13.9")
        if self.argv[0] == "venv":
            binaries = Path(self.argv[-1]) / "bin"
            binaries.mkdir(parents=True, exist_ok=True)
            for tool in ("python", "mental-r1"):
                shutil.copy(self.folder / "bin" / tool, binaries / tool)
        return 0

    def systemd_run(self) -> int:
        words = [a for a in self.argv if not a.startswith("--")]
        words = self.argv[self.argv.index(words[0]) :]
        assert not any("$" in word or "%" in word for word in words), words
        if "mental-r1-bucket" in self.flag("unit"):
            return subprocess.run(words).returncode
        job = subprocess.Popen(
            words, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        (self.home / ".pid").write_text(str(job.pid))
        return 0

    def systemctl(self) -> int:
        pid_file = self.home / ".pid"
        pid = int(pid_file.read_text()) if pid_file.exists() else 0
        if self.argv[0] == "is-active":
            return 0 if alive(pid) else 3
        if self.argv[0] == "stop":
            kill(pid, signal.SIGTERM)
            while alive(pid):
                time.sleep(0.02)
        return 0

    def mental_r1(self) -> int:
        options = dict(a.split("=", 1) for a in self.argv if "=" in a and not a.startswith("--"))
        if self.host == "laptop":
            if self.argv[0] == "export":
                (Path(options["run.output_dir"]) / "hf").mkdir()
            return 0
        run = Path(options["run.output_dir"])
        assert Path(self.argv[1]).is_file(), "the recipe is not in the bucket"
        # What a job does is counted a worker, over all machines that had its place.
        counter = self.folder / f"jobs-{self.host}"
        number = int(counter.read_text()) if counter.exists() else 0
        counter.write_text(str(number + 1))
        jobs = (self.folder / "jobs").read_text().split()
        return self.train(jobs[min(number, len(jobs) - 1)], run)

    def train(self, what: str, run: Path) -> int:
        steps = sorted(int(path.name) for path in run.glob("checkpoints/*"))
        print(f"resuming after step {steps[-1]}" if steps else "starting at step 0", flush=True)
        if what in ("crash", "mistake"):
            print("error: it went wrong")
            return {"crash": 1, "mistake": 2}[what]
        if what == "wait":
            signal.signal(signal.SIGTERM, lambda *_: (save(run, 7), sys.exit(143)))
            (self.folder / f"waiting-{self.host}").touch()
            time.sleep(60)
        if what == "preempt":
            save(run, 3)
            if self.host == "s0-w0":
                content = json.loads(self.request.read_text())
                content["states"] = ["SUSPENDING", "SUSPENDED"]
                self.request.write_text(json.dumps(content))
            time.sleep(60)
        save(run, 9)
        return 0


def save(run: Path, step: int) -> None:
    for item in ("params", "optimizer"):
        (run / f"checkpoints/{step}/{item}").mkdir(parents=True, exist_ok=True)
        (run / f"checkpoints/{step}/{item}/array").write_text(item)
    lines = [{"step": 1}, {"step": step, "reward": 0.5}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def alive(pid: int) -> bool:
    """Whether the process runs; a dead one that nobody waited for does not."""
    status = Path(f"/proc/{pid}/stat")
    return pid > 0 and status.exists() and status.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def kill(pid: int, number: int) -> None:
    if alive(pid):
        os.killpg(pid, number)


def fail(message: str, status: int = 1) -> int:
    print(message, file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(Cloud(Path(os.environ["FAKE_CLOUD"]), sys.argv[1], sys.argv[2:]).run())
