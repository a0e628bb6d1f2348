"""How often the TPU's program of a truncated draw goes over the vocabulary."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from mental_r1_jax import sharding
from mental_r1_jax.planning.hlo import parse_program
from mental_r1_jax.planning.traffic import Collective, collectives
from mental_r1_jax.rollout.sampling import sample_token
from tests.aot.programs import tpu_mesh

VOCABULARY = 4096
ROWS = 8  # of a chip: 8 prompts of 4 completions, on four of them
# They make no pass, or belong to the exchange that brings whole rows together.
NO_PASS = {
    *("parameter", "tuple", "get-tuple-element", "while", "conditional", "bitcast", "opt-barrier"),
    *("copy", "copy-start", "copy-done", "all-to-all", "reshape"),
}


def passes(program: str, scope: str) -> list[str]:
    """Operations of a scope that read all rows of a chip, outside of other ones."""
    found = []
    parsed = parse_program(program)
    names = {line.name: line for lines in parsed.computations.values() for line in lines}
    for visit in parsed.visits():
        line = visit.instruction
        if visit.fused or line.opcode in NO_PASS or scope not in line.source:
            continue
        if line.source.endswith("/gather"):
            continue  # of a block or a token
        inputs = [array for name in line.operands for array in names[name].arrays]
        if any(math.prod(array.shape) >= ROWS * VOCABULARY for array in inputs):
            found.append(f"{line.name} {line.source}")
    return found


def exchanges(program: str) -> list[Collective]:
    """Everything that chips send each other."""
    return collectives(parse_program(program), num_devices=4)


@functools.cache
def compiled_draw(sampler_logprobs: bool) -> str:
    """The program of a draw on four chips whose vocabulary is sharded in two."""
    mesh = tpu_mesh("v5e:2x2", data=2, tensor=2)
    where = NamedSharding(mesh, PartitionSpec(("data", "fsdp"), None, "tensor"))
    logits = jax.ShapeDtypeStruct((8, 4, VOCABULARY), jnp.float32, sharding=where)
    uniform = jax.ShapeDtypeStruct((8, 4), jnp.float32, sharding=sharding.batch_sharding(mesh, 2))

    @jax.jit
    def draw(logits: jax.Array, uniform: jax.Array) -> tuple[jax.Array | None, ...]:
        return sample_token(
            sharding.constrain_logits(logits),
            uniform,
            temperature=0.85,
            top_p=0.95,
            top_k=None,
            sampler_logprobs=sampler_logprobs,
        )

    return draw.lower(logits, uniform).compile().as_text()


@pytest.mark.parametrize(("sampler_logprobs", "loop"), [(False, "rejection"), (True, "nucleus")])
def test_rows_are_brought_together_once_and_chips_do_not_wait_for_each_other(
    sampler_logprobs: bool, loop: str
) -> None:
    program = compiled_draw(sampler_logprobs)
    assert passes(program, loop)
    assert not [line.source for line in exchanges(program) if loop in line.source]
    large = [c for c in exchanges(program) if c.array_bytes > 4 * VOCABULARY]
    assert [c.kind for c in large] == ["all-to-all"]


def test_a_draw_by_rejection_takes_at_most_six_passes() -> None:
    """Scaling, the largest, exponentials, sums of blocks, and once a turn what is likelier."""
    program = compiled_draw(sampler_logprobs=False)
    found = passes(program, "")
    assert len(found) <= 6, found
    assert len(passes(program, "while/body")) == 1


def test_the_search_for_a_threshold_goes_over_the_vocabulary_once_a_turn() -> None:
    """A part of the vocabulary, and in the loop what is above thresholds, or collecting.

    Beside them a draw makes exponentials, sums them, and goes over what is kept. The loop stands in
    the program with one turn; that it takes two or three is shown by
    `tests/rollout/test_nucleus.py`.
    """
    program = compiled_draw(sampler_logprobs=True)
    search = passes(program, "nucleus")
    assert len(search) == 3, search
    assert len(passes(program, "")) <= 9
