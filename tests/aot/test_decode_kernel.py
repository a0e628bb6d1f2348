"""The decoding kernel, compiled for TPUs: what a layer launches with it, and without."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import Mesh

from mental_r1_jax import sharding
from mental_r1_jax.models import decoder
from mental_r1_jax.models.decoder import CompletionCache, DecoderConfig, PromptCache
from mental_r1_jax.planning.hlo import Program, parse_program
from mental_r1_jax.planning.operations import token_operations
from tests.aot.programs import placed, tpu_mesh

# Two query heads a key/value head, as wide as those of Qwen3-0.6B.
CONFIG = DecoderConfig(
    vocab_size=256,
    hidden_size=256,
    intermediate_size=512,
    num_layers=2,
    num_heads=8,
    num_kv_heads=4,
    head_dim=128,
    qk_norm=True,
    compute_dtype="bfloat16",
    decode_kernel=True,
)
PROMPTS, GROUP, PROMPT, SLOTS, PREFIX = 16, 4, 512, 256, 72


@functools.cache
def decoding_loop(config: DecoderConfig, topology: str, prefix: bool = False) -> Program:
    """A loop that decodes the same token again and again, compiled from shapes alone."""
    mesh = tpu_mesh(topology, *((2, 2, 2) if topology == "v5e:2x4" else (1, 1, 1)))
    weights = jax.tree.map(
        placed,
        decoder.abstract_params(config),
        decoder.param_shardings(config, mesh),
    )

    def run(params, tokens, hidden, of_prompts, of_completions):
        weights = decoder.decoding_params(params, config)
        prompts, own = PromptCache(*of_prompts), CompletionCache(*of_completions)

        def turn(carry):
            index, _, own = carry
            hidden, own = decoder.decode_step(weights, config, tokens, index, prompts, own)
            return index + 1, hidden, own

        with jax.named_scope("decode"):
            start = jnp.zeros((), jnp.int32), hidden, own
            return jax.lax.while_loop(lambda carry: carry[0] < SLOTS, turn, start)

    arguments = weights, *arrays(config, mesh, prefix)
    return parse_program(jax.jit(run, donate_argnums=4).lower(*arguments).compile().as_text())


def arrays(config: DecoderConfig, mesh: Mesh, prefix: bool) -> tuple:
    """Shapes of tokens, states and caches, sharded as a rollout has them."""

    def array(*shape: int, dtype: jnp.dtype = config.dtype, heads: bool = True):
        where = sharding.batch_sharding(mesh, len(shape))
        if heads:
            spec = jax.sharding.PartitionSpec(sharding.BATCH_AXES, "tensor")
            where = jax.sharding.NamedSharding(mesh, spec)
        return jax.ShapeDtypeStruct(shape, dtype, sharding=where)

    parts, heads, width = sharding.batch_shards(mesh), config.num_kv_heads, config.head_dim
    layers = range(config.num_layers)
    before = ()
    if prefix:
        keys = tuple(array(parts, heads, width, PREFIX) for _ in layers)
        before = keys, tuple(array(parts, heads, PREFIX, width) for _ in layers)
    prompts = (
        tuple(array(PROMPTS, heads, width, PROMPT) for _ in layers),
        tuple(array(PROMPTS, heads, PROMPT, width) for _ in layers),
        array(PROMPTS, PROMPT, dtype=jnp.bool_, heads=False),
        *before,
    )
    own = (
        tuple(array(PROMPTS, heads, GROUP, width, SLOTS) for _ in layers),
        tuple(array(PROMPTS, heads, GROUP, SLOTS, width) for _ in layers),
    )
    tokens = array(PROMPTS, GROUP, dtype=jnp.int32, heads=False)
    hidden = array(PROMPTS, GROUP, config.hidden_size, heads=False)
    return tokens, hidden, prompts, own


def of_one_layer(config: DecoderConfig, topology: str) -> float:
    """Operations that one layer more launches."""
    two, three = (dataclasses.replace(config, num_layers=n) for n in (2, 3))
    programs = decoding_loop(two, topology), decoding_loop(three, topology)
    few, more = (n * token_operations(p, n).layer for n, p in zip((2, 3), programs, strict=True))
    return more - few


@pytest.mark.parametrize("topology", ["v5e:2x4", "v6e:1x1"])
def test_a_layer_launches_at_most_fourteen_operations(topology: str) -> None:
    """12, and on the mesh with `tensor` 13."""
    assert of_one_layer(CONFIG, topology) <= 14


def test_without_it_a_layer_launches_twice_as_many() -> None:
    """What the test above would not find if the kernel did not run."""
    program = decoding_loop(dataclasses.replace(CONFIG, decode_kernel=False), "v5e:2x4")
    assert token_operations(program, CONFIG.num_layers).layer > 24


@pytest.mark.parametrize("prefix", [False, True], ids=["prompts", "after-a-prefix"])
def test_the_kernel_runs_and_no_cache_is_copied(prefix: bool) -> None:
    program = decoding_loop(CONFIG, "v5e:2x4", prefix)
    of_a_chip = PROMPTS // 4, CONFIG.num_kv_heads // 2
    caches = {
        (*of_a_chip, GROUP, CONFIG.head_dim, SLOTS),
        (*of_a_chip, GROUP, SLOTS, CONFIG.head_dim),
        (*of_a_chip, CONFIG.head_dim, PROMPT),
        (*of_a_chip, PROMPT, CONFIG.head_dim),
    }
    in_loop = [visit.instruction for visit in program.visits() if visit.loops]
    kernels = [line for line in in_loop if "decode_attention" in line.source]
    assert sum(line.opcode == "custom-call" for line in kernels) == CONFIG.num_layers
    copied = [
        line.name
        for line in in_loop
        if line.opcode not in ("custom-call", "get-tuple-element", "tuple", "parameter", "while")
        for each in line.arrays
        if each.shape in caches
    ]
    assert not copied
