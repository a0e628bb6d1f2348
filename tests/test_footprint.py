"""The memory model of a step, against arrays on real devices and figures worked out by hand."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from mental_r1_jax import sharding
from mental_r1_jax.config import OptimizerConfig
from mental_r1_jax.console.overview import memory_rows
from mental_r1_jax.footprint import GIB, bytes_per_parameter, cache_bytes, footprint, shard_bytes
from mental_r1_jax.models import decoder
from mental_r1_jax.models.decoder import parameter_count
from mental_r1_jax.recipe import parse_config
from mental_r1_jax.training.optimizer import make_optimizer
from mental_r1_jax.training.train_step import init_state, state_shardings

MODEL = decoder.DecoderConfig(
    vocab_size=24,
    hidden_size=16,
    intermediate_size=32,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    compute_dtype="bfloat16",
)
RECIPE = """
model: {path: unused, logprob_chunk_size: 10}
data: {sets: [Stress-Synthetic]}
run: {output_dir: unused, micro_batches: 2}
rollout: {prompts_per_step: 8, num_generations: 3, max_prompt_length: 6, max_completion_length: 5}
"""
CONFIG = parse_config(RECIPE, [], source="test")


def held_by_first_device(tree: object) -> int:
    """Bytes of the arrays' parts on one device."""
    return sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("sizes", [(8, 1, 1), (2, 4, 1), (2, 2, 2), (1, 2, 4)])
def test_weights_are_those_that_a_run_places(sizes: tuple[int, int, int]) -> None:
    """State, reference and decoding weights on eight devices; 2 key/value heads over 4 as well."""
    mesh = sharding.make_mesh(*sizes)
    found = footprint(CONFIG, MODEL, mesh)
    optimizer = make_optimizer(CONFIG.optimizer, 10)
    where = state_shardings(MODEL, optimizer, mesh)
    make = lambda: init_state(decoder.init_params(MODEL, jax.random.key(0)), optimizer)  # noqa: E731
    state = jax.jit(make, out_shardings=where)()
    assert found.weights == found.gradients == held_by_first_device(state.params)
    # Besides the moments, the optimizer counts its steps.
    assert found.moments == pytest.approx(held_by_first_device(state.opt_state), abs=32)
    reference = jax.jit(decoder.cast_matrices, static_argnums=1)(state.params, MODEL)
    assert found.reference == held_by_first_device(reference)
    axes = decoder.param_logical_axes(MODEL)
    gather = jax.jit(lambda tree: sharding.constrain_for_decoding(tree, axes))
    assert found.decoding_weights == held_by_first_device(gather(reference))


def test_cache_and_activations_by_hand() -> None:
    """2 x 2 x 2 devices: 2 prompts on each, 1 in a micro-batch, with 6 + 3 x 5 = 21 tokens."""
    found = footprint(CONFIG, MODEL, sharding.make_mesh(2, 2, 2))
    # Keys and values of 2 layers, one of 2 heads on a device, width 8, 2 bytes: 64 a token.
    assert found.cache == 2 * 21 * 64
    assert found.layer_inputs == 21 * 2 * 16 * 2
    assert found.logits_chunk == 15 * 10 * 4
    whole = decoder.init_completion_cache(MODEL, 8, 3, 5)
    one = {"data": 1, "fsdp": 1, "tensor": 1}
    placed = sum(leaf.nbytes for leaf in jax.tree.leaves(whole))
    assert cache_bytes(CONFIG, MODEL, one) == (8 * 6 * 128, placed)
    # Two heads do not divide over four devices, each of which then holds both.
    assert cache_bytes(CONFIG, MODEL, one | {"tensor": 4})[1] == placed


