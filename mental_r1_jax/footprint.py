"""What a device holds during a step, array by array, from shapes alone: the one model of memory.

`train --dry-run` prints it, the choice of a mesh divides it by the mesh's axes, and `plan` uses it
to name the parts of what the compiler measured. Temporary arrays and programs are not in it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from mental_r1_jax.config import FACTORED_FROM, ExperimentConfig, OptimizerConfig
from mental_r1_jax.models import decoder
from mental_r1_jax.models.decoder import DecoderConfig

GIB = 2**30
MIB = 2**20


@dataclass(frozen=True)
class Footprint:
    """Bytes of one device. Not all of it is there at once: the cache is gone before the update.

    Attributes:
        weights: master weights, float32; where adapters are trained, they and the frozen weights
            in the compute dtype.
        moments: the optimizer's, of what is trained; those of Adafactor as if it were unsharded. 0
            where they live on the hosts, although an update brings them here.
        gradients: one for each trained weight while an update runs, float32.
        reference: frozen start model in the compute dtype; 0 where the KL penalty is off, and with
            adapters, whose frozen weights are the reference.
        decoding_weights: what a rollout reads: compute dtype, sharded over `tensor` only.
        cache: keys and values of a rollout, every sequence at its greatest length.
        layer_inputs: what `remat: layers` keeps of one micro-batch for its backward pass.
        logits_chunk: float32 logits of one micro-batch's completions, one chunk of the vocabulary.
        head: the head and its gradient while an update computes it; whole but for `tensor`.
        decoding_head: float32 logits of one token a row.
    """

    weights: float
    moments: float
    gradients: float
    reference: float
    decoding_weights: float
    cache: float
    layer_inputs: float
    logits_chunk: float
    head: float
    decoding_head: float


def footprint(config: ExperimentConfig, model: DecoderConfig, mesh: Mesh) -> Footprint:
    """What each device of `mesh` holds in a step of the recipe; nothing is allocated.

    Raises:
        UserError: a large parameter that the mesh cannot shard.
    """
    rollout, sizes = config.rollout, mesh.shape
    trained = shard_bytes(trained_weights(model, mesh))
    rounded = compute_weights(model, mesh)
    frozen = 0.0 if model.lora is None else shard_bytes(rounded)
    prompts = rollout.prompts_per_step / (sizes["data"] * sizes["fsdp"]) / config.run.micro_batches
    sampled = rollout.num_generations * rollout.max_completion_length
    token = model.num_layers * model.hidden_size * model.dtype.itemsize
    head, decoding_head = head_bytes(config, model, sizes)
    return Footprint(
        weights=trained + frozen,
        moments=_moments(config.optimizer, model, trained),
        gradients=trained,
        reference=shard_bytes(rounded) if config.crpo.kl_coef > 0 and not frozen else 0.0,
        decoding_weights=shard_bytes(rounded, without="fsdp"),
        cache=sum(cache_bytes(config, model, sizes)),
        layer_inputs=prompts * (rollout.max_prompt_length + sampled) * token,
        logits_chunk=prompts * sampled * 4 * min(config.model.logprob_chunk_size, model.vocab_size),
        head=head,
        decoding_head=decoding_head,
    )


def head_bytes(
    config: ExperimentConfig, model: DecoderConfig, sizes: Mapping[str, int]
) -> tuple[float, float]:
    """What a device holds for the head beside its parameters: (in an update, in a rollout).

    Every token needs all of the matrix ``[D, V]``, so both are gathered over `fsdp`. An update adds
    up the matrix' gradient over its own tokens before devices sum theirs, then in float32. Copies
    of the model do not sum it here but after the last of several micro-batches.

    Args:
        config: numbers of prompts and completions.
        model: its vocabulary is sharded over `tensor` if that divides it.
        sizes: mesh axis -> size.
    """
    rows = sizes["data"] * sizes["fsdp"]
    vocabulary = model.vocab_size
    if vocabulary % sizes["tensor"] == 0:
        vocabulary //= sizes["tensor"]
    matrix, width = model.hidden_size * vocabulary, model.dtype.itemsize
    completions = config.rollout.prompts_per_step / rows * config.decoded_completions
    summing = rows if config.run.micro_batches == 1 else sizes["fsdp"]
    return (
        float(matrix * (width + (4 if summing > 1 else width))),
        float(completions * vocabulary * 4),
    )


def moment_bytes(optimizer: OptimizerConfig) -> float:
    """Bytes of a parameter's moments on a device between updates.

    Of Adafactor 0, as they are a row and a column a matrix, and 0 where they live on the hosts.
    """
    if optimizer.name == "adafactor" or optimizer.offload_moments:
        return 0.0
    return 8.0 if optimizer.first_moment == "float32" else 6.0


def _moments(optimizer: OptimizerConfig, model: DecoderConfig, trained: float) -> float:
    """Bytes of the moments beside so many bytes of trained float32 weights on a device."""
    if optimizer.name == "adamw" or optimizer.offload_moments:
        return moment_bytes(optimizer) / 4 * trained
    total = 0
    for leaf in jax.tree.leaves(decoder.abstract_trained(model)):
        *_, smaller, larger = (1, *sorted(leaf.shape))
        factored = smaller >= FACTORED_FROM
        total += leaf.size // larger + leaf.size // smaller if factored else leaf.size
    return 4.0 * total


def bytes_per_parameter(model: DecoderConfig, optimizer: OptimizerConfig) -> tuple[float, int]:
    """Bytes of one parameter: (in training, reference included; of the copy for decoding).

    The first are sharded over `fsdp` and `tensor`, the second over `tensor` only. Where adapters
    are trained, a parameter is frozen, and its share of the adapters stands beside it.
    """
    trained, copy = 4.0 + moment_bytes(optimizer) + 4.0, model.dtype.itemsize
    if model.lora is not None:
        trained *= decoder.adapter_count(model) / decoder.parameter_count(model)
    return trained + copy, copy


def cache_token_bytes(model: DecoderConfig) -> int:
    """Bytes of one token's keys and values in all layers."""
    return 2 * model.num_layers * model.num_kv_heads * model.head_dim * model.dtype.itemsize


