"""The whole configuration: frozen sections, validated before anything is compiled or downloaded.

A recipe is a YAML file with one mapping a section; `recipe.py` reads it into an `ExperimentConfig`.
The section `crpo` is in `objective.py`, `data` in `data_section.py`, `text` in `text_section.py`.
"""

from __future__ import annotations

import typing
from pathlib import Path
from typing import Annotated, Literal

import pydantic
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from mental_r1_jax.addresses import address_of
from mental_r1_jax.data_section import ColumnMap as ColumnMap  # for those that read it from here
from mental_r1_jax.data_section import CustomSet as CustomSet
from mental_r1_jax.data_section import DataConfig
from mental_r1_jax.data_section import FileFormat as FileFormat
from mental_r1_jax.data_section import SplitShares as SplitShares
from mental_r1_jax.data_section import label_text as label_text
from mental_r1_jax.evaluate_section import EvaluateConfig as EvaluateConfig
from mental_r1_jax.evaluate_section import ExportConfig as ExportConfig
from mental_r1_jax.objective import STAGE_NAMES as STAGE_NAMES  # for those that read it from here
from mental_r1_jax.objective import CrpoConfig, check_number_of_stages
from mental_r1_jax.section import Fraction, LocalPath, ModelName, RunFolder, Section, refuse_address
from mental_r1_jax.text_section import TextConfig

# How an answer is read; `text/answers.py` has the rules.
AnswerMatch = Literal["prefix", "exact", "lenient"]

Decay = Annotated[float, Field(ge=0.0, lt=1.0)]


LoraTarget = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class LoraConfig(Section):
    """Low-rank adapters: W stays as it is, and ``W + (alpha / rank) B A`` is trained by A and B.

    Attributes:
        rank: columns of A and rows of B.
        alpha: `alpha / rank` multiplies an adapter.
        targets: the projections of every layer that have one, by their Hugging Face names.
        base: hub id or folder of the frozen model, where it is no longer where the adapters in
            `model.path` (a PEFT folder, or a run with adapters) say; null: where they say.
    """

    rank: PositiveInt = 16
    alpha: PositiveFloat = 32.0
    targets: Annotated[tuple[LoraTarget, ...], Field(min_length=1)] = typing.get_args(LoraTarget)
    base: ModelName | None = None

    @pydantic.model_validator(mode="after")
    def _distinct_targets(self) -> LoraConfig:
        if len(set(self.targets)) != len(self.targets):
            raise ValueError(f"every target may be named once, got targets={list(self.targets)}")
        return self


class ModelConfig(Section):
    """Which model to start from, and how it is computed.

    Attributes:
        path: Hugging Face folder, hub id, PEFT folder, or a run folder of ours (its best
            checkpoint).
        compute_dtype: dtype of activations and matrix products; master weights stay float32.
        remat: what the backward pass computes again to save memory: whole `layers` (least memory),
            only the `elementwise` work between matrix products (fastest), or `none` (most memory).
        decode_kernel: on TPUs, attend in the decoding loop by one kernel a layer (bfloat16, heads
            of a multiple of 128, lengths too); it has not run on a chip yet.
        logprob_chunk_size: vocabulary entries whose logits exist at the same time, for all tokens.
        lora: train low-rank adapters beside frozen weights; null trains the weights themselves.
    """

    path: ModelName
    compute_dtype: Literal["float32", "bfloat16"] = "bfloat16"
    remat: Literal["layers", "elementwise", "none"] = "layers"
    decode_kernel: bool = False
    logprob_chunk_size: PositiveInt = 512
    lora: LoraConfig | None = None


