"""Operations, bytes, times and parts of memory, against figures worked out by hand."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mental_r1_jax import sharding
from mental_r1_jax.config import OptimizerConfig
from mental_r1_jax.footprint import Footprint
from mental_r1_jax.models import decoder
from mental_r1_jax.opening.mesh_choice import choose_mesh
from mental_r1_jax.planning import memory, roofline, workload
from mental_r1_jax.planning.chips import CHIPS, Chip
from mental_r1_jax.planning.traffic import Collective
from mental_r1_jax.planning.workload import Workload
from mental_r1_jax.recipe import parse_config

# One layer: q 4x4, k and v 4x2, o 4x4, and three of 4x5: 108 numbers. Head 4x7 = 28.
MODEL = decoder.DecoderConfig(
    vocab_size=7,
    hidden_size=4,
    intermediate_size=5,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=2,
    compute_dtype="bfloat16",
)
RECIPE = """
model: {path: unused}
data: {sets: [Stress-Synthetic]}
run: {output_dir: unused, micro_batches: 2}
rollout: {prompts_per_step: 4, num_generations: 3, max_prompt_length: 2, max_completion_length: 5}
"""


def work(*overrides: str, model: decoder.DecoderConfig = MODEL, **sizes: int) -> Workload:
    """The step of the figures above with other settings or mesh."""
    config = parse_config(RECIPE, overrides, source="test")
    return Workload(config, model, {"data": 1, "fsdp": 2, "tensor": 1} | sizes)


WORK = work()
# Tokens: 4 x 2 + 4 x 3 x 5 = 68, of which 60 sampled. Keys seen: prompts 4 x (1 + 2) = 12,
# completions 4 x 3 x (3 + 4 + 5 + 6 + 7) = 300; 4 operations a key, head, width and layer: 32.
FORWARD = 2 * 2 * 108 * 68 + 32 * (12 + 300) + 2 * 28 * 60


def test_parameters_in_matrices() -> None:
    shapes = decoder.abstract_params(MODEL)["layers"]
    kernels = [x for path, x in jax.tree_util.tree_leaves_with_path(shapes)
               if path[-1].key == "kernel"]  # fmt: skip
    assert workload.layer_matrix_size(MODEL) == sum(x.size for x in kernels) == 2 * 108
    assert workload.head_size(MODEL) == 28


def test_operations_of_each_phase() -> None:
    """The update: forward, twice that backward, and what it computes again to save memory."""
    flops = workload.phase_flops(WORK)
    assert flops["rollout"] == flops["reference"] == (FORWARD, FORWARD)
    assert flops["update"] == (3 * FORWARD, 4 * FORWARD)
    kept = work(model=dataclasses.replace(MODEL, remat="none"))
    assert workload.phase_flops(kept)["update"] == (3 * FORWARD, 3 * FORWARD + 2 * 28 * 60)
    twice = work("crpo.num_iterations=2")
    assert workload.phase_flops(twice)["update"][0] == 6 * FORWARD
    assert workload.phase_flops(twice)["reference"][0] == 2 * FORWARD
    alone = work("crpo.kl_coef=0")
    assert set(workload.phase_flops(alone)) == {"rollout", "update"}


def test_decoding_reads_weights_and_live_cache_at_every_token() -> None:
    count = sum(x.size for x in jax.tree.leaves(decoder.abstract_params(MODEL)))
    # Keys and values of 2 layers, 1 head, width 2, 2 bytes: 16 a token; 2 prompts a device.
    prompts, completions = 2 * 2 * 16, 2 * 3 * 5 * 16
    moved = workload.phase_memory_traffic(WORK)
    assert moved["rollout"] == 2 * count + 5 * (2 * count + prompts + completions / 2)
    wide = work(fsdp=1, tensor=2)
    assert workload.phase_memory_traffic(wide)["rollout"] < 2 * moved["rollout"]


def test_times_are_work_over_rates() -> None:
    chip = Chip("toy", 1e3, 1e6, 1e4, 200.0, 2, 10.0)
    found = [Collective("all-gather", 0, 3, 1, 2, ici_bytes=50.0, dcn_bytes=20.0, source="")]
    time = roofline.phase_time("rollout", WORK, chip, found)
    assert time.compute == FORWARD / 2 / 1e3
    assert time.memory == workload.phase_memory_traffic(WORK)["rollout"] / 1e4
    assert (time.ici, time.dcn) == (150.0 / 100.0, 60.0 / 10.0)
    assert time.bound == max(time.compute, time.memory, 6.0)
    busy = max(time.compute / roofline.MATRIX_SHARE, time.memory / roofline.MEMORY_SHARE)
    network = (1.5 + 6.0) / roofline.NETWORK_SHARE + 3 * roofline.DCN_LATENCY
    assert time.expected == pytest.approx(busy + network)
    more = roofline.phase_time("rollout", WORK, chip, found, beside=5e3)
    assert more.memory == pytest.approx(time.memory + 5e3 / 1e4)
    assert dataclasses.replace(more, memory=time.memory) == time


HELD = Footprint(
    weights=100.0,
    moments=200.0,
    gradients=100.0,
    reference=50.0,
    decoding_weights=60.0,
    cache=544.0,
    layer_inputs=272.0,
    logits_chunk=5.0,
    head=30.0,
    decoding_head=40.0,
)


def stats(**values: float) -> Any:
    """What the compiler says about a program."""
    given = {"argument": 330.0, "output": 310.0, "alias": 300.0, "temp": 900.0} | values
    sizes = {f"{name}_size_in_bytes": size for name, size in given.items()}
    return SimpleNamespace(**sizes, generated_code_size_in_bytes=7)


def test_parts_of_memory_add_up_to_the_peak() -> None:
    """The update holds its state, the reference that another program reads, and its temporaries."""
    parts = memory.phase_parts("update", stats(), HELD)
    assert sum(parts.values()) == 330 + 50 + 310 - 300 + 900 + 7
    assert (parts["gradients"], parts["activations"], parts["batch"]) == (100.0, 272.0, 40.0)
    assert parts["head"] == 35.0
    rollout = memory.phase_parts("rollout", stats(), HELD)
    assert (rollout["decoding weights"], rollout["cache"], rollout["head"]) == (60, 544, 40)
    tight = memory.phase_parts("rollout", stats(temp=10.0), HELD)
    assert (tight["decoding weights"], tight["cache"], tight["temporaries"]) == (10, 0, 0)


def test_without_a_reference_nothing_stands_for_it() -> None:
    """With two updates a rollout the policy's own weights score, which are counted already."""
    alone = dataclasses.replace(HELD, reference=0.0)
    parts = memory.phase_parts("reference", stats(argument=130.0), alone)
    assert (parts["reference"], parts["batch"]) == (0.0, 40.0)
    assert sum(parts.values()) == 330 + 10 + 900 + 7


