"""Order of the training prompts: complete, seeded, host-independent, resumable anywhere."""

from __future__ import annotations

import itertools
import json
from collections import Counter

import pytest

from mental_r1_jax.data.pipeline import PromptIterator, make_prompt_iterator, steps_per_epoch
from mental_r1_jax.data.records import Example
from mental_r1_jax.errors import UserError

SIZES = {"A": 7, "B": 10, "C": 3}
TOTAL = 20


def posts(name: str, count: int) -> list[Example]:
    """`count` distinct posts of one set."""
    return [Example(name, "train", i, f"{name} {i}", "Yes", "Q") for i in range(count)]


SOURCES = [posts(name, count) for name, count in SIZES.items()]


def stream(**changes) -> PromptIterator:
    """An iterator over the three sets; batch 6 does not divide their 20 posts."""
    return make_prompt_iterator(SOURCES, **{"batch_size": 6, "seed": 3, **changes})


def texts(iterator: PromptIterator, batches: int) -> list[str]:
    """Texts of the next batches, in order."""
    return [e.text for batch in itertools.islice(iterator, batches) for e in batch]


def test_each_epoch_has_each_post_once_and_its_own_order() -> None:
    order = texts(stream(), 20)  # 120 posts: six epochs, with batches across their borders
    epochs = [order[i : i + TOTAL] for i in range(0, len(order), TOTAL)]
    everything = sorted(e.text for source in SOURCES for e in source)
    assert all(sorted(epoch) == everything for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 6
    # Mixed, not one set after the other.
    assert all(len({text[0] for text in epoch[:7]}) > 1 for epoch in epochs)


def test_order_follows_the_seed_and_nothing_else() -> None:
    assert texts(stream(), 7) == texts(stream(), 7)
    assert texts(stream(), 7) != texts(stream(seed=4), 7)
    # The batch size cuts the same global order differently.
    assert texts(stream(), 4) == texts(stream(batch_size=8), 3)


@pytest.mark.parametrize("shares", [([0, 1, 2], [3, 4, 5]), ([0, 1, 4], [2, 3, 5]), ([5], [0])])
def test_hosts_read_their_rows_of_the_batches_of_one_host(shares: tuple[list[int], ...]) -> None:
    hosts = [(rows, stream(rows=rows)) for rows in shares]
    for whole in itertools.islice(stream(), 9):
        for rows, host in hosts:
            assert next(host) == [whole[row] for row in rows]


@pytest.mark.parametrize("stop", [0, 1, 3, 4, 17])
def test_resume_at_any_position_is_exact(stop: int) -> None:
    uninterrupted = stream()
    texts(uninterrupted, stop)
    state = json.loads(json.dumps(uninterrupted.get_state()))
    assert uninterrupted.get_state()["next_batch"] == stop
    expected = texts(uninterrupted, 8)

    resumed = stream()
    texts(resumed, 2)
    resumed.set_state(state)
    assert resumed.get_state()["next_batch"] == stop
    assert texts(resumed, 8) == expected

    one_of_two = stream(rows=[3, 4, 5])
    one_of_two.set_state(state)
    assert [e.text for e in next(one_of_two)] == expected[3:6]


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 4},
        {"batch_size": 12},
        {"sources": SOURCES[:2]},
        {"sources": [SOURCES[0], SOURCES[1], posts("D", 3)]},
    ],
)
def test_position_of_another_run_is_refused(other: dict) -> None:
    arguments = {"sources": SOURCES, "batch_size": 6, "seed": 3, **other}
    with pytest.raises(UserError, match="does not belong to this run's data"):
        stream().set_state(make_prompt_iterator(**arguments).get_state())


def test_one_post_alone_fills_every_batch() -> None:
    lonely = make_prompt_iterator([posts("A", 1), []], batch_size=3, seed=0)
    assert Counter(texts(lonely, 2)) == {"A 0": 6}


@pytest.mark.parametrize(
    "bad",
    [{"batch_size": 0}, {"rows": [6]}, {"rows": [-1, 2]}],
)
def test_impossible_shares_are_refused(bad: dict) -> None:
    with pytest.raises(ValueError, match="expected rows of a batch"):
        stream(**bad)


def test_no_posts_is_an_error() -> None:
    with pytest.raises(UserError, match="no posts to train on"):
        make_prompt_iterator([[], []], batch_size=2, seed=0)


def test_steps_per_epoch_rounds_up() -> None:
    assert steps_per_epoch(SOURCES, 6) == 4
    assert steps_per_epoch(SOURCES, 20) == 1
    assert steps_per_epoch(SOURCES, 5) == 4