class RolloutConfig(Section):
    """How completions are sampled. A step is `prompts_per_step` x `num_generations` completions.

    Attributes:
        prompts_per_step: B, over all hosts and devices.
        num_generations: G, completions of one prompt.
        max_prompt_length: P, tokens; the post is truncated to fit, never the instruction.
        prompt_length_buckets: smaller values of P to compile as well; a batch takes the smallest
            that holds its longest prompt. Evaluation and prediction choose their own.
        max_completion_length: C, tokens, the end-of-sequence token included.
        temperature: divides the logits in sampling and in training.
        top_p: nucleus sampling; 1 keeps the whole distribution.
        top_k: keep so many of the likeliest tokens; null keeps all.
        keep_groups: which groups a step trains on: `all`, or those whose completions differ in
            `reward` (or in `accuracy`: some right, some wrong); further prompts replace the others.
        max_rounds: a step draws prompts at most so often; then it trains on the groups it has.
        first_cache_length: tokens the cache of a completion holds at first; it doubles as needed.
        halvings: how often the decoding loop may shrink to half of each group, once as many of its
            completions have ended; pays where lengths differ much, and each compiles one more loop.
    """

    prompts_per_step: PositiveInt = 128
    num_generations: Annotated[int, Field(ge=2)] = 4
    max_prompt_length: PositiveInt = 512
    prompt_length_buckets: tuple[PositiveInt, ...] = ()
    max_completion_length: Annotated[int, Field(ge=2)] = 512
    temperature: PositiveFloat = 0.85
    top_p: Fraction = 0.95
    top_k: PositiveInt | None = None
    keep_groups: Literal["all", "reward", "accuracy"] = "all"
    max_rounds: Annotated[int, Field(ge=1, le=255)] = 10
    first_cache_length: PositiveInt = 256
    halvings: NonNegativeInt = 0

    @property
    def prompt_lengths(self) -> tuple[int, ...]:
        """The fixed set of prompt lengths that get compiled, ascending."""
        return tuple(sorted({*self.prompt_length_buckets, self.max_prompt_length}))

    @pydantic.model_validator(mode="after")
    def _buckets_below_maximum(self) -> RolloutConfig:
        too_long = [b for b in self.prompt_length_buckets if b >= self.max_prompt_length]
        if too_long:
            raise ValueError(
                f"prompt_length_buckets must be below max_prompt_length={self.max_prompt_length}, "
                f"got {too_long}; leave them out, the maximum is always compiled"
            )
        return self


class RewardsConfig(Section):
    """What a completion earns; the total is the weighted sum.

    Attributes:
        format_weight: weight of the format reward (+0.5 well formed, -0.5 not).
        answer_weight: weight of the answer reward (+w right, -w wrong).
        answer_weighting: `balanced` scales w by set and class rarity, `uniform` uses w = 1.
        answer_match: `prefix` accepts an answer that starts with the label, `exact` only the label;
            `lenient` is `prefix` past Unicode forms, dashes, invisible signs, quotes and bold type.
        answer_scale: `exact` takes w off for every wrong answer; `ordinal` takes less off the
            nearer it is, in sets of three and more labels that are ordered.
        under_call: under `ordinal`, factor of what an answer below the label costs.
        overlong_weight: weight of the penalty for coming near the length limit (0 to -1); 0: none.
        overlong_cushion: tokens before the limit over which it grows; null means a fifth of
            `rollout.max_completion_length`.
        custom: further reward functions, `package.module:function` -> weight.
        timeout_s: seconds that one call of a custom function may take before the run stops and
            names it; null waits for ever, and calls it in the main thread.
    """

    format_weight: NonNegativeFloat = 1.0
    answer_weight: NonNegativeFloat = 1.0
    answer_weighting: Literal["balanced", "uniform"] = "balanced"
    answer_match: AnswerMatch = "prefix"
    answer_scale: Literal["exact", "ordinal"] = "exact"
    under_call: Annotated[float, Field(ge=1.0)] = 1.0
    overlong_weight: NonNegativeFloat = 0.0
    overlong_cushion: PositiveInt | None = None
    custom: dict[str, float] = {}
    timeout_s: PositiveFloat | None = None


# Adafactor keeps row and column means of matrices whose smaller side has at least so many entries.
FACTORED_FROM = 128


