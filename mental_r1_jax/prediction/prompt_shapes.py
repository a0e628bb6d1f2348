"""In which shapes prompts are run: what all begin with once, and the rest in a few compiled widths.

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
from mental_r1_jax.rollout.collect import pad_prompts, prompt_width
from mental_r1_jax.text.prompts import RenderedPrompt
from mental_r1_jax.types import PromptBatch

# What is shared is a multiple of the first, what is left one of the second: few shapes compile.
PREFIX_STEP, WIDTH_STEP = 16, 32
# One compiled width for so many batches: compiling takes as long as some batches do.
BATCHES_PER_WIDTH = 8


@dataclasses.dataclass(frozen=True)
class PromptShapes:
    """Shapes of the batches of many prompts.

    Attributes:
        shared: tokens at the beginning of every prompt that are run once a batch; may be 0.
        widths: lengths of whole prompts that are compiled, ascending.
    """

    shared: int
    widths: tuple[int, ...]

    @classmethod
    def of(
        cls, prompts: Sequence[RenderedPrompt], size: int, others: Sequence[RenderedPrompt] = ()
    ) -> PromptShapes:
        """Choose shapes for `prompts` in batches of `size`, each of prompts of like length.

        Args:
            prompts: at least one.
            size: prompts of a batch.
            others: must begin like `prompts` as well, but are not run.
        """
        shared = shared_length([*prompts, *others])
        lengths = sorted(len(prompt.ids) for prompt in prompts)
        longest = [lengths[min(end, len(lengths)) - 1] for end in _ends(len(lengths), size)]
        count = max(1, len(longest) // BATCHES_PER_WIDTH)
        chosen = {longest[(n + 1) * len(longest) // count - 1] for n in range(count)}
        step = WIDTH_STEP
        widths = {shared + -(-(length - shared) // step) * step for length in chosen}
        return cls(shared, tuple(sorted(widths)))

    def place(
        self,
        mesh: Mesh,
        prompts: Sequence[RenderedPrompt],
        width: int,
        pad_id: int,
        rows: Sequence[int],
    ) -> PromptBatch:
        """Pad this process's share of a batch, and place it on the mesh.

        Args:
            mesh: where the prompts go, sharded over the batch axes.
            prompts: this process's share.
            width: of the whole prompts, from `width`.
            pad_id: token that fills the places after a prompt.
            rows: positions of the prompts, the source of their random numbers.
        """
        rest = [dataclasses.replace(one, ids=one.ids[self.shared :]) for one in prompts]
        batch = pad_prompts(rest, width - self.shared, pad_id, rows)
        if self.shared:
            parts = len(hosts.local_rows(mesh, sharding.batch_shards(mesh)))
            # Any, because the containers say jax.Array: `put_batch` makes this host array such.
            prefix: Any = np.tile(np.asarray(prompts[0].ids[: self.shared], np.int32), (parts, 1))
            batch = dataclasses.replace(batch, prefix_ids=prefix)
        placed: PromptBatch = hosts.put_batch(mesh, batch)
        return placed

    def width(self, prompts: Sequence[RenderedPrompt]) -> int:
        """The smallest of the widths that holds a whole batch, of all processes."""
        return prompt_width(prompts, self.widths)


def shared_length(prompts: Iterable[RenderedPrompt]) -> int:
    """Tokens at the beginning of all `prompts` that are the same: a multiple of `PREFIX_STEP`.

    At least one token of each prompt stays behind them.
    """
    first, *others = (np.asarray(one.ids, np.int32) for one in prompts)
    length = len(first) - 1
    for own in others:
        length = min(length, len(own) - 1)
        differs = np.flatnonzero(own[:length] != first[:length])
        length = int(differs[0]) if len(differs) else length
    return length // PREFIX_STEP * PREFIX_STEP


def _ends(count: int, size: int) -> range:
    """Where each batch of `size` ends."""
    return range(size, count + size, size)
