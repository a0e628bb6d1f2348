"""Studies whose verbs are a shell script, so that no test waits for a model."""

from __future__ import annotations

from pathlib import Path

from mental_r1_jax.recipe import parse_config
from mental_r1_jax.study.cells import Task

RECIPE = """
model: {path: start}
data: {sets: [Stress-Synthetic, Risk-Synthetic]}
run: {output_dir: out, num_steps: 6}
rollout: {prompts_per_step: 4, num_generations: 8}
sft: {num_steps: 9, batch_size: 2}
"""

STUDY = """
output_dir: OUT
recipe: recipe.yaml
seeds: [0, 1]
baseline: grpo
methods:
  cold: {verb: none}
  grpo: {crpo.stage_entropy_rule: off}
  crpo: {vary: {crpo.stage_entropy_scale: [0.001, 0.01]}}
"""

# VERB RECIPE PRODUCT: notes the call, then makes the product, unless a file FAIL or HANG is there.
_SCRIPT = """
echo "$1 $2" >> calls
name=$(basename $2 .yaml)
if [ -e FAIL-$name ]; then echo "no luck" >&2; exit 3; fi
if [ -e HANG-$name ]; then touch hanging-$name; sleep 30 & trap "kill $!; exit 143" TERM; wait; fi
mkdir -p $(dirname $3) && touch $3
"""


def write_study(folder: Path, study: str = STUDY) -> Path:
    """A study file and its recipe in `folder`; returns the study file. OUT is `folder`/study."""
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    file = folder / "a_study.yaml"
    file.write_text(study.replace("OUT", str(folder / "study")), encoding="utf-8")
    return file


def fake_command(folder: Path) -> tuple[str, ...]:
    """What stands for `python -m mental_r1_jax`; it notes its calls in `folder`/calls."""
    script = folder / "verb.sh"
    script.write_text(f"cd {folder}\n{_SCRIPT}", encoding="utf-8")
    return ("sh", str(script))


def task(folder: Path, name: str, *needs: str, seed: int = 0) -> Task:
    """A task whose product is `folder`/products/NAME."""
    config = parse_config(RECIPE, [f"run.seed={seed}"], source="fake")
    product = folder / "products" / name
    return Task(name, "train", f"kind {name[0]}", config, needs, product, (str(product),))


def calls(folder: Path) -> list[str]:
    """Names of the tasks that were started, in order."""
    file = folder / "calls"
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return [Path(line.split()[1]).stem for line in lines]
