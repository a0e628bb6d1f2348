"""Attention on TPU: one call of the splash kernel that JAX ships, for a prompt and its group.

A group is laid end to end as one sequence, ``[prompt | completion 1 | ... | completion G]``, with
one static mask: a token sees the prompt's slots and those of its own part, up to itself. The kernel
skips every block of keys that the mask hides altogether, so the prompt is stored once, a completion
never meets another one, and memory grows with the length of that sequence, not with its square.

The mask is fixed when a program is compiled, the lengths of prompts are not. Full attention needs
no lengths: causality and segments hide the padding. A sliding window does: how far a completion's
token is from a prompt's token depends on the padding between them. So for a window each prompt is
rolled to the right end of its part, and its padding stands in front. Then its last real token
stands just before every completion's first one, and distances between slots are distances between
tokens.

Axes: N slots of the packed sequence, in the order above. The parts are padded to multiples of
`LANES`, so that each begins at the edge of a register tile, and the sequence to one of the block.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import (
    BlockSizes,
    Mask,
    MultiHeadMask,
    SegmentIds,
    make_splash_mha,
)
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from mental_r1_jax.models.architecture import AttentionFacts
from mental_r1_jax.models.attention_plain import CompletionHeads, PromptHeads
from mental_r1_jax.sharding import AutoAxes

# The smallest block of the kernel, and the width of a TPU vector register.
LANES = 128


def splash_prompt_attention(
    queries: Float[Array, "B P K R h"],
    keys: Float[Array, "B P K h"],
    values: Float[Array, "B P K h"],
    facts: AttentionFacts,
    *,
    interpret: bool = False,
) -> Float[Array, "B P K R h"]:
    """Return causal attention within each prompt; padding on the right needs no mask.

    Without completions slots are positions, so a window needs no rolling.

    Args:
        queries: not scaled.
        keys: rotated keys of the prompt.
        values: what is mixed, one for each key.
        facts: scale, window and softcap of the layer.
        interpret: run the kernel's program on any machine, slowly, for tests.
    """
    layout = PackedGroup(queries.shape[1], completion=0, group=0)
    queries, keys, values = (_pad_tokens(x, layout.total) for x in (queries, keys, values))
    mixed = _splash(queries, keys, values, None, layout, facts, interpret)
    return mixed[:, : layout.prompt]


def splash_group_attention(
    prompt: PromptHeads,
    completions: CompletionHeads,
    prompt_mask: Bool[Array, "B P"],
    completion_mask: Bool[Array, "B G T"],
    facts: AttentionFacts,
    *,
    interpret: bool = False,
) -> tuple[Float[Array, "B P K R h"], Float[Array, "B G T K R h"]]:
    """Return causal attention of prompts, and of completions to their prompt and themselves.

    What stands at padding is finite and depends on padding only.

    Args:
        prompt: queries (not scaled), keys and values of the prompts.
        completions: the same of their completions.
        prompt_mask: true on real prompt tokens, which stand on the left.
        completion_mask: true on real completion tokens, which stand on the left.
        facts: scale, window and softcap of the layer.
        interpret: run the kernel's program on any machine, slowly, for tests.
    """
    group, length = completion_mask.shape[1:]
    layout = PackedGroup(prompt_mask.shape[1], length, group)
    padding = None  # slots behind each prompt, which a window wants in front of it
    if facts.window is not None:
        padding = layout.start - prompt_mask.sum(-1, dtype=jnp.int32)
    queries, keys, values = (
        layout.pack(p, c, padding) for p, c in zip(prompt, completions, strict=True)
    )
    # Real tokens form one segment, padding another one; so no token attends to nothing.
    masks = prompt_mask.astype(jnp.int32), completion_mask.astype(jnp.int32)
    segments = layout.pack(*masks, padding)
    mixed = _splash(queries, keys, values, segments, layout, facts, interpret)
    return layout.unpack(mixed, padding)


@dataclass(frozen=True)
class PackedGroup:
    """Where the tokens of a prompt and its completions stand in their common sequence.

    Attributes:
        prompt: length of the prompt, P.
        completion: length of a completion, T.
        group: number of completions, G.
    """

    prompt: int
    completion: int
    group: int

    @property
    def start(self) -> int:
        """Slot of the first completion's first token."""
        return _round_up(self.prompt, LANES)

    @property
    def stride(self) -> int:
        """Slots from the start of one completion to that of the next."""
        return _round_up(self.completion, LANES)

    @property
    def block(self) -> int:
        """Edge of the kernel's square blocks: the largest that a part of the sequence fills."""
        longest = self.stride if self.group else self.start
        return next(size for size in (512, 256, LANES) if size <= max(longest, LANES))

    @property
    def total(self) -> int:
        """Slots of the sequence, N."""
        return _round_up(self.start + self.group * self.stride, self.block)

    def place(self, slots: np.ndarray) -> np.ndarray:
        """Return what each slot would be in a sequence of the prompt and its own part alone."""
        own = self.start + (slots - self.start) % max(self.stride, 1)
        return np.where(slots < self.start, slots, own)

    def pack(self, prompt: Array, completions: Array, padding: Array | None = None) -> Array:
        """Lay prompts and completions end to end, with zeros between.

        Args:
            prompt: ``[B, P, ...]``.
            completions: ``[B, G, T, ...]``.
            padding: how far to roll each prompt to the right within its `start` slots; None: not.

        Returns:
            ``[B, N, ...]``.
        """
        batch, rest = prompt.shape[0], prompt.shape[2:]
        completions = _pad_tokens(completions, self.stride, axis=2)
        completions = completions.reshape(batch, self.group * self.stride, *rest)
        prompt = _pad_tokens(prompt, self.start)
        prompt = prompt if padding is None else _roll(prompt, padding)
        return _pad_tokens(jnp.concatenate([prompt, completions], axis=1), self.total)

    def unpack(self, packed: Array, padding: Array | None = None) -> tuple[Array, Array]:
        """Return the prompts ``[B, P, ...]`` and completions ``[B, G, T, ...]`` again."""
        batch, _, *rest = packed.shape
        own = packed[:, self.start : self.start + self.group * self.stride]
        own = own.reshape(batch, self.group, self.stride, *rest)
        prompt = packed[:, : self.start]
        prompt = prompt if padding is None else _roll(prompt, -padding)
        return prompt[:, : self.prompt], own[:, :, : self.completion]


