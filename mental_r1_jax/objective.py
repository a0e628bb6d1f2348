"""The recipe's section `crpo`: every choice of the objective.

`rl/` has one formula for each of them, and meets no other section of a recipe.
"""

from __future__ import annotations

from typing import Annotated, Literal

import pydantic
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from mental_r1_jax.section import Fraction, Section

# The paper's reasoning stages, in order; `text.grammar` of a recipe may name others.
STAGE_NAMES: tuple[str, ...] = (
    "stimulus",
    "primary_appraisal",
    "secondary_appraisal",
    "reaction",
    "mental_state",
)

RatioLevel = Literal["token", "sequence"]
SamplerCorrection = Literal["off", "tis", "icepop"]
KlEstimator = Literal["k1", "k2", "k3", "k3_corrected"]
Aggregation = Literal["token", "sequence", "dr_grpo"]

# One number a stage; `check_number_of_stages` knows how many there are.
PerStage = Annotated[tuple[float, ...], Field(min_length=1)]
PerStagePositive = Annotated[tuple[PositiveFloat, ...], Field(min_length=1)]
_TARGETS = (1.1, 1.1, 1.0, 0.8, 0.6)


class CrpoConfig(Section):
    """The objective. The defaults are the paper's; zero stage coefficients give GRPO.

    Attributes:
        scale_rewards: divide rewards minus baselines by the std of the `group`, of the `batch`, or
            by nothing (`none`); `tokens` whitens them over all valid tokens of the step.
        advantage_baseline: `mean` of the group, of its other members (`leave_one_out`), the reward
            of one more completion, decoded greedily with the group and never trained on
            (`greedy`), or `none`.
        clip_epsilon_low: the probability ratio is clipped from below at 1 - clip_epsilon_low.
        clip_epsilon_high: and from above at 1 + clip_epsilon_high.
        dual_clip: largest ratio that counts where the advantage is negative (> 1: at or below 1 it
            would take the on-policy gradient away); null switches it off.
        importance_level: probability ratio of each token, or of the whole sequence.
        policy_loss: `clipped` takes the gradient of tokens that moved too far; `cispo` clips only
            their weight, so that every token keeps its gradient.
        policy_entropy_share: the policy loss counts this share of the step's tokens, those of the
            highest entropy; below 1 each update costs one more forward pass.
        sampler_correction: weigh tokens with their probability under the policy over that under
            the sampler: `tis` at most 2, `icepop` 0 outside [0.5, 5], or `off`.
        kl_coef: weight of the KL penalty; 0 never computes the reference policy.
        kl_in: the KL penalty is a term of the `loss`, or is taken off the `reward`, token by token.
        kl_estimator: `k1`, `k2` or `k3` of the KL to the reference policy; `k3_corrected` is k3
            times the probability ratio. In the reward it is always k1; the metric follows this key.
        aggregation: how token losses are averaged: `token`, `sequence` or `dr_grpo`.
        stage_entropy_rule: beta_t from `tanh`, from an `explicit` list, steered every step so that
            the stage's entropy reaches a `target`, or all 0 (`off`). A negative beta_t rewards
            entropy in stage t, a positive one penalises it.
        stage_entropy_scale: M in beta_t = M tanh(t - tau); bound of |beta_t| under `target`.
        stage_entropy_threshold: tau, the stage at which exploring turns into deciding.
        stage_entropy_coefs: the beta_t of the `explicit` rule, one a stage; under `target` those
            of the first step, null meaning 0.
        stage_entropy_targets: H*_t of the `target` rule, one a stage.
        stage_entropy_target_unit: whether targets are `nats`, or `relative` to the entropy that
            the start model has in the stage.
        stage_entropy_start_steps: steps over which that entropy is measured, before any steering.
        stage_entropy_step: d, how far a beta_t moves in a step.
        stage_entropy_dead_zone: share of a target by which the entropy may miss it unheeded.
        stage_entropy_mean: mean over `all` completions, where one without the stage counts as 0, or
            over those that have it (`present_only`).
        entropy_bonus_coef: weight of one entropy bonus over all tokens (a baseline of CRPO); under
            `adaptive` that of the first step.
        entropy_bonus_rule: whether this weight is `fixed`, or `adaptive`: raised by a step where
            the entropy is below its target, lowered otherwise, and off while it is above.
        entropy_bonus_target: H*, nats a token, of the `adaptive` rule.
        entropy_bonus_step: how far its weight moves in a step.
        entropy_bonus_max: largest weight.
        mask_truncated_completions: leave completions that hit the length limit out of the loss.
        num_iterations: updates made with one rollout.
    """

    scale_rewards: Literal["group", "batch", "tokens", "none"] = "group"
    advantage_baseline: Literal["mean", "leave_one_out", "greedy", "none"] = "mean"
    clip_epsilon_low: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.2
    clip_epsilon_high: NonNegativeFloat = 0.2
    dual_clip: Annotated[float, Field(gt=1.0)] | None = None
    importance_level: RatioLevel = "token"
    policy_loss: Literal["clipped", "cispo"] = "clipped"
    policy_entropy_share: Fraction = 1.0
    sampler_correction: SamplerCorrection = "off"
    kl_coef: NonNegativeFloat = 0.01
    kl_in: Literal["loss", "reward"] = "loss"
    kl_estimator: KlEstimator = "k3"
    aggregation: Aggregation = "token"
    stage_entropy_rule: Literal["tanh", "explicit", "target", "off"] = "tanh"
    stage_entropy_scale: NonNegativeFloat = 0.06
    stage_entropy_threshold: float = 3.5
    stage_entropy_coefs: PerStage | None = None
    stage_entropy_targets: PerStagePositive = _TARGETS
    stage_entropy_target_unit: Literal["relative", "nats"] = "relative"
    stage_entropy_start_steps: PositiveInt = 5
    stage_entropy_step: NonNegativeFloat = 1e-4
    stage_entropy_dead_zone: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.05
    stage_entropy_mean: Literal["all", "present_only"] = "all"
    entropy_bonus_coef: NonNegativeFloat = 0.0
    entropy_bonus_rule: Literal["fixed", "adaptive"] = "fixed"
    entropy_bonus_target: PositiveFloat = 0.2
    entropy_bonus_step: NonNegativeFloat = 1e-4
    entropy_bonus_max: PositiveFloat = 5e-3
    mask_truncated_completions: bool = False
    num_iterations: PositiveInt = 1

    @pydantic.model_validator(mode="after")
    def _coefficients_match_rule(self) -> CrpoConfig:
        rule, coefs = self.stage_entropy_rule, self.stage_entropy_coefs
        if (rule == "explicit") != (coefs is not None) and rule != "target":
            raise ValueError(
                "stage_entropy_coefs and stage_entropy_rule=explicit go together (and "
                f"stage_entropy_rule=target may start from some), got stage_entropy_rule={rule!r} "
                f"with stage_entropy_coefs={coefs}"
            )
        bound = self.stage_entropy_scale
        if rule == "target" and coefs is not None and max(map(abs, coefs)) > bound:
            raise ValueError(
                f"under stage_entropy_rule=target the stage_entropy_coefs stay within "
                f"stage_entropy_scale={bound}, got {list(coefs)}; raise the one or lower the others"
            )
        return self

    @pydantic.model_validator(mode="after")
    def _bonus_starts_within_its_bound(self) -> CrpoConfig:
        start, bound = self.entropy_bonus_coef, self.entropy_bonus_max
        if self.entropy_bonus_rule == "adaptive" and start > bound:
            raise ValueError(
                f"under entropy_bonus_rule=adaptive the entropy_bonus_coef={start} must not exceed "
                f"entropy_bonus_max={bound}; change one of them"
            )
        return self

    @pydantic.model_validator(mode="after")
    def _dual_clip_has_something_to_clip(self) -> CrpoConfig:
        if self.policy_loss == "cispo" and self.dual_clip is not None:
            raise ValueError(
                f"dual_clip={self.dual_clip} bounds the loss of policy_loss=clipped; cispo bounds "
                "the ratio itself, so set dual_clip to null"
            )
        return self


