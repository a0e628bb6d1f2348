"""Log-probability and entropy of every token, without ever holding all tokens' logits.

With a vocabulary of 150,000 the logits of 8 x 1024 tokens take 5 GB in float32. Here a loop walks
along the vocabulary; each turn multiplies the hidden states with a few hundred columns of the
unembedding matrix and folds these logits into three numbers a token (an online softmax). The
backward pass walks the same way and makes each block of logits anew, so beyond one block no
`[tokens, V]` array exists in either direction, and a block is no larger than the hidden states.

Why along the vocabulary and not along the tokens: every turn then finishes its own columns of the
matrix' gradient. In chunks of tokens, each turn would add to all of that gradient, which is the
largest array here, and under a mesh would reduce it over devices.

On a mesh each device works on its own prompts and its own columns, and the devices meet once a
pass: forward to merge the three numbers over `tensor`, backward to sum the two gradients.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from mental_r1_jax.models.attention_plain import capped
from mental_r1_jax.sharding import AutoAxes

# Below every logit. Not -inf: `_shift` multiplies the distance to it with s = 0.
LOWEST = -3e38


@dataclasses.dataclass(frozen=True)
class LogitScale:
    """What is done to logits before the softmax, in this order.

    Attributes:
        temperature: divides them, after the softcap.
        softcap: their bound, or None.
    """

    temperature: float
    softcap: float | None


def token_stats(
    hidden: Float[Array, "*tokens D"],
    target_ids: Int[Array, "*tokens"],
    unembed_matrix: Float[Array, "D V"],
    *,
    temperature: float,
    chunk_size: int,
    softcap: float | None = None,
) -> tuple[Float[Array, "*tokens"], Float[Array, "*tokens"]]:
    """Compute the log-probability and the entropy (nats) of every token, both with gradient.

        z = capped(hidden @ unembed_matrix) / temperature  p = softmax(z)
        logprob = log p[target]                            entropy H = -sum_v p_v log p_v

    Args:
        hidden: final hidden states; `hidden[..., i, :]` predicts `target_ids[..., i]`. On a mesh
            the first axis is sharded over the batch axes where they divide it.
        target_ids: the sampled tokens.
        unembed_matrix: the output projection. The product runs in its dtype and is accumulated in
            float32; everything after it is float32. On a mesh V is sharded over `tensor`.
        temperature: divides the logits, as in sampling.
        chunk_size: vocabulary entries done at a time. Their logits take `4 * chunk_size` bytes a
            token of this device: at 512 half of what float32 hidden states with D = 1024 take.
        softcap: bound of the logits (Gemma 2), ``capped(x) = softcap * tanh(x / softcap)``; None:
            ``capped(x) = x``.

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
    scale = LogitScale(temperature, softcap)
    return _token_stats(scale, chunk_size, hidden, target_ids, unembed_matrix)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _token_stats(
    scale: LogitScale, chunk_size: int, hidden: Array, target_ids: Array, unembed_matrix: Array
) -> tuple[Array, Array]:
    outputs, _ = _forward(scale, chunk_size, hidden, target_ids, unembed_matrix)
    return outputs


def _forward(
    scale: LogitScale, chunk_size: int, hidden: Array, target_ids: Array, unembed_matrix: Array
) -> tuple[tuple[Array, Array], tuple[Array, ...]]:
    sharding = HeadSharding.of(hidden, unembed_matrix)
    logprobs, entropies, log_sums = sharding.run(
        partial(_local_forward, sharding, scale, chunk_size),
        (hidden, target_ids, unembed_matrix),
        in_specs=(sharding.tokens, sharding.tokens, sharding.matrix),
        out_specs=(sharding.tokens, sharding.tokens, sharding.tokens),
    )
    # Saved a token: what turns logits made anew into probabilities without a second reduction.
    return (logprobs, entropies), (hidden, target_ids, unembed_matrix, log_sums, entropies)


