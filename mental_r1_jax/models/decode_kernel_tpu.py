"""The attention of one new token of every completion, on TPU, in one kernel a layer.

Spelled out in XLA, a layer's attention is two dozen small programs at every token: norms, rotation,
two caches to update, logits, maxima, sums and mixtures over two or three sets of keys. The kernel
takes the projections as they come out of their products and does all of it while the caches stream
through the chip's fast memory; nothing between the projections and the mixture is written out.

It computes what `layer.finish_heads` and `decode_attention.decode_attention` compute, rounded at
the same places; sums run in another order. One turn of its grid is one key/value head of one prompt
and some of its completions; their queries that share the head are the rows of its products.

Axes beside those of `mental_r1_jax.types`: R query heads of one key/value head, h head width, C
slots of the completions' caches, S parts of the batch with a copy each of the prefix that all
prompts share, F its tokens.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import AxisType, PartitionSpec
from jaxtyping import Array, Float, Int

from mental_r1_jax.models.architecture import AttentionFacts, DecoderConfig
from mental_r1_jax.models.attention_tpu import LANES
from mental_r1_jax.models.decode_kernel_turn import ROWS, one_turn
from mental_r1_jax.sharding import AutoAxes, chip_of

# What the blocks of one turn, twice, and its logits may take; a compiler grants a kernel 16 MiB.
MOST_BYTES = 12 * 2**20

# Keys [B, K, (G,) h, tokens] and values [B, K, (G,) tokens, h].
KeysAndValues = tuple[Array, Array]


@dataclasses.dataclass(frozen=True)
class HeadNorms:
    """RMSNorm of each query and key head before the rotation.

    Attributes:
        query: what a query head is multiplied by, the offset included.
        key: the same of a key head.
        eps: what is added to the mean square.
    """

    query: Float[Array, " h"]
    key: Float[Array, " h"]
    eps: float


class _Operands(NamedTuple):
    """The arrays that are sharded, in the order in which the kernel takes them."""

    queries: Float[Array, "B G KRh"]
    keys: Float[Array, "B G Kh"]
    values: Float[Array, "B G Kh"]
    cos: Float[Array, "B 1 h"]
    sin: Float[Array, "B 1 h"]
    prompt_keys: Float[Array, "B K h P"]
    prompt_values: Float[Array, "B K P h"]
    own_keys: Float[Array, "B K G h C"]
    own_values: Float[Array, "B K G C h"]
    prefix_keys: Float[Array, "S K h F"] | None
    prefix_values: Float[Array, "S K F h"] | None


def takes(
    config: DecoderConfig,
    states: Float[Array, "B G D"],
    prompt: KeysAndValues,
    own: KeysAndValues,
    prefix: KeysAndValues | None,
) -> bool:
    """Whether the kernel can run: on TPUs, in bfloat16, in whole registers, with blocks that fit.

    Args:
        config: number of heads.
        states: of one token of each completion; their mesh tells the chip.
        prompt: its cache.
        own: the completions' cache.
        prefix: cache of what stands before all prompts, or None.
    """
    if chip_of(states).platform != "tpu" or states.dtype != jnp.bfloat16:
        return False
    axes = AutoAxes.of(jax.typeof(states).sharding.mesh)
    divided = "tensor" not in axes.sizes or axes.of_logical("kv_heads", config.num_kv_heads)
    if axes.of_batch(len(states)) is None or not divided:
        return False
    if any(size % LANES for size in (config.head_dim, prompt[0].shape[-1], own[0].shape[-1])):
        return False
    repeats = config.num_heads // config.num_kv_heads
    return _completions_a_turn(states.shape[1], repeats, prompt, own, prefix) is not None


def fused_decode_attention(
    heads: tuple[Float[Array, "B G K R h"], Float[Array, "B G K h"], Float[Array, "B G K h"]],
    index: Int[Array, ""],
    lengths: Int[Array, " B"],
    rotation: tuple[Float[Array, "B h"], Float[Array, "B h"]],
    prompt: KeysAndValues,
    own: KeysAndValues,
    facts: AttentionFacts,
    norms: HeadNorms | None = None,
    prefix: KeysAndValues | None = None,
    *,
    interpret: bool = False,
) -> tuple[Float[Array, "B G K R h"], KeysAndValues]:
    """Norm and rotate the heads of one token, put it into slot `index`, and attend to all caches.

    The formulas stand at `layer.finish_heads` and `decode_attention.decode_attention`. Prompt b has
    `lengths[b]` real tokens, on the left; the token stands at position ``lengths[b] + index``
    behind the prefix. With a window it sees what is fewer than ``window`` tokens before it.

    Args:
        heads: queries, keys and values as projected: neither normed nor rotated.
        index: slot of the token.
        lengths: of the prompts.
        rotation: cosines and sines of the token's angles for each of the h entries of a head, the
            sines of the first half negated.
        prompt: keys and values of the prompts, one copy a prompt.
        own: keys and values of the completions before this token; updated in place.
        facts: scale, window and softcap of the layer.
        norms: of the heads; None where the family has none.
        prefix: keys and values of what stands before all prompts, ``[S, K, h, F]``.
        interpret: run the kernel's program on any machine, slowly, for tests.

    Returns:
        The mixture of values for every query, and `own` with the slot filled.
    """
    scales = () if norms is None else (norms.query[None], norms.key[None])
    # Heads side by side, as their products leave them: nothing is transposed before and after.
    flat = tuple(x.reshape(*x.shape[:2], -1) for x in heads)
    rotations = tuple(x[:, None] for x in rotation)
    run = functools.partial(
        _run_kernel,
        facts=facts,
        eps=None if norms is None else norms.eps,
        interpret=interpret,
    )
    arrays = (*flat, *rotations, *prompt, *own, *(prefix or (None, None)))
    operands = _Operands._make(arrays)
    mixed, *cache = _on_each_device(run, index[None], lengths, scales, operands)
    return mixed.reshape(heads[0].shape), (cache[0], cache[1])


def _on_each_device(
    run: Callable[..., tuple[Array, Array, Array]],
    index: Int[Array, " 1"],
    lengths: Int[Array, " B"],
    scales: tuple[Float[Array, "1 h"], ...],
    operands: _Operands,
) -> tuple[Array, Array, Array]:
    """Call `run` with each device's prompts and heads; see `takes` for what a mesh must divide."""
    mesh = jax.typeof(operands.queries).sharding.mesh
    if AxisType.Auto not in mesh.axis_types:
        return run(index, lengths, scales, operands)
    axes = AutoAxes.of(mesh)
    prompts = axes.of_batch(len(lengths)) or None
    heads = axes.of_logical("kv_heads", operands.own_keys.shape[1])
    rows, cells = PartitionSpec(prompts), PartitionSpec(prompts, heads)
    flat = PartitionSpec(prompts, None, heads)
    caches = (None if x is None else cells for x in operands[5:])
    specs = _Operands._make([flat, flat, flat, rows, rows, *caches])
    return jax.shard_map(
        run,
        mesh=mesh,
        in_specs=(PartitionSpec(), rows, PartitionSpec(), specs),
        out_specs=(flat, cells, cells),
        check_vma=False,
    )(index, lengths, scales, operands)


