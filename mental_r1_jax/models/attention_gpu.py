"""Attention on NVIDIA GPUs: cuDNN's fused kernel, once on the prompt's keys and once on own keys.

The two results are joined by their log-sum-exps, which is exact: with ``s = scale * q k`` over
the keys of part i, ``l_i = log sum exp(s)`` and its own softmax average ``o_i``,

    l = log(exp(l_1) + exp(l_2)),    o = exp(l_1 - l) o_1 + exp(l_2 - l) o_2.

Backward, each part is run with the *common* l and o in place of its own: then ``exp(s - l)`` are
the weights of the one softmax over all keys, and dq, dk, dv of the part come out right.

`jax.nn.dot_product_attention` can give the log-sum-exp, but rounds it to bfloat16 (from 8 to 16
by up to 0.03, which is 3% of a weight) and drops its gradient. So cuDNN is reached one level below,
through functions that JAX does not promise to keep; tests/models/test_attention_gpu.py says when
they have changed.
"""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mental_r1_jax.models.attention_plain import CompletionHeads, PromptHeads


def fused_prompt_attention(
    queries: Float[Array, "B P K R h"],
    keys: Float[Array, "B P K h"],
    values: Float[Array, "B P K h"],
    scale: float,
) -> Float[Array, "B P K R h"]:
    """Return causal attention within each prompt; padding on the right needs no mask."""
    odd = queries.shape[1] % 2  # JAX differentiates the call for even lengths only
    streams = [
        jnp.pad(x, [(0, 0), (0, odd), (0, 0), (0, 0)]) for x in (_all_heads(queries), keys, values)
    ]
    mixed = jax.nn.dot_product_attention(
        *streams, scale=scale, is_causal=True, implementation="cudnn"
    )
    return mixed[:, : queries.shape[1]].reshape(queries.shape)


def fused_group_attention(
    prompt: PromptHeads,
    completions: CompletionHeads,
    prompt_mask: Bool[Array, "B P"],
    scale: float,
) -> tuple[Float[Array, "B P K R h"], Float[Array, "B G T K R h"]]:
    """Return causal attention of prompts, and of completions to their prompt and themselves.

    Args:
        prompt: queries (not scaled), keys and values of the prompts, bfloat16 or float16.
        completions: the same of their completions; padding on the right needs no mask.
        prompt_mask: true on real prompt tokens, which stand on the left.
        scale: factor of the logits.
    """
    queries, own = completions[0], completions[1:]
    mixed = fused_completion_attention(queries, prompt[1:], own, prompt_mask, scale)
    return fused_prompt_attention(*prompt, scale), mixed


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def fused_completion_attention(
    queries: Float[Array, "B G T K R h"],
    prompt: tuple[Float[Array, "B P K h"], Float[Array, "B P K h"]],
    own: tuple[Float[Array, "B G T K h"], Float[Array, "B G T K h"]],
    prompt_mask: Bool[Array, "B P"],
    scale: float,
) -> Float[Array, "B G T K R h"]:
    """Return attention of completions to one copy of their prompt and causally to themselves.

    Args:
        queries: not scaled; bfloat16 or float16, as everything else.
        prompt: keys and values of the prompts.
        own: keys and values of the completions.
        prompt_mask: true on real prompt tokens, which stand on the left.
        scale: factor of the logits.
    """
    return _forward(queries, prompt, own, prompt_mask, scale)[0]


def _forward(
    queries: Array, prompt: tuple, own: tuple, prompt_mask: Array, scale: float
) -> tuple[Array, tuple]:
    """Return the joined result, and what the backward pass needs."""
    lengths = prompt_mask.sum(-1, dtype=jnp.int32)
    first, first_lse = cudnn_forward(_prompt_rows(queries), prompt, lengths, scale)
    second, second_lse = cudnn_forward(_own_rows(queries), _own_sequences(own), None, scale)
    first_lse = _as_group(first_lse, queries)
    second_lse = _as_group(second_lse, queries)
    lse = jnp.logaddexp(first_lse, second_lse)

    def part(mixed: Array, part_lse: Array) -> Array:
        return jnp.exp(part_lse - lse)[..., None] * mixed.reshape(queries.shape)

    mixed = (part(first, first_lse) + part(second, second_lse)).astype(queries.dtype)
    return mixed, (queries, prompt, own, lengths, mixed, lse)


def _backward(scale: float, saved: tuple, cotangent: Array) -> tuple[Array, tuple, tuple, None]:
    """Run the kernel's backward pass on each part, with the result and log-sum-exp of both."""
    queries, prompt, own, lengths, mixed, lse = saved
    batch, group, length = queries.shape[:3]
    heads = (batch, group, length, -1)
    by_prompt = lse.reshape(heads).transpose(0, 3, 1, 2).reshape(batch, -1, group * length)
    by_completion = lse.reshape(batch * group, length, -1).swapaxes(1, 2)
    first, of_prompt = cudnn_backward(
        _prompt_rows(queries),
        prompt,
        lengths,
        scale,
        by_prompt,
        _prompt_rows(mixed),
        _prompt_rows(cotangent),
    )
    second, of_own = cudnn_backward(
        _own_rows(queries),
        _own_sequences(own),
        None,
        scale,
        by_completion,
        _own_rows(mixed),
        _own_rows(cotangent),
    )
    both = first.reshape(queries.shape) + second.reshape(queries.shape)
    return both, of_prompt, tuple(x.reshape(own[0].shape) for x in of_own), None


