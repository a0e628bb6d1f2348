"""The command line: help everywhere, and one clear message with status 2 for a user's mistake."""

from __future__ import annotations

import importlib
import inspect
import io
import subprocess
import sys
from pathlib import Path

import pytest

from mental_r1_jax.cli import VERBS, main, make_parser
from mental_r1_jax.recipe import dump_config, load_config
from tests.every_field.lab import Lab, make_shared


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made-up sets and a tiny model."""
    return make_shared(tmp_path_factory.getbasetemp())


@pytest.fixture
def recipe(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe on disk; its run folder is `run` beside it, not there yet."""
    config = Lab(shared, tmp_path, monkeypatch).config({"crpo.kl_coef": 0})
    file = tmp_path / "recipe.yaml"
    file.write_text(dump_config(config), encoding="utf-8")
    return file


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file below `folder`."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def mistake(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """Run a command that must end with status 2; returns its one message."""
    assert main([str(argument) for argument in arguments]) == 2
    errors = capsys.readouterr().err
    assert errors.count("error: ") == 1 and errors.startswith("error: ")
    assert "Traceback" not in errors
    return errors


@pytest.mark.parametrize("arguments", [["--help"], *([verb, "--help"] for verb in VERBS)])
def test_help(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert "mental-r1" in text
    assert all(verb in text for verb in (VERBS if len(arguments) == 1 else arguments[:1]))


def test_help_loads_no_jax() -> None:
    code = (
        "import sys\nfrom mental_r1_jax.cli import main\n"
        "try: main(['train', '--help'])\n"
        "except SystemExit: pass\n"
        "loaded = {'jax', 'flax', 'transformers', 'numpy'} & set(sys.modules)\n"
        "print('loaded:', *sorted(loaded))"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "loaded:"


def test_the_package_is_the_command_too() -> None:
    command = [sys.executable, "-m", "mental_r1_jax", "train", "nothing.yaml"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == "" and done.stderr.startswith("error: recipe not found")


# What a verb takes behind its recipe or model.
FILES = {"predict": ["posts.csv", "out.jsonl"], "push": ["folder", "owner/name"], "board": ["run"]}


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_is_an_argument_of_its_job(verb: str) -> None:
    """Options reach `run` by keyword, which no type checker sees."""
    run = importlib.import_module(f"mental_r1_jax.jobs.{verb}").run
    needed = [*(["x.yaml"] if VERBS[verb].of_recipe else []), *FILES.get(verb, [])]
    given = set(vars(make_parser().parse_args([verb, *needed])))
    added = {"plan": {"name"}, "predict": {"model"}}.get(verb, set())
    # A recipe becomes the configuration.
    of_the_job = given - {"verb", "overrides", "recipe"} | added
    assert of_the_job == set(inspect.signature(run).parameters)


@pytest.mark.parametrize(
    "arguments",
    [
        *([], ["fly", "x.yaml"], ["train"], ["train", "x.yaml", "--wings"]),
        *(["push", "hf"], ["push", "hf", "me/model", "run.seed=3"]),
    ],
)
def test_a_wrong_command_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "usage: mental-r1" in capsys.readouterr().err


@pytest.mark.parametrize("verb", [verb for verb in VERBS if VERBS[verb].of_recipe])
def test_a_missing_recipe(verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = ["--recipe", tmp_path / "nothing.yaml"] if verb == "predict" else []
    message = mistake(capsys, verb, tmp_path / "nothing.yaml", *FILES.get(verb, []), *recipe)
    assert (
        f"{'study' if verb == 'study' else 'recipe'} not found" in message
        and "nothing.yaml" in message
    )


def test_a_bad_key_also_after_an_option(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = mistake(capsys, "train", recipe, "--dry-run", "crpo.kl_coeff=0")
    assert "did you mean 'crpo.kl_coef'" in message


@pytest.mark.parametrize("verb", ["sft", "train"])
def test_a_missing_model_folder(
    verb: str, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = mistake(capsys, verb, recipe, f"model.path={tmp_path / 'no_model'}")
    assert "no_model" in message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("verb", ["evaluate", "export"])
def test_a_run_that_is_not_there(
    verb: str, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert str(tmp_path / "run") in mistake(capsys, verb, recipe)
    assert not (tmp_path / "run").exists()


def test_a_data_folder_that_is_not_there(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no_posts" in mistake(capsys, "data", recipe, "data.root=no_posts")


@pytest.mark.parametrize("verb", ["sft", "train", "export"])
def test_a_folder_that_is_not_ours_is_left_alone(
    verb: str, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "thesis.txt").write_text("years of work", encoding="utf-8")
    before = snapshot(theirs)
    key = "export.output_dir" if verb == "export" else "run.output_dir"
    message = mistake(capsys, verb, recipe, f"{key}={theirs}")
    assert "nothing was touched" in message and str(theirs) in message
    assert snapshot(theirs) == before


@pytest.mark.parametrize("verb", ["sft", "train"])
def test_a_run_is_not_resumed_with_another_recipe(
    verb: str, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text(dump_config(load_config(recipe)), encoding="utf-8")
    before = snapshot(run)
    message = mistake(capsys, verb, recipe, "rollout.temperature=0.7", "run.seed=3")
    assert "rollout.temperature: 0.85 -> 0.7" in message
    assert "run.seed: 0 -> 3" in message
    assert snapshot(run) == before


def test_sample_without_a_post_or_with_an_unknown_set(
    recipe: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("  \n"))
    assert "there is no post" in mistake(capsys, "sample", recipe)
    message = mistake(capsys, "sample", recipe, "--post", "tea", "--set", "Mood")
    assert "one of Calm, Glad" in message


def test_a_batch_that_does_not_split_over_the_devices(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = mistake(capsys, "train", recipe, "--dry-run", "rollout.prompts_per_step=12")
    assert "a multiple of mesh.data x mesh.fsdp = 8" in message


def test_dry_run_prints_recipe_batch_and_memory_and_writes_nothing(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["train", str(recipe), "--dry-run", "crpo.kl_coef=0.25", "run.micro_batches=1"]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert "kl_coef: 0.25" in text  # the resolved recipe
    assert "stage_entropy_scale: 0.06" in text  # with its defaults
    assert "8 prompts x 4 = 32" in text
    assert "token aggregation, rewards scaled by group, stage entropy tanh, KL 0.25 (k3)" in text
    assert "clipped, token ratios in [0.8, 1.2]" in text
    # Prompts count once: 8 x 600 + 32 x 64.
    assert "6,848" in text
    # Embedding V x 32, one layer: q, k, v, o = 32 x (32 + 16 + 16 + 32), feed-forward
    # 3 x 32 x 8192, norms 2 x 32 + 2 x 16, final norm 32.
    layer = 32 * 96 + 3 * 32 * 8192 + 64 + 32
    total = next(line for line in text.splitlines() if "parameters" in line)
    count = int("".join(c for c in total if c.isdigit()))
    assert (count - layer - 32) % 32 == 0 and 0 < (count - layer - 32) // 32 <= 700
    assert "optimizer moments" in text and "GiB" in text
    assert not (tmp_path / "run").exists()