def _backward(
    scale: LogitScale,
    chunk_size: int,
    residuals: tuple[Array, ...],
    cotangents: tuple[Array, Array],
) -> tuple[Array, None, Array]:
    hidden, target_ids, unembed_matrix, log_sums, entropies = residuals
    sharding = HeadSharding.of(hidden, unembed_matrix)
    per_token = (log_sums, entropies, *cotangents)
    grad_hidden, grad_matrix = sharding.run(
        partial(_local_backward, sharding, scale, chunk_size),
        (hidden, target_ids, unembed_matrix, *per_token),
        in_specs=(
            sharding.tokens,
            sharding.tokens,
            sharding.matrix,
            *(sharding.tokens for _ in per_token),
        ),
        out_specs=(sharding.tokens, sharding.matrix_gradient),
    )
    return grad_hidden, None, grad_matrix


_token_stats.defvjp(_forward, _backward)


def _local_forward(
    sharding: HeadSharding,
    scale: LogitScale,
    chunk_size: int,
    hidden: Array,
    target_ids: Array,
    unembed_matrix: Array,
) -> tuple[Array, Array, Array]:
    """Return (logprob, entropy, log-sum-exp) of this device's tokens.

    Kept while walking: m, the largest z so far; with y_v = z_v - m, s = sum_v exp(y_v) and
    u = sum_v exp(y_v) y_v; and the target's logit. At the end H = log s - u / s, which stays exact
    where one logit towers above the rest.
    """
    shape, hidden, table = target_ids.shape, _flat(hidden, unembed_matrix), unembed_matrix.T
    local_targets = target_ids.reshape(-1) - sharding.first_entry(len(table))

    def one_block(stats: tuple[Array, ...], start: Array | int, size: int) -> tuple[Array, ...]:
        m, s, u, target_logit = stats
        logits = capped(_logits(hidden, _rows(table, start, size)), scale.softcap)
        higher = jnp.maximum(m, logits.max(axis=-1) / scale.temperature)
        s, u = _shift(m - higher, s, u)
        y = logits / scale.temperature - higher[:, None]
        x = jnp.exp(y)
        index = local_targets - start
        picked = jnp.take_along_axis(logits, jnp.clip(index, 0, size - 1)[:, None], axis=-1)
        target_logit = jnp.where((index >= 0) & (index < size), picked[:, 0], target_logit)
        return higher, s + x.sum(axis=-1), u + (x * y).sum(axis=-1), target_logit

    zeros = jnp.zeros(local_targets.shape, jnp.float32)
    lowest = jnp.full_like(zeros, LOWEST)
    stats = (lowest, zeros, zeros, zeros)
    m, s, u, target_logit = _walk(one_block, stats, len(table), chunk_size)
    highest = sharding.max_over_vocabulary(m)
    s, u = _shift(m - highest, s, u)
    s, u, target_logit = sharding.sum_over_vocabulary(jnp.stack([s, u, target_logit]))
    logprob = (target_logit / scale.temperature - highest) - jnp.log(s)
    entropy, log_sum = jnp.log(s) - u / s, highest + jnp.log(s)
    return logprob.reshape(shape), entropy.reshape(shape), log_sum.reshape(shape)


