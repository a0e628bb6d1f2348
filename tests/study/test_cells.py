"""The cells of a study: what each is given, what they share, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from mental_r1_jax.config import ExperimentConfig
from mental_r1_jax.errors import UserError
from mental_r1_jax.study.cells import Plan, plan_study
from mental_r1_jax.study.schema import load_study
from tests.study.fakes import STUDY, write_study


def planned(folder: Path, methods: str = "", more: str = "") -> Plan:
    """The plan of the fake study with `methods` and further lines."""
    return plan_study(load_study(write_study(folder, STUDY + methods + more)))


def recipe_of(plan: Plan, task: str) -> ExperimentConfig:
    return plan.tasks[task].config


def test_a_cell_is_a_method_with_its_values_and_a_seed(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    arms = ["cold", "grpo", "crpo-stage_entropy_scale-0.001", "crpo-stage_entropy_scale-0.01"]
    assert [cell.name for cell in plan.cells] == [f"{a}-seed{s}" for s in (0, 1) for a in arms]
    last = recipe_of(plan, "train-crpo-stage_entropy_scale-0.01-seed1")
    assert (last.run.seed, last.crpo.stage_entropy_scale) == (1, 0.01)
    assert recipe_of(plan, "train-grpo-seed0").crpo.stage_entropy_rule == "off"
    assert plan.cells[3].arm.label == "crpo, stage_entropy_scale=0.01"
    assert all(cell.arm.baselines == {"grpo": "grpo"} for cell in plan.cells)


def test_the_cold_start_of_a_seed_is_made_once_and_shared(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    assert [t for t in plan.tasks if t.startswith("cold")] == [
        "cold_start-seed0",
        "cold_start-seed1",
    ]
    folder = tmp_path / "study" / "cold_starts" / "cold_start-seed1"
    assert recipe_of(plan, "cold_start-seed1").run.output_dir == folder
    assert recipe_of(plan, "cold_start-seed1").model.path == "start"
    assert recipe_of(plan, "train-grpo-seed1").model.path == str(folder)
    assert plan.tasks["train-grpo-seed1"].needs == ("cold_start-seed1",)
    # A cell without training is the cold start, evaluated in a folder of its own.
    cold = recipe_of(plan, "evaluate-cold-seed1").evaluate
    assert cold.model == str(folder)
    assert cold.output_dir == tmp_path / "study" / "evaluations" / "cold-seed1" / "test"
    assert plan.tasks["evaluate-cold-seed1"].needs == ("cold_start-seed1",)


def test_every_task_comes_after_those_it_needs(tmp_path: Path) -> None:
    plan = planned(tmp_path, more="start_model: tiny\n")
    seen: set[str] = set()
    for name, task in plan.tasks.items():
        assert seen.issuperset(task.needs)
        seen.add(name)
    tiny = tmp_path / "study" / "start_models" / "seed0" / "tiny_model"
    assert plan.tasks["start_model-seed0"].product == tiny / "config.json"
    assert recipe_of(plan, "cold_start-seed0").model.path == str(tiny)


def test_a_method_may_do_without_a_cold_start(tmp_path: Path) -> None:
    plan = planned(tmp_path, "  raw: {cold_start: false}\n")
    assert recipe_of(plan, "train-raw-seed0").model.path == "start"
    assert plan.tasks["train-raw-seed0"].needs == ()


@pytest.mark.parametrize(("match", "sizes"), [("updates", (6, 2)), ("completions", (6, 32))])
def test_sft_as_long_as_reinforcement_learning(
    tmp_path: Path, match: str, sizes: tuple[int, int]
) -> None:
    """6 steps of 4 prompts x 8 completions: 6 updates, of 2 traces as the recipe says or of 32."""
    method = f"  more: {{verb: sft, match: {match}, sft.optimizer.learning_rate: 0.5}}\n"
    plan = planned(tmp_path, method)
    sft = recipe_of(plan, "sft-more-seed0").sft
    assert (sft.num_steps, sft.batch_size) == sizes
    assert sft.optimizer.learning_rate == 0.5
    # Its keys are its own: the cold start is the one of all methods.
    assert plan.tasks["sft-more-seed0"].needs == ("cold_start-seed0",)
    assert recipe_of(plan, "cold_start-seed0").sft.num_steps == 9


def test_a_set_held_out_of_training_is_evaluated_all_the_same(tmp_path: Path) -> None:
    plan = planned(tmp_path, "  held_out: {data.sets: [Risk-Synthetic]}\n")
    cold = "cold_start-sets-_Risk-Synthetic_-seed0"
    assert recipe_of(plan, "train-held_out-seed0").data.sets == ("Risk-Synthetic",)
    assert plan.tasks["train-held_out-seed0"].needs == (cold,)
    assert recipe_of(plan, cold).data.sets == ("Risk-Synthetic",)
    both = ("Stress-Synthetic", "Risk-Synthetic")
    assert recipe_of(plan, "evaluate-held_out-seed0").data.sets == both


def test_noise_in_traces_makes_another_cold_start(tmp_path: Path) -> None:
    more = "vary: {sft.label_noise: [0.0, 0.2]}\n"
    plan = planned(tmp_path, more=more)
    arm = next(c.arm for c in plan.cells if c.arm.name == "crpo-label_noise-0.2-" + ARM)
    assert arm.baselines == {"grpo": "grpo-label_noise-0.2"}
    assert recipe_of(plan, "cold_start-label_noise-0.2-seed0").sft.label_noise == 0.2
    assert plan.tasks[f"train-{arm.name}-seed0"].needs == ("cold_start-label_noise-0.2-seed0",)


def test_without_stages_in_the_prompt_from_the_cold_start_to_the_evaluation(tmp_path: Path) -> None:
    plan = planned(tmp_path, "  untold: {text.stages_in_prompt: false}\n")
    cold = "cold_start-stages_in_prompt-false-seed0"
    assert plan.tasks["train-untold-seed0"].needs == (cold,)
    for task in (cold, "train-untold-seed0", "evaluate-untold-seed0"):
        assert not recipe_of(plan, task).text.stages_in_prompt
    for task in ("cold_start-seed0", "train-grpo-seed0", "evaluate-grpo-seed0"):
        assert recipe_of(plan, task).text.stages_in_prompt


ARM = "stage_entropy_scale-0.001"


@pytest.mark.parametrize(
    ("method", "parts"),
    [
        ("{crpo.kl_coeff: 0}", ("method bad", "crpo.kl_coeff", "did you mean 'crpo.kl_coef'")),
        ("{vary: {crpo.kl_coef: [0, -1]}}", ("method bad, kl_coef=-1", "crpo.kl_coef: ")),
        ("{rollout.prompts_per_step: 3, run.micro_batches: 2}", ("method bad", "multiple")),
        ("{verb: sft, match: updates, run.num_steps: null}", ("method bad", "run.num_steps")),
    ],
)
def test_keys_that_do_not_fit_are_named_before_anything_runs(
    tmp_path: Path, method: str, parts: tuple[str, ...]
) -> None:
    with pytest.raises(UserError) as caught:
        planned(tmp_path, f"  bad: {method}\n")
    for part in parts:
        assert part in str(caught.value)


def test_two_cells_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="would be called"):
        planned(tmp_path, "  twice: {vary: {data.sets: [[A, B], [A B]]}, cold_start: false}\n")


def test_a_cell_without_training_may_not_name_a_run_in_a_bucket(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="gs://bucket/runs/first.*export the run"):
        planned(
            tmp_path,
            "  there: {verb: none, cold_start: false, model.path: gs://bucket/runs/first}\n",
        )
