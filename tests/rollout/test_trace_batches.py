"""Traces behind their common beginning: the layout by hand, and the update of rows on their own."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mental_r1_jax.rollout.collect import common_length
from mental_r1_jax.rollout.trace_batches import EncodedTrace, TraceLayout
from mental_r1_jax.text.prompts import RenderedPrompt
from mental_r1_jax.training.train_step import jit_sft_step
from mental_r1_jax.types import TraceBatch
from tests.tiny_decoder import CONFIG, random_params, tiny_recipe
from tests.training.updates import OPTIMIZER, assert_close, full_logits, mesh_of, place, start


def encoded(prompt: list[int], trace: list[int]) -> EncodedTrace:
    return RenderedPrompt(tuple(prompt), "", truncated=False), trace


# All begin with 5, 6, 7.
TRACES = [
    encoded([5, 6, 7, 8], [20, 21]),
    encoded([5, 6, 7, 9, 8, 8], [22, 23, 24]),
    encoded([5, 6, 7, 9], [25]),
    encoded([5, 6, 7, 8, 8], [26, 27]),
]


@pytest.mark.parametrize(
    ("prompts", "length"),
    [
        ([[5, 6, 7]], 2),
        ([[5, 6, 7], [5, 6, 7]], 2),
        ([[5, 6, 7, 8], [5, 6, 9]], 2),
        ([[5, 6, 7, 8], [5, 6]], 1),
        ([[5, 6], [4, 6]], 0),
    ],
)
def test_what_prompts_have_in_common(prompts: list[list[int]], length: int) -> None:
    assert common_length(encoded(ids, [])[0] for ids in prompts) == length


def test_a_batch_by_hand() -> None:
    """Two groups of two rows; the second process holds the second group."""
    layout = TraceLayout.of(TRACES, (6,), groups=2)
    # The longest row has 3 tokens of its prompt and 3 of its trace.
    assert layout == TraceLayout(shared=3, widths=(6,), trace=3, groups=2)
    batch = layout.batch(TRACES, [2, 0, 1, 3], [1], pad_id=99)
    np.testing.assert_array_equal(batch.prompt_ids, [[5, 6, 7]])
    assert np.asarray(batch.prompt_mask).all()
    ids = [[9, 8, 8, 22, 23, 24], [8, 8, 26, 27, 99, 99]]
    np.testing.assert_array_equal(batch.completion_ids, [ids])
    np.testing.assert_array_equal(batch.completion_mask, [np.array(ids) != 99])
    np.testing.assert_array_equal(batch.target_start, [[3, 2]])
    np.testing.assert_array_equal(batch.target_mask, [[[True, True, True], [True, True, False]]])


def test_a_batch_takes_the_smallest_width_that_holds_its_rows() -> None:
    layout = TraceLayout.of(TRACES, (2, 4, 6), groups=1)
    # A prompt of 4 has 1 token behind the beginning, and there is room for the longest trace.
    assert layout.widths == (4, 6)
    widths = [
        layout.batch(TRACES, rows, [0], pad_id=0).completion_ids.shape[2]
        for rows in ([0, 2], [0, 3], [0, 1], [1])
    ]
    assert widths == [4, 4, 6, 6]


def random_traces(count: int = 16) -> list[EncodedTrace]:
    rng = np.random.default_rng(4)
    draw = lambda most: rng.integers(0, CONFIG.vocab_size, rng.integers(1, most + 1))  # noqa: E731
    beginning = [3, 1, 4, 1, 5]
    return [encoded([*beginning, *draw(6).tolist()], draw(7).tolist()) for _ in range(count)]


def alone(traces: list[EncodedTrace]) -> TraceBatch:
    """Each prompt whole and on its own, with its trace behind it."""
    prompts, ids = np.zeros((len(traces), 11), np.int32), np.zeros((len(traces), 1, 7), np.int32)
    prompt_mask, mask = np.zeros(prompts.shape, bool), np.zeros(ids.shape, bool)
    for row, (prompt, trace) in enumerate(traces):
        prompts[row, : len(prompt.ids)], ids[row, 0, : len(trace)] = prompt.ids, trace
        prompt_mask[row, : len(prompt.ids)], mask[row, 0, : len(trace)] = True, True
    arrays: Any = (prompts, prompt_mask, ids, mask)
    return TraceBatch(*map(jnp.asarray, arrays))


def updated(batch: TraceBatch, mesh: tuple[int, ...], micro_batches: int) -> Any:
    """Weights and metrics after an update."""
    config = tiny_recipe(micro_batches=micro_batches)
    where = mesh_of(*mesh)
    step = jit_sft_step(config=config, decoder=CONFIG, optimizer=OPTIMIZER, mesh=where)
    state, metrics = step(start(mesh), place(batch, mesh))
    return jax.tree.map(np.asarray, state.params), {n: float(m.value) for n, m in metrics.items()}


@pytest.mark.parametrize(
    ("mesh", "micro_batches"),
    [((1,), 1), ((1,), 4), ((2, 2, 2), 2)],
    ids=["one device", "micro-batches", "eight devices"],
)
def test_the_update_is_that_of_rows_on_their_own(mesh: tuple[int, ...], micro_batches: int) -> None:
    traces = random_traces()
    expected, metrics = updated(alone(traces), (1,), 1)
    groups = micro_batches * int(np.prod(mesh[:2]))
    layout = TraceLayout.of(traces, (11,), groups)
    assert layout.shared == 5
    batch = layout.batch(traces, range(len(traces)), range(groups), pad_id=0)
    ours, found = updated(batch, mesh, micro_batches)
    assert_close(ours, expected)
    for name in ("loss", "entropy", "grad_norm"):
        assert found[name] == pytest.approx(metrics[name], rel=2e-5), name


def test_the_loss_is_the_mean_over_the_tokens_of_traces() -> None:
    """Against logits of whole rows and a softmax in float64."""
    traces = random_traces()
    batch = TraceLayout.of(traces, (11,), 1).batch(traces, range(len(traces)), [0], pad_id=0)
    _, metrics = updated(batch, (1,), 1)
    whole = alone(traces)
    params = jax.tree.map(jnp.asarray, random_params())
    logits = np.asarray(full_logits(params, whole), np.float64)
    logits -= logits.max(-1, keepdims=True)
    logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    picked = np.take_along_axis(logprobs, np.asarray(whole.completion_ids)[..., None], -1)[..., 0]
    expected = -picked[np.asarray(whole.completion_mask)].mean()
    assert metrics["loss"] == pytest.approx(expected, rel=1e-5)
