"""One Flax network for every dense decoder family: Llama, Qwen2, Qwen3, Mistral.

Each parameter names its logical axes where it is declared; shape, initial value and sharding follow
from that one line. The layers are scanned: their parameters carry a leading axis L. Nothing outside
`mental_r1_jax.models` sees a module: use the functions of `mental_r1_jax.models.decoder`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from mental_r1_jax.embedding_sharding import look_up
from mental_r1_jax.models.attention import prompt_attention, shared_prefix_attention
from mental_r1_jax.models.attention_plain import SAVED_NAME
from mental_r1_jax.models.rope import RopeScaling, rope_frequencies, rotate
from mental_r1_jax.sharding import constrain_batch

# What the backward pass computes again, see `DecoderConfig.remat`.
Remat = Literal["layers", "elementwise", "none"]

# Results of matrix products, in `jax.checkpoint` policies.
PRODUCT_NAME = "product"


@dataclass(frozen=True)
class DecoderConfig:
    """Everything static about a decoder; hashable, so it may be bound into jitted functions.

    Attributes:
        head_dim: width of one head, which need not be ``hidden_size / num_heads``.
        rope_theta: base of the rotary frequencies.
        rope_scaling: change of those frequencies for long contexts, or None.
        qkv_bias: biases on the query, key and value projections (Qwen2).
        output_bias: bias on the attention's output projection.
        mlp_bias: biases in the feed-forward part.
        qk_norm: RMSNorm on each query and key head before the rotation (Qwen3).
        sliding_windows: for every layer the window in tokens, or None for full attention; None
            altogether when no layer has a window.
        compute_dtype: dtype of matrix products and caches, `float32` or `bfloat16`; RMSNorm,
            softmax and rotary angles are float32 always, and so are the master parameters.
        remat: what the backward pass computes again instead of keeping it: whole `layers`, or the
            `elementwise` work between matrix products, or `none`. Attention's result is kept.
        init_scale: standard deviation of the random initial weights.
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
    sliding_windows: tuple[int | None, ...] | None = None
    compute_dtype: str = "float32"
    remat: Remat = "layers"
    init_scale: float = 0.02

    @property
    def dtype(self) -> Any:
        """The compute dtype as JAX knows it."""
        return jnp.dtype(self.compute_dtype)

    def windows(self) -> Int[np.ndarray, " L"] | None:
        """Return each layer's window in tokens (2**30: unlimited), or None when none has one."""
        if self.sliding_windows is None:
            return None
        return np.asarray([w or 2**30 for w in self.sliding_windows], np.int32)


def _named(initialize: Callable, axes: tuple[str, ...]) -> Callable[..., Any]:
    """Attach logical axis names to what an initialiser returns."""
    return nn.with_logical_partitioning(initialize, axes)


class RMSNorm(nn.Module):
    """``x / sqrt(mean(x^2) + eps) * scale`` over the last axis, in float32."""

    epsilon: float
    dtype: Any
    axis_name: str = "norm"

    @nn.compact
    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        """Normalise; the result has the compute dtype."""
        declare = _named(nn.initializers.ones, (self.axis_name,))
        scale = self.param("scale", declare, (x.shape[-1],), jnp.float32)
        x = x.astype(jnp.float32)
        x = x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + self.epsilon)
        return (x * scale.astype(jnp.float32).reshape((1,) * (x.ndim - 1) + (-1,))).astype(
            self.dtype
        )


