"""The plan job around the compiler: steps, remedies, sweeps, crashes, tables."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks import tpu_table
from mental_r1_jax.cli import main
from mental_r1_jax.config import ExperimentConfig
from mental_r1_jax.errors import UserError
from mental_r1_jax.jobs import plan as plan_job
from mental_r1_jax.models.decoder import DecoderConfig
from mental_r1_jax.planning import search
from mental_r1_jax.planning.chips import CHIPS, GIB
from mental_r1_jax.planning.compile import in_own_process, make_plan, memory_asked_for
from mental_r1_jax.planning.memory import PARTS
from mental_r1_jax.planning.operations import MovedBytes
from mental_r1_jax.planning.plan import PhasePlan, Plan
from mental_r1_jax.planning.roofline import PhaseTime
from mental_r1_jax.planning.steps import planned_steps
from mental_r1_jax.planning.topologies import parse_topology
from mental_r1_jax.planning.workload import Workload
from mental_r1_jax.recipe import load_config

ROOT = Path(__file__).resolve().parents[2]
MODEL = DecoderConfig(100, 64, 128, 2, 4, 2, 16, compute_dtype="bfloat16")


def recipe(**values: Any) -> ExperimentConfig:
    """The 8B recipe with other values."""
    overrides = [f"{key.replace('__', '.')}={value}" for key, value in values.items()]
    return load_config(ROOT / "configs/qwen3_8b_crpo.yaml", overrides)


def fake_plan(config: ExperimentConfig, gigabytes: float) -> Plan:
    """A plan whose update needs so much memory on a v5e chip."""
    sizes = config.mesh
    mesh = {"data": sizes.data or 1, "fsdp": sizes.fsdp or 8, "tensor": sizes.tensor or 1}
    parts = dict.fromkeys(PARTS, 0.0) | {"temporaries": gigabytes * GIB}
    time = PhaseTime(1e12, 1.0, 0.5, 0.25, 0.0, 0.0)
    traffic = {"all-gather": {"times": 3, "ici_bytes": 2.0 * GIB, "dcn_bytes": 0.0}}
    moved = MovedBytes(4.0 * GIB, 1.0 * GIB)
    return Plan(
        recipe="toy",
        topology="v5e:2x4",
        chip=CHIPS["v5e"],
        work=Workload(config, MODEL, mesh),
        mesh_reason="because",
        phases=(PhasePlan("update", parts, None, traffic, time, 3.0, moved=moved),),
        reshard_bytes=GIB,
        steps=100,
        steps_reason="run.num_steps",
    )


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> list[ExperimentConfig]:
    """Replaces compiling: 40 GiB in one micro-batch, half of it in two. Returns what was asked."""
    asked: list[ExperimentConfig] = []

    def compiled(function: Any, config: ExperimentConfig, *rest: Any) -> Plan:
        assert function is make_plan
        asked.append(config)
        return fake_plan(config, 40 / config.run.micro_batches)

    monkeypatch.setattr(search, "in_own_process", compiled)
    return asked


def test_steps_come_from_the_recipe_the_posts_or_the_paper() -> None:
    assert planned_steps(recipe(run__num_steps=7)) == (7, "run.num_steps")
    steps, reason = planned_steps(recipe())
    assert steps == 144 and "18,432 posts" in reason
    half = recipe(data__sets="[Dreaddit, SDCNL, RSD, DATD]", run__num_epochs=2)
    assert planned_steps(half)[0] == 144
    quick = load_config(ROOT / "configs/quickstart.yaml", ["run.num_steps=null"])
    assert planned_steps(quick)[1] == "from the posts"


def test_a_plan_that_fits_is_printed_and_written(
    compiler: list[ExperimentConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "sub" / "plan.json"
    config = recipe(run__micro_batches=4)
    found = plan_job.run(config, name="toy", topology="v5e-8", json_path=file)
    assert found.fits and len(compiler) == 1
    written = json.loads(file.read_text(encoding="utf-8"))
    assert written["peak_bytes"] == 10 * GIB and written["fits"]
    # Two seconds (half the matrix rate) and a quarter over 80% of the network.
    assert written["step_expected_seconds"] == pytest.approx(2.0 + 0.25 / 0.8)
    assert written["chip_hours"] == pytest.approx(8 * 100 * (2.0 + 0.25 / 0.8) / 3600)
    shown = capsys.readouterr().out
    for text in ("fits: 10.00 of 15.75 GiB", "all-gather", "2.312", "8 x TPU v5e", "Assumptions"):
        assert text in shown
    assert "of the update that compute nothing move 1.00 of its 4.00 GiB (25%)" in " ".join(
        shown.split()
    )
    assert written["phases"][0]["moved"] == {"all": 4.0 * GIB, "only_moved": 1.0 * GIB}


def test_the_smallest_change_that_fits_is_named(
    compiler: list[ExperimentConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    config = recipe(run__micro_batches=1)
    found = plan_job.run(config, name="toy", topology="v5e-8")
    assert not found.fits and found.remedy == "It fits with run.micro_batches=4."
    assert [each.run.micro_batches for each in compiler] == [1, 2, 4]
    assert "does not fit: 40.00 of 15.75 GiB a chip. It fits with" in capsys.readouterr().out


def test_changes_go_from_cheap_to_costly() -> None:
    config = recipe(model__remat="none", model__compute_dtype="float32", run__micro_batches=4)
    names = [name for name, _ in search.changes(fake_plan(config, 99.0))]
    assert names == [
        "model.compute_dtype=bfloat16",
        "model.remat=layers",
        "run.micro_batches=8",
        "run.micro_batches=16",
        "optimizer.first_moment=bfloat16",
        "mesh.fsdp=4 mesh.tensor=2",
        "optimizer.offload_moments=True",
        "optimizer.name=adafactor",
        "rollout.prompts_per_step=64",
    ]


def test_a_recipe_that_nothing_helps_says_what_was_tried(
    compiler: list[ExperimentConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "in_own_process", lambda f, c, *rest: fake_plan(c, 99.0))
    found = search.plan_with_remedy(recipe(), "toy", parse_topology("v5e-8"), (1, ""))
    assert "Tried without success: run.micro_batches=8" in found.remedy


def test_a_sweep_ranks_every_mesh(
    compiler: list[ExperimentConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Eight chips: ten ways to share them out, all of which the 32 prompts allow."""
    file = tmp_path / "plans.json"
    plan_job.run(recipe(), name="toy", topology="v5e-8", json_path=file, sweep=True)
    meshes = [tuple(dict(each.mesh).values()) for each in compiler]
    assert len(set(meshes)) == len(meshes) == 10
    assert all(data * fsdp * tensor == 8 for data, fsdp, tensor in meshes)
    assert len(json.loads(file.read_text(encoding="utf-8"))) == 10
    assert "fastest first" in capsys.readouterr().out
    with pytest.raises(UserError, match="no mesh of v5e:16x16 suits"):
        huge = parse_topology("v5e-256")
        config = recipe(rollout__prompts_per_step=12, run__micro_batches=4, sft__batch_size=12)
        search.sweep_meshes(config, "toy", huge, (1, ""))


