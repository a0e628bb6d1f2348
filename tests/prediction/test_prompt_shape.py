"""What prompts share, and the room for the rest, worked out by hand."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from mental_r1_jax.prediction.prompt_shape import PromptShape, shared_length
from mental_r1_jax.sharding import make_mesh
from mental_r1_jax.text.prompts import RenderedPrompt


def prompt(*parts: range | int) -> RenderedPrompt:
    ids = tuple(i for part in parts for i in (part if isinstance(part, range) else [part]))
    return RenderedPrompt(ids, "", truncated=False)


def test_the_common_beginning_is_rounded_down() -> None:
    """37 tokens are the same, then the posts begin; 32 of them are two steps of 16."""
    prompts = [prompt(range(37), 100 + n, range(n)) for n in range(5)]
    assert shared_length(prompts) == 32
    # With 48 in common the post begins just behind what is shared.
    assert shared_length([prompt(range(48), 100 + n) for n in range(3)]) == 48


def test_a_token_of_every_prompt_stays() -> None:
    same = [prompt(range(48))] * 3
    assert shared_length(same) == 32
    # One prompt is the beginning of all others, and ends with a whole step.
    assert shared_length([prompt(range(90)), prompt(range(32)), prompt(range(70))]) == 16
    assert shared_length([prompt(range(49))]) == 48


def test_nothing_worth_sharing_is_not_shared() -> None:
    assert shared_length([prompt(range(40)), prompt(7, range(40))]) == 0
    assert shared_length([prompt(range(15), 1), prompt(range(15), 2)]) == 0


def test_what_else_must_begin_alike_counts_but_is_not_run() -> None:
    prompts, others = [prompt(range(60))] * 2, [prompt(range(20), 5, range(200))]
    assert PromptShape.of(prompts) == PromptShape(48, 32)
    assert PromptShape.of(prompts, others) == PromptShape(16, 64)


@pytest.mark.parametrize("devices", [1, 8])
def test_prefix_and_rest_are_the_prompts_again(devices: int) -> None:
    prompts = [prompt(range(16), 30 + n, range(n)) for n in range(8)]
    shape, mesh = PromptShape.of(prompts), make_mesh(devices, 1, 1, jax.devices()[:devices])
    batch = shape.place(mesh, prompts, 99, range(3, 11))
    assert batch.prefix_ids.shape == (devices, 16) and batch.prompt_ids.shape == (8, 32)
    whole = np.concatenate(
        [np.asarray(batch.prefix_ids).repeat(8 // devices, 0), batch.prompt_ids], 1
    )
    mask = np.pad(np.asarray(batch.prompt_mask), [(0, 0), (16, 0)], constant_values=True)
    for n, one in enumerate(prompts):
        assert tuple(whole[n][mask[n]].tolist()) == one.ids and (whole[n][~mask[n]] == 99).all()
    assert np.asarray(batch.prompt_index).tolist() == list(range(3, 11))
    assert len(batch.prefix_ids.sharding.device_set) == devices


def test_without_a_prefix_prompts_are_whole() -> None:
    mesh = make_mesh(1, 1, 1, jax.devices()[:1])
    batch = PromptShape(0, 32).place(mesh, [prompt(range(20))], 99, [0])
    assert batch.prefix_ids is None
    np.testing.assert_array_equal(batch.prompt_ids[0, :20], range(20))
