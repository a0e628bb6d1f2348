"""Counts of a decoding loop that is small enough to count by hand."""

from __future__ import annotations

import re

import pytest

from mental_r1_jax.planning.hlo import parse_program
from mental_r1_jax.planning.operations import USUAL_TURNS, moved_bytes, token_operations

# A decoder of two layers. A layer has a product that reads the weight and a copy of what it made;
# one has a kernel, too, and copies the whole cache beside writing into it in place. Weights are
# fetched ahead. The head makes 32 logits, searches them in a loop that could take 79 turns, and
# picks one of them.
LOOP = """
HloModule jit_sample

%product (w: bf16[4,8], x: f32[8]) -> f32[8] {
  %w = bf16[4,8]{1,0} parameter(0)
  %x = f32[8]{0} parameter(1)
  ROOT %p = f32[8]{0} multiply(%x, %x)
}

%pick (l: f32[32], i: s32[]) -> f32[1] {
  %l = f32[32]{0} parameter(0)
  %i = s32[] parameter(1)
  ROOT %g = f32[1]{0} dynamic-slice(%l, %i), dynamic_slice_sizes={1}
}

%narrow (s: (s32[], f32[32])) -> (s32[], f32[32]) {
  %s = (s32[], f32[32]) parameter(0)
  %n = s32[] get-tuple-element(%s), index=0
  %l = f32[32]{0} get-tuple-element(%s), index=1
  %m = s32[] reduce(%l, %n), dimensions={0}, to_apply=%any, AT(draw/nucleus/sum)
  ROOT %t = (s32[], f32[32]) tuple(%m, %l)
}

%wide (s: (s32[], f32[32])) -> pred[] {
  %s = (s32[], f32[32]) parameter(0)
  %n = s32[] get-tuple-element(%s), index=0
  %most = s32[] constant(79)
  ROOT %lt = pred[] compare(%n, %most), direction=LT
}

%any (a: s32[], b: s32[]) -> s32[] {
  %a = s32[] parameter(0)
  %b = s32[] parameter(1)
  ROOT %c = s32[] add(%a, %b)
}

%body (state: STATE) -> STATE {
  %state = STATE parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %weight = bf16[4,8]{1,0} get-tuple-element(%state), index=1
  %row = f32[8]{0} get-tuple-element(%state), index=2
  %cache = bf16[16,8]{1,0} get-tuple-element(%state), index=3
  %ahead = (bf16[4,8]{1,0}, bf16[4,8]{1,0:S(1)}, u32[]{:S(2)}) copy-start(%weight)
  %half = ((bf16[4,8]{1,0}), bf16[2,8]{1,0:S(1)}, s32[]) slice-start(%weight), slice={[0:2], [0:8]}
  %again = (bf16[16,8]{1,0}, bf16[16,8]{1,0}, u32[]{:S(2)}) copy-start(%cache), AT(attention/copy)
  %copied = bf16[16,8]{1,0} copy-done(%again)
  %there = bf16[4,8]{1,0:S(1)} copy-done(%ahead)
  %upper = bf16[2,8]{1,0:S(1)} slice-done(%half)
  %named = bf16[4,8]{1,0:S(1)} custom-call(%upper), custom_call_target="ConcatBitcast"
  %kernel = f32[8]{0} custom-call(%row), custom_call_target="tpu_custom_call", IN_PLACE
  %p1 = f32[8]{0} fusion(%weight, %row), kind=kLoop, calls=%product, AT(attention/dot)
  %c1 = f32[8]{0} copy(%p1), AT(attention/dot)
  %p2 = f32[8]{0} fusion(%weight, %c1), kind=kLoop, calls=%product, AT(feed_forward/dot)
  %c2 = f32[8]{0:T(8)S(1)} copy(%p2), AT(feed_forward/dot)
  %kept = bf16[16,8]{1,0} dynamic-update-slice(%cache, %c2, %i), AT(attention/update)
  %logits = f32[32]{0} broadcast(%c2), AT(head)
  %start = (s32[], f32[32]) tuple(%i, %logits)
  %search = (s32[], f32[32]) while(%start), condition=%wide, body=%narrow, AT(draw/nucleus/while)
  %one = f32[1]{0} fusion(%logits, %i), kind=kLoop, calls=%pick, AT(draw/pick)
  %next = s32[] add(%i, %i), AT(add)
  ROOT %out = STATE tuple(%next, %weight, %c2, %kept)
}

%goes_on (state: STATE) -> pred[] {
  %state = STATE parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %end = s32[] constant(10)
  ROOT %lt = pred[] compare(%i, %end), direction=LT
}

ENTRY %main (state: STATE) -> bf16[16,8] {
  %state = STATE parameter(0)
  %cast = f32[16,8]{1,0} convert(%state)
  ROOT %loop = STATE while(%state), condition=%goes_on, body=%body, OF_TOKENS
}
"""
LOOP = re.sub(
    r"AT\(([\w/]+)\)", r'metadata={op_name="jit(sample)/decode/while/body/\1"}', LOOP
).replace("STATE", "(s32[], bf16[4,8], f32[8], bf16[16,8])")
LOOP = LOOP.replace(
    "IN_PLACE",
    "output_to_operand_aliasing={{}: (0, {})}, "
    'metadata={op_name="jit(sample)/decode/while/body/attention/kernel"}',
)
LOOP = LOOP.replace("OF_TOKENS", 'metadata={op_name="jit(sample)/decode/while"}')