def _run_kernel(
    index: Int[Array, " 1"],
    lengths: Int[Array, " B"],
    scales: tuple[Float[Array, "1 h"], ...],
    operands: _Operands,
    *,
    facts: AttentionFacts,
    eps: float | None,
    interpret: bool,
) -> tuple[Float[Array, "B G _"], Float[Array, "B K G h C"], Float[Array, "B K G C h"]]:
    """The kernel on the arrays of one device."""
    arrays = [x for x in operands if x is not None]
    num_prompts, kv_heads, group, width, _ = operands.own_keys.shape
    repeats = operands.queries.shape[-1] // (kv_heads * width)
    prefix = None
    if operands.prefix_keys is not None and operands.prefix_values is not None:
        prefix = operands.prefix_keys, operands.prefix_values
    prompt = operands.prompt_keys, operands.prompt_values
    own = operands.own_keys, operands.own_values
    taken = _completions_a_turn(group, repeats, prompt, own, prefix)
    if taken is None:
        raise ValueError("the blocks of one turn do not fit; ask `takes` first")
    blocks = _blocks(taken, repeats, operands)
    updated = 2 + len(scales) + _Operands._fields.index("own_keys")  # among all that is passed
    return pl.pallas_call(
        functools.partial(one_turn, facts, eps, repeats),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            # Heads outermost: the prefix of one is fetched once for all prompts.
            grid=(kv_heads, num_prompts, group // taken),
            in_specs=[*(pl.BlockSpec(x.shape, lambda *_: (0, 0)) for x in scales), *blocks[0]],
            out_specs=blocks[1],
        ),
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (operands.queries, *own)],
        input_output_aliases={updated: 1, updated + 1: 2},
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "parallel")
        ),
        interpret=interpret,
        name="decode_attention",
    )(index, lengths, *scales, *arrays)


