"""From nothing to a released model and back to nothing, with a preemption in the middle."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from tests.tpu_scripts.conftest import Laptop

RECIPE = "configs/qwen3_0p6b_crpo.yaml"
OVERRIDES = (
    "run.num_steps=9",
    "model.path=/mnt/a folder/it's $HOME & 'all'",
    'data.sets=["A B", "%n"]',
)


# How often one looks depends on the machine.
LOOKS = ("describe", "ssh state.sh")


def test_the_whole_path_with_a_preemption_runs_in_order_and_resumes(
    laptop: Laptop, tmp_path: Path
) -> None:
    (tmp_path / "posts/A").mkdir(parents=True)
    (tmp_path / "posts/A/train_clean.csv").write_text("text,label\n")
    (laptop.cloud / "jobs").write_text("preempt finish")

    laptop.ok("create", "--spot", "--wait")
    laptop.ok("setup")
    laptop.ok("data", "--make-bucket", RECIPE, str(tmp_path / "posts"))
    done = laptop.run("train", "--spot", "--supervise", "--run", "first", RECIPE, *OVERRIDES)
    assert done.returncode == 0, done.stderr
    assert "restart 1: the TPUs were taken away (SUSPENDED)" in done.stderr
    status = laptop.ok("status", "--run", "first")
    logs = laptop.ok("logs")
    saved = laptop.ok("logs", "--saved", "--run", "first")
    laptop.ok("export", "first", "--push", "me/model", "--output", str(tmp_path / "my exports"))
    laptop.ok("delete", "--yes")

    set_up = ["cp", "ssh setup.sh", "ssh check_devices.py"]
    outline = [word for word in laptop.outline() if word not in LOOKS]
    assert outline == [
        *("create", *set_up),
        *("mental-r1 data", "buckets", "buckets", "rsync"),
        *("cp", "ssh start.sh"),
        *("delete", "create", *set_up, "ssh start.sh"),
        *("ls", "cat", "ssh", "cat"),
        *("rsync", "rsync", "mental-r1 export", "mental-r1 push", "delete"),
    ]
    first, second = [c for c in laptop.calls("gcloud") if c[3:4] == ["create"]]
    assert first == second and "--spot" in first, "the same request again"
    assert "job on s0-w0: finished" in status and "job on s0-w1: finished" in status
    assert '"step": 9' in status and "checkpoints/3/" in status and "checkpoints/9/" in status
    assert "resuming after step 3" in logs and "exit status 0" in logs
    assert "starting at step 0" not in logs, "the second machine has only its own log"
    assert "resuming after step 3" in saved
    assert not laptop.cloud.joinpath("request.json").exists()
    assert (laptop.cloud / "bucket/runs/first/checkpoints/9").is_dir(), "the bucket stays"


def test_each_worker_gets_the_words_of_the_overrides_unchanged(laptop: Laptop) -> None:
    laptop.make_ready()
    laptop.ok("train", "--run", "first", RECIPE, *OVERRIDES)
    wait_for(laptop, "finished")
    for host in ("s0-w0", "s0-w1"):
        assert laptop.calls("mental-r1", host) == [
            [
                "train",
                f"{laptop.mount}/recipes/first.yaml",
                f"run.output_dir={laptop.mount}/runs/first",
                f"data.root={laptop.mount}/data",
                *OVERRIDES,
            ]
        ]
    recipe = (laptop.cloud / "bucket/recipes/first.yaml").read_text()
    assert recipe == (laptop.repository / RECIPE).read_text()


def test_the_workers_get_the_commit_and_the_pinned_versions(laptop: Laptop) -> None:
    laptop.ok("create", "--wait", "--slices", "2")
    laptop.repository = Path(shutil.copytree(laptop.repository, laptop.folder / "clone"))
    lib = laptop.repository / "tpu_scripts/lib.sh"
    lib.write_text(lib.read_text() + "# not committed\n")
    done = laptop.run("setup", "--slices", "2")
    assert "warning: changes that are not committed stay here" in done.stderr
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=laptop.repository, capture_output=True, text=True
    ).stdout.strip()
    assert done.stdout.splitlines()[-1] == f"my-tpu: 16 devices, revision {commit}"
    assert (laptop.cloud / f"bucket/source/{commit}.tar.gz").is_file()
    for host in ("s0-w0", "s0-w1", "s1-w0", "s1-w1"):
        home = laptop.cloud / "workers" / host
        lib = home / "mental-r1/source/tpu_scripts/lib.sh"
        assert lib.is_file() and "not committed" not in lib.read_text()
        (installed,) = [argv for argv in laptop.calls("uv", host) if argv[:2] == ["pip", "install"]]
        constraints = installed[installed.index("--constraint") + 1]
        assert Path(constraints).is_file()
        assert installed[-1] == f"mental-r1-jax[tpu] @ file://{home}/mental-r1/source"
        check = [argv for argv in laptop.calls("python", host) if "check_devices" in argv[0]]
        assert [argv[1:] for argv in check] == [["--devices", "16"]]


def test_only_weights_and_no_posts_are_pulled_for_export(laptop: Laptop, tmp_path: Path) -> None:
    run = laptop.cloud / "bucket/runs/first"
    for name in (
        "config.yaml",
        "base_model/config.json",
        "checkpoints/9/params/array",
        "checkpoints/9/optimizer/array",
        "completions/step_000001.parquet",
    ):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text("x")
    (laptop.cloud / "bucket/data").mkdir()
    output = tmp_path / "out of here"
    laptop.ok("export", "--output", str(output), "--push=me/model", "first", "export.dtype=float32")
    folder = output / "first"
    pulled = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert pulled == {"config.yaml", "base_model/config.json", "checkpoints/9/params/array"}
    assert laptop.calls("mental-r1") == [
        [
            *("export", str(folder), f"run.output_dir={folder}", f"data.root={output}/data"),
            *("mesh.data=1", "mesh.fsdp=1", "mesh.tensor=1", "export.dtype=float32", "--verify"),
        ],
        ["push", f"{folder}/hf", "me/model"],  # private, for it does not say otherwise
    ]


def wait_for(laptop: Laptop, state: str) -> None:
    for _ in range(100):
        printed = laptop.ok("status")
        if len(re.findall(f"job on .*: {state}", printed)) == 2:
            return
    raise AssertionError(printed)