def _local_backward(
    sharding: HeadSharding,
    scale: LogitScale,
    chunk_size: int,
    hidden: Array,
    target_ids: Array,
    unembed_matrix: Array,
    *per_token: Array,
) -> tuple[Array, Array]:
    """Pull the cotangents (g, h) of (logprob, entropy) back to hidden states and matrix.

    From ``dlogprob/dz_v = 1[v = target] - p_v`` and ``dH/dz_v = -p_v (log p_v + H)``:

        dz_v = g 1[v = target] - p_v (g + h H + h log p_v)
        d hidden = sum_v dz_v / temperature * W[:, v]
        d W[:, v] = sum_tokens dz_v / temperature * hidden

    Under a softcap ``dz_v`` is multiplied by its slope, ``1 - (capped logit / softcap)^2``.

    The log-sum-exp and H of a token were saved, so ``log p_v = z_v - log-sum-exp`` needs no pass of
    its own: a block of logits is made, used for both gradients and dropped. A block finishes its
    own rows of the table's gradient [V, D] and adds to the gradient of all hidden states [N, D].

    On a mesh both are partial: the gradient of the hidden states is summed over the parts of the
    vocabulary, that of the matrix over all devices' tokens, and each only once, at the end.

    Args:
        sharding: says what is summed over which mesh axes.
        scale: temperature and softcap, see `token_stats`.
        chunk_size: vocabulary entries done at a time, see `token_stats`.
        hidden: this device's tokens [*tokens, D].
        target_ids: of these tokens, counted in the unsharded vocabulary.
        unembed_matrix: this device's columns [D, v].
        *per_token: log-sum-exp, entropy, g and h, each [*tokens].
    """
    shape, dtype = hidden.shape, hidden.dtype
    hidden, table = _flat(hidden, unembed_matrix), unembed_matrix.T
    local_targets = target_ids.reshape(-1, 1) - sharding.first_entry(len(table))
    log_sum, entropy, g, h = (x.reshape(-1, 1) for x in per_token)
    at_target, constant, slope = (x / scale.temperature for x in (g, g + h * entropy, h))
    # Summed over devices in float32 also when the matrix is bfloat16; on one device it is done.
    gradient_dtype = jnp.float32 if sharding.batch else table.dtype

    def one_block(
        gradients: tuple[Array, Array], start: Array | int, size: int
    ) -> tuple[Array, Array]:
        grad_hidden, grad_table = gradients
        rows = _rows(table, start, size)
        logits = capped(_logits(hidden, rows), scale.softcap)
        logp = logits / scale.temperature - log_sum
        hit = jax.lax.broadcasted_iota(jnp.int32, logp.shape, 1) == local_targets - start
        grad_logits = jnp.where(hit, at_target, 0.0) - jnp.exp(logp) * (constant + slope * logp)
        if scale.softcap is not None:
            grad_logits *= 1 - jnp.square(logits / scale.softcap)
        grad_logits = grad_logits.astype(table.dtype)
        grad_rows = jnp.einsum("nv,nd->vd", grad_logits, hidden, preferred_element_type=jnp.float32)
        grad_rows = grad_rows.astype(gradient_dtype)
        grad_hidden += jnp.einsum(
            "nv,vd->nd", grad_logits, rows, preferred_element_type=jnp.float32
        )
        return grad_hidden, jax.lax.dynamic_update_slice_in_dim(
            grad_table, grad_rows, start, axis=0
        )

    start = jnp.zeros(hidden.shape, jnp.float32), jnp.zeros(table.shape, gradient_dtype)
    grad_hidden, grad_table = _walk(one_block, start, len(table), chunk_size)
    grad_hidden = sharding.sum_over_vocabulary(grad_hidden)
    grad_matrix = sharding.sum_over_tokens(grad_table.T)
    return grad_hidden.reshape(shape).astype(dtype), grad_matrix.astype(table.dtype)


def _walk(
    one_block: Callable[..., tuple[Array, ...]], state: tuple[Array, ...], length: int, size: int
) -> tuple[Array, ...]:
    """Fold `one_block(state, start, size)` over `length` entries; the last block may be shorter."""
    even = length // size * size
    if even:
        starts = jnp.arange(0, even, size)
        state, _ = jax.lax.scan(lambda x, start: (one_block(x, start, size), None), state, starts)
    return one_block(state, even, length - even) if even < length else state


def _flat(hidden: Array, unembed_matrix: Array) -> Array:
    """[..., D] -> [tokens, D] in the dtype of the products: a plain matrix for a plain product."""
    return hidden.reshape(-1, hidden.shape[-1]).astype(unembed_matrix.dtype)


def _rows(table: Array, start: Array | int, size: int) -> Array:
    return jax.lax.dynamic_slice_in_dim(table, start, size, axis=0)


def _logits(hidden: Array, rows: Array) -> Array:
    """Logits before the softcap, and before the temperature, by which later passes divide."""
    return jnp.einsum("nd,vd->nv", hidden, rows, preferred_element_type=jnp.float32)


