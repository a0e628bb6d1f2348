"""The table of all fields: another value for each, and the parts that read it.

A part is a probe: it runs a piece of the real program on a recipe. A part that does not read a
field leaves its probe's result alone, and fails in `tests/test_every_field_matters.py`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from tests.every_field import adapters, kernels, predictions, probes, programs, verbs
from tests.every_field.data_fields import DATA_FIELDS, DEGREES, FILES, MINE
from tests.every_field.fields import Field, everywhere
from tests.every_field.kept import run_kept
from tests.every_field.text_fields import TEXT_FIELDS, TIGHT

# Ratios far from 1 come with a second update on the same rollout.
MOVED = {"crpo.num_iterations": 2}
TARGET = {"crpo.stage_entropy_rule": "target", "crpo.stage_entropy_start_steps": 1}
# Coefficients that already the first step moves.
NATS = {**TARGET, "crpo.stage_entropy_target_unit": "nats"}
ADAPTIVE = {
    "crpo.entropy_bonus_rule": "adaptive",
    "crpo.entropy_bonus_coef": 0.0025,
    "crpo.entropy_bonus_target": 50.0,
}
EXPLICIT = {
    "crpo.stage_entropy_rule": "explicit",
    "crpo.stage_entropy_coefs": [0.1, 0.1, 0.1, 0.1, 0.1],
}


def _optimizer_fields(
    section: str, probe: Callable[..., Any], update: Callable[..., Any]
) -> dict[str, Field]:
    """The same keys for training and for the cold start; `update` is what is compiled."""
    return {
        f"{section}.name": Field("adafactor", probe),
        f"{section}.first_moment": Field("bfloat16", probe, {f"{section}.learning_rate": 0.1}),
        f"{section}.offload_moments": Field(True, update),
        f"{section}.learning_rate": Field(0.25, probe),
        f"{section}.schedule": Field("cosine", probe),
        f"{section}.warmup_steps": Field(2, probe),
        f"{section}.weight_decay": Field(0.5, probe, {f"{section}.learning_rate": 0.1}),
        f"{section}.beta1": Field(0.5, probe, {f"{section}.learning_rate": 0.1}),
        f"{section}.beta2": Field(0.5, probe, {f"{section}.learning_rate": 0.1}),
        f"{section}.epsilon": Field(0.1, probe, {f"{section}.learning_rate": 0.1}),
        f"{section}.max_grad_norm": Field(1e-3, probe, {f"{section}.epsilon": 0.1}),
    }


# Rewards that are equal in every group, so that dynamic sampling keeps none.
ALIKE = {"rewards.format_weight": 0.0, "rewards.answer_weight": 0.0}
SHORT = {"rollout.max_completion_length": 8}
# Several samples of a post, which are drawn and not greedy.
VOTES = {"evaluate.num_votes": 3}
# Keys that say how tokens are drawn.
DRAWN = {"rollout.temperature": 2.0, "rollout.top_p": 0.5, "rollout.top_k": 1}
# Those that run prompts as long as they are, and what counts the tokens of posts.
FITTED = (
    verbs.verified_prompt,
    verbs.sampled_prompt,
    verbs.reported,
    predictions.validated_shapes,
    predictions.evaluated_shapes,
)
# Parts that lay out devices.
MESHES = (probes.mesh, probes.mesh_of_cold_start, programs.evaluation_mesh)
# Low-rank adapters, and what is compiled otherwise with them.
LORA = {"model.lora.rank": 2}
ADAPTED = (programs.training_sampler, probes.cold_start_update)
ORDINAL = {**DEGREES, "rewards.answer_scale": "ordinal"}
REASONED = {**FILES, f"{MINE}.columns.reasoning": "text", "sft.traces": "rows"}
FIELDS: dict[str, Field | tuple[Field, ...]] = {
    "model.path": everywhere(
        "{shared}/other",
        programs.training_sampler,
        programs.training_update,
        programs.validation_sampler,
        programs.verification_sampler,
        probes.cold_start_update,
        probes.exported,
    ),
    "model.compute_dtype": everywhere(
        "bfloat16",
        programs.training_sampler,
        programs.training_scorer,
        programs.training_update,
        programs.validation_sampler,
        programs.evaluation_sampler,
        programs.sample_sampler,
        probes.cold_start_update,
        probes.exported,
    ),
    "model.remat": everywhere("none", programs.training_update, probes.cold_start_update),
    "model.decode_kernel": everywhere(
        True,
        kernels.training_asks,
        kernels.validation_asks,
        kernels.evaluation_asks,
        kernels.sample_asks,
    ),
    "model.logprob_chunk_size": everywhere(
        2,
        programs.training_scorer,
        programs.training_update,
        probes.cold_start_update,
    ),
    "model.lora.rank": everywhere(3, *ADAPTED, given=LORA),
    "model.lora.alpha": everywhere(64.0, *ADAPTED, given=LORA),
    "model.lora.targets": everywhere(["q_proj"], *ADAPTED, given=LORA),
    "model.lora.base": Field(
        "{shared}/other", adapters.base_of_start_model, {**LORA, "model.path": "{tmp}/peft"}
    ),
    **DATA_FIELDS,
    **TEXT_FIELDS,
    "rollout.prompts_per_step": everywhere(
        16,
        probes.asked_prompts,
        programs.training_sampler,
        programs.training_update,
        probes.number_of_steps,
        probes.steps_of_the_plan,
    ),
    "rollout.num_generations": everywhere(
        3, (probes.sampled, SHORT), programs.training_sampler, programs.training_update
    ),
    "rollout.keep_groups": everywhere(
        "reward", (probes.trained_groups, ALIKE), programs.training_update
    ),
    "rollout.max_rounds": Field(
        2, probes.trained_groups, {**ALIKE, "rollout.keep_groups": "reward"}
    ),
    "rollout.max_prompt_length": everywhere(
        590,
        probes.asked_prompts,
        *((probe, TIGHT) for probe in (*FITTED, probes.cold_start_shapes)),
        programs.training_update,
    ),
    "rollout.prompt_length_buckets": (
        Field([590], probes.asked_prompts),
        # Room for a trace is added to it; with this seed the longest row is not in the first batch.
        Field([183], probes.cold_start_shapes, {"run.seed": 4}),
    ),
    "rollout.max_completion_length": everywhere(
        60,
        probes.asked_completions,
        programs.training_update,
        programs.loops_of_training,
        programs.loops_of_validation,
        programs.loops_of_evaluation,
        programs.loops_of_verification,
        programs.sample_sampler,
        probes.exported,
    ),
    "rollout.temperature": everywhere(
        2.0,
        (probes.sampled, SHORT),
        programs.training_sampler,
        programs.training_scorer,
        programs.training_update,
        programs.evaluation_sampler,
        (programs.evaluation_sampler, VOTES),
    ),
    "rollout.top_p": everywhere(
        0.5,
        (probes.sampled, SHORT),
        programs.training_sampler,
        (programs.evaluation_sampler, VOTES),
        (programs.sample_sampler, VOTES),
    ),
    "rollout.top_k": everywhere(
        1,
        (probes.sampled, SHORT),
        programs.training_sampler,
        (programs.evaluation_sampler, VOTES),
        (programs.sample_sampler, VOTES),
    ),
    "rollout.first_cache_length": everywhere(
        16,
        programs.loops_of_training,
        programs.loops_of_validation,
        programs.loops_of_evaluation,
        programs.loops_of_verification,
    ),
    # Those that decode one completion of a prompt have nothing to halve.
    "rollout.halvings": everywhere(
        1, programs.loops_of_training, (programs.loops_of_evaluation, VOTES)
    ),
    "rewards.format_weight": Field(2.0, probes.reward),
    "rewards.answer_weight": Field(2.0, probes.reward),
    "rewards.answer_weighting": Field("uniform", probes.reward),
    "rewards.answer_match": everywhere(
        "exact",
        probes.reward,
        (probes.accuracy, {"rewards.answer_weight": 0.0}),
        predictions.validated_long_answers,
        predictions.evaluated_long_answers,
    ),
    "rewards.answer_scale": Field("ordinal", probes.reward, DEGREES),
    "rewards.under_call": Field(3.0, probes.reward, ORDINAL),
    "rewards.overlong_weight": Field(1.0, probes.reward),
    "rewards.overlong_cushion": Field(40, probes.reward, {"rewards.overlong_weight": 1.0}),
    "rewards.custom": Field({"tests.every_field.table:number_of_words": 1.0}, probes.reward),
    "rewards.timeout_s": Field(
        60.0,
        probes.reward,
        {"rewards.custom": {"tests.every_field.table:in_another_thread": 1.0}},
    ),
    "crpo.scale_rewards": Field("tokens", probes.objective),
    "crpo.advantage_baseline": everywhere(
        "greedy", probes.objective, programs.training_sampler, programs.training_update
    ),
    "crpo.clip_epsilon_low": Field(0.6, probes.objective, MOVED),
    "crpo.clip_epsilon_high": Field(0.6, probes.objective, MOVED),
    "crpo.dual_clip": Field(1.5, probes.objective, MOVED),
    "crpo.importance_level": Field("sequence", probes.objective, MOVED),
    "crpo.policy_loss": Field("cispo", probes.objective),
    "crpo.policy_entropy_share": Field(0.2, probes.objective),
    "crpo.sampler_correction": Field("tis", probes.objective),
    "crpo.kl_coef": everywhere(0.5, probes.objective, programs.training_update),
    "crpo.kl_in": Field("reward", probes.objective),
    "crpo.kl_estimator": Field("k2", probes.objective),
    "crpo.aggregation": Field("sequence", probes.objective),
    "crpo.stage_entropy_rule": (
        Field("off", probes.objective),
        Field("target", programs.training_update),
    ),
    "crpo.stage_entropy_scale": everywhere(
        0.5, probes.objective, (probes.steered, {**NATS, "crpo.stage_entropy_step": 0.25})
    ),
    "crpo.stage_entropy_threshold": Field(2.0, probes.objective),
    "crpo.stage_entropy_coefs": (
        Field([0.1, 0.1, 0.1, 0.1, 0.4], probes.objective, EXPLICIT),
        Field([0.01, 0.01, 0.01, 0.01, 0.04], probes.objective, TARGET),
    ),
    "crpo.stage_entropy_targets": Field([2.0, 2.0, 2.0, 2.0, 2.0], probes.steered, TARGET),
    "crpo.stage_entropy_target_unit": Field("nats", probes.steered, TARGET),
    "crpo.stage_entropy_start_steps": Field(2, probes.steered, TARGET),
    "crpo.stage_entropy_step": Field(0.01, probes.steered, NATS),
    "crpo.stage_entropy_dead_zone": Field(0.9, probes.steered, NATS),
    "crpo.stage_entropy_mean": Field("present_only", probes.objective),
    "crpo.entropy_bonus_coef": (
        Field(0.5, probes.objective),
        Field(0.003, probes.steered, ADAPTIVE),
    ),
    "crpo.entropy_bonus_rule": Field("adaptive", probes.steered),
    "crpo.entropy_bonus_target": Field(0.01, probes.steered, ADAPTIVE),
    "crpo.entropy_bonus_step": Field(0.001, probes.steered, ADAPTIVE),
    "crpo.entropy_bonus_max": Field(0.0025, probes.steered, ADAPTIVE),
    "crpo.mask_truncated_completions": everywhere(True, probes.trained_tokens, probes.objective),
    "crpo.num_iterations": everywhere(2, probes.updated_weights, programs.training_update),
    **_optimizer_fields("optimizer", probes.optimizer_of_training, programs.training_update),
    "sft.traces": Field("{shared}/traces.jsonl", probes.traces),
    "sft.free_reasoning": Field("last_stage", probes.traces_or_refusal, REASONED),
    "sft.traces_per_set": (
        Field(2, probes.traces),
        Field(2, probes.traces, {**REASONED, "sft.free_reasoning": "last_stage"}),
    ),
    "sft.label_noise": Field(1.0, probes.traces),
    "sft.batch_size": everywhere(16, probes.cold_start_shapes, probes.cold_start_update),
    "sft.num_steps": everywhere(7, probes.cold_start_shapes, probes.optimizer_of_cold_start),
    **_optimizer_fields("sft.optimizer", probes.optimizer_of_cold_start, probes.cold_start_update),
    "evaluate.model": Field("{shared}/other", predictions.evaluated),
    "evaluate.output_dir": Field("{tmp}/report", predictions.evaluated),
    "evaluate.split": Field("validation", predictions.evaluated),
    "evaluate.limit_per_set": Field(2, predictions.evaluated),
    "evaluate.batch_size": everywhere(
        16, predictions.evaluated_shapes, predictions.validated_shapes
    ),
    # Not validation, which is greedy; see below.
    "evaluate.num_votes": everywhere(
        3, predictions.evaluated, programs.loops_of_evaluation, programs.sample_sampler
    ),
    "evaluate.confidence": (
        Field("labels", predictions.evaluated),
        Field("votes", predictions.evaluated, {**VOTES, "rollout.top_k": 1}),
        Field("labels", programs.sample_confidence),
    ),
    "evaluate.bootstrap_samples": Field(7, predictions.evaluated),
    "evaluate.include_text": Field(True, predictions.evaluated),
    "evaluate.reading_room": Field(1, predictions.reading_room),
    "export.checkpoint": Field("latest", probes.exported_weights),
    "export.output_dir": Field("{tmp}/released", probes.exported),
    "export.format": Field("peft", adapters.released_adapters, LORA),
    "export.dtype": Field("float32", probes.exported_weights),
    "export.max_shard_megabytes": Field(1, probes.exported_weights),
    "export.gguf": Field("f16", probes.exported_gguf),
    "export.verify": Field(True, probes.exported),
    "mesh.data": everywhere(4, *MESHES),  # eight devices: leaves some over, which is refused
    "mesh.fsdp": everywhere(4, *MESHES),
    "mesh.tensor": everywhere(2, *MESHES),
    "run.output_dir": Field("{tmp}/another", run_kept),
    "run.closed_bucket": Field(True, probes.posts_in_a_bucket),
    "run.seed": everywhere(
        1,
        probes.asked_prompts,
        probes.asked_randomness,
        predictions.evaluated_randomness,
        (predictions.evaluated_intervals, {"evaluate.bootstrap_samples": 7}),
        probes.traces,
        (probes.cold_start_order, {"sft.traces": "{shared}/several.jsonl"}),
    ),
    "run.num_steps": everywhere(
        5, probes.number_of_steps, probes.steps_of_the_plan, probes.optimizer_of_training
    ),
    "run.num_epochs": everywhere(5.0, probes.number_of_steps, probes.steps_of_the_plan),
    # Batches of which a half still divides over the eight devices.
    "run.micro_batches": everywhere(
        2,
        programs.training_update,
        probes.cold_start_update,
        given={"rollout.prompts_per_step": 16, "sft.batch_size": 16},
    ),
    "run.save_every": Field(1, run_kept),
    "run.keep_checkpoints": Field(1, run_kept, {"run.save_every": 1}),
    "run.eval_every": Field(2, run_kept),
    "run.eval_limit_per_set": Field(3, run_kept),
    "run.patience": Field(1, run_kept, {"run.eval_every": 1}),
    "run.max_hours": Field(1e-9, run_kept),
    "run.log_completions_every": Field(1, probes.completion_files),
    "run.redact_completions": Field(
        False, probes.completion_files, {"run.log_completions_every": 1}
    ),
    "run.tensorboard": Field(False, run_kept),
    "run.wandb_project": Field("demo", run_kept),
    "run.trackio_project": Field("demo", run_kept),
    "run.compilation_cache": Field("{tmp}/programs", probes.program_cache),
    "run.profile_steps": Field([2, 3], run_kept),
}


def number_of_words(completion: str, example: Any) -> float:
    """A reward of a user's own."""
    return float(len(completion.split()))


def in_another_thread(completion: str, example: Any) -> float:
    """A reward that tells where it is called."""
    return float(threading.current_thread() is not threading.main_thread())
