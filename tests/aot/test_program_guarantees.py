"""What must hold for the programs of a step, read off what the TPU compiler made of them.

The step runs on 2 x 2 x 2 chips (`data` x `fsdp` x `tensor`), see `tiny_step.py` for its sizes.
"""

from __future__ import annotations

import math
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from mental_r1_jax import sharding
from mental_r1_jax.footprint import shard_bytes
from mental_r1_jax.planning.hlo import Program, parse_program
from mental_r1_jax.planning.topologies import parse_topology, topology_devices
from mental_r1_jax.planning.traffic import Collective, collectives
from tests.aot.tiny_step import MODEL, TOPOLOGY, TinyStep, tiny_step

VOCABULARY, LAYERS = MODEL["vocab_size"], MODEL["num_hidden_layers"]
WIDTH, HEAD = MODEL["hidden_size"], MODEL["head_dim"]
GROUP, PROMPT, COMPLETION, CHUNK = 4, 512, 384, 64
# 16 prompts over 2 x 2 devices; an update has two micro-batches.
ROWS = {"rollout": 4, "reference": 4, "update": 2}


def buffers(program: Program) -> dict[tuple[int, ...], str]:
    """Shape -> name of an instruction that makes an array of its own, not a part of a fusion."""
    skipped = ("parameter", "tuple", "get-tuple-element", "while", "bitcast")
    return {
        array.shape: visit.instruction.name
        for visit in program.visits()
        for array in visit.instruction.arrays
        if not visit.fused and visit.instruction.opcode not in skipped
    }


