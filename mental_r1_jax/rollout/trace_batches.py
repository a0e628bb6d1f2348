"""Batches of supervised traces, in which what all prompts begin with is run once.

Instruction, form and often the question stand before every post. So a batch has the layout of a
rollout: the common beginning is the prompt of a group, and its completions are the rest of each
prompt with the trace behind it. Of these the trace alone is learnt, and the head runs on it alone.
The loss is that of rows that stand for themselves, up to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mental_r1_jax.rollout.collect import common_length
from mental_r1_jax.text.prompts import RenderedPrompt
from mental_r1_jax.types import TraceBatch

EncodedTrace = tuple[RenderedPrompt, list[int]]


@dataclass(frozen=True)
class TraceLayout:
    """Shapes of the batches of a cold start.

    Attributes:
        shared: F, tokens that all prompts begin with.
        widths: T, room for the rest of a prompt and its trace; a batch takes the smallest that
            holds its rows, and each is one program.
        trace: tokens of the longest trace, EOS included.
        groups: S, into which a batch is split: one for each micro-batch on each shard of the mesh,
            so that all have the same part of it.
    """

    shared: int
    widths: tuple[int, ...]
    trace: int
    groups: int

    @classmethod
    def of(
        cls, traces: Sequence[EncodedTrace], prompt_lengths: Sequence[int], groups: int
    ) -> TraceLayout:
        """The layout for all `traces`.

        Args:
            traces: from `jobs.sft.encode_traces`.
            prompt_lengths: P and its buckets; each gives a width, with room for any trace.
            groups: S.
        """
        shared = common_length([prompt for prompt, _ in traces])
        assert shared > 0, "every prompt begins with the instruction"
        longest = max(len(ids) for _, ids in traces)
        most = max(len(prompt.ids) - shared + len(ids) for prompt, ids in traces)
        widths = {min(most, p - shared + longest) for p in prompt_lengths if p > shared}
        return cls(shared, tuple(sorted(widths)), longest, groups)

    def batch(
        self,
        traces: Sequence[EncodedTrace],
        rows: Sequence[int],
        groups: Sequence[int] | np.ndarray,
        pad_id: int,
    ) -> TraceBatch:
        """This process's share of a batch.

        Args:
            traces: all of them.
            rows: which ones the batch holds, of all processes, so that all choose one width.
            groups: numbers of this process's groups.
            pad_id: token that fills up short rows.
        """
        chosen = [(traces[row][0].ids[self.shared :], traces[row][1]) for row in rows]
        longest = max(len(rest) + len(trace) for rest, trace in chosen)
        width = next(width for width in self.widths if width >= longest)
        size = len(rows) // self.groups
        shape = (len(groups), size, width)
        # Any, because the containers say jax.Array: `put_batch` makes these host arrays such.
        ids: Any = np.full(shape, pad_id, np.int32)
        mask: Any = np.zeros(shape, bool)
        start: Any = np.zeros(shape[:2], np.int32)
        target: Any = np.zeros((*shape[:2], self.trace), bool)
        for place, group in enumerate(groups):
            for n, (rest, trace) in enumerate(chosen[group * size : (group + 1) * size]):
                end = len(rest) + len(trace)
                ids[place, n, :end] = [*rest, *trace]
                mask[place, n, :end] = True
                start[place, n] = len(rest)
                target[place, n, : len(trace)] = True
        beginning = np.asarray(traces[0][0].ids[: self.shared], np.int32)
        shared: Any = np.tile(beginning, (len(groups), 1))
        everywhere: Any = np.ones(shared.shape, bool)
        return TraceBatch(shared, everywhere, ids, mask, start, target)
