"""The parts of the train job that need no model: the warning when no group teaches anything."""

from __future__ import annotations

from mental_r1_jax.jobs.train import SILENT_STEPS, CrpoWork


class RecordingProgress:
    """Keeps what would be printed."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def print(self, text: str) -> None:
        self.lines.append(text)


def warnings_after(shares: list[float]) -> list[int]:
    """Steps (from 1) at which a run with these `frac_reward_zero_std` prints the warning."""
    work = object.__new__(CrpoWork)
    work._silent_steps = 0
    printed, steps = 0, []
    progress = RecordingProgress()
    for step, share in enumerate(shares, start=1):
        work._warn_if_silent({"frac_reward_zero_std": share}, progress)
        if len(progress.lines) > printed:
            printed = len(progress.lines)
            steps.append(step)
    return steps


def test_the_warning_comes_once_after_enough_silent_steps():
    assert SILENT_STEPS == 5
    assert warnings_after([1.0] * 12) == [5]
    assert warnings_after([1.0] * 4 + [0.9] + [1.0] * 4) == []
    assert warnings_after([0.5] + [1.0] * 5 + [0.0] + [1.0] * 5) == [6, 12]