def check_number_of_stages(crpo: CrpoConfig, stages: tuple[str, ...]) -> None:
    """Refuse keys that hold one number a stage, where they hold more or fewer.

    Targets that nobody has set are those of the paper's stages, and are read under the rule
    `target` alone. So is the stage at which exploring turns into deciding, under `tanh`: of other
    stages nobody but the user can say which one that is.

    Raises:
        ValueError: names the key and the stages.
    """
    rule, number = crpo.stage_entropy_rule, len(stages)
    counted = {"stage_entropy_coefs": crpo.stage_entropy_coefs}
    if rule == "target" or crpo.stage_entropy_targets != _TARGETS:
        counted["stage_entropy_targets"] = crpo.stage_entropy_targets
    for key, values in counted.items():
        if values is not None and len(values) != number:
            raise ValueError(
                f"crpo.{key} needs one number for each of the {number} stages "
                f"({', '.join(stages)}), got {list(values)}"
            )
    chosen = "stage_entropy_threshold" in crpo.model_fields_set
    if (
        rule == "tanh"
        and crpo.stage_entropy_scale > 0
        and number != len(STAGE_NAMES)
        and not chosen
    ):
        raise ValueError(
            f"crpo.stage_entropy_threshold={crpo.stage_entropy_threshold} is for "
            f"{len(STAGE_NAMES)} stages and text.grammar has {number}; set the stage at which "
            f"exploring turns into deciding, for example to {(number + 2) / 2}"
        )
