"""Metrics come one step late, and are never lost."""

from __future__ import annotations

import pytest

from mental_r1_jax.jobs.run_loop import Books


class Record:
    """Stands for the writers and for the display; both are told the same."""

    def __init__(self) -> None:
        self.told: list[tuple[int, dict[str, float]]] = []

    def write(self, step: int, metrics: dict[str, float]) -> None:
        self.told.append((step, metrics))

    update = write


def test_metrics_are_read_when_they_are_settled_and_only_once() -> None:
    record, read = Record(), []
    with Books(record, record) as books:
        books.settle()
        books.owe(1, lambda: read.append(1) or {"reward": 0.5})
        assert read == [] and record.told == []
        books.settle()
        books.settle()
        assert read == [1] and record.told == [(1, {"reward": 0.5})] * 2
        books.owe(2, lambda: {"reward": 1.0})
    assert record.told[2:] == [(2, {"reward": 1.0})] * 2


def test_the_metrics_of_a_step_are_kept_when_the_next_one_fails() -> None:
    record = Record()
    with pytest.raises(ZeroDivisionError), Books(record, record) as books:
        books.owe(7, lambda: {"reward": 0.0})
        raise ZeroDivisionError
    assert [step for step, _ in record.told] == [7, 7]


def test_metrics_that_cannot_be_read_are_not_asked_for_twice() -> None:
    calls = []

    def broken() -> dict[str, float]:
        calls.append(1)
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"), Books(Record(), Record()) as books:
        books.owe(1, broken)
        books.settle()
    assert calls == [1]
