"""Every field of a recipe changes what the program does, and this shows where.

`FIELDS` gives each field another value and a probe: a part of the real program, run on the recipe
before and after. A field that nobody reads leaves its probe's result alone and fails here; so does
a new field without an entry.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pydantic
import pytest

from mental_r1_jax.config import ExperimentConfig
from mental_r1_jax.recipe import _models_in
from tests.every_field import probes
from tests.every_field.lab import Lab, make_shared
from tests.every_field.loop_probe import run_kept


@dataclasses.dataclass(frozen=True)
class Field:
    """How one field is shown to matter.

    Attributes:
        value: another value than that of the common recipe.
        probe: what it must change.
        given: other keys to set first, where the field alone is not read.
    """

    value: Any
    probe: Callable[[Lab, ExperimentConfig], Any]
    given: Mapping[str, Any] = dataclasses.field(default_factory=dict)


# Ratios far from 1 come with a second update on the same rollout.
MOVED = {"crpo.num_iterations": 2}
EXPLICIT = {
    "crpo.stage_entropy_rule": "explicit",
    "crpo.stage_entropy_coefs": [0.1, 0.1, 0.1, 0.1, 0.1],
}


def _optimizer_fields(section: str, probe: Callable[..., Any]) -> dict[str, Field]:
    """The same eight keys for training and for the cold start."""
    return {
        f"{section}.learning_rate": Field(0.25, probe),
        f"{section}.schedule": Field("cosine", probe),
        f"{section}.warmup_steps": Field(2, probe),
        f"{section}.weight_decay": Field(0.5, probe, {f"{section}.learning_rate": 0.1}),
        f"{section}.beta1": Field(0.5, probe, {f"{section}.learning_rate": 0.1}),
        f"{section}.beta2": Field(0.5, probe, {f"{section}.learning_rate": 0.1}),
        f"{section}.epsilon": Field(0.1, probe, {f"{section}.learning_rate": 0.1}),
        f"{section}.max_grad_norm": Field(1e-3, probe, {f"{section}.epsilon": 0.1}),
    }


SHORT = {"rollout.max_completion_length": 8}
MINE = "data.custom_sets.Calm"
FIELDS: dict[str, Field] = {
    "model.path": Field("{shared}/other", probes.opened_model),
    "model.compute_dtype": Field("bfloat16", probes.program),
    "model.remat": Field("none", probes.program),
    "model.logprob_chunk_size": Field(2, probes.program),
    "data.root": Field("{shared}/other_posts", probes.posts),
    "data.sets": Field(["Calm"], probes.posts),
    f"{MINE}.labels": Field(["Yes", "Never"], probes.set_labels),
    f"{MINE}.question": Field("Is the writer at ease?", probes.posts),
    f"{MINE}.asks_for": Field("calmness", probes.exported),
    f"{MINE}.validation_file": Field("dev", probes.posts),
    "data.tfds_dir": Field("{tmp}/elsewhere", probes.posts),
    "data.on_duplicate": Field("drop", probes.posts),
    "data.absurd_post_chars": Field(10, probes.problems),
    "data.limit_per_set": Field(3, probes.posts),
    "rollout.prompts_per_step": Field(16, probes.asked_prompts),
    "rollout.num_generations": Field(3, probes.sampled, SHORT),
    "rollout.max_prompt_length": Field(590, probes.asked_prompts),
    "rollout.prompt_length_buckets": Field([590], probes.asked_prompts),
    "rollout.max_completion_length": Field(7, probes.sampled, SHORT),
    "rollout.temperature": Field(2.0, probes.sampled, SHORT),
    "rollout.top_p": Field(0.5, probes.sampled, SHORT),
    "rollout.top_k": Field(1, probes.sampled, SHORT),
    "rollout.first_cache_length": Field(16, probes.decoding_loops),
    "rollout.halvings": Field(1, probes.decoding_loops),
    "rewards.format_weight": Field(2.0, probes.reward),
    "rewards.answer_weight": Field(2.0, probes.reward),
    "rewards.answer_weighting": Field("uniform", probes.reward),
    "rewards.answer_match": Field("exact", probes.reward),
    "rewards.custom": Field({"tests.test_every_field_matters:number_of_words": 1.0}, probes.reward),
    "crpo.scale_rewards": Field("none", probes.objective),
    "crpo.advantage_baseline": Field("leave_one_out", probes.objective),
    "crpo.clip_epsilon_low": Field(0.6, probes.objective, MOVED),
    "crpo.clip_epsilon_high": Field(0.6, probes.objective, MOVED),
    "crpo.dual_clip": Field(1.5, probes.objective, MOVED),
    "crpo.importance_level": Field("sequence", probes.objective, MOVED),
    "crpo.kl_coef": Field(0.5, probes.objective),
    "crpo.kl_estimator": Field("k2", probes.objective),
    "crpo.aggregation": Field("sequence", probes.objective),
    "crpo.stage_entropy_rule": Field("off", probes.objective),
    "crpo.stage_entropy_scale": Field(0.5, probes.objective),
    "crpo.stage_entropy_threshold": Field(2.0, probes.objective),
    "crpo.stage_entropy_coefs": Field([0.1, 0.1, 0.1, 0.1, 0.4], probes.objective, EXPLICIT),
    "crpo.stage_entropy_mean": Field("present_only", probes.objective),
    "crpo.entropy_bonus_coef": Field(0.5, probes.objective),
    "crpo.mask_truncated_completions": Field(True, probes.trained_tokens),
    "crpo.num_iterations": Field(2, probes.updated_weights),
    **_optimizer_fields("optimizer", probes.optimizer_of_training),
    "sft.traces": Field("{shared}/traces.jsonl", probes.traces),
    "sft.traces_per_set": Field(2, probes.traces),
    "sft.label_noise": Field(1.0, probes.traces),
    "sft.batch_size": Field(16, probes.cold_start_batch),
    "sft.num_steps": Field(7, probes.cold_start_batch),
    **_optimizer_fields("sft.optimizer", probes.optimizer_of_cold_start),
    "evaluate.model": Field("{shared}/other", probes.evaluated),
    "evaluate.output_dir": Field("{tmp}/report", probes.evaluated),
    "evaluate.split": Field("validation", probes.evaluated),
    "evaluate.limit_per_set": Field(2, probes.evaluated),
    "evaluate.batch_size": Field(16, probes.evaluated),
    "evaluate.num_votes": Field(3, probes.evaluated),
    "evaluate.bootstrap_samples": Field(7, probes.evaluated),
    "evaluate.include_text": Field(True, probes.evaluated),
    "export.checkpoint": Field("latest", probes.exported_weights),
    "export.output_dir": Field("{tmp}/released", probes.exported),
    "export.dtype": Field("float32", probes.exported_weights),
    "export.max_shard_megabytes": Field(1, probes.exported_weights),
    "export.verify": Field(True, probes.exported),
    "mesh.data": Field(4, probes.mesh),  # eight devices: leaves some over, which is refused
    "mesh.fsdp": Field(4, probes.mesh),
    "mesh.tensor": Field(2, probes.mesh),
    "run.output_dir": Field("{tmp}/another", run_kept),
    "run.seed": Field(1, probes.asked_prompts),
    "run.num_steps": Field(5, probes.number_of_steps),
    "run.num_epochs": Field(5.0, probes.number_of_steps),
    "run.micro_batches": Field(2, probes.program),
    "run.save_every": Field(1, run_kept),
    "run.keep_checkpoints": Field(1, run_kept, {"run.save_every": 1}),
    "run.eval_every": Field(2, run_kept),
    "run.eval_limit_per_set": Field(3, run_kept),
    "run.log_completions_every": Field(1, probes.completion_files),
    "run.redact_completions": Field(
        False, probes.completion_files, {"run.log_completions_every": 1}
    ),
    "run.tensorboard": Field(False, run_kept),
    "run.wandb_project": Field("demo", run_kept),
    "run.compilation_cache": Field("{tmp}/programs", probes.program_cache),
    "run.profile_steps": Field([2, 3], run_kept),
}


def number_of_words(completion: str, example: Any) -> float:
    """A reward of a user's own."""
    return float(len(completion.split()))


