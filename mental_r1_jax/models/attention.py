"""Attention of a group of completions to one shared prompt: one door, and behind it what fits.

    any machine                                      plain XLA           `attention_plain`
    TPU                                              splash, of JAX      `attention_tpu`
    NVIDIA GPU, 16-bit, heads up to 128,             cuDNN, joined by    `attention_gpu`
    neither window nor softcap                       the log-sum-exp

The kernels need memory that grows with the length; plain XLA holds the logits of one layer. Which
one runs is decided when a function is traced, by the facts of the layer and the devices of the mesh
that its arguments live on, so a program for TPUs may be compiled on a machine without one. On GPUs
layers with a sliding window run in plain XLA: where the window of a completion's token begins
depends on the length of its prompt, which cuDNN cannot be told.
"""

from __future__ import annotations

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mental_r1_jax.models import attention_plain
from mental_r1_jax.models.architecture import AttentionFacts
from mental_r1_jax.models.attention_plain import CompletionHeads, PromptHeads
from mental_r1_jax.sharding import chip_of


def prompt_attention(
    queries: Float[Array, "B P K R h"],
    keys: Float[Array, "B P K h"],
    values: Float[Array, "B P K h"],
    facts: AttentionFacts,
) -> Float[Array, "B P K R h"]:
    """Return causal attention within each prompt, ``softmax(scale * q k) v``.

    Padding stands on the right, so causality alone hides it from every real token. With a window
    a token sees itself and the ``window - 1`` tokens before it.

    Args:
        queries: rotated, not scaled.
        keys: rotated.
        values: what is mixed, one for each key.
        facts: scale, window and softcap of the layer.
    """
    kernel = kernel_for(queries, facts)
    if kernel == "tpu":
        from mental_r1_jax.models.attention_tpu import splash_prompt_attention

        return splash_prompt_attention(queries, keys, values, facts)
    if kernel == "gpu":
        from mental_r1_jax.models.attention_gpu import fused_prompt_attention

        return fused_prompt_attention(queries, keys, values, facts.scale)
    return attention_plain.prompt_attention(queries, keys, values, facts)


def shared_prefix_attention(
    prompt: PromptHeads,
    completions: CompletionHeads,
    prompt_mask: Bool[Array, "B P"],
    completion_mask: Bool[Array, "B G T"],
    facts: AttentionFacts,
) -> tuple[Float[Array, "B P K R h"], Float[Array, "B G T K R h"]]:
    """Return causal attention of prompts, and of completions to their prompt and themselves.

    A completion's token sees the real tokens of its prompt and its own completion's up to itself,
    in one softmax. There is one copy of the prompt's keys and values, and no array with the axes
    ``[B * G, P]``. What stands at padding is finite and means nothing.

    Args:
        prompt: queries, keys and values of the prompts, rotated, not scaled.
        completions: the same of their completions, whose positions follow the prompt's.
        prompt_mask: true on real prompt tokens, which stand on the left.
        completion_mask: true on real completion tokens, which stand on the left.
        facts: scale, window and softcap of the layer.
    """
    kernel = kernel_for(prompt[0], facts)
    if kernel == "tpu":
        from mental_r1_jax.models.attention_tpu import splash_group_attention

        return splash_group_attention(prompt, completions, prompt_mask, completion_mask, facts)
    if kernel == "gpu":
        from mental_r1_jax.models.attention_gpu import fused_group_attention

        return fused_group_attention(prompt, completions, prompt_mask, facts.scale)
    return attention_plain.shared_prefix_attention(prompt, completions, prompt_mask, facts)


def kernel_for(
    queries: Float[Array, "*tokens h"], facts: AttentionFacts
) -> Literal["plain", "tpu", "gpu"]:
    """Say what computes the attention of `queries`: see the table at the top.

    Args:
        queries: their mesh, or without one the default device, tells the chip.
        facts: static facts of the layer, which decide the kernel.
    """
    device = chip_of(queries)
    if device.platform == "tpu":
        return "tpu"
    # cuDNN takes these dtypes and widths only, and JAX reaches it on NVIDIA's GPUs only.
    width_fits = queries.shape[-1] <= 128 and queries.shape[-1] % 8 == 0
    takes_facts = facts.window is None and facts.softcap is None
    fits = takes_facts and width_fits and queries.dtype in (jnp.bfloat16, jnp.float16)
    return "gpu" if fits and "NVIDIA" in device.device_kind else "plain"