def test_the_head_by_hand() -> None:
    """Half of 24 entries on a device, width 16; 2 prompts with 3 completions on each device."""
    mesh = sharding.make_mesh(2, 2, 2)
    found = footprint(CONFIG, MODEL, mesh)
    assert found.head == 12 * 16 * (2 + 4)  # bfloat16 matrix, float32 gradient
    assert found.decoding_head == 2 * 3 * 12 * 4  # it is a parameter: logits only
    tied = dataclasses.replace(MODEL, tie_embeddings=True)
    assert footprint(CONFIG, tied, mesh).decoding_head == found.decoding_head  # nor is that copied
    alone = footprint(CONFIG, MODEL, sharding.make_mesh(1, 1, 1, jax.devices()[:1]))
    assert alone.head == 24 * 16 * (2 + 2)
    copies = sharding.make_mesh(8, 1, 1)  # which sum it after two micro-batches, not in each
    assert footprint(CONFIG, MODEL, copies).head == 24 * 16 * (2 + 2)
    in_one = parse_config(RECIPE, ["run.micro_batches=1"], source="test")
    assert footprint(in_one, MODEL, copies).head == 24 * 16 * (2 + 4)


def test_bytes_of_a_parameter_are_those_of_the_footprint() -> None:
    """The choice of a mesh counts as the footprint does, but for norms, which stay float32."""
    found = footprint(CONFIG, MODEL, sharding.make_mesh(8, 1, 1))
    training, decoding = (
        size * parameter_count(MODEL) for size in bytes_per_parameter(MODEL, CONFIG.optimizer)
    )
    held = found.weights + found.moments + found.gradients + found.reference
    assert training == pytest.approx(held, rel=0.01)
    assert decoding == pytest.approx(found.decoding_weights, rel=0.03)
    assert bytes_per_parameter(MODEL, CONFIG.optimizer) == (18, 2)
    single = dataclasses.replace(MODEL, compute_dtype="float32")
    assert bytes_per_parameter(single, CONFIG.optimizer) == (20, 4)
    assert bytes_per_parameter(MODEL, OptimizerConfig(first_moment="bfloat16")) == (16, 2)
    assert bytes_per_parameter(MODEL, OptimizerConfig(name="adafactor")) == (10, 2)


@pytest.mark.parametrize(
    ("keys", "sizes"),
    [
        (["optimizer.first_moment=bfloat16"], (2, 2, 2)),
        # Matrices of 160 x 192 are factored, those of 16 x 160 are not.
        (["optimizer.name=adafactor"], (8, 1, 1)),
    ],
)
def test_moments_are_those_that_the_optimizer_makes(
    keys: list[str], sizes: tuple[int, int, int]
) -> None:
    wide = dataclasses.replace(MODEL, hidden_size=160, intermediate_size=192)
    mesh = sharding.make_mesh(*sizes)
    config = parse_config(RECIPE, keys, source="test")
    optimizer = make_optimizer(config.optimizer, 1)
    state = jax.eval_shape(optimizer.init, decoder.abstract_trained(wide))
    where = state_shardings(wide, optimizer, mesh).opt_state
    placed = jax.tree.map(
        lambda leaf, at: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=at), state, where
    )
    # Beside the moments a state has counters, and placeholders of one entry.
    assert footprint(config, wide, mesh).moments == pytest.approx(shard_bytes(placed), abs=200)


def test_bytes_of_a_device_are_those_of_its_shards() -> None:
    mesh = sharding.make_mesh(1, 4, 2)
    axes = {"w": ("embed", "mlp"), "b": ("mlp",)}
    params = {"w": np.zeros((8, 6), np.float32), "b": np.zeros(6, np.float32)}
    placed = jax.device_put(params, sharding.param_shardings(mesh, params, axes))
    held = held_by_first_device(placed)
    assert shard_bytes(placed) == held == (8 / 4 * 6 / 2 + 6 / 2) * 4
    assert shard_bytes(placed, without="fsdp") == (8 * 6 / 2 + 6 / 2) * 4


def test_the_dry_run_prints_the_footprint() -> None:
    big = dataclasses.replace(MODEL, vocab_size=65_536, hidden_size=4096, num_layers=16)
    mesh = sharding.make_mesh(8, 1, 1)
    rows = dict(memory_rows(CONFIG, big, mesh))
    found = dataclasses.asdict(footprint(CONFIG, big, mesh))
    assert len(rows) == len(found) + 1
    assert rows["float32 weights"] == f"{4 * parameter_count(big) / GIB:.3f} GiB"
    assert rows["sum"] == f"{sum(found.values()) / GIB:.3f} GiB"
    without = parse_config(RECIPE, ["crpo.kl_coef=0"], source="test")
    assert dict(memory_rows(without, big, mesh))["reference weights"] == "0.000 GiB"