@dataclass(frozen=True)
class GroupMask(Mask):
    """Which slot of a `PackedGroup` sees which, worked out block by block as the kernel asks.

    Slot q of part g sees slot k if ``k <= q`` and k lies in the prompt or in part g; with a window,
    if also ``place(q) - place(k) < window`` (see `PackedGroup.place`). No array of N x N elements
    exists; the kernel keeps one copy of each block that is neither full nor empty.

    Attributes:
        layout: says which part a slot belongs to.
        window: tokens that a token sees, itself included; None: all.
    """

    layout: PackedGroup
    window: int | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Slots that look, slots that are looked at."""
        return (self.layout.total, self.layout.total)

    def __getitem__(self, index: tuple[slice, slice]) -> np.ndarray:
        """Return a block of the mask, bool."""
        rows, columns = (np.arange(*part.indices(self.layout.total)) for part in index)
        start, stride = self.layout.start, max(self.layout.stride, 1)
        own_start = np.where(rows < start, 0, start + (rows - start) // stride * stride)
        before, after = columns[-1] < own_start[0], columns[0] > rows[-1]
        if after or (before and columns[0] >= start):
            return np.zeros((len(rows), len(columns)), bool)
        if self.window is None and columns[-1] < start and columns[-1] <= rows[0]:
            return np.ones((len(rows), len(columns)), bool)
        own = columns[None, :] >= own_start[:, None]
        seen = (columns[None, :] <= rows[:, None]) & (own | (columns[None, :] < start))
        if self.window is None:
            return seen
        distance = self.layout.place(rows)[:, None] - self.layout.place(columns)[None, :]
        return seen & (distance < self.window)


def _splash(
    queries: Float[Array, "B N K R h"],
    keys: Float[Array, "B N K h"],
    values: Float[Array, "B N K h"],
    segments: Int[Array, "B N"] | None,
    layout: PackedGroup,
    facts: AttentionFacts,
    interpret: bool,
) -> Float[Array, "B N K R h"]:
    """Run the kernel on every device's own prompts and heads."""
    batch, length, kv_heads, repeats, width = queries.shape
    scaled = queries * jnp.asarray(facts.scale, queries.dtype)
    by_head = scaled.transpose(0, 2, 3, 1, 4)  # [B, K, R, N, h]
    keys, values = keys.swapaxes(1, 2), values.swapaxes(1, 2)

    def run(queries: Array, keys: Array, values: Array, *segments: Array) -> Array:
        heads = queries.shape[1] * repeats
        kernel = _kernel(layout, facts, heads, interpret)
        ids = SegmentIds(q=segments[0], kv=segments[0]) if segments else None
        flat = queries.reshape(queries.shape[0], heads, length, width)
        return jax.vmap(kernel)(flat, keys, values, ids).reshape(queries.shape)

    arrays = (by_head, keys, values) if segments is None else (by_head, keys, values, segments)
    return _on_each_device(run, arrays).transpose(0, 3, 1, 2, 4)