fused_completion_attention.defvjp(_forward, _backward)


def _prompt_rows(x: Float[Array, "B G T K R h"]) -> Float[Array, "B GT H h"]:
    """Lay a group's tokens end to end: all of them look at the same prompt."""
    batch, group, length, kv_heads, repeats, width = x.shape
    return x.reshape(batch, group * length, kv_heads * repeats, width)


def _own_rows(x: Float[Array, "B G T K R h"]) -> Float[Array, "BG T H h"]:
    """Make each completion a sequence of its own."""
    batch, group, length, kv_heads, repeats, width = x.shape
    return x.reshape(batch * group, length, kv_heads * repeats, width)


def _own_sequences(own: tuple[Array, Array]) -> tuple[Array, Array]:
    """Make the keys and values ``[B, G, T, K, h]`` of each completion a sequence of their own."""
    keys, values = own
    return keys.reshape(-1, *keys.shape[2:]), values.reshape(-1, *values.shape[2:])


def _as_group(lse: Float[Array, "rows H tokens"], queries: Array) -> Float[Array, "B G T K R"]:
    """Bring the kernel's log-sum-exp into the order of the queries."""
    return lse.swapaxes(1, 2).reshape(queries.shape[:-1])


def cudnn_forward(
    queries: Float[Array, "N T H h"],
    keys_values: tuple[Float[Array, "N S K h"], Float[Array, "N S K h"]],
    key_lengths: Int[Array, " N"] | None,
    scale: float,
) -> tuple[Float[Array, "N T H h"], Float[Array, "N H T"]]:
    """Return attention and its float32 log-sum-exp.

    Args:
        queries: N sequences of T tokens, not scaled.
        keys_values: keys and values of S tokens, one pair of heads K.
        key_lengths: how many of the keys, from the left, are real, and seen by every query of the
            sequence; None: causal attention.
        scale: factor of the logits.
    """
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    lengths, mask_type = _lengths_and_mask(cudnn, queries, key_lengths)
    return cudnn.dot_product_attention(
        queries,
        *keys_values,
        q_seqlen=lengths[0],
        kv_seqlen=lengths[1],
        scale=scale,
        mask_type=mask_type,
        return_residual=True,
    )


def cudnn_backward(
    queries: Float[Array, "N T H h"],
    keys_values: tuple[Float[Array, "N S K h"], Float[Array, "N S K h"]],
    key_lengths: Int[Array, " N"] | None,
    scale: float,
    lse: Float[Array, "N H T"],
    mixed: Float[Array, "N T H h"],
    cotangent: Float[Array, "N T H h"],
) -> tuple[Float[Array, "N T H h"], tuple[Float[Array, "N S K h"], Float[Array, "N S K h"]]]:
    """Return the gradients of `cudnn_forward`, for any log-sum-exp and result that are given.

    With ``p = exp(s - lse)``, ``ds = p (cotangent v - cotangent mixed)`` and ``dv = p cotangent``.
    """
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    lengths, mask_type = _lengths_and_mask(cudnn, queries, key_lengths)
    unused = jnp.zeros(0, queries.dtype)
    lengths = [unused if x is None else x for x in lengths]
    settings: dict[str, Any] = {
        "scale": scale,
        "seed": 42,
        "dropout_rate": 0.0,
        "variadic_args": (False, False),
        "mask_type": mask_type,
        "layout": cudnn.AttentionLayout.BTNH.value,
        "sliding_window_length": None,
    }
    if "score_mod" in inspect.signature(cudnn.dot_product_attention).parameters:  # jax 0.12
        settings["score_mod"] = None
    bias, offsets, pages = unused, (unused, unused), (unused, unused)
    gradients = cudnn._dot_product_attention_bwd_p_wrapper.bind(
        *(queries, *keys_values, bias, *lengths, *offsets, *pages, lse, mixed, cotangent),
        **settings,
    )
    return gradients[0], (gradients[1], gradients[2])


def _lengths_and_mask(cudnn: Any, queries: Array, key_lengths: Array | None) -> tuple[list, Any]:
    """Return the lengths of queries and keys, and cuDNN's name for what hides what."""
    if key_lengths is None:
        return [None, None], cudnn.MaskType.CAUSAL
    number, length = queries.shape[:2]
    return [jnp.full((number,), length, jnp.int32), key_lengths], cudnn.MaskType.PADDING


def _all_heads(queries: Array) -> Array:
    """Join the axes of key/value heads and their query heads."""
    return queries.reshape(*queries.shape[:-3], -1, queries.shape[-1])
