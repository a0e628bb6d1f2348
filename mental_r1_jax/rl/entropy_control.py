"""Entropy coefficients that are steered from step to step, as a pure function of what was measured.

    control = start_control(crpo)                        before the first step; None: nothing to do
    weights = entropy_weights(crpo, control)             of this step's loss
    control = next_control(control, measured, crpo)      after it

The entropies of a step are known only once its loss has been computed, so they steer the next one.
Everything is arrays inside the compiled update: the host neither waits nor decides, and the state
is replicated, so all devices and processes compute the same numbers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Float

from mental_r1_jax.objective import STAGE_NAMES, CrpoConfig
from mental_r1_jax.rl.loss_terms import stage_coefficients
from mental_r1_jax.rl.masking import Metric, Sum

# The fields of states are `Any` so that JAX can build them of shapes and shardings, too.


@flax.struct.dataclass
class StageControl:
    """State of the rule `target`, one number a stage; float32 [S] unless said otherwise.

    Attributes:
        betas: coefficients of the next step's loss.
        targets: H*_t, nats; NaN until the start model's entropy of the stage has been measured.
        start_entropies: running mean of the stage's entropy over the first steps, nats.
        start_steps: int32 [S], steps that this mean is over.
    """

    betas: Any
    targets: Any
    start_entropies: Any
    start_steps: Any


@flax.struct.dataclass
class BonusControl:
    """State of the adaptive entropy bonus; float32 scalars.

    Attributes:
        alpha: weight of the bonus where it is on.
        entropy: mean token entropy of the last step, nats; infinite before the first one.
    """

    alpha: Any
    entropy: Any


@flax.struct.dataclass
class EntropyControl:
    """Everything that is steered; None what is not.

    Attributes:
        stages: `StageControl`, coefficients of the stage entropies.
        bonus: `BonusControl`, weight of the entropy of all tokens.
    """

    stages: Any = None
    bonus: Any = None


@dataclasses.dataclass(frozen=True)
class EntropyWeights:
    """Weights of the entropy terms in one step's loss.

    Attributes:
        stages: beta_t; numbers of the recipe, or an array [S] where they are steered.
        bonus: of the mean entropy of all tokens, which the loss subtracts; a number or a scalar.
    """

    stages: tuple[float, ...] | Array
    bonus: float | Array


@flax.struct.dataclass
class MeasuredEntropies:
    """What a whole step has measured, over all its micro-batches and devices.

    Attributes:
        stages: mean token entropy of each stage over the completions that have it, nats, [S]; NaN
            where none has.
        tokens: mean entropy of all completion tokens, nats, a scalar; NaN where there is none.
    """

    stages: Any
    tokens: Any


def start_control(crpo: CrpoConfig, stages: tuple[str, ...] = STAGE_NAMES) -> EntropyControl | None:
    """Make the state before the first step; None where the recipe steers nothing."""
    of_stages = _start_stages(crpo, stages) if _steers_stages(crpo) else None
    bonus = None
    if crpo.entropy_bonus_rule == "adaptive":
        alpha = jnp.array(crpo.entropy_bonus_coef, jnp.float32)
        bonus = BonusControl(alpha=alpha, entropy=jnp.array(jnp.inf, jnp.float32))
    return None if of_stages is None and bonus is None else EntropyControl(of_stages, bonus)


def _start_stages(crpo: CrpoConfig, stages: tuple[str, ...]) -> StageControl:
    """The coefficients of the first step, and the targets where they are known."""
    zeros = jnp.zeros(len(stages), jnp.float32)
    given = jnp.array(crpo.stage_entropy_targets, jnp.float32)
    return StageControl(
        betas=jnp.array(stage_coefficients(crpo, stages), jnp.float32),
        targets=given if crpo.stage_entropy_target_unit == "nats" else zeros + jnp.nan,
        start_entropies=zeros,
        start_steps=jnp.zeros(len(stages), jnp.int32),
    )


def _steers_stages(crpo: CrpoConfig) -> bool:
    """Whether the beta_t can ever move.

    With steps of size 0 the program is that of the rule `explicit`, to the last bit; arrays in the
    place of its constants would be rounded otherwise.
    """
    return crpo.stage_entropy_rule == "target" and crpo.stage_entropy_step > 0


def entropy_weights(
    crpo: CrpoConfig,
    control: EntropyControl | None = None,
    stages: tuple[str, ...] = STAGE_NAMES,
) -> EntropyWeights:
    """Return the weights of the next loss: those of the recipe, and of `control` what it steers.

    Raises:
        ValueError: the recipe steers, and there is no state.
    """
    betas: tuple[float, ...] | Array = stage_coefficients(crpo, stages)
    bonus: float | Array = crpo.entropy_bonus_coef
    if _steers_stages(crpo):
        if control is None or control.stages is None:
            raise _no_state("crpo.stage_entropy_rule=target")
        betas = control.stages.betas
    if crpo.entropy_bonus_rule == "adaptive":
        if control is None or control.bonus is None:
            raise _no_state("crpo.entropy_bonus_rule=adaptive")
        bonus = control.bonus.alpha * _is_on(control.bonus, crpo)
    return EntropyWeights(betas, bonus)


def _no_state(rule: str) -> ValueError:
    return ValueError(
        f"{rule} expected a state of the coefficients, got None; make the train state with "
        "init_state(params, optimizer, crpo)"
    )


def _is_on(control: BonusControl, crpo: CrpoConfig) -> Array:
    """Whether the last entropy was below its target, as 0.0 or 1.0."""
    return jnp.where(control.entropy < crpo.entropy_bonus_target, 1.0, 0.0)


def measured_entropies(
    metrics: Mapping[str, Metric], stages: tuple[str, ...] = STAGE_NAMES
) -> MeasuredEntropies:
    """Read the entropies of a step off its metrics, which are reduced over all micro-batches."""
    found = [metrics[f"entropy/stage/{name}"].value for name in stages]
    return MeasuredEntropies(stages=jnp.stack(found), tokens=metrics["entropy"].value)


def next_control(
    control: EntropyControl, measured: MeasuredEntropies, crpo: CrpoConfig
) -> EntropyControl:
    """Steer by what a step has measured; call it once a step."""
    stages, bonus = control.stages, control.bonus
    return EntropyControl(
        stages=None if stages is None else next_stages(stages, measured.stages, crpo),
        bonus=None if bonus is None else next_bonus(bonus, measured.tokens, crpo),
    )


def next_stages(
    control: StageControl, entropies: Float[Array, " S"], crpo: CrpoConfig
) -> StageControl:
    """Move every beta_t one step towards the target of its stage.

        beta_t <- clip(beta_t + d sign(H_t - H*_t), -M, M)      where |H_t - H*_t| > zone * H*_t
        H*_t = targets_t                                        unit `nats`
        H*_t = targets_t * mean of H_t over the first K steps   unit `relative`

    d is `crpo.stage_entropy_step`, M `crpo.stage_entropy_scale`, zone
    `crpo.stage_entropy_dead_zone`, K `crpo.stage_entropy_start_steps`. The loss has
    `+ beta_t * Hbar_t`, so an entropy above its target raises beta_t, which lowers the entropy.
    During the first K steps of the unit `relative` the beta_t stay as they are.

    Args:
        control: before the step.
        entropies: H_t of the step, nats. A stage without one (NaN, or infinite) keeps its beta_t,
            and the step does not count among its first K.
        crpo: the recipe's section.
    """
    seen = jnp.isfinite(entropies)
    error = jnp.where(seen, entropies, 0.0) - control.targets
    # No comparison with NaN holds, so a target that is not known yet moves nothing.
    outside = seen & (jnp.abs(error) > crpo.stage_entropy_dead_zone * control.targets)
    moved = jnp.where(outside, crpo.stage_entropy_step * jnp.sign(error), 0.0)
    bound = crpo.stage_entropy_scale
    control = dataclasses.replace(control, betas=jnp.clip(control.betas + moved, -bound, bound))
    if crpo.stage_entropy_target_unit == "nats":
        return control
    wanted = crpo.stage_entropy_start_steps
    counted = seen & (control.start_steps < wanted)
    steps = control.start_steps + counted
    change = (entropies - control.start_entropies) / jnp.maximum(steps, 1)
    means = control.start_entropies + jnp.where(counted, change, 0.0)
    targets = jnp.array(crpo.stage_entropy_targets, jnp.float32) * means
    return dataclasses.replace(
        control,
        targets=jnp.where(steps == wanted, targets, jnp.nan),
        start_entropies=means,
        start_steps=steps,
    )


def next_bonus(control: BonusControl, entropy: Float[Array, ""], crpo: CrpoConfig) -> BonusControl:
    """Move the weight of the entropy bonus by one step, and remember the entropy.

        loss of step k:  - alpha_k 1[H_{k-1} < H*] mean(H)
        alpha_{k+1} = clip(alpha_k + d if H_k < H* else alpha_k - d, 0, max)

    H* is `crpo.entropy_bonus_target`, d `crpo.entropy_bonus_step`, max `crpo.entropy_bonus_max`.
    Before the first step no entropy is known, and the bonus is off.

    Args:
        control: before the step.
        entropy: H_k of the step, nats; where it is not finite, nothing changes.
        crpo: the recipe's section.

    References:
        He et al. 2025, "Skywork open reasoner 1" (arXiv 2505.22312), adaptive entropy control.
    """
    step = crpo.entropy_bonus_step
    moved = control.alpha + jnp.where(entropy < crpo.entropy_bonus_target, step, -step)
    seen = jnp.isfinite(entropy)
    return BonusControl(
        alpha=jnp.where(seen, jnp.clip(moved, 0.0, crpo.entropy_bonus_max), control.alpha),
        entropy=jnp.where(seen, entropy, control.entropy),
    )


def control_metrics(
    control: EntropyControl | None, crpo: CrpoConfig, stages: tuple[str, ...] = STAGE_NAMES
) -> dict[str, Metric]:
    """Report what was steered with in a step: the state before it."""
    metrics: dict[str, Metric] = {}
    if control is not None and control.bonus is not None:
        metrics["entropy_bonus/alpha"] = Sum(control.bonus.alpha)
        metrics["entropy_bonus/on"] = Sum(_is_on(control.bonus, crpo))
    if control is not None and control.stages is not None:
        for stage, name in enumerate(stages):
            metrics[f"beta/stage/{name}"] = Sum(control.stages.betas[stage])
            metrics[f"entropy_target/stage/{name}"] = Sum(control.stages.targets[stage])
    return metrics
