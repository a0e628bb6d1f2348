"""Tiny run folders to damage: checkpoints of a few numbers, made without training."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp

from mental_r1_jax.training import checkpoint
from mental_r1_jax.training.train_step import TrainState

LIKE = {"w": jax.ShapeDtypeStruct((64,), jnp.float32)}


def state_of(step: int) -> TrainState:
    """Weights that tell their step: 64 times its number, and ten times that as moments."""
    weights = jnp.full((64,), step, jnp.float32)
    return TrainState(jnp.int32(step), {"w": weights}, {"mu": {"w": 10 * weights}})


def make_checkpoints(run: Path, scores: dict[int, float | None], keep: int | None = None) -> None:
    """Checkpoints of the steps in `scores`, with these validation scores, in a run folder."""
    with checkpoint.open_checkpoints(run / "checkpoints", keep=keep) as manager:
        for step, score in scores.items():
            checkpoint.save(manager, step, state_of(step), {"step": step}, score)
