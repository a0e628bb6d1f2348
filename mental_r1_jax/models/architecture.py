"""Everything static about a decoder: its sizes, what the attention of each layer is, its blocks.

Hashable throughout, so it may be bound into jitted functions.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from typing import Any, Literal

import jax.numpy as jnp

from mental_r1_jax.models.rope import RopeScaling

# What the backward pass computes again, see `DecoderConfig.remat`.
Remat = Literal["layers", "elementwise", "none"]

# What the feed-forward part applies to its gate; `gelu_tanh` is GELU's approximation by a tanh.
Activation = Literal["silu", "gelu_tanh"]


@dataclass(frozen=True)
class AttentionFacts:
    """What is fixed about the attention of one layer; the only place where its scale is decided.

        logit = softcap * tanh(scale * q k / softcap)      (scale * q k without a softcap)

    Attributes:
        scale: factor of the products of queries and keys.
        window: tokens that a token sees, itself included; None: all before it.
        rope_theta: base of the rotary frequencies.
        rope_scaling: change of those frequencies for long contexts, or None.
        softcap: bound of the logits, or None.
    """

    scale: float
    window: int | None = None
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    softcap: float | None = None


@dataclass(frozen=True)
class Block:
    """Consecutive layers that repeat a pattern of attention facts.

    Attributes:
        pattern: facts of the layers of one repetition.
        repeats: how often the pattern stands in a row.
    """

    pattern: tuple[AttentionFacts, ...]
    repeats: int

    @property
    def runs(self) -> tuple[tuple[AttentionFacts, int], ...]:
        """Facts and number of the equal layers that follow each other in one repetition."""
        groups = itertools.groupby(self.pattern)
        return tuple((facts, len(tuple(equal))) for facts, equal in groups)


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters beside the kernels of a decoder, see `lora.py`.

    Attributes:
        rank: r, columns of A and rows of B.
        alpha: the adapter is multiplied by ``alpha / rank``.
        targets: what Hugging Face calls the adapted modules, such as ``q_proj``.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...]


@dataclass(frozen=True)
class DecoderConfig:
    """The architecture of a decoder.

    Attributes:
        vocab_size: V.
        hidden_size: D.
        intermediate_size: width of the feed-forward part.
        num_layers: L.
        num_heads: H.
        num_kv_heads: K.
        head_dim: width of one head, which need not be ``hidden_size / num_heads``.
        rope_theta: base of the rotary frequencies.
        rope_scaling: change of those frequencies for long contexts, or None.
        rms_norm_eps: what RMSNorm adds to the mean square.
        tie_embeddings: whether the head is the transposed embedding.
        qkv_bias: biases on the query, key and value projections (Qwen2).
        output_bias: bias on the attention's output projection.
        mlp_bias: biases in the feed-forward part.
        qk_norm: RMSNorm on each query and key head before the rotation (Qwen3).
        norm_offset: every RMSNorm multiplies by ``norm_offset + scale``; 1 for Gemma.
        post_norms: RMSNorm also on what attention and feed-forward part add to the states (Gemma).
        scale_embedding: embeddings are multiplied by ``sqrt(D)`` (Gemma).
        activation: of the gate in the feed-forward part.
        query_scale: q k is divided by its square root; None: by that of `head_dim`.
        local_rope_theta: base in layers with a window, where nothing scales the frequencies; None:
            they are rotated like the others.
        attention_softcap: bound of the attention's logits (Gemma 2), or None.
        logit_softcap: bound of the head's logits (Gemma 2), or None.
        sliding_windows: for every layer the window in tokens, or None for full attention; None
            altogether when no layer has a window.
        compute_dtype: dtype of matrix products and caches, `float32` or `bfloat16`; RMSNorm,
            softmax and rotary angles are float32 always, and so are the master parameters.
        remat: what the backward pass computes again instead of keeping it: whole `layers`, or the
            `elementwise` work between matrix products, or `none`. Attention's result is kept.
        decode_kernel: attention of the decoding loop in one kernel a layer, on TPUs where it can
            run, see `decode_kernel_tpu.takes`.
        init_scale: standard deviation of the random initial weights.
        family: entry of `families.FAMILIES`, which says how Hugging Face names the parameters.
        lora: adapters that are trained in place of the parameters, or None.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    rms_norm_eps: float = 1e-6
    tie_embeddings: bool = False
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    norm_offset: float = 0.0
    post_norms: bool = False
    scale_embedding: bool = False
    activation: Activation = "silu"
    query_scale: float | None = None
    local_rope_theta: float | None = None
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    sliding_windows: tuple[int | None, ...] | None = None
    compute_dtype: str = "float32"
    remat: Remat = "layers"
    decode_kernel: bool = False
    init_scale: float = 0.02
    family: str = "llama"
    lora: Lora | None = None

    @property
    def dtype(self) -> Any:
        """The compute dtype as JAX knows it."""
        return jnp.dtype(self.compute_dtype)

    def layer_facts(self, length: int) -> tuple[AttentionFacts, ...]:
        """Return the attention facts of every layer in a program for sequences of `length` tokens.

        No two tokens of such a sequence are further apart than ``length - 1``, so a window of
        `length` hides nothing: the layer then has full attention, and the kernels for it. It keeps
        the rotary base of a layer with a window.
        """
        windows = self.sliding_windows or (None,) * self.num_layers
        return tuple(self._facts(window, length) for window in windows)

    def _facts(self, window: int | None, length: int) -> AttentionFacts:
        """Return the facts of a layer with this window."""
        theta, scaling = self.rope_theta, self.rope_scaling
        if window is not None and self.local_rope_theta is not None:
            theta, scaling = self.local_rope_theta, None
        return AttentionFacts(
            scale=(self.query_scale or self.head_dim) ** -0.5,
            window=window if window is not None and window < length else None,
            rope_theta=theta,
            rope_scaling=scaling,
            softcap=self.attention_softcap,
        )


@functools.lru_cache
def layer_blocks(facts: tuple[AttentionFacts, ...]) -> tuple[Block, ...]:
    """Split layers into blocks, so that a compiled program spells out as few layers as it can.

    A program loops over the repetitions of each block, and within one over the layers of each run
    of equal ones; it spells out one layer a run. Equal layers are one block with a pattern of one;
    (5 local + 1 global) x 4 + 2 local are two blocks, with two runs and one. Among equally short
    programs the one with fewest loops in loops is chosen, then that with fewest blocks, and the one
    whose last block is shortest.
    """
    best: list[tuple[Block, ...]] = [()]  # best[n]: blocks of the first n layers
    for stop in range(1, len(facts) + 1):
        choices = [
            (*best[start], _repetition(facts[start:stop])) for start in reversed(range(stop))
        ]
        best.append(min(choices, key=_length_of_program))
    return best[-1]


def _length_of_program(blocks: tuple[Block, ...]) -> tuple[int, int, int]:
    """Layers that it spells out, blocks with a loop in the loop, blocks."""
    runs = [block.runs for block in blocks]
    nested = sum(len(of_block) < len(b.pattern) for of_block, b in zip(runs, blocks, strict=True))
    return sum(map(len, runs)), nested, len(blocks)


def _repetition(facts: tuple[AttentionFacts, ...]) -> Block:
    """Return the layers as repetitions of their shortest pattern."""
    sizes = (n for n in range(1, len(facts) + 1) if len(facts) % n == 0)
    size = next(n for n in sizes if facts[:n] * (len(facts) // n) == facts)
    return Block(facts[:size], len(facts) // size)
