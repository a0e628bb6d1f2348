"""A model of local and global layers keeps the TPU kernel in both kinds."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import Mesh

from mental_r1_jax import sharding
from mental_r1_jax.models import decoder
from mental_r1_jax.models.decoder import DecoderConfig
from tests.aot.programs import CONFIG, array_sizes, tpu_mesh
from tests.training.updates import mesh_of

# A completion's logits have the factors 61 (T) and 363 (P), which no other array has both of.
PROMPT, GROUP, LENGTH = 363, 3, 61
MIXED = dataclasses.replace(
    CONFIG, num_layers=4, compute_dtype="bfloat16", sliding_windows=(None, None, 64, 64)
)
# Gemma 3 in small, with Gemma 2's softcap: (1 local + 1 global) x 2 + 1 local are a pattern of two,
# and a rest of one.
GEMMA = dataclasses.replace(
    MIXED,
    **{"num_layers": 5, "num_kv_heads": 1, "head_dim": 256, "qk_norm": True, "norm_offset": 1.0},
    **{"post_norms": True, "scale_embedding": True, "activation": "gelu_tanh"},
    **{
        "attention_softcap": 50.0,
        "query_scale": 256.0,
        "local_rope_theta": 1e3,
        "tie_embeddings": True,
    },
    **{"sliding_windows": (64, None) * 2 + (64,), "family": "gemma3_text"},
)
CASES = [
    pytest.param(MIXED, 2, id="mixed", marks=pytest.mark.slow),
    pytest.param(GEMMA, 3, id="gemma3"),
]


def forward_program(mesh: Mesh, config: DecoderConfig = MIXED) -> str:
    """The compiled forward pass of four prompts."""

    def array(*shape: int, dtype: type) -> jax.ShapeDtypeStruct:
        where = sharding.batch_sharding(mesh, len(shape))
        return jax.ShapeDtypeStruct(shape, dtype, sharding=where)

    params = jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        decoder.abstract_params(config),
        decoder.param_shardings(config, mesh),
    )
    shapes = (4, PROMPT), (4, GROUP, LENGTH + 1)
    tokens = [array(*shape, dtype=dtype) for shape in shapes for dtype in (jnp.int32, jnp.bool_)]
    run = jax.jit(decoder.forward, static_argnums=1)
    return run.lower(params, config, *tokens).compile().as_text()


def logits(program: str) -> dict[int, str]:
    """Arrays with both factors."""
    sizes = array_sizes(program)
    return {n: sizes[n] for n in sizes if n % (LENGTH * PROMPT) == 0}


@pytest.mark.parametrize(("config", "layers"), CASES)
def test_each_layer_of_a_pattern_is_one_kernel_and_makes_no_logits(
    config: DecoderConfig, layers: int
) -> None:
    program = forward_program(tpu_mesh("v5e:2x2", data=2, fsdp=2), config)
    calls = [
        line for line in program.splitlines() if 'custom_call_target="tpu_custom_call"' in line
    ]
    assert len(calls) == layers and all("splash_mha_fwd" in line for line in calls)
    assert not logits(program)


def test_logits_would_be_seen() -> None:
    """Plain attention makes them."""
    assert logits(forward_program(mesh_of()))