def _kernel(layout: PackedGroup, facts: AttentionFacts, num_heads: int, interpret: bool) -> Any:
    """Build the kernel for one sequence; all heads share the mask, which JAX works out once."""
    size = layout.block
    return make_splash_mha(
        MultiHeadMask((GroupMask(layout, facts.window),) * num_heads),
        block_sizes=BlockSizes(
            block_q=size,
            block_kv=size,
            block_q_dkv=size,
            block_kv_dkv=size,
            block_q_dq=size,
            block_kv_dq=size,
        ),
        head_shards=1,
        q_seq_shards=1,
        attn_logits_soft_cap=facts.softcap,
        interpret=interpret,
    )


def _on_each_device(run: Callable[..., Array], arrays: tuple[Array, ...]) -> Array:
    """Call `run` with each device's share of ``[B, K, ...]`` or ``[B, N]`` arrays.

    The compiler cannot shard a hand-written kernel, so it is said here: B over the batch axes and K
    over the axis of key/value heads, where the mesh divides them.
    """
    mesh = jax.typeof(arrays[0]).sharding.mesh
    axes = AutoAxes.of(mesh)
    if not axes.sizes:
        return run(*arrays)
    batch, kv_heads = arrays[0].shape[:2]
    rows = PartitionSpec(axes.of_batch(batch) or None)
    cells = PartitionSpec(*rows, axes.of_logical("kv_heads", kv_heads))
    return jax.shard_map(
        run,
        mesh=mesh,
        in_specs=tuple(rows if x.ndim == 2 else cells for x in arrays),
        out_specs=cells,
        check_vma=False,
    )(*arrays)


def _roll(x: Array, shifts: Int[Array, " B"]) -> Array:
    """Roll the tokens ``[B, tokens, ...]`` of each prompt to the right by its own shift."""
    return jax.vmap(partial(jnp.roll, axis=0))(x, shifts)


def _pad_tokens(x: Array, length: int, axis: int = 1) -> Array:
    """Append zeros along the axis of tokens up to `length`."""
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, length - x.shape[axis])
    return jnp.pad(x, widths)


def _round_up(size: int, multiple: int) -> int:
    """Return the smallest multiple that is not below `size`."""
    return -(-size // multiple) * multiple