def _shift(step: Array, s: Array, u: Array) -> tuple[Array, Array]:
    """Rewrite the sums s and u for a reference point that lies `-step` higher."""
    factor = jnp.exp(step)
    return s * factor, (u + s * step) * factor


@dataclasses.dataclass(frozen=True)
class HeadSharding:
    """The mesh axes that shard an output head's arrays; without a mesh, none.

    Tokens are sharded over the batch axes and the vocabulary over `tensor`. The methods that take
    local arrays are for functions under `run`. They do nothing where nothing is sharded, so that
    those functions read the same with and without a mesh.

    Attributes:
        mesh: devices that the arrays are sharded over.
        batch: axes that shard the first axis of arrays with tokens in front.
        vocabulary: axis that shards V, or None.
        model: axis that shards D of the matrix where it is stored, and of its gradient, or None.
    """

    mesh: Any
    batch: tuple[str, ...]
    vocabulary: str | None
    model: str | None

    @classmethod
    def of(cls, hidden: Float[Array, "*tokens D"], matrix: Float[Array, "D V"]) -> HeadSharding:
        """Look at the mesh of `hidden`; an axis that does not divide a size does not shard it."""
        mesh = jax.typeof(hidden).sharding.mesh
        axes = AutoAxes.of(mesh)
        batch = (axes.of_batch(len(hidden)) if hidden.ndim > 1 else None) or ()
        model = axes.of_logical("embed", matrix.shape[0])
        return cls(
            mesh=mesh,
            batch=batch,
            vocabulary=axes.of_logical("vocab", matrix.shape[1]),
            model=model if model in batch else None,
        )

    @property
    def tokens(self) -> PartitionSpec:
        """Of arrays with tokens in front."""
        return PartitionSpec(self.batch or None)

    @property
    def matrix(self) -> PartitionSpec:
        """Of the matrix [D, V] in use: D replicated, because every token needs all of it."""
        return PartitionSpec(None, self.vocabulary)

    @property
    def matrix_gradient(self) -> PartitionSpec:
        """Of the matrix' gradient [D, V]: sharded as the matrix is stored."""
        return PartitionSpec(self.model, self.vocabulary)

    def run(
        self,
        function: Callable[..., tuple[Array, ...]],
        arrays: tuple[Array, ...],
        *,
        in_specs: tuple[PartitionSpec, ...],
        out_specs: tuple[PartitionSpec, ...],
    ) -> tuple[Array, ...]:
        """Run `function` on every device's part of `arrays`, plainly where nothing is sharded."""
        if not self.batch and self.vocabulary is None:
            return function(*arrays)
        # The check cannot follow zeros that start a loop; the tests compare with one device.
        mapped = jax.shard_map(
            function, mesh=self.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
        )
        return mapped(*arrays)

    def first_entry(self, local_size: int) -> Array | int:
        """Vocabulary id of the first entry of this device's part, `local_size` entries long."""
        if self.vocabulary is None:
            return 0
        return jax.lax.axis_index(self.vocabulary) * local_size

    def max_over_vocabulary(self, x: Array) -> Array:
        """Largest value among the parts of the vocabulary."""
        return x if self.vocabulary is None else jax.lax.pmax(x, self.vocabulary)

    def sum_over_vocabulary(self, x: Array) -> Array:
        """Sum over the parts of the vocabulary."""
        return x if self.vocabulary is None else jax.lax.psum(x, self.vocabulary)

    def sum_over_tokens(self, gradient: Float[Array, "D v"]) -> Float[Array, "d v"]:
        """Sum over all devices' tokens; of a stored matrix' gradient each keeps its own part."""
        if self.model is not None:
            gradient = jax.lax.psum_scatter(gradient, self.model, scatter_dimension=0, tiled=True)
            # The TPU compiler moves sums of gradients out of the loop over micro-batches, and fails
            # on this one (a check in while_loop_all_reduce_code_motion): it must not see it.
            gradient = jax.lax.optimization_barrier(gradient)
        copies = tuple(axis for axis in self.batch if axis != self.model)
        return jax.lax.psum(gradient, copies) if copies else gradient
