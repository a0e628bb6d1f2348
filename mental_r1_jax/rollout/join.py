"""Whole groups of several rollouts as one training batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Int

from mental_r1_jax.sharding import constrain_batch
from mental_r1_jax.types import Batch

# What makes a group empty where it is 0; everything else of it is then read by nothing.
_EMPTIED = ("completion_mask", "stage_mask", "group_mask", "rewards", "baseline_rewards")


def join_groups(batches: Sequence[Batch], rows: Int[Any, " B"]) -> Batch:
    """Pick groups out of several batches: row i of the result is row `rows[i]` of all of them.

    Rows are numbered through the batches one after the other. A row is a prompt with all of its
    completions, so groups stay whole. Prompts are padded to the widest P among the batches;
    everything else must have the same shape in each. Inside a jitted function the result is sharded
    over prompts as its parts are.

    Args:
        batches: of the same recipe; an optional field is None in all of them or in none.
        rows: which rows to take, in which order; the program does not depend on their values. A
            row that does not exist (-1) becomes an empty group: its completions have no tokens that
            count, its rewards are 0, and `group_mask` says so.

    Raises:
        ValueError: if a field is None in some batches only.
        TypeError: if shapes differ in more than B and P.
    """
    batches = [_with_group_mask(batch) for batch in batches]
    if len({jax.tree.structure(batch) for batch in batches}) != 1:
        raise ValueError(
            "join_groups: expected batches of one recipe, got some with and some without an "
            "optional field (old_logprobs, ref_logprobs, baseline_rewards); fill it in all or none"
        )
    width = max(batch.prompt_ids.shape[1] for batch in batches)
    wide = [
        dataclasses.replace(
            batch,
            prompt_ids=_pad(batch.prompt_ids, width),
            prompt_mask=_pad(batch.prompt_mask, width),
        )
        for batch in batches
    ]

    def join(*parts: jax.Array) -> jax.Array:
        return constrain_batch(jnp.take(jnp.concatenate(parts), rows, axis=0, mode="clip"))

    joined: Batch = jax.tree.map(join, *wide)
    exists = (rows >= 0) & (rows < sum(batch.rewards.shape[0] for batch in batches))
    emptied = {
        name: jnp.where(
            exists.reshape(-1, *(1,) * (value.ndim - 1)), value, jnp.zeros((), value.dtype)
        )
        for name in _EMPTIED
        if (value := getattr(joined, name)) is not None
    }
    return dataclasses.replace(joined, **emptied)


def _with_group_mask(batch: Batch) -> Batch:
    """The batch of a rollout, whose rows all have a group, with a mask that says so."""
    if batch.group_mask is not None:
        return batch
    return dataclasses.replace(batch, group_mask=jnp.ones(batch.rewards.shape[:1], bool))


def _pad(x: jax.Array, width: int) -> jax.Array:
    """Widen `[B, P]` on the right, with id 0 and with places that are no tokens."""
    return jnp.pad(x, [(0, 0), (0, width - x.shape[1])])
