"""Compiled training steps of a tiny decoder, and the sizes of every array in them."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import Mesh

from mental_r1_jax import sharding
from mental_r1_jax.config import STAGE_NAMES
from mental_r1_jax.models.decoder import DecoderConfig, abstract_params
from mental_r1_jax.planning.topologies import parse_topology, topology_devices
from mental_r1_jax.training.train_step import (
    TrainState,
    init_state,
    jit_train_step,
    state_shardings,
)
from mental_r1_jax.types import Batch
from tests.tiny_decoder import tiny_recipe

# Sizes are powers of two, so that other factors of a shape tell which axes it is made of.
CONFIG = DecoderConfig(
    vocab_size=128,
    hidden_size=128,
    intermediate_size=256,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=64,
)


def tpu_mesh(topology: str, data: int = 1, fsdp: int = 1, tensor: int = 1) -> Mesh:
    """A mesh of TPU chips to compile for; skips where their compiler is missing."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("compiling for TPUs needs the package libtpu (`pip install libtpu`)")
    return sharding.make_mesh(data, fsdp, tensor, topology_devices(parse_topology(topology)))


def compiled_step(mesh: Mesh, dtype: str, sizes: tuple[int, int, int, int], chunk: int) -> Any:
    """The update on B prompts of P tokens with G completions of C, compiled, from shapes alone."""
    config = dataclasses.replace(CONFIG, compute_dtype=dtype)
    recipe = tiny_recipe(chunk_size=chunk)
    optimizer = optax.adamw(1e-4)
    run = jit_train_step(config=recipe, decoder=config, optimizer=optimizer, mesh=mesh)
    state = jax.eval_shape(lambda: init_state(_zeros(config), optimizer))
    state = jax.tree.map(placed, state, state_shardings(config, optimizer, mesh))
    return run.lower(state, abstract_batch(mesh, *sizes)).compile()


def _zeros(config: DecoderConfig) -> Any:
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), abstract_params(config))


def placed(leaf: Any, where: Any) -> jax.ShapeDtypeStruct:
    """The shape of a leaf, placed there."""
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)


def abstract_batch(mesh: Mesh, prompts: int, length: int, group: int, completion: int) -> Batch:
    """Shapes of a step's data, sharded over the mesh."""

    def array(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        where = sharding.batch_sharding(mesh, len(shape))
        return jax.ShapeDtypeStruct(shape, dtype, sharding=where)

    tokens = (prompts, group, completion)
    numbers = array(tokens, jnp.float32)
    return Batch(
        prompt_ids=array((prompts, length), jnp.int32),
        prompt_mask=array((prompts, length), jnp.bool_),
        completion_ids=array(tokens, jnp.int32),
        completion_mask=array(tokens, jnp.bool_),
        stage_mask=array((prompts, group, len(STAGE_NAMES), completion), jnp.bool_),
        rewards=array((prompts, group), jnp.float32),
        sampler_logprobs=numbers,
        decode_logprobs=numbers,
        ref_logprobs=numbers,
    )


def array_sizes(program: str) -> dict[int, str]:
    """Number of elements -> one shape with so many, for all arrays of a compiled program's text."""
    shapes = re.findall(r"\b(?:pred|[suf]\d+|bf16)\[([\d,]+)\]", program)
    return {math.prod(map(int, shape.split(","))): shape for shape in shapes}


__all__ = [
    "CONFIG",
    "TrainState",
    "abstract_batch",
    "array_sizes",
    "compiled_step",
    "placed",
    "tpu_mesh",
]
