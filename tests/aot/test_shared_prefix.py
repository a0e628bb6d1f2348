"""The compiled update holds a prompt's keys once, not once for each completion.

Compilers merge and reorder axes, so an array is known by its factors: group and prompt have prime
factors that no other size has. An array whose size has both repeats something for each completion
and each prompt token; only the logits, which also have the factor of the completions' length, may.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from tests.aot.programs import CONFIG, array_sizes, compiled_step, tpu_mesh
from tests.training.updates import mesh_of

GROUP = 5


def repeated(program: str, prompt: int, factor: int) -> dict[int, str]:
    """Arrays as large as keys repeated for each completion, with a factor of G and one of P."""
    least = GROUP * prompt * CONFIG.num_kv_heads * CONFIG.head_dim
    sizes = array_sizes(program)
    return {n: sizes[n] for n in sizes if n >= least and n % (GROUP * factor) == 0}


def test_a_copy_for_each_completion_would_be_seen() -> None:
    keys = jax.ShapeDtypeStruct((2, 33, 2, 64), jnp.float32)
    copied = jax.jit(lambda x: jnp.repeat(x, GROUP, axis=0)).lower(keys).compile()
    assert repeated(copied.as_text(), prompt=33, factor=11)


def test_the_plain_program_repeats_nothing_but_the_logits() -> None:
    """P = 3 * 11, G = 5; the last of C = 27 completion tokens is not run, so T = 2 * 13."""
    program = compiled_step(mesh_of(), "float32", (2, 33, GROUP, 27), chunk=9)
    found = repeated(program.as_text(), prompt=33, factor=11)
    assert found, "the logits have the factors 5, 11 and 13"
    assert not {n: shape for n, shape in found.items() if n % 13}


def test_the_tpu_program_repeats_nothing_at_all() -> None:
    """P = 3 * 11 * 11, padded to 3 * 128; G = 5; T = 103, padded to 128."""
    mesh = tpu_mesh("v5e:2x2", data=2, fsdp=2)
    program = compiled_step(mesh, "bfloat16", (4, 363, GROUP, 104), chunk=52).as_text()
    assert "splash_mha_fwd" in program and "splash_mha_dkv" in program
    assert not repeated(program, prompt=363, factor=3)
