"""How often the TPU's program of a truncated draw goes over the vocabulary."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from mental_r1_jax import sharding
from mental_r1_jax.planning.hlo import parse_program
from mental_r1_jax.planning.traffic import Collective, collectives
from mental_r1_jax.rollout.sampling import sample_token
from tests.aot.programs import tpu_mesh

VOCABULARY = 4096
# They make no pass, or belong to the exchange that brings whole rows together.
NO_PASS = {
    *("parameter", "tuple", "get-tuple-element", "while", "conditional", "bitcast", "opt-barrier"),
    *("copy", "copy-start", "copy-done", "all-to-all", "reshape"),
}


def passes(program: str, scope: str) -> list[str]:
    """Operations of a scope that read rows as long as the vocabulary, outside of other ones."""
    found = []
    parsed = parse_program(program)
    names = {line.name: line for lines in parsed.computations.values() for line in lines}
    for visit in parsed.visits():
        line = visit.instruction
        if visit.fused or line.opcode in NO_PASS or scope not in line.source:
            continue
        inputs = [array for name in line.operands for array in names[name].arrays]
        if any(VOCABULARY in array.shape for array in inputs):
            found.append(f"{line.name} {line.source}")
    return found


def exchanges(program: str) -> list[Collective]:
    """Everything that chips send each other."""
    return collectives(parse_program(program), num_devices=4)


def test_a_nucleus_takes_four_passes_on_a_vocabulary_that_was_sharded() -> None:
    """A part of the vocabulary, the first thresholds, the next ones, and collecting: once each.

    Beside them a draw makes exponentials, sums them, and goes over what is kept.

    The loop of the search stands in the program with one turn; that it takes one or two is shown
    by `tests/rollout/test_nucleus.py`.
    """
    mesh = tpu_mesh("v5e:2x2", data=2, tensor=2)
    where = NamedSharding(mesh, PartitionSpec(("data", "fsdp"), None, "tensor"))
    logits = jax.ShapeDtypeStruct((8, 4, VOCABULARY), jnp.float32, sharding=where)
    uniform = jax.ShapeDtypeStruct((8, 4), jnp.float32, sharding=sharding.batch_sharding(mesh, 2))

    @jax.jit
    def draw(logits: jax.Array, uniform: jax.Array) -> tuple[jax.Array, ...]:
        rows = sharding.constrain_logits(logits)
        truncated = functools.partial(sample_token, temperature=0.85, top_p=0.95, top_k=None)
        return truncated(rows, uniform)

    compiled = draw.lower(logits, uniform).compile().as_text()
    search = passes(compiled, "nucleus")
    assert len(search) == 4, search
    assert len(passes(compiled, "")) <= 8
    assert not [line.source for line in exchanges(compiled) if "nucleus" in line.source]
    large = [c for c in exchanges(compiled) if c.array_bytes > 4 * VOCABULARY]
    assert [c.kind for c in large] == ["all-to-all"]
