"""The decoding loop in segments: a cache that grows, and groups that shrink as completions end."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mental_r1_jax import sharding
from mental_r1_jax.hosts import put_batch
from mental_r1_jax.planning.hlo import parse_program
from mental_r1_jax.rollout import sampler
from mental_r1_jax.rollout.sampler import (
    SamplerSettings,
    Segment,
    decoding_segments,
    sample_completions,
    step_key,
)
from mental_r1_jax.types import Completions
from tests.rollout.settings import make_settings, with_rollout
from tests.tiny_decoder import CONFIG, NUM_PROMPTS, random_params, random_prompts

GROUP, LENGTH, PAD = 5, 24, 7
# A completion ends with probability of about one in eight at every token.
SETTINGS = make_settings(
    num_generations=GROUP,
    max_completion_length=LENGTH,
    temperature=1.5,
    top_p=1.0,
    top_k=None,
    sampler_logprobs=True,
    eos_ids=(PAD, *range(40, 60)),
    pad_id=PAD,
)


def in_segments(first_cache_length: int, halvings: int) -> SamplerSettings:
    return with_rollout(SETTINGS, first_cache_length=first_cache_length, halvings=halvings)


def sample(settings: SamplerSettings, mesh: Any = None) -> Completions:
    params, prompts = random_params(), random_prompts()
    if mesh is None:
        params, prompts = jax.tree.map(jnp.asarray, (params, prompts))
    else:
        everywhere = sharding.replicated(mesh)
        params, prompts = jax.device_put(params, everywhere), put_batch(mesh, prompts)
    function = functools.partial(sample_completions, config=CONFIG, settings=settings)
    return jax.tree.map(np.asarray, jax.jit(function)(params, prompts, step_key(0, 1)))


@pytest.fixture(scope="module")
def plain() -> Completions:
    """One segment: a cache of full length, and all rows to the end."""
    return sample(in_segments(LENGTH, 0))


def test_segments_are_the_growing_cache_and_then_the_shrinking_group():
    eight = with_rollout(SETTINGS, num_generations=8, max_completion_length=100)
    assert decoding_segments(with_rollout(eight, first_cache_length=30, halvings=2)) == (
        Segment(rows=8, cache_length=30, rows_after=4),
        Segment(rows=8, cache_length=60, rows_after=4),
        Segment(rows=8, cache_length=100, rows_after=4),
        Segment(rows=4, cache_length=100, rows_after=2),
        Segment(rows=2, cache_length=100, rows_after=0),
    )
    assert decoding_segments(eight) == (Segment(rows=8, cache_length=100, rows_after=0),)


def test_a_greedy_row_beside_the_group_changes_none_of_its_rows(plain):
    """On eight devices, with a group that shrinks: rows change places and stay what they are."""
    with_row = dataclasses.replace(in_segments(LENGTH, 1), greedy_row=True)
    assert [segment.rows for segment in decoding_segments(with_row)] == [6, 3]
    out = sample(with_row, sharding.make_mesh(8, 1, 1))
    alone = sample(dataclasses.replace(in_segments(LENGTH, 0), num_completions=1, greedy=True))
    for name in ("completion_ids", "completion_mask", "finished"):
        np.testing.assert_array_equal(getattr(out, name), getattr(plain, name), err_msg=name)
        np.testing.assert_array_equal(getattr(out.greedy, name), getattr(alone, name), err_msg=name)
    np.testing.assert_allclose(out.greedy.decode_logprobs, alone.decode_logprobs, atol=1e-5)
    lengths = np.concatenate([out.completion_mask, out.greedy.completion_mask], 1).sum(-1)
    assert len(np.unique(lengths)) > 5  # rows end at different times, so the group did shrink


def test_a_group_is_halved_at_most_down_to_one_row():
    segments = decoding_segments(in_segments(LENGTH, 99))
    assert [(segment.rows, segment.rows_after) for segment in segments] == [
        (5, 3),
        (3, 2),
        (2, 1),
        (1, 0),
    ]


@pytest.mark.parametrize(("first_cache_length", "halvings"), [(4, 0), (LENGTH, 3), (5, 2), (1, 1)])
def test_segments_do_not_change_what_is_sampled(plain, first_cache_length, halvings):
    in_parts = sample(in_segments(first_cache_length, halvings))
    lengths = plain.completion_mask.sum(-1)
    # Groups end at different times, some completions at once and some never.
    assert lengths.min() < 4 and lengths.max() == LENGTH and 0 < plain.finished.mean() < 1
    for field in ("completion_ids", "completion_mask", "finished"):
        np.testing.assert_array_equal(getattr(in_parts, field), getattr(plain, field))
    for field in ("sampler_logprobs", "decode_logprobs"):
        # Float32 sums over as many keys in another order; log-probs up to 8 nats.
        np.testing.assert_allclose(getattr(in_parts, field), getattr(plain, field), atol=1e-5)


def test_rows_leave_the_loop_when_every_group_has_that_many_ended(plain, monkeypatch):
    """Rows and slots are counted on the host at every turn of the loop."""
    turns = []
    step = sampler.decoder.decode_step

    def counting(*args: Any) -> Any:
        rows, slots = args[2].shape[1], args[5].values[0].shape[3]
        jax.debug.callback(lambda index: turns.append((int(index), rows, slots)), args[3])
        return step(*args)

    monkeypatch.setattr(sampler.decoder, "decode_step", counting)
    sample(in_segments(8, 2))
    jax.effects_barrier()
    lengths = plain.completion_mask.sum(-1)
    expected = []
    for index in range(lengths.max()):
        unfinished = max((lengths > index).sum(axis=1))
        rows = 5 if unfinished > 3 else 3 if unfinished > 2 else 2
        slots = LENGTH if rows < 5 else next(n for n in (8, 16, LENGTH) if n > index)
        expected.append((index, rows, slots))
    assert sorted(turns) == expected
    assert {rows for _, rows, _ in turns} == {5, 3, 2}


def test_shrinking_groups_move_nothing_between_devices(plain):
    """Rows are picked within each prompt, and prompts are what the devices divide."""
    mesh = sharding.make_mesh(data=4, fsdp=2, tensor=1)
    assert NUM_PROMPTS == 8
    in_parts = sample(in_segments(8, 2), mesh)
    np.testing.assert_array_equal(in_parts.completion_ids, plain.completion_ids)
    params = jax.device_put(random_params(), sharding.replicated(mesh))
    function = functools.partial(sample_completions, config=CONFIG, settings=in_segments(8, 2))
    arguments = (params, put_batch(mesh, random_prompts()), step_key(0, 1))
    text = jax.jit(function).lower(*arguments).compile().as_text()
    moved = re.findall(r"= (\S+) (?:all-gather|all-to-all|collective-permute)\(", text)
    # The prompts' mask and, to look them up, ids; no row of a completion, no key, no value.
    assert all(re.fullmatch(r"(pred|s32)\[\d+,6\]\S*", shape) for shape in moved), moved
    # What is reduced are the loop's own questions: how many completions are unfinished.
    reduced = re.findall(r"= (\S+) all-reduce\(", text)
    assert reduced and all(re.fullmatch(r"(pred|s32)\[\](\{\})?", shape) for shape in reduced)


@pytest.mark.parametrize(("num_prompts", "group"), [(3, 2), (3, 1), (1, 2), (1, 1)])
def test_no_cache_is_copied_from_token_to_token(num_prompts: int, group: int) -> None:
    """Not with one prompt or one completion either, whose axes XLA drops from the products."""
    settings = dataclasses.replace(
        make_settings(max_completion_length=LENGTH, eos_ids=(0,), pad_id=0),
        num_completions=group,
    )
    prompts = jax.tree.map(lambda x: jnp.asarray(x[:num_prompts]), random_prompts())
    run = functools.partial(sample_completions, config=CONFIG, settings=settings)
    text = jax.jit(run).lower(random_params(), prompts, step_key(0, 1)).compile().as_text()
    size = num_prompts * group * CONFIG.num_kv_heads * CONFIG.head_dim * LENGTH
    program = parse_program(text)
    lines = [line for part in program.computations.values() for line in part]
    loops = [x for x in lines if x.opcode == "while" and x.source.endswith("decode/while")]
    copied = [
        line.name
        for loop in loops
        for line in program.computations[str(loop.attribute("body"))]
        if line.opcode == "copy" and math.prod(line.arrays[0].shape) == size
    ]
    assert len(loops) == len(decoding_segments(settings)) and copied == []
