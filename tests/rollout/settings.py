"""Sampler settings of rollout tests: the recipe's own section, with changes."""

from __future__ import annotations

import dataclasses
from typing import Any

from mental_r1_jax.config import RolloutConfig
from mental_r1_jax.rollout.sampler import SamplerSettings


def make_settings(
    *,
    eos_ids: tuple[int, ...],
    pad_id: int,
    greedy: bool = False,
    sampler_logprobs: bool = False,
    **rollout: Any,
) -> SamplerSettings:
    """Settings of training (`num_generations` completions) for the keys of `rollout`."""
    section = RolloutConfig(**rollout)
    return SamplerSettings(
        *(section, section.num_generations, greedy, eos_ids, pad_id),
        sampler_logprobs=sampler_logprobs,
    )


def with_rollout(settings: SamplerSettings, **changes: Any) -> SamplerSettings:
    """The same settings with other keys of the recipe's section, which is checked again."""
    section = RolloutConfig(**settings.rollout.model_dump() | changes)
    return dataclasses.replace(settings, rollout=section, num_completions=section.num_generations)