def leaf_fields(section: type[pydantic.BaseModel], prefix: str = "") -> Iterator[str]:
    """Every key of a recipe; those of a custom set under the name that the table uses."""
    for name, field in section.model_fields.items():
        inner = next(_models_in(field.annotation), None)
        if inner is None:
            yield prefix + name
        elif typing.get_origin(field.annotation) is dict:
            yield from leaf_fields(inner, f"{prefix}{name}.Calm.")
        else:
            yield from leaf_fields(inner, f"{prefix}{name}.")


def test_every_field_has_an_entry() -> None:
    assert sorted(FIELDS) == sorted(leaf_fields(ExperimentConfig))


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What all probes share."""
    return make_shared(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def outcomes() -> dict[str, Any]:
    """Results of probes on recipes that several fields have in common."""
    return {}


def run_probe(
    shared: Path, tmp: Path, probe: Callable[..., Any], changes: Mapping[str, Any]
) -> Any:
    """Run a probe in an empty folder; all stand-ins are taken back afterwards."""
    tmp.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        lab = Lab(shared, tmp, patch)
        return probe(lab, lab.config(changes))


@pytest.mark.parametrize("name", FIELDS)
def test_the_field_changes_what_happens(
    name: str, shared: Path, tmp_path: Path, outcomes: dict[str, Any]
) -> None:
    field = FIELDS[name]
    key = f"{field.probe.__name__} {sorted(field.given.items())}"
    if key not in outcomes:
        outcomes[key] = run_probe(shared, tmp_path / "before", field.probe, field.given)
        again = run_probe(shared, tmp_path / "again", field.probe, field.given)
        assert again == outcomes[key], "the probe itself must not vary"
    changes = {**field.given, name: field.value}
    after = run_probe(shared, tmp_path / "after", field.probe, changes)
    assert after != outcomes[key], f"{name}={field.value!r} changed nothing"