def cache_bytes(
    config: ExperimentConfig, model: DecoderConfig, sizes: Mapping[str, int]
) -> tuple[float, float]:
    """Keys and values on one device: (of prompts, of completions), each at its greatest length.

    Args:
        config: numbers and lengths of prompts and completions.
        model: whose key/value heads are sharded over `tensor` if it divides their number.
        sizes: mesh axis -> size.
    """
    tensor = sizes["tensor"] if model.num_kv_heads % sizes["tensor"] == 0 else 1
    rollout = config.rollout
    prompts = rollout.prompts_per_step / (sizes["data"] * sizes["fsdp"])
    one_token = cache_token_bytes(model) / tensor
    completions = prompts * config.decoded_completions
    return (
        prompts * rollout.max_prompt_length * one_token,
        completions * rollout.max_completion_length * one_token,
    )


def trained_weights(model: DecoderConfig, mesh: Mesh) -> PyTree[jax.ShapeDtypeStruct]:
    """Shapes and shardings of what an update changes: all parameters, or the adapters."""
    return _placed(decoder.abstract_trained(model), decoder.trained_shardings(model, mesh))


def compute_weights(model: DecoderConfig, mesh: Mesh) -> PyTree[jax.ShapeDtypeStruct]:
    """Shapes and shardings of weights with matrices in the compute dtype, as the reference has."""
    rounded = functools.partial(decoder.cast_matrices, config=model)
    shapes = jax.eval_shape(rounded, decoder.abstract_params(model))
    return _placed(shapes, decoder.param_shardings(model, mesh))


def shard_bytes(tree: PyTree, without: str | None = None) -> float:
    """Bytes of one device's share of arrays, or of their shapes with shardings.

    Args:
        tree: leaves with shape, dtype and a `NamedSharding`.
        without: a mesh axis over which everything is taken to be replicated.
    """
    total = 0
    for leaf in jax.tree.leaves(tree):
        where = leaf.sharding
        if without is not None:
            spec = PartitionSpec(*(None if axis == without else axis for axis in where.spec))
            where = NamedSharding(where.mesh, spec)
        total += math.prod(where.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    return float(total)


def _placed(shapes: PyTree, shardings: PyTree) -> PyTree[jax.ShapeDtypeStruct]:
    """Shapes of parameters with their shardings."""
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        shapes,
        shardings,
    )