def with_vocabulary(program: Program, elements: int) -> dict[tuple[int, ...], str]:
    """Buffers as large as so many rows of logits, with the vocabulary (or its half) in them."""
    return {
        shape: name
        for shape, name in buffers(program).items()
        if {VOCABULARY, VOCABULARY // 2} & set(shape) and math.prod(shape) >= elements
    }


def traffic(tiny: TinyStep, phase: str) -> list[Collective]:
    """Collectives of one program."""
    return collectives(tiny.programs[phase], num_devices=8)


def test_the_recipe_fits_and_every_phase_is_planned(tiny: TinyStep) -> None:
    """The plan's own sums: parts make the peak, phases make the step."""
    plan = tiny.plan
    assert plan.fits and [phase.phase for phase in plan.phases] == list(tiny.programs)
    for phase in plan.phases:
        stats = tiny.compiled[phase.phase].memory_analysis()
        assert phase.peak >= stats.argument_size_in_bytes + stats.temp_size_in_bytes
        assert phase.time is not None and 0 < phase.time.bound <= phase.time.expected
    assert plan.expected == sum(phase.time.expected for phase in plan.phases if phase.time)
    written = plan.as_json()
    assert written["chips"] == 8 and written["mesh"] == {"data": 2, "fsdp": 2, "tensor": 2}
    assert written["chip_hours"] == pytest.approx(8 * 10 * plan.expected / 3600)


def test_no_buffer_holds_the_logits_of_all_tokens(tiny: TinyStep) -> None:
    """Neither [tokens, vocabulary] nor anything of that size; one chunk of it is allowed."""
    tokens = ROWS["update"] * GROUP * COMPLETION
    found = with_vocabulary(tiny.programs["update"], tokens * VOCABULARY // 2)
    assert not found
    assert with_vocabulary(tiny.programs["update"], tokens * VOCABULARY // 2 * CHUNK // COMPLETION)
    assert not with_vocabulary(tiny.programs["rollout"], 2 * tokens * VOCABULARY // 2)


def test_logits_of_all_tokens_would_be_seen() -> None:
    """The same search in a program that makes them."""
    pytest.importorskip("libtpu")
    mesh = sharding.make_mesh(2, 2, 2, topology_devices(parse_topology(TOPOLOGY)))

    def loss(matrix: jax.Array, hidden: jax.Array) -> jax.Array:
        logits = hidden @ matrix
        return (jax.nn.log_softmax(logits, axis=-1) ** 2).sum()

    matrix = jax.ShapeDtypeStruct(
        (WIDTH, VOCABULARY),
        jnp.float32,
        sharding=sharding.logical_to_sharding(mesh, ("embed", "vocab")),
    )
    hidden = jax.ShapeDtypeStruct(
        (8, GROUP, COMPLETION, WIDTH), jnp.float32, sharding=sharding.batch_sharding(mesh, 4)
    )
    text = jax.jit(jax.grad(loss)).lower(matrix, hidden).compile().as_text()
    tokens = ROWS["update"] * GROUP * COMPLETION
    assert with_vocabulary(parse_program(text), tokens * VOCABULARY // 2)


def test_weights_are_gathered_a_layer_at_a_time(tiny: TinyStep) -> None:
    """The update gathers no more at once than the largest single matrix, in the compute dtype."""
    largest = 2 * VOCABULARY * WIDTH
    gathers = [c for c in traffic(tiny, "update") if c.kind == "all-gather"]
    assert gathers and max(c.array_bytes for c in gathers) <= largest
    # Every layer is gathered when it runs: forward and backward, in both micro-batches.
    assert {c.times for c in gathers if "gate" in c.source} == {2 * LAYERS}


def test_decoding_gathers_its_weights_once(tiny: TinyStep) -> None:
    """No token step gathers a matrix; what is gathered before equals the announced reshard."""
    found = traffic(tiny, "rollout")
    smallest_matrix = 2 * WIDTH * MODEL["num_key_value_heads"] * HEAD // 2
    in_loop = [c for c in found if c.kind == "all-gather" and c.times >= COMPLETION]
    assert not [c for c in in_loop if c.array_bytes >= smallest_matrix]
    brought = ("jit(sample)/convert_element_type", "jit(sample)/slice")  # whole, and by layer
    once = sum(
        c.ici_bytes
        for c in found
        if c.kind == "all-gather" and c.times == 1 and c.source.endswith(brought)
    )
    assert once == pytest.approx(tiny.plan.reshard_bytes, rel=0.01)


def test_what_a_token_launches_is_counted(tiny: TinyStep) -> None:
    """The counts of today, so that none grows unseen; `test_decode_kernel.py` has fewer."""
    token = tiny.plan.phases[0].token
    assert token is not None
    assert 14 <= token.layer <= 36
    assert 100 <= token.others <= 130
    # At this size all results stay in the chip's fast memory; keys that are written back whole,
    # 96 KiB a completion, would show.
    assert token.layer_bytes < 1024 and token.other_bytes < 1024


def test_little_is_moved_by_operations_that_compute_nothing(tiny: TinyStep) -> None:
    """The share of today, so that no copy of weights or activations comes unseen."""
    moved = {phase.phase: phase.moved for phase in tiny.plan.phases}
    update = moved["update"]
    assert update is not None and 0 < update.only_moved < 0.02 * update.all


def test_optimizer_state_is_sharded_like_the_weights(tiny: TinyStep) -> None:
    """A chip is given a quarter of weights and moments, but for small norms."""
    state, batch = tiny.steps["update"].arguments
    everything = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    held = shard_bytes(state)
    assert held == pytest.approx(everything / 4, rel=0.02)
    given = tiny.compiled["update"].memory_analysis().argument_size_in_bytes
    assert given == pytest.approx(held + shard_bytes(batch), rel=0.05)


def test_the_state_is_updated_in_place(tiny: TinyStep) -> None:
    """Every leaf of the donated state takes over its own memory."""
    state = tiny.steps["update"].arguments[0]
    assert tiny.programs["update"].aliases == len(jax.tree.leaves(state))
    aliased = tiny.compiled["update"].memory_analysis().alias_size_in_bytes
    assert aliased == pytest.approx(shard_bytes(state), rel=0.02)


@pytest.mark.parametrize("phase", ["rollout", "update"])
def test_keys_of_a_prompt_are_not_copied_for_its_completions(tiny: TinyStep, phase: str) -> None:
    """No buffer has group, prompt and head width among its axes, at the size of such copies."""
    heads = MODEL["num_key_value_heads"] // 2
    copied = ROWS[phase] * GROUP * PROMPT * heads * HEAD
    assert not [
        shape
        for shape in buffers(tiny.programs[phase])
        if {PROMPT, HEAD} <= set(shape)
        and {GROUP, ROWS[phase] * GROUP} & set(shape)
        and math.prod(shape) >= copied
    ]


def test_reductions_of_the_update_are_few(tiny: TinyStep) -> None:
    """Sums over `tensor` in a layer, and gradients over `fsdp` and `data`: nothing else is large.

    A layer needs two sums over `tensor` in the forward pass, two when it is run again, and two for
    the gradient of its input.
    """
    activations = 2 * ROWS["update"] * (PROMPT + GROUP * (COMPLETION - 1)) * WIDTH
    reduced = [
        c
        for c in traffic(tiny, "update")
        if c.kind in ("all-reduce", "reduce-scatter") and c.loops == 2
    ]
    in_a_layer = [c for c in reduced if c.array_bytes >= 0.9 * activations and c.group == 2]
    assert 4 <= len(in_a_layer) <= 6
    # All gradients of a layer together: one over `fsdp`, one over `data`, each perhaps in two.
    assert len(reduced) - len(in_a_layer) <= 6


def sent(step: TinyStep, phase: str) -> float:
    """Bytes that a chip sends in one run of a program."""
    found = collectives(step.programs[phase], step.plan.work.devices)
    return sum(c.times * (c.ici_bytes + c.dcn_bytes) for c in found)


@pytest.mark.slow
def test_the_same_program_at_8_64_and_512_chips(tiny_model: Path) -> None:
    """Copies of the model (`data`) leave a chip's memory as it is, and add one sum of gradients.

    With the same prompts a chip, 64 times the chips may cost a tenth more memory, and each chip may
    send at most the float32 gradients of its own part more, twice over.
    """
    steps = {}
    for chips, topology in ((8, "v5p:2x2x2"), (64, "v5p:4x4x4"), (512, "v5p:8x8x8")):
        prompts = f"rollout.prompts_per_step={2 * chips}"
        mesh = f"mesh.data={chips // 4}"
        steps[chips] = tiny_step(tiny_model, topology, prompts, mesh, "crpo.kl_coef=0")
    base = steps[8]
    gradients = shard_bytes(base.steps["update"].arguments[0].params)
    for chips in (64, 512):
        for phase in ("rollout", "update"):
            peaks = [
                next(p.peak for p in step.plan.phases if p.phase == phase)
                for step in (base, steps[chips])
            ]
            assert peaks[1] <= 1.1 * peaks[0]
        assert sent(steps[chips], "rollout") <= 1.1 * sent(base, "rollout")
        assert sent(steps[chips], "update") <= 1.1 * sent(base, "update") + 2 * gradients


@pytest.mark.slow
def test_between_slices_little_more_than_gradients_travels(tiny_model: Path) -> None:
    """Two slices: a chip sends its share of the gradients in each micro-batch; decoding, flags."""
    step = tiny_step(tiny_model, "v5e:2x4", "mesh.data=4", "crpo.kl_coef=0", slices=2)
    found: dict[str, list[Collective]] = {
        phase: collectives(program, step.plan.work.devices, num_slices=2)
        for phase, program in step.programs.items()
    }
    gradients = shard_bytes(step.steps["update"].arguments[0].params)
    over_dcn = sum(c.times * c.dcn_bytes for c in found["update"])
    assert 0.5 * gradients < over_dcn <= 2 * step.plan.work.config.run.micro_batches * gradients
    of_tokens = [c.dcn_bytes for c in found["rollout"] if c.times >= COMPLETION]
    assert max(of_tokens, default=0.0) <= 1024
