"""Probes of who decodes with the TPU kernel: a CPU can't run it, but it can be asked for."""

from __future__ import annotations

from typing import Any

import jax

from mental_r1_jax.config import ExperimentConfig
from mental_r1_jax.models import decode_kernel_tpu
from tests.every_field import programs
from tests.every_field.fields import Probe
from tests.every_field.lab import Lab


def training_asks(lab: Lab, config: ExperimentConfig) -> bool:
    """Whether the sampler of training asks if the kernel can run."""
    return _asks(lab, config, programs.training_sampler)


def validation_asks(lab: Lab, config: ExperimentConfig) -> bool:
    """Whether that of a validation does."""
    return _asks(lab, config, programs.validation_sampler)


def evaluation_asks(lab: Lab, config: ExperimentConfig) -> bool:
    """Whether that of `mental-r1 evaluate` does."""
    return _asks(lab, config, programs.evaluation_sampler)


def sample_asks(lab: Lab, config: ExperimentConfig) -> bool:
    """Whether that of `mental-r1 sample` does."""
    return _asks(lab, config, programs.sample_sampler)


def _asks(lab: Lab, config: ExperimentConfig, sampler: Probe) -> bool:
    asked = []

    def takes(*arguments: Any) -> bool:
        asked.append(arguments)
        return False

    lab.patch.setattr(decode_kernel_tpu, "takes", takes)
    jax.clear_caches()  # a program traced before would not ask again
    sampler(lab, config)
    return bool(asked)