class Projection(nn.Module):
    """Matrix product ``x W (+ b)`` over the input axes, W of shape `[*inputs, *outputs]`."""

    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    axes: tuple[str, ...]
    use_bias: bool
    dtype: Any
    init_scale: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Project `[*batch, *inputs]` to `[*batch, *outputs]` in the compute dtype."""
        num_in = len(self.in_shape)
        normal = nn.initializers.normal(self.init_scale)
        declare = _named(normal, self.axes)
        kernel = self.param("kernel", declare, self.in_shape + self.out_shape, jnp.float32)
        batch = x.shape[: x.ndim - num_in]
        # All tokens as rows of one matrix: contracted over several axes, the kernel's gradient
        # would be made from transposed copies of the activations on CPU.
        rows = x.astype(self.dtype).reshape(-1, math.prod(self.in_shape))
        matrix = kernel.astype(self.dtype)
        if num_in > 1:
            matrix = matrix.reshape(rows.shape[1], *self.out_shape)
        product = checkpoint_name(jnp.tensordot(rows, matrix, axes=1), PRODUCT_NAME)
        y = product.reshape(*batch, *self.out_shape)
        if self.use_bias:
            declare = _named(nn.initializers.zeros, self.axes[num_in:])
            bias = self.param("bias", declare, self.out_shape, jnp.float32)
            batch_rank = y.ndim - bias.ndim
            y = y + bias.astype(self.dtype).reshape((1,) * batch_rank + bias.shape)
        return y


class DecoderLayer(nn.Module):
    """Attention and feed-forward part, each behind an RMSNorm, with residual connections."""

    config: DecoderConfig

    def setup(self) -> None:
        """Declare the parameters of one layer."""
        c = self.config
        width, heads = (c.hidden_size,), (c.num_heads, c.head_dim)
        kv_heads, hidden = (c.num_kv_heads, c.head_dim), (c.intermediate_size,)

        def projection(inputs: tuple, outputs: tuple, axes: tuple, bias: bool) -> Projection:
            return Projection(inputs, outputs, axes, bias, c.dtype, c.init_scale)

        self.query = projection(width, heads, ("embed", "heads", "head_dim"), c.qkv_bias)
        self.key = projection(width, kv_heads, ("embed", "kv_heads", "head_dim"), c.qkv_bias)
        self.value = projection(width, kv_heads, ("embed", "kv_heads", "head_dim"), c.qkv_bias)
        self.output = projection(heads, width, ("heads", "head_dim", "embed"), c.output_bias)
        self.gate = projection(width, hidden, ("embed", "mlp"), c.mlp_bias)
        self.up = projection(width, hidden, ("embed", "mlp"), c.mlp_bias)
        self.down = projection(hidden, width, ("mlp", "embed"), c.mlp_bias)
        self.attention_norm = RMSNorm(c.rms_norm_eps, c.dtype)
        self.mlp_norm = RMSNorm(c.rms_norm_eps, c.dtype)
        if c.qk_norm:
            self.query_norm = RMSNorm(c.rms_norm_eps, c.dtype, "head_dim")
            self.key_norm = RMSNorm(c.rms_norm_eps, c.dtype, "head_dim")

    def prompt(
        self, x: Float[Array, "B P D"], window: Int[Array, ""] | None
    ) -> tuple[Float[Array, "B P D"], Float[Array, "B K P h"], Float[Array, "B K P h"]]:
        """Run the prompts; return their new states, keys and values."""
        positions = jnp.arange(x.shape[1])[None]
        queries, keys, values = self._project(x, positions)
        mixed = prompt_attention(queries, keys, values, window)
        return self._finish(x, mixed), keys.swapaxes(1, 2), values.swapaxes(1, 2)

    def group(
        self,
        x: Float[Array, "B P D"],
        y: Float[Array, "B G T D"],
        prompt_mask: Bool[Array, "B P"],
        completion_mask: Bool[Array, "B G T"],
        window: Int[Array, ""] | None,
    ) -> tuple[Float[Array, "B P D"], Float[Array, "B G T D"]]:
        """Run prompts and their whole completions; the completions attend to both."""
        first = prompt_mask.sum(-1, dtype=jnp.int32)[:, None, None]
        prompt = self._project(x, jnp.arange(x.shape[1])[None])
        completions = self._project(y, first + jnp.arange(y.shape[2])[None, None])
        of_x, of_y = shared_prefix_attention(
            prompt, completions, prompt_mask, completion_mask, window
        )
        return self._finish(x, of_x), self._finish(y, of_y)

    def _project(self, x: Array, positions: Array) -> tuple[Array, Array, Array]:
        """Make rotated queries `[*tokens, K, R, h]` and keys, values `[*tokens, K, h]`."""
        c = self.config
        x = self.attention_norm(x)
        queries, keys, values = self.query(x), self.key(x), self.value(x)
        if c.qk_norm:
            queries, keys = self.query_norm(queries), self.key_norm(keys)
        frequencies = rope_frequencies(c.head_dim, c.rope_theta, c.rope_scaling)
        queries = rotate(queries, positions, frequencies)
        keys = rotate(keys, positions, frequencies)
        groups = c.num_heads // c.num_kv_heads
        queries = queries.reshape(*queries.shape[:-2], c.num_kv_heads, groups, c.head_dim)
        return queries, keys, values

    def _finish(self, x: Array, mixed: Array) -> Array:
        """Add the attention's output, then the feed-forward part, to the residual stream."""
        c = self.config
        x = x + self.output(mixed.reshape(*x.shape[:-1], c.num_heads, c.head_dim))
        y = self.mlp_norm(x)
        return constrain_batch(x + self.down(nn.silu(self.gate(y)) * self.up(y)))


