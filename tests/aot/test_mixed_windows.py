"""A model of local and global layers keeps the TPU kernel in both kinds."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from mental_r1_jax import sharding
from mental_r1_jax.models import decoder
from tests.aot.programs import CONFIG, array_sizes, tpu_mesh
from tests.training.updates import mesh_of

# A completion's logits have the factors 61 (T) and 363 (P), which no other array has both of.
PROMPT, GROUP, LENGTH = 363, 3, 61
MIXED = dataclasses.replace(
    CONFIG, num_layers=4, compute_dtype="bfloat16", sliding_windows=(None, None, 64, 64)
)


def forward_program(mesh: Mesh) -> str:
    """The compiled forward pass of four prompts."""

    def array(*shape: int, dtype: type) -> jax.ShapeDtypeStruct:
        where = sharding.batch_sharding(mesh, len(shape))
        return jax.ShapeDtypeStruct(shape, dtype, sharding=where)

    params = jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        decoder.abstract_params(MIXED),
        decoder.param_shardings(MIXED, mesh),
    )
    shapes = (4, PROMPT), (4, GROUP, LENGTH + 1)
    tokens = [array(*shape, dtype=dtype) for shape in shapes for dtype in (jnp.int32, jnp.bool_)]
    run = jax.jit(decoder.forward, static_argnums=1)
    return run.lower(params, MIXED, *tokens).compile().as_text()


def logits(program: str) -> dict[int, str]:
    """Arrays with both factors."""
    sizes = array_sizes(program)
    return {n: sizes[n] for n in sizes if n % (LENGTH * PROMPT) == 0}


def test_each_kind_of_layer_is_one_kernel_and_makes_no_logits() -> None:
    program = forward_program(tpu_mesh("v5e:2x2", data=2, fsdp=2))
    calls = [
        line for line in program.splitlines() if 'custom_call_target="tpu_custom_call"' in line
    ]
    assert len(calls) == 2 and all("splash_mha_fwd" in line for line in calls)
    assert not logits(program)


def test_logits_would_be_seen() -> None:
    """Plain attention makes them."""
    assert logits(forward_program(mesh_of()))