def _blocks(
    taken: int, repeats: int, operands: _Operands
) -> tuple[list[pl.BlockSpec], list[pl.BlockSpec]]:
    """What of the operands, and of the results, one turn holds.

    Args:
        taken: completions of a turn.
        repeats: R.
        operands: of one device.
    """
    num_prompts, _, _, width, _ = operands.own_keys.shape

    def heads(count: int) -> pl.BlockSpec:
        return pl.BlockSpec((1, taken, count * width), lambda k, b, g, *_: (b, g, k))

    def shared(cache: Array, prompts: int = 1) -> pl.BlockSpec:
        """A cache of which every so many prompts have a copy."""
        block = (1, 1, *cache.shape[2:])
        return pl.BlockSpec(block, lambda k, b, g, *_: (b // prompts, k, 0, 0))

    def own(cache: Array) -> pl.BlockSpec:
        block = (1, 1, taken, *cache.shape[3:])
        return pl.BlockSpec(block, lambda k, b, g, *_: (b, k, g, 0, 0))

    rotation = pl.BlockSpec((1, 1, width), lambda k, b, g, *_: (b, 0, 0))
    inputs = [heads(repeats), heads(1), heads(1), rotation, rotation]
    inputs += [shared(operands.prompt_keys), shared(operands.prompt_values)]
    inputs += [own(operands.own_keys), own(operands.own_values)]
    if operands.prefix_keys is not None and operands.prefix_values is not None:
        share = num_prompts // len(operands.prefix_keys)
        inputs += [shared(operands.prefix_keys, share), shared(operands.prefix_values, share)]
    # The stretches in which the slot lies.
    of_keys = pl.BlockSpec(
        (1, 1, taken, width, LANES), lambda k, b, g, index, _: (b, k, g, 0, index[0] // LANES)
    )
    of_values = pl.BlockSpec(
        (1, 1, taken, ROWS, width), lambda k, b, g, index, _: (b, k, g, index[0] // ROWS, 0)
    )
    return inputs, [heads(repeats), of_keys, of_values]


def _completions_a_turn(
    group: int,
    repeats: int,
    prompt: KeysAndValues,
    own: KeysAndValues,
    prefix: KeysAndValues | None,
) -> int | None:
    """The most completions whose blocks fit into fast memory; None where not even one does."""
    width, slots = own[0].shape[-2:]
    shared = sum(x.shape[-1] * x.shape[-2] for x in (*prompt, *(prefix or ())))
    tokens = slots + sum(x[0].shape[-1] for x in (prompt, prefix) if x)
    item = own[0].dtype.itemsize
    for taken in range(group, 0, -1):
        rows = taken * repeats
        if group % taken or (taken < group and taken % 8):
            continue
        blocks = 2 * item * (shared + taken * width * (2 * slots + LANES + ROWS) + 4 * rows * width)
        if blocks + 3 * 4 * rows * tokens <= MOST_BYTES:
            return taken
    return None
