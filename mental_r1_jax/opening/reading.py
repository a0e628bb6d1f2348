"""A recipe for those who only read its run; of one in a bucket, with its files just fetched."""

from __future__ import annotations

from mental_r1_jax.addresses import address_of
from mental_r1_jax.bucket import opened
from mental_r1_jax.config import ExperimentConfig


def for_reading(config: ExperimentConfig) -> ExperimentConfig:
    """The recipe with a run folder that may be read beside a process that trains in it.

    Of a local run the recipe as it is.

    Raises:
        UserError: there is no run at that address.
    """
    if address_of(config.run.output_dir) is None:
        return config
    run = config.run.model_copy(update={"output_dir": opened(config.run.output_dir)})
    return config.model_copy(update={"run": run})
