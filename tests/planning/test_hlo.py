"""Reading compiled programs: trip counts, arrays and aliases, against programs that we know."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import pytest

from mental_r1_jax.planning.hlo import Array, arrays_in, memories_in, parse_program

# The shape of a loop as the TPU compiler prints it: no note of its turns, a counter that starts
# where an earlier loop ended, and a second reason to stop.
TWO_LOOPS = """
HloModule jit_f, input_output_alias={ {0}: (0, {}, may-alias), {1}: (2, {}, may-alias) }

%more (a: pred[], b: pred[]) -> pred[] {
  %a = pred[] parameter(0)
  %b = pred[] parameter(1)
  ROOT %or = pred[] or(%a, %b)
}

%body (state: (s32[], bf16[4,8])) -> (s32[], bf16[4,8]) {
  %state = (s32[]{:T(128)}, bf16[4,8]{1,0:T(8,128)(2,1)S(1)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%state), index=0
  %x = bf16[4,8]{1,0:T(8,128)(2,1)} get-tuple-element(%state), index=1
  %y = bf16[4,8]{1,0} all-reduce(%x), channel_id=1, replica_groups={{0,1}}, to_apply=%more
  ROOT %next = (s32[]{:T(128)}, bf16[4,8]{1,0:T(8,128)(2,1)}) tuple(%i, %y)
}

%first (state: (s32[], bf16[4,8])) -> pred[] {
  %five = s32[]{:T(128)} constant(5)
  %state = (s32[]{:T(128)}, bf16[4,8]{1,0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%state), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %five), direction=LT, metadata={op_name="jit(f)/lt"}
}

%second (state: (s32[], bf16[4,8])) -> pred[] {
  %twelve = s32[]{:T(128)} constant(12)
  %state = (s32[]{:T(128)}, bf16[4,8]{1,0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%state), index=0
  %busy = pred[] constant(true)
  %lt = pred[]{:T(512)} compare(%i, %twelve), direction=LT
  ROOT %and = pred[]{:T(512)} and(%lt, %busy)
}

ENTRY %main (x: bf16[4,8]) -> bf16[4,8] {
  %x = bf16[4,8]{1,0} parameter(0)
  %two = s32[] constant(2)
  %start = (s32[], bf16[4,8]{1,0}) tuple(%two, %x)
  %while.1 = (s32[]{:T(128)}, bf16[4,8]{1,0}) while(%start), condition=%first, body=%body
  %end = s32[] get-tuple-element(%while.1), index=0
  %copied = s32[] copy(%end)
  %z = bf16[4,8]{1,0} get-tuple-element(%while.1), index=1
  %again = (s32[], bf16[4,8]{1,0}) tuple(%copied, %z)
  %while.2 = (s32[]{:T(128)}, bf16[4,8]{1,0}) while(%again), condition=%second, body=%body
  ROOT %last = bf16[4,8]{1,0} get-tuple-element(%while.2), index=1
}
"""


def test_a_loop_starts_where_an_earlier_one_ended() -> None:
    """2 to 5, then 5 to 12."""
    program = parse_program(TWO_LOOPS)
    turns = {v.loops[-1]: v.times for v in program.visits() if v.instruction.opcode == "all-reduce"}
    assert turns == {"while.1": 3, "while.2": 7}


def test_shapes_aliases_and_sources_are_read() -> None:
    program = parse_program(TWO_LOOPS)
    assert program.aliases == 2
    lines = {line.name: line for line in program.computations["body"]}
    assert lines["state"].arrays == (Array("s32", ()), Array("bf16", (4, 8)))
    assert lines["y"].arrays[0].bytes == 64
    assert lines["y"].operands == ("x",)
    assert program.computations["first"][-1].source == "jit(f)/lt"
    assert program.computations["main"][1].literal == "2"


def test_an_unbounded_loop_is_refused() -> None:
    text = TWO_LOOPS.replace("direction=LT", "direction=NE")
    with pytest.raises(ValueError, match="bounds no counter"):
        list(parse_program(text).visits())


def test_nested_loops_multiply_in_a_real_program() -> None:
    """Seven turns of five: the sine in the middle runs 35 times."""

    def inner(x: jax.Array, _: None) -> tuple[jax.Array, None]:
        return jnp.sin(x) @ x, None

    def outer(x: jax.Array, _: None) -> tuple[jax.Array, None]:
        return jax.lax.scan(inner, x, length=5)[0] + 1.0, None

    def run(x: jax.Array) -> jax.Array:
        return jax.lax.scan(outer, x, length=7)[0]

    compiled = jax.jit(run).lower(jnp.ones((16, 16))).compile()
    visits = list(parse_program(compiled.as_text()).visits())
    assert [v.times for v in visits if v.instruction.opcode == "sine"] == [35]


def test_donated_arguments_are_counted_as_aliases() -> None:
    @partial(jax.jit, donate_argnums=0)
    def step(state: dict[str, jax.Array], x: jax.Array) -> dict[str, jax.Array]:
        return {name: leaf + x for name, leaf in state.items()}

    state = {"a": jnp.ones(8), "b": jnp.ones(8)}
    compiled = step.lower(state, jnp.ones(8)).compile()
    assert parse_program(compiled.as_text()).aliases == 2


def test_layouts_and_comments_are_no_arrays() -> None:
    shape = "(f32[2,3]{1,0:T(8,128)(2,1)S(1)}, /*index=1*/pred[]{:T(512)}, token[])"
    assert arrays_in(shape) == (Array("f32", (2, 3)), Array("pred", ()), Array("token", ()))


def test_a_layout_names_the_memory_of_an_array() -> None:
    source, target = "bf16[28,8]{1,0:T(8,128)(2,1)}", "bf16[7,8]{1,0:T(8,128)(2,1)S(1)}"
    shape = f"(({source}), /*index=1*/{target}, s32[]{{:S(2)}}, pred[3])"
    assert memories_in(shape) == (0, 1, 2, 0)
