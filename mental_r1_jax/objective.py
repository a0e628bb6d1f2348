"""The recipe's section `crpo`: every choice of the objective.

`rl/` has one formula for each of them, and meets no other section of a recipe.
"""

from __future__ import annotations

from typing import Annotated, Literal

import pydantic
from pydantic import Field, NonNegativeFloat, PositiveInt

from mental_r1_jax.section import Fraction, Section

# The reasoning stages, in order. Everything that counts stages counts these names.
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

PerStage = Annotated[
    tuple[float, ...], Field(min_length=len(STAGE_NAMES), max_length=len(STAGE_NAMES))
]


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
        stage_entropy_rule: beta_t from `tanh`, from an `explicit` list, or all 0 (`off`). A
            negative beta_t rewards entropy in stage t, a positive one penalises it.
        stage_entropy_scale: M in beta_t = M tanh(t - tau).
        stage_entropy_threshold: tau, the stage at which exploring turns into deciding.
        stage_entropy_coefs: the beta_t of the `explicit` rule, one a stage.
        stage_entropy_mean: mean over `all` completions, where one without the stage counts as 0, or
            over those that have it (`present_only`).
        entropy_bonus_coef: weight of one entropy bonus over all tokens (a baseline of CRPO).
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
    stage_entropy_rule: Literal["tanh", "explicit", "off"] = "tanh"
    stage_entropy_scale: NonNegativeFloat = 0.06
    stage_entropy_threshold: float = 3.5
    stage_entropy_coefs: PerStage | None = None
    stage_entropy_mean: Literal["all", "present_only"] = "all"
    entropy_bonus_coef: NonNegativeFloat = 0.0
    mask_truncated_completions: bool = False
    num_iterations: PositiveInt = 1

    @pydantic.model_validator(mode="after")
    def _coefficients_match_rule(self) -> CrpoConfig:
        explicit = self.stage_entropy_rule == "explicit"
        if explicit != (self.stage_entropy_coefs is not None):
            raise ValueError(
                "stage_entropy_coefs and stage_entropy_rule=explicit go together, got "
                f"stage_entropy_rule={self.stage_entropy_rule!r} with "
                f"stage_entropy_coefs={self.stage_entropy_coefs}"
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