@pytest.mark.parametrize(("scope", "turns"), [("nucleus", 3), ("rejection", 1)])
def test_a_token_launches_what_stands_in_the_body(scope: str, turns: int) -> None:
    """Layer: two products, three copies, one update, a kernel. Others: logits, one picked, and a
    counter; the search, in the turns that it takes and not in those that it could; and the
    conditions. Not the weights that are fetched ahead, nor what only names them.
    """
    program = LOOP.replace("draw/nucleus", f"draw/{scope}")
    found = token_operations(parse_program(program), num_layers=2)
    asked = 11 / 10  # a condition runs once more than its body
    others = 3 + turns + (turns + 1) + asked
    assert USUAL_TURNS[scope] == turns
    assert found.layer == 7 / 2
    assert found.others == pytest.approx(others)


@pytest.mark.parametrize(("scope", "turns"), [("nucleus", 3), ("rejection", 1)])
def test_a_token_moves_what_is_not_carried(scope: str, turns: int) -> None:
    """Bytes of the same operations; what the loop carries is not read, the core's memory is free.

    Layer: the copied cache 256; the first product's result 32; the second product and its copy of
    the first 64 each, read and written; its own copy, which goes to the core's memory, 32 read; 32
    put into the cache, of which the rest stays. Nothing for the kernel, whose result takes over the
    memory of what it reads: how much of it changes is not known. Others: logits 128
    written, then read in every turn of the search beside a number written; one of them 4 and 4; the
    counter 4; a bound of 4 and an answer of 1 in every condition.
    """
    program = LOOP.replace("draw/nucleus", f"draw/{scope}")
    found = token_operations(parse_program(program), num_layers=2)
    assert found.layer_bytes == (256 + 32 + 64 + 64 + 32 + 32) / 2
    conditions = 5 * (turns + 1) + 5 * 11 / 10
    assert found.other_bytes == pytest.approx(128 + turns * (128 + 4) + 8 + 4 + conditions)


def test_bytes_of_operations_that_compute_nothing() -> None:
    """Reading what is carried counts here, and so do weights that are fetched ahead."""
    found = moved_bytes(parse_program(LOOP))
    copies = (256 + 256) + (32 + 32) + 32 + (32 + 4) + 128 + (4 + 4 + 4)
    ahead, kernel, products = 64 + 32, 32, 2 * (32 + 32)
    search, counter = 3 * (128 + 4 + 4) + 4 * 9, 4 + 4 + 4
    turn = copies + ahead + kernel + products + search + counter
    cast = 512
    assert found.only_moved == 10 * copies + cast
    assert found.all == 10 * turn + 11 * 9 + cast


def test_a_program_without_a_decoding_loop_has_no_tokens() -> None:
    text = LOOP.replace('op_name="jit(sample)/decode/while"', 'op_name="jit(f)/while"')
    with pytest.raises(ValueError, match="no decoding loop"):
        token_operations(parse_program(text), num_layers=2)
