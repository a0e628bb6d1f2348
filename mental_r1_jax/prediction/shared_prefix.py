"""The beginning that prompts share (instruction and question), so that it is run once for all.

Its length comes from the tokens themselves: a chat template may end anywhere in a token, and a
post may have one in common with another.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int

from mental_r1_jax import hosts, sharding
from mental_r1_jax.rollout.collect import pad_prompts
from mental_r1_jax.text.prompts import RenderedPrompt
from mental_r1_jax.types import PromptBatch

# Lengths are multiples of it, so that few shapes are compiled; below one, nothing is shared.
PREFIX_STEP = 16


def shared_length(prompts: Iterable[RenderedPrompt]) -> int:
    """Tokens at the beginning of all `prompts` that are run once: a multiple of `PREFIX_STEP`.

    At least one token of each prompt stays behind them. 0 where there is nothing worth sharing.
    """
    ids: Iterable[Int[np.ndarray, " n"]] = (np.asarray(one.ids, np.int32) for one in prompts)
    first, length = None, 0
    for own in ids:
        if first is None:
            first, length = own, len(own) - 1
            continue
        length = min(length, len(own) - 1)
        differs = np.flatnonzero(own[:length] != first[:length])
        length = int(differs[0]) if len(differs) else length
    return length // PREFIX_STEP * PREFIX_STEP


def place_prompts(
    mesh: Mesh,
    prompts: Sequence[RenderedPrompt],
    width: int,
    pad_id: int,
    rows: Sequence[int],
    shared: int = 0,
) -> PromptBatch:
    """Pad this process's share of a batch to `width` tokens in all, and place it on the mesh.

    Args:
        mesh: where the prompts go, sharded over the batch axes.
        prompts: this process's share.
        width: from `prompt_width`.
        pad_id: token that fills the places after a prompt.
        rows: positions of the prompts, the source of their random numbers.
        shared: from `shared_length` of prompts that these are among; they become a prefix.
    """
    if not shared:
        batch = pad_prompts(prompts, width, pad_id, rows)
    else:
        rest = [dataclasses.replace(one, ids=one.ids[shared:]) for one in prompts]
        parts = len(hosts.local_rows(mesh, sharding.batch_shards(mesh)))
        # Any, because the containers say jax.Array: `put_batch` makes this host array such.
        prefix: Any = np.tile(np.asarray(prompts[0].ids[:shared], np.int32), (parts, 1))
        batch = dataclasses.replace(
            pad_prompts(rest, width - shared, pad_id, rows), prefix_ids=prefix
        )
    placed: PromptBatch = hosts.put_batch(mesh, batch)
    return placed