class Decoder(nn.Module):
    """Embedding, scanned layers, final norm, and a head unless it is tied to the embedding."""

    config: DecoderConfig

    def setup(self) -> None:
        """Declare the parameters outside the layers."""
        c = self.config
        normal = nn.initializers.normal(c.init_scale)
        shape = (c.vocab_size, c.hidden_size)
        declare = _named(normal, ("vocab", "embed"))
        self.embedding = self.param("embedding", declare, shape, jnp.float32)
        self.layers = DecoderLayer(c)
        self.final_norm = RMSNorm(c.rms_norm_eps, c.dtype)
        if not c.tie_embeddings:
            declare = _named(normal, ("embed", "vocab"))
            self.unembedding = self.param("unembedding", declare, shape[::-1], jnp.float32)

    def embed(self, ids: Int[Array, "*batch"]) -> Float[Array, "*batch D"]:
        """Look the tokens up; the result has the compute dtype."""
        return look_up(self.embedding, ids, self.config.dtype)

    def normalize(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        """Apply the final norm."""
        return self.final_norm(x)

    def prefill(
        self, ids: Int[Array, "B P"]
    ) -> tuple[Float[Array, "B P D"], Float[Array, "L B K P h"], Float[Array, "L B K P h"]]:
        """Run prompts; return the states after the last layer (not normed) and keys, values."""

        def body(layer: DecoderLayer, x: Array, window: Array | None) -> tuple:
            x, keys, values = layer.prompt(x, window)
            return x, (keys, values)

        x, (keys, values) = self._scan(body, self.embed(ids))
        return x, keys, values

    def run_group(
        self,
        prompt_ids: Int[Array, "B P"],
        prompt_mask: Bool[Array, "B P"],
        completion_ids: Int[Array, "B G T"],
        completion_mask: Bool[Array, "B G T"],
    ) -> tuple[Float[Array, "B P D"], Float[Array, "B G T D"]]:
        """Run prompts and completions side by side, layer by layer; states are not normed.

        Both streams share one scan, so a sharded layer is gathered once for the two of them and no
        cache of all layers is held.
        """

        def body(layer: DecoderLayer, carry: tuple, window: Array | None) -> tuple:
            x, y = carry
            return layer.group(x, y, prompt_mask, completion_mask, window), None

        streams = self.embed(prompt_ids), self.embed(completion_ids)
        return self._scan(body, streams)[0]

    def __call__(self, ids: Int[Array, "B P"]) -> Float[Array, "B P D"]:
        """Touch every parameter once; initialisation runs this."""
        return self.normalize(self.prefill(ids)[0])

    def _scan(self, body: Callable, carry: Any) -> tuple[Any, Any]:
        """Scan `body(layer, carry, window)` over the stacked layers, rematerialised if asked.

        What plain attention names (its result, as large as the state of the layer) is kept: it is
        the part of a layer that is dear to compute and cheap to hold.
        """
        c = self.config
        kept = (SAVED_NAME, PRODUCT_NAME) if c.remat == "elementwise" else (SAVED_NAME,)
        keep = jax.checkpoint_policies.save_only_these_names(*kept)
        scanned = nn.scan(
            body if c.remat == "none" else nn.remat(body, prevent_cse=False, policy=keep),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=c.num_layers,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        windows = c.windows()
        return scanned(self.layers, carry, None if windows is None else jnp.asarray(windows))


def parameter_count(config: DecoderConfig) -> int:
    """Count the parameters from the shapes alone; nothing is allocated."""
    ids = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    tree = jax.eval_shape(Decoder(config).init, jax.random.key(0), ids)
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
