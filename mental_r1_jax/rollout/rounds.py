"""Dynamic sampling: a step draws prompts in rounds until enough groups tell right from wrong.

A group whose completions all earn the same has no advantage, and its tokens only dilute the rest.
With `rollout.keep_groups` such groups are left out, and the next prompts of the stream take their
places. Shapes stay those of one round: `join_groups` moves rows between two batches of B.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from mental_r1_jax.config import RolloutConfig
from mental_r1_jax.rollout.collect import ScoredGroups, StepPrompts, column
from mental_r1_jax.types import Batch

# Values of a group that differ by no more than this are equal; in units of reward.
EQUAL_WITHIN = 1e-6
# Bits of the word that numbers a rollout: 24 for the step, 8 for the round.
_STEP_BITS = 24


@dataclasses.dataclass(frozen=True)
class Round:
    """Prompts that were sampled together, and how their completions were scored.

    Attributes:
        prompts: this process's posts and prompts.
        groups: its scored completions.
        table: the score table of all processes, on the device where there are several.
    """

    prompts: StepPrompts
    groups: ScoredGroups
    table: np.ndarray | jax.Array


@dataclasses.dataclass(frozen=True)
class Rollout:
    """The rounds of a step so far, and the batch made of them.

    Prompts are numbered through the rounds: prompt b of round k is `k * B + b`.

    Attributes:
        rounds: in the order in which they were drawn.
        batch: the groups to train on, in as many rows as a round has; None before the first one.
        sources: number of the prompt behind each row of `batch`; -1 where no group is left, and
            the row is empty.
        kept: whether the group of each prompt was kept, those included for which no row was left;
            None where the recipe keeps all.
    """

    rounds: tuple[Round, ...] = ()
    batch: Batch | None = None
    sources: Int[np.ndarray, " B"] = dataclasses.field(default_factory=lambda: np.zeros(0, int))
    kept: Bool[np.ndarray, " prompts"] | None = None


def number_of_round(step: int, index: int) -> int:
    """The number by which round `index` (from 0) of `step` draws; that of round 0 is the step's."""
    return step | index << _STEP_BITS


def wants_round(rollout: Rollout, config: RolloutConfig) -> bool:
    """Whether a step must draw: at first, and again while rows are empty, up to `max_rounds`."""
    empty = bool((rollout.sources < 0).any())
    return not rollout.rounds or (empty and len(rollout.rounds) < config.max_rounds)


def add_round(
    rollout: Rollout,
    drawn: Round,
    batch: Batch,
    config: RolloutConfig,
    join: Callable[[tuple[Batch, Batch], np.ndarray], Batch],
) -> Rollout:
    """Take the groups of a round that are worth it into the training batch.

    Groups keep their order. Where there are more than rows, the last ones are dropped.

    Args:
        rollout: the step so far.
        drawn: the round.
        batch: of that round.
        config: the recipe's section; `keep_groups` says which groups are kept.
        join: `join_groups`, compiled.
    """
    rounds, rows = (*rollout.rounds, drawn), batch.rewards.shape[0]
    if config.keep_groups == "all":
        return Rollout(rounds, batch, np.arange(rows))
    kept = differing_groups(column(drawn.table, _COLUMNS[config.keep_groups]))
    before = np.zeros(0, bool) if rollout.kept is None else rollout.kept
    everything = np.concatenate([before, kept])
    held = np.flatnonzero(rollout.sources >= 0)
    new = np.flatnonzero(kept)
    taken = _padded(np.concatenate([held, rows + new]), rows)
    sources = _padded(np.concatenate([rollout.sources[held], len(before) + new]), rows)
    joined = join((rollout.batch or batch, batch), taken.astype(np.int32))
    return Rollout(rounds, joined, sources, everything)


_COLUMNS = {"reward": "reward", "accuracy": "correct"}


def without_batch(rollout: Rollout) -> Rollout:
    """All but the batch, so that a record of the step does not hold its arrays on the device."""
    return dataclasses.replace(rollout, batch=None)


def differing_groups(values: Float[np.ndarray, "B G"]) -> Bool[np.ndarray, " B"]:
    """Which groups have values that are not all equal: `max_g(x_bg) - min_g(x_bg) > 1e-6`.

    References:
        Yu et al. 2025, "DAPO" (arXiv 2503.14476), section 3.2.
    """
    return values.max(axis=1) - values.min(axis=1) > EQUAL_WITHIN


def rollout_metrics(rollout: Rollout) -> dict[str, float]:
    """What dynamic sampling cost in this step; nothing where the recipe keeps all groups.

    rollout/rounds   rounds drawn           rollout/kept   share of their groups that differ
    rollout/prompts  prompts drawn          rollout/empty  rows without a group
    """
    if rollout.kept is None:
        return {}
    return {
        "rollout/rounds": float(len(rollout.rounds)),
        "rollout/prompts": float(len(rollout.kept)),
        "rollout/kept": float(rollout.kept.mean()),
        "rollout/empty": float((rollout.sources < 0).sum()),
    }


def trained_advantages(rollout: Rollout, advantages: Any) -> Float[np.ndarray, "prompts G"]:
    """Advantages of the groups of every prompt drawn; NaN where a group was not trained on.

    Args:
        rollout: a whole step.
        advantages: of all rows of its batch, [B, G].
    """
    values = np.asarray(advantages)
    rows = len(rollout.rounds) * len(rollout.sources)
    found = np.full((rows, values.shape[1]), np.nan)
    trained = rollout.sources >= 0
    found[rollout.sources[trained]] = values[trained]
    return found


def _padded(numbers: np.ndarray, length: int) -> Int[np.ndarray, " length"]:
    """The first `length` of `numbers`, filled up with -1."""
    padded = np.full(length, -1)
    padded[: len(numbers)] = numbers[:length]
    return padded