def test_a_crash_of_the_compiler_ends_in_a_message() -> None:
    with pytest.raises(UserError, match="the TPU compiler crashed"):
        in_own_process(os._exit, 66)


def test_settings_of_the_process_stay_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JAX_ENABLE_COMPILATION_CACHE", raising=False)
    monkeypatch.setenv("JAX_PLATFORMS", "other")
    before = dict(os.environ)
    assert in_own_process(os.getenv, "JAX_ENABLE_COMPILATION_CACHE") == "false"
    assert in_own_process(os.getenv, "JAX_PLATFORMS") == "cpu"
    assert dict(os.environ) == before


def test_an_error_of_the_user_comes_back_from_the_process() -> None:
    with pytest.raises(UserError, match="cannot read the topology 'v9'"):
        in_own_process(parse_topology, "v9")


def announce_and_sleep(file: str) -> None:
    """What a compilation is to the test below; the process that it runs in writes its number."""
    Path(file).write_text(str(os.getpid()), encoding="utf-8")
    time.sleep(120)


KILLED = """
import sys
from mental_r1_jax.planning.compile import in_own_process
from tests.jobs.test_plan import announce_and_sleep
in_own_process(announce_and_sleep, sys.argv[1])
"""


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for the process in /proc")
def test_the_compiling_process_ends_with_a_killed_one(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen([sys.executable, "-c", KILLED, str(file)], env=environment, cwd=ROOT)
    until = time.monotonic() + 120
    while not (file.is_file() and file.read_text("utf-8")) and time.monotonic() < until:
        time.sleep(0.1)
    child = Path("/proc") / file.read_text("utf-8")
    assert child.exists()
    parent.kill()
    parent.wait()
    until = time.monotonic() + 30
    while child.exists() and time.monotonic() < until:
        time.sleep(0.1)
    assert not child.exists()


@pytest.mark.parametrize(
    "arguments",
    [[], ["--topology", "v9:2x2"], ["--topology", "v5e-8", "--slices", "0"]],
)
def test_the_verb_refuses_what_is_no_topology(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("libtpu")
    assert main(["plan", str(ROOT / "configs/qwen3_0p6b_crpo.yaml"), *arguments]) == 2
    assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.parametrize(
    ("text", "gib"),
    [
        ("RESOURCE_EXHAUSTED: memory required (400.50G) exceeds available (15.75G).", 400.5),
        ("RESOURCE_EXHAUSTED: Used 512.00M of 15.75G hbm.", 0.5),
    ],
)  # fmt: skip
def test_the_compilers_complaint_tells_how_much_is_missing(text: str, gib: float) -> None:
    assert memory_asked_for(RuntimeError(text)) == gib * GIB
    with pytest.raises(UserError, match="refused a program"):
        memory_asked_for(RuntimeError("INTERNAL: something else"))


def test_batches_that_do_not_split_are_refused_before_compiling() -> None:
    pytest.importorskip("libtpu")
    config = recipe(rollout__prompts_per_step=4, run__micro_batches=4)
    topology = parse_topology("v5p-32")
    with pytest.raises(UserError, match="micro_batches=1 does not split"):
        make_plan(config, "toy", topology, 10, "")


@pytest.mark.slow
def test_the_verb_plans_a_tiny_model_for_real(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """From the command line to the file, through a process of its own."""
    pytest.importorskip("libtpu")
    from tests.aot.tiny_step import MODEL as SHAPE
    from tests.aot.tiny_step import RECIPE

    (tmp_path / "config.json").write_text(json.dumps(SHAPE), encoding="utf-8")
    file = tmp_path / "tiny.yaml"
    file.write_text(RECIPE.replace("MODEL", str(tmp_path)), encoding="utf-8")
    out = tmp_path / "plan.json"
    arguments = ["--topology", "v5e:2x2", "mesh.data=1", "--json", str(out)]
    assert main(["plan", str(file), *arguments]) == 0
    written = json.loads(out.read_text(encoding="utf-8"))
    assert written["fits"] and written["chips"] == 4
    assert [phase["phase"] for phase in written["phases"]] == ["rollout", "reference", "update"]
    assert "fits:" in capfd.readouterr().out


def test_tables_and_headers_are_written_from_kept_plans(tmp_path: Path) -> None:
    """Between the marks of the page, and below `Duration` in the recipe; twice changes nothing."""
    page, file = tmp_path / "tpu.md", tmp_path / "qwen3_8b_crpo.yaml"
    marks = [f"<!-- {name}: {end} -->" for name in ("plans", "scale") for end in ("begin", "end")]
    page.write_text("# Title\n" + "\nold\n".join(marks) + "\nthe end\n", encoding="utf-8")
    file.write_text("# Duration:  none yet:\n# PLAN\n# Expected:  x\n", encoding="utf-8")
    fitting = dataclasses.replace(fake_plan(recipe(), 10.0), recipe="qwen3_8b_crpo")
    rows = [row for row in tpu_table.ROWS if row.recipe == "qwen3_8b_crpo"]
    update = fitting.as_json()
    both = {**update, "phases": [{**update["phases"][0], "phase": "rollout"}, *update["phases"]]}
    plans = {row.key: both for row in rows}
    for _ in range(2):
        tpu_table.write_tables(page, plans)
        tpu_table.write_header(file, "qwen3_8b_crpo", plans)
    text = page.read_text(encoding="utf-8")
    assert "old" not in text.replace("\nold\n" + marks[2], "") and text.endswith("the end\n")
    assert text.count("| `qwen3_8b_crpo` |") == 5 and "10.0 of 15.8" in text
    header = file.read_text(encoding="utf-8").splitlines()
    assert header[0].startswith("# Duration") and header[-1].startswith("# Expected")
    assert header[1] == "#            v5p-32: 1.0 to 2.3 s, HBM 10.0 of 15.8 GiB a chip"
    assert len(header) == 7


def test_the_documentation_shows_the_kept_plans() -> None:
    """Tables and headers in the repository are those that the kept plans give."""
    plans = json.loads((ROOT / "docs" / tpu_table.PLANS_FILE).read_text(encoding="utf-8"))
    page = (ROOT / "docs" / tpu_table.PAGE).read_text(encoding="utf-8")
    for line in (*tpu_table.plan_lines(plans), *tpu_table.scale_lines(plans)):
        assert line in page
    assert set(plans) <= {row.key for row in tpu_table.ROWS}, "run `make tpu-table`"
    for key, plan in plans.items():
        assert plan["fits"], key
    for recipe in {row.recipe for row in tpu_table.ROWS}:
        header = (ROOT / "configs" / f"{recipe}.yaml").read_text(encoding="utf-8")
        for line in tpu_table.header_lines(recipe, plans):
            assert line in header