def test_weights_for_decoding_are_replicated_over_fsdp() -> None:
    """As `constrain_for_decoding` lays them out, on real devices."""
    mesh = sharding.make_mesh(1, 4, 2)
    axes = {"w": ("embed", "mlp"), "heads": ("embed", "kv_heads", "head_dim")}
    params = {"w": jnp.arange(48.0).reshape(8, 6), "heads": jnp.ones((8, 3, 2))}
    placed = jax.device_put(params, sharding.param_shardings(mesh, params, axes))
    found = jax.jit(lambda tree: sharding.constrain_for_decoding(tree, axes))(placed)
    assert found["w"].addressable_shards[0].data.shape == (8, 3)
    # Three heads do not divide over two devices, so every device has them all.
    assert found["heads"].addressable_shards[0].data.shape == (8, 3, 2)
    np.testing.assert_array_equal(found["w"], params["w"])


BIG = dataclasses.replace(
    MODEL, vocab_size=50_000, hidden_size=4096, intermediate_size=16_384, num_layers=32,
    num_heads=32, num_kv_heads=8, head_dim=128,
)  # fmt: skip


@pytest.mark.parametrize(
    ("model", "chip", "devices", "given", "expected"),
    [
        (MODEL, "v5e", 8, {}, (1, 1)),
        (BIG, "v5p", 16, {}, (8, 1)),
        (BIG, "v5e", 64, {}, (8, 4)),
        (BIG, "v5e", 64, {"tensor": 8}, (4, 8)),
        (BIG, "v5e", 64, {"fsdp": 16}, (16, 4)),
        (BIG, "v5e", 4, {}, (1, 4)),
        (BIG, None, 8, {}, (1, 1)),
    ],
    ids=["small", "v5p", "v5e", "given-tensor", "given-fsdp", "too-few", "unknown-memory"],
)
def test_the_mesh_is_the_smallest_that_fits(
    model: decoder.DecoderConfig,
    chip: str | None,
    devices: int,
    given: dict[str, int],
    expected: tuple[int, int],
) -> None:
    """7.2e9 parameters: 14.5 GB to decode with, and 130 GB of weights, moments and gradients."""
    room = CHIPS[chip].memory if chip else None
    choice = choose_mesh(model, devices, room, OptimizerConfig(), **given)
    assert (choice.fsdp, choice.tensor) == expected
    assert f"fsdp={expected[0]}" in choice.reason and f"tensor={expected[1]}" in choice.reason
