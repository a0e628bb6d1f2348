"""In which shape prompts are run: what all begin with once, and the rest in one compiled width.

Instruction and question stand before every post. How many tokens that is comes from the prompts
themselves: a template may end in the middle of a token, and posts may begin alike.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from mental_r1_jax import hosts, sharding
from mental_r1_jax.rollout.collect import common_length, pad_prompts
from mental_r1_jax.text.prompts import RenderedPrompt
from mental_r1_jax.types import PromptBatch

# What is shared is a multiple of the first, what is left one of the second: few shapes compile.
PREFIX_STEP, REST_STEP = 16, 32


@dataclasses.dataclass(frozen=True)
class PromptShape:
    """Shape of the batches of many prompts.

    Attributes:
        shared: tokens at the beginning of every prompt that are run once a batch; may be 0.
        rest: room for the tokens of a prompt behind them.
    """

    shared: int
    rest: int

    @classmethod
    def of(
        cls, prompts: Sequence[RenderedPrompt], others: Sequence[RenderedPrompt] = ()
    ) -> PromptShape:
        """The shape that holds all `prompts`.

        Args:
            prompts: at least one.
            others: must begin like `prompts` as well, but are not run.
        """
        shared = shared_length([*prompts, *others])
        rest = max(len(prompt.ids) for prompt in prompts) - shared
        return cls(shared, -(-rest // REST_STEP) * REST_STEP)

    def place(
        self,
        mesh: Mesh,
        prompts: Sequence[RenderedPrompt],
        pad_id: int,
        rows: Sequence[int],
    ) -> PromptBatch:
        """Pad this process's share of a batch, and place it on the mesh.

        Args:
            mesh: where the prompts go, sharded over the batch axes.
            prompts: this process's share.
            pad_id: token that fills the places after a prompt.
            rows: positions of the prompts, the source of their random numbers.
        """
        rest = [dataclasses.replace(one, ids=one.ids[self.shared :]) for one in prompts]
        batch = pad_prompts(rest, self.rest, pad_id, rows)
        if self.shared:
            parts = len(hosts.local_rows(mesh, sharding.batch_shards(mesh)))
            # Any, because the containers say jax.Array: `put_batch` makes this host array such.
            prefix: Any = np.tile(np.asarray(prompts[0].ids[: self.shared], np.int32), (parts, 1))
            batch = dataclasses.replace(batch, prefix_ids=prefix)
        placed: PromptBatch = hosts.put_batch(mesh, batch)
        return placed


def shared_length(prompts: Iterable[RenderedPrompt]) -> int:
    """Tokens at the beginning of all `prompts` that are the same: a multiple of `PREFIX_STEP`.

    At least one token of each prompt stays behind them.
    """
    return common_length(prompts) // PREFIX_STEP * PREFIX_STEP
