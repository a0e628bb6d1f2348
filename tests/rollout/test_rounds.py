"""Dynamic sampling: which groups are kept, where they go, and what is told of it."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mental_r1_jax.config import RolloutConfig
from mental_r1_jax.rollout.collect import ScoredGroups, StepPrompts
from mental_r1_jax.rollout.join import join_groups
from mental_r1_jax.rollout.rounds import (
    Rollout,
    Round,
    add_round,
    differing_groups,
    number_of_round,
    rollout_metrics,
    trained_advantages,
    wants_round,
)
from mental_r1_jax.types import Batch, PromptBatch
from tests.tiny_decoder import GROUP, NUM_PROMPTS, random_batch

REWARD, CORRECT = 0, 4
NO_STAGES = np.zeros((NUM_PROMPTS, GROUP, 5, 1), bool)
join = jax.jit(join_groups)


def test_groups_differ_by_their_range_and_not_by_their_spread() -> None:
    """A mean of equal numbers rounds, so a standard deviation of them may be above 0; not here."""
    third = np.full(7, 0.1, np.float32)
    values = np.array([[0.1, 0.1], [0.1, 0.1 + 5e-7], [0.1, 0.1 + 2e-6], [-1, 1]])
    assert differing_groups(values).tolist() == [False, False, True, True]
    assert not differing_groups(third[None]).any() and third.std() > 0


def test_rounds_draw_other_numbers_and_the_first_is_the_steps_own() -> None:
    numbers = {number_of_round(step, index) for step in (1, 2, 300) for index in range(255)}
    assert len(numbers) == 3 * 255 and max(numbers) < 2**32
    assert number_of_round(300, 0) == 300


def nothing_drawn(table: np.ndarray) -> StepPrompts:
    """Prompts that nobody looks at."""
    ids: Any = np.zeros((len(table), 1), np.int32)
    return StepPrompts((), (), PromptBatch(ids, ids == 0, ids[:, 0]))


def drawn(kept: list[bool], number: int, metric: int = REWARD) -> tuple[Round, Batch]:
    """A round whose groups differ where `kept` says so; every prompt has a token of its own."""
    table = np.zeros((NUM_PROMPTS, GROUP, 6), np.float32)
    table[:, 0, metric] = kept
    prompts = np.arange(NUM_PROMPTS) + number * NUM_PROMPTS
    batch = random_batch(0)
    ids = np.asarray(batch.prompt_ids) * 0 + prompts[:, None]
    batch = dataclasses.replace(batch, prompt_ids=ids, rewards=table[..., REWARD] + 1)
    return Round(nothing_drawn(table), ScoredGroups((), table, NO_STAGES), table), batch


def all_rounds(patterns: list[list[bool]], config: RolloutConfig) -> Rollout:
    """Draw rounds of these patterns while the step wants more."""
    rollout = Rollout()
    for number, kept in enumerate(patterns):
        if not wants_round(rollout, config):
            break
        rollout = add_round(rollout, *drawn(kept, number), config, join)
    return rollout


patterns = st.lists(
    st.lists(st.booleans(), min_size=NUM_PROMPTS, max_size=NUM_PROMPTS), min_size=6, max_size=6
)


@given(patterns, st.integers(1, 6))
def test_the_first_groups_that_differ_fill_the_batch_in_their_order(kept, max_rounds) -> None:
    config = RolloutConfig(keep_groups="reward", max_rounds=max_rounds)
    rollout = all_rounds(kept, config)
    # By hand: go through the prompts round by round, and stop once the rows are full.
    taken: list[int] = []
    rounds = 0
    while rounds < max_rounds and len(taken) < NUM_PROMPTS:
        new = [rounds * NUM_PROMPTS + b for b, keep in enumerate(kept[rounds]) if keep]
        taken, rounds = taken + new, rounds + 1
    wanted = taken[:NUM_PROMPTS]
    assert len(rollout.rounds) == rounds and not wants_round(rollout, config)
    assert rollout.sources.tolist() == wanted + [-1] * (NUM_PROMPTS - len(wanted))
    batch = rollout.batch
    assert batch is not None
    assert np.asarray(batch.prompt_ids)[: len(wanted), 0].tolist() == wanted
    assert np.asarray(batch.completion_mask)[: len(wanted)].any(axis=(1, 2)).all()
    assert not np.asarray(batch.completion_mask)[len(wanted) :].any()
    assert rollout_metrics(rollout) == {
        "rollout/rounds": rounds,
        "rollout/prompts": rounds * NUM_PROMPTS,
        "rollout/kept": len(taken) / (rounds * NUM_PROMPTS),
        "rollout/empty": NUM_PROMPTS - len(wanted),
    }


def test_where_all_groups_are_kept_one_round_is_the_batch_itself() -> None:
    one, batch = drawn([False] * NUM_PROMPTS, 0)
    rollout = add_round(Rollout(), one, batch, RolloutConfig(), join)
    assert rollout.batch is batch and rollout_metrics(rollout) == {}
    assert not wants_round(rollout, RolloutConfig())


@pytest.mark.parametrize(("keep", "metric"), [("reward", REWARD), ("accuracy", CORRECT)])
def test_the_recipe_says_which_values_must_differ(keep: Any, metric: int) -> None:
    config = RolloutConfig(keep_groups=keep, max_rounds=1)
    kept = [b % 3 == 0 for b in range(NUM_PROMPTS)]
    for column in (REWARD, CORRECT):
        one, batch = drawn(kept, 0, column)
        rollout = add_round(Rollout(), one, batch, config, join)
        expected = np.flatnonzero(kept).tolist() if column == metric else []
        assert rollout.sources[rollout.sources >= 0].tolist() == expected


def test_advantages_go_back_to_the_prompts_they_came_from() -> None:
    half = [b % 2 == 0 for b in range(NUM_PROMPTS)]
    config = RolloutConfig(keep_groups="reward", max_rounds=3)
    rollout = all_rounds([half, half, half], config)
    values = np.arange(NUM_PROMPTS)[:, None] + np.zeros(GROUP)
    found = trained_advantages(rollout, values)
    assert found.shape == (2 * NUM_PROMPTS, GROUP)
    np.testing.assert_array_equal(found[::2], values)
    assert np.isnan(found[1::2]).all()
