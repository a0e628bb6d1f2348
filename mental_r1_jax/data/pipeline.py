"""The endless, shuffled, resumable stream of training prompts, the same for any number of hosts.

The sets are concatenated to one list of N posts. Epoch e is a permutation of it that depends on
(seed, e) alone; the epochs follow each other without a gap, so item i of the global order is
defined for every i >= 0. Batch k is items k*B to (k+1)*B - 1, across an epoch's end if need be,
and each host reads the rows of it that its devices hold. The position of the stream is k alone.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence

import grain
import numpy as np

from mental_r1_jax.data.records import Example
from mental_r1_jax.errors import UserError

# What a position must agree with, or the same number would mean other posts.
_IDENTITY = ("seed", "batch_size", "sets")


class PromptIterator(Iterator[list[Example]]):
    """Batches of posts; `next` gives this host's share of the next global batch."""

    def __init__(
        self,
        order: grain.MapDataset[Example],
        identity: Mapping[str, int | str],
        rows: Sequence[int] | np.ndarray,
    ) -> None:
        """Start at batch 0 of `order`; see `make_prompt_iterator`."""
        self._order = order
        self._identity = dict(identity)
        self._batch_size = int(identity["batch_size"])
        self._rows = [int(row) for row in rows]
        self._next_batch = 0

    def __next__(self) -> list[Example]:
        """Return this host's share of the next batch."""
        start = self._next_batch * self._batch_size
        batch = [self._order[start + row] for row in self._rows]
        self._next_batch += 1
        return batch

    def get_state(self) -> dict[str, int | str]:
        """Return the position, ready for JSON, with what it belongs to."""
        return {"next_batch": self._next_batch, **self._identity}

    def set_state(self, state: Mapping[str, int | str]) -> None:
        """Go to the position in `state`; the number of hosts may have changed since.

        Raises:
            UserError: the state belongs to other data, another seed or another batch size.
        """
        differing = [key for key in _IDENTITY if state.get(key) != self._identity[key]]
        if differing or int(state.get("next_batch", -1)) < 0:
            raise UserError(
                "The saved data position does not belong to this run's data",
                f"{self._identity}",
                f"{dict(state)}",
                "Resume with the sets, seed and batch size of the checkpoint, or start a new run.",
            )
        self._next_batch = int(state["next_batch"])


def make_prompt_iterator(
    sources: Sequence[Sequence[Example]],
    *,
    batch_size: int,
    seed: int,
    rows: Sequence[int] | np.ndarray | None = None,
) -> PromptIterator:
    """Mix `sources` and return this host's stream of batches.

    Args:
        sources: the training posts of each set, random access.
        batch_size: B, posts of a global batch, over all hosts.
        seed: seed of the shuffle; the same seed gives the same order.
        rows: which rows of each batch to return, from 0 to B - 1; all of them when None.

    Raises:
        UserError: no posts.
        ValueError: a batch of no posts, or rows that it does not have.
    """
    filled = [source for source in sources if len(source)]
    if not filled:
        raise UserError(
            "There are no posts to train on",
            "at least one post in one set",
            f"{len(sources)} sets, all empty",
            "Check data.root, data.sets and data.limit_per_set.",
        )
    rows = range(batch_size) if rows is None else rows
    if batch_size < 1 or not all(0 <= row < batch_size for row in rows):
        raise ValueError(f"expected rows of a batch of {batch_size} posts, got {list(rows)}")
    order = (
        grain.MapDataset.concatenate([grain.MapDataset.source(source) for source in filled])
        .seed(seed)
        .shuffle()
        .repeat()  # grain draws a new permutation for each repetition
    )
    sets = hashlib.sha256(repr([_outline(source) for source in filled]).encode()).hexdigest()[:16]
    identity: dict[str, int | str] = {"seed": seed, "batch_size": batch_size, "sets": sets}
    return PromptIterator(order, identity, rows)


def steps_per_epoch(sources: Sequence[Sequence[Example]], batch_size: int) -> int:
    """Return ceil(N / B): the batches after which every post has been seen at least once."""
    return math.ceil(sum(len(source) for source in sources) / batch_size)


def _outline(source: Sequence[Example]) -> tuple[int, str, str, str]:
    """What tells one source from another without reading all of it."""
    first, last = source[0], source[len(source) - 1]
    ends = hashlib.sha256(f"{first.text}\0{last.text}".encode()).hexdigest()
    return len(source), first.set_name, first.split, ends