class OptimizerConfig(Section):
    """The optimizer, with gradient clipping and a decaying learning rate.

    Attributes:
        name: `adamw`, or `adafactor`: of a matrix only row and column means of the squared gradient
            are kept, and no first moment, so it takes hardly any memory. `beta1`, `beta2` and
            `epsilon` are for `adamw`.
        first_moment: of `adamw`: `bfloat16` halves the memory of the first moment.
        offload_moments: keep the moments in the memory of the hosts and bring them to the devices
            for each update: the same numbers, and slower.
        learning_rate: peak rate.
        schedule: decay to zero over the run (`linear`, `cosine`) or no decay (`constant`).
        warmup_steps: updates of linear warm-up from zero.
        weight_decay: decoupled decay, on matrices only.
        beta1: decay of the first moment.
        beta2: decay of the second moment.
        epsilon: added to the root of the second moment.
        max_grad_norm: gradients are scaled down to this global norm.
    """

    name: Literal["adamw", "adafactor"] = "adamw"
    first_moment: Literal["float32", "bfloat16"] = "float32"
    offload_moments: bool = False
    learning_rate: PositiveFloat = 5e-6
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup_steps: NonNegativeInt = 0
    weight_decay: NonNegativeFloat = 0.0
    beta1: Decay = 0.9
    beta2: Decay = 0.999
    epsilon: PositiveFloat = 1e-8
    max_grad_norm: PositiveFloat = 1.0


class SftConfig(Section):
    """Supervised cold start for models too small to follow the grammar by prompt alone.

    Attributes:
        traces: JSONL of `{"prompt": ..., "completion": ...}`; `rows` takes the reasoning that came
            with the training posts; null writes template traces from the labelled training posts
            (our addition; the paper has no cold start).
        free_reasoning: under `rows`, what becomes of reasoning without the stages: it is refused,
            or it makes the `last_stage`, behind template words in the others.
        traces_per_set: traces of each set, where they come from posts; null means all.
        label_noise: share of template traces whose answer is drawn at random from the set's labels.
        batch_size: traces an update.
        num_steps: updates.
        optimizer: the keys of the section `optimizer`, for the cold start.
    """

    traces: LocalPath | Literal["rows"] | None = None
    free_reasoning: Literal["refuse", "last_stage"] = "refuse"
    traces_per_set: PositiveInt | None = None
    label_noise: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    batch_size: PositiveInt = 16
    num_steps: PositiveInt = 200
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-4)


class MeshConfig(Section):
    """How devices are laid out.

    Attributes:
        data: copies of the model; null takes all devices that the other axes leave.
        fsdp: devices over which weights and optimizer moments are sharded, and the batch too; null
            chooses by the model's size and the devices' memory.
        tensor: devices over which heads and feed-forward width are sharded; null chooses as above.
    """

    data: PositiveInt | None = None
    fsdp: PositiveInt | None = None
    tensor: PositiveInt | None = None


class RunConfig(Section):
    """Length, bookkeeping and outputs of a run.

    Attributes:
        output_dir: the run folder, or an address `gs://BUCKET/RUN`; running the same command again
            resumes from it.
        closed_bucket: says that only those who may read the posts can read the bucket of
            `output_dir`; without it nothing that shows posts is written there.
        seed: seed of data order, sampling and initialisation; the same seed gives the same run.
        num_steps: rollouts to make; null derives it from `num_epochs`.
        num_epochs: passes over the mixed training posts.
        micro_batches: gradient accumulation; must divide `rollout.prompts_per_step`.
        save_every: steps between checkpoints.
        keep_checkpoints: newest checkpoints kept; the best by validation is kept as well.
        eval_every: steps between validations; 0 validates only at the end.
        eval_limit_per_set: validation posts of each set; null means all.
        patience: end the run after so many validations in a row without a better weighted F1; null
            makes all steps.
        max_hours: hours that a session may last, from the opening of the run folder; it stops where
            a further step, a validation, a checkpoint and an export would no longer fit, and the
            next one goes on. null sets no limit.
        log_completions_every: steps between completion tables; 0 writes none.
        redact_completions: leave posts out of the completion files and the console.
        tensorboard: write event files.
        wandb_project: Weights & Biases project; null sends nothing anywhere.
        trackio_project: Trackio project, kept on this machine; null keeps none.
        compilation_cache: folder of compiled programs, which later runs start faster with; `auto`
            is one in the user's cache folder, null keeps none.
        profile_steps: steps (from 1) whose profiler traces go to `profile/` in the run folder.
    """

    output_dir: RunFolder
    closed_bucket: bool = False
    seed: NonNegativeInt = 0
    num_steps: PositiveInt | None = None
    num_epochs: PositiveFloat = 1.0
    micro_batches: PositiveInt = 1
    save_every: PositiveInt = 25
    keep_checkpoints: PositiveInt = 2
    eval_every: NonNegativeInt = 25
    eval_limit_per_set: PositiveInt | None = None
    patience: PositiveInt | None = None
    max_hours: PositiveFloat | None = None
    log_completions_every: NonNegativeInt = 10
    redact_completions: bool = True
    tensorboard: bool = True
    wandb_project: str | None = None
    trackio_project: str | None = None
    compilation_cache: Annotated[
        Path | Literal["auto"] | None, pydantic.BeforeValidator(refuse_address)
    ] = "auto"
    profile_steps: tuple[PositiveInt, ...] = ()

    @pydantic.model_validator(mode="after")
    def _patience_has_validations(self) -> RunConfig:
        if self.patience is not None and self.eval_every == 0:
            raise ValueError(
                "run.patience counts validations and run.eval_every=0 makes none before the end; "
                "set run.eval_every"
            )
        return self


