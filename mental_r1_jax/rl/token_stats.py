"""Log-probability and entropy of every token, without ever holding all tokens' logits.

With a vocabulary of 150,000 the logits of 8 x 1024 tokens take 5 GB in float32. Here a scan walks
along the token axis; each turn multiplies one chunk of hidden states with the unembedding matrix
and keeps two numbers a token. The backward pass makes each chunk's logits anew from the same
hidden states, so beyond one chunk no `[tokens, V]` array exists in either direction.

Only the token axis is cut. Batch axes stay whole, so hidden states sharded over prompts need no
communication to be chunked.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def token_stats(
    hidden: Float[Array, "*tokens D"],
    target_ids: Int[Array, "*tokens"],
    unembed_matrix: Float[Array, "D V"],
    *,
    temperature: float,
    chunk_size: int,
) -> tuple[Float[Array, "*tokens"], Float[Array, "*tokens"]]:
    """Compute the log-probability and the entropy (nats) of every token, both with gradient.

        z = hidden @ unembed_matrix / temperature          p = softmax(z)
        logprob = log p[target]                            entropy H = -sum_v p_v log p_v

    Args:
        hidden: final hidden states; `hidden[..., i, :]` predicts `target_ids[..., i]`.
        target_ids: the sampled tokens.
        unembed_matrix: the output projection. The product runs in its dtype and is accumulated in
            float32; everything after it is float32.
        temperature: divides the logits, as in sampling.
        chunk_size: positions of the last token axis done at a time. With `target_ids [B, G, C]` one
            chunk of logits takes `4 * B * G * chunk_size * V` bytes.

    Returns:
        (logprobs, entropies) in float32, shaped as `target_ids`.

    Raises:
        ValueError: if `chunk_size` or `temperature` is not positive.

    References:
        Mental-R1 (arXiv 2606.13176): `H_bi` is the entropy of the full-vocabulary softmax of
        logits / temperature, with gradient.
    """
    if chunk_size < 1 or temperature <= 0:
        raise ValueError(
            f"token_stats: expected chunk_size >= 1 and temperature > 0, got {chunk_size=} and "
            f"{temperature=}"
        )
    return _token_stats(temperature, chunk_size, hidden, target_ids, unembed_matrix)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _token_stats(
    temperature: float, chunk_size: int, hidden: Array, target_ids: Array, unembed_matrix: Array
) -> tuple[Array, Array]:
    outputs, _ = _forward(temperature, chunk_size, hidden, target_ids, unembed_matrix)
    return outputs


def _forward(
    temperature: float, chunk_size: int, hidden: Array, target_ids: Array, unembed_matrix: Array
) -> tuple[tuple[Array, Array], tuple[Array, ...]]:
    def one_chunk(_: None, chunk: tuple[Array, Array]) -> tuple[None, tuple[Array, ...]]:
        chunk_hidden, chunk_targets = chunk
        logp = _log_probabilities(chunk_hidden, unembed_matrix, temperature)
        # A comparison and a sum, not a gather: it stays local when V is sharded.
        logprob = jnp.sum(jnp.where(_is_target(logp, chunk_targets), logp, 0.0), axis=-1)
        entropy = -jnp.sum(jnp.exp(logp) * logp, axis=-1)
        return None, (logprob, entropy)

    axis, length = target_ids.ndim - 1, target_ids.shape[-1]
    chunks = (_split(hidden, axis, chunk_size), _split(target_ids, axis, chunk_size))
    _, stacked = jax.lax.scan(one_chunk, None, chunks)
    logprobs, entropies = (_join(x, axis, length) for x in stacked)
    return (logprobs, entropies), (hidden, target_ids, unembed_matrix, entropies)


def _backward(
    temperature: float,
    chunk_size: int,
    residuals: tuple[Array, ...],
    cotangents: tuple[Array, Array],
) -> tuple[Array, None, Array]:
    """Pull the cotangents (g, h) of (logprob, entropy) back to hidden states and matrix.

    dz_v = g (1[v = target] - p_v) - h p_v (log p_v + H)
    """
    hidden, target_ids, unembed_matrix, entropies = residuals
    dtype = jnp.result_type(unembed_matrix)

    def one_chunk(grad_matrix: Array, chunk: tuple[Array, ...]) -> tuple[Array, Array]:
        chunk_hidden, targets, entropy, grad_logprob, grad_entropy = chunk
        logp = _log_probabilities(chunk_hidden, unembed_matrix, temperature)
        grad_logits = jnp.where(_is_target(logp, targets), grad_logprob[..., None], 0.0)
        grad_logits -= jnp.exp(logp) * (
            grad_logprob[..., None] + grad_entropy[..., None] * (logp + entropy[..., None])
        )
        grad_logits = (grad_logits / temperature).astype(dtype)
        grad_hidden = jnp.einsum(
            "...v,dv->...d", grad_logits, unembed_matrix, preferred_element_type=jnp.float32
        )
        grad_matrix += jnp.einsum(
            "...d,...v->dv",
            chunk_hidden.astype(dtype),
            grad_logits,
            preferred_element_type=jnp.float32,
        )
        return grad_matrix, grad_hidden.astype(hidden.dtype)

    # The matrix' gradient is summed over chunks in float32 also when the matrix is bfloat16.
    start = jnp.zeros(unembed_matrix.shape, jnp.float32)
    axis, length = target_ids.ndim - 1, target_ids.shape[-1]
    per_token = (target_ids, entropies, *cotangents)
    chunks = tuple(_split(x, axis, chunk_size) for x in (hidden, *per_token))
    grad_matrix, grad_hidden = jax.lax.scan(one_chunk, start, chunks)
    return _join(grad_hidden, axis, length), None, grad_matrix.astype(dtype)


_token_stats.defvjp(_forward, _backward)


def _log_probabilities(hidden: Array, unembed_matrix: Array, temperature: float) -> Array:
    logits = jnp.einsum(
        "...d,dv->...v",
        hidden.astype(unembed_matrix.dtype),
        unembed_matrix,
        preferred_element_type=jnp.float32,
    )
    return jax.nn.log_softmax(logits / temperature, axis=-1)


def _is_target(logp: Array, target_ids: Array) -> Array:
    vocabulary = jax.lax.broadcasted_iota(target_ids.dtype, logp.shape, logp.ndim - 1)
    return vocabulary == target_ids[..., None]


def _split(x: Array, axis: int, chunk_size: int) -> Array:
    """Cut `axis` into chunks, padded with zeros to whole ones, and bring the chunk index first."""
    chunk_size = min(chunk_size, x.shape[axis])
    padding = [(0, 0)] * x.ndim
    padding[axis] = (0, -x.shape[axis] % chunk_size)
    x = jnp.pad(x, padding)
    shape = (*x.shape[:axis], -1, chunk_size, *x.shape[axis + 1 :])
    return jnp.moveaxis(x.reshape(shape), axis, 0)


def _join(chunks: Array, axis: int, length: int) -> Array:
    """Undo `_split`."""
    x = jnp.moveaxis(chunks, 0, axis)
    x = x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])
    return jax.lax.slice_in_dim(x, 0, length, axis=axis)