class ExperimentConfig(Section):
    """A recipe: one section for each concern."""

    model: ModelConfig
    data: DataConfig
    run: RunConfig
    rollout: RolloutConfig = RolloutConfig()
    rewards: RewardsConfig = RewardsConfig()
    crpo: CrpoConfig = CrpoConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    sft: SftConfig = SftConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    export: ExportConfig = ExportConfig()
    mesh: MeshConfig = MeshConfig()
    text: TextConfig = TextConfig()

    @property
    def decoded_completions(self) -> int:
        """Completions of a prompt that training decodes: G, and where asked for a greedy one."""
        return self.rollout.num_generations + (self.crpo.advantage_baseline == "greedy")

    @pydantic.model_validator(mode="after")
    def _one_number_a_stage(self) -> ExperimentConfig:
        check_number_of_stages(self.crpo, self.text.stage_names)
        return self

    @pydantic.model_validator(mode="after")
    def _posts_stay_out_of_open_buckets(self) -> ExperimentConfig:
        if address_of(self.run.output_dir) is None or self.run.closed_bucket:
            return self
        evaluate = self.evaluate
        shows = evaluate.include_text or bool(evaluate.reading_room)
        for key, writes in (
            ("run.redact_completions=false", not self.run.redact_completions),
            ("evaluate.include_text or reading_room", shows and evaluate.output_dir is None),
        ):
            if writes:
                raise ValueError(
                    f"{key} would write posts or answers into a bucket; leave it, or say that only "
                    "those who may read them can read the bucket: run.closed_bucket=true"
                )
        return self

    @pydantic.model_validator(mode="after")
    def _rows_have_the_five_stages(self) -> ExperimentConfig:
        if self.sft.traces == "rows" and self.text.grammar is not None:
            raise ValueError(
                "sft.traces=rows reads the five stages, and text.grammar has others; write the "
                "traces into a file of prompts and completions"
            )
        return self

    @pydantic.model_validator(mode="after")
    def _empty_groups_are_told_apart(self) -> ExperimentConfig:
        if self.rollout.keep_groups != "all" and self.crpo.scale_rewards == "batch":
            raise ValueError(
                "crpo.scale_rewards=batch would count the groups that rollout.keep_groups="
                f"{self.rollout.keep_groups} could not fill; use group, tokens or none"
            )
        return self

    @pydantic.model_validator(mode="after")
    def _micro_batches_divide(self) -> ExperimentConfig:
        for name, size in (
            ("rollout.prompts_per_step", self.rollout.prompts_per_step),
            ("sft.batch_size", self.sft.batch_size),
        ):
            if size % self.run.micro_batches:
                raise ValueError(
                    f"{name}={size} must be a multiple of run.micro_batches="
                    f"{self.run.micro_batches}; change one of them"
                )
        return self

    @pydantic.model_validator(mode="after")
    def _cushion_within_limit(self) -> ExperimentConfig:
        cushion, limit = self.rewards.overlong_cushion, self.rollout.max_completion_length
        if cushion is not None and cushion > limit:
            raise ValueError(
                f"rewards.overlong_cushion={cushion} must not exceed "
                f"rollout.max_completion_length={limit}; change one of them"
            )
        return self
