"""Orbax checkpoints: weights, optimizer, and the position in data and randomness.

A checkpoint is the folder `checkpoints/STEP/` with three items, so that each can be read alone:
`params`, `optimizer` (moments, update count, and steered entropy coefficients where there are
any) and `progress` (JSON: data position, and whatever
else the loop needs to go on). Random numbers are functions of (seed, step), so the step is the
random state. Saving is asynchronous and atomic: a half-written folder never counts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from mental_r1_jax.errors import UserError
from mental_r1_jax.training.train_step import TrainState

VALIDATION_METRIC = "weighted_f1"


def open_checkpoints(
    folder: Path, *, keep: int | None = None, read_only: bool = False
) -> ocp.CheckpointManager:
    """Open `folder`, keeping the `keep` newest checkpoints and the best one by validation."""
    ranked = policies.BestN(get_metric_fn=_score, n=1)
    policy = policies.AnyPreservationPolicy([policies.LatestN(keep), ranked])
    # `best_fn` decides nothing beside a policy, but without it Orbax writes no metrics at all.
    # Orbax's own `read_only` warns at every opening; not to create anything is all that is wanted.
    options = ocp.CheckpointManagerOptions(
        preservation_policy=policy, best_fn=_score, create=not read_only
    )
    return ocp.CheckpointManager(Path(folder).absolute(), options=options)


def save(
    manager: ocp.CheckpointManager,
    step: int,
    state: TrainState,
    progress: Mapping[str, Any],
    validation: float | None = None,
) -> None:
    """Start writing checkpoint `step`; returns before the disk is done.

    Args:
        manager: from `open_checkpoints`.
        step: rollouts finished.
        state: copied to the host before this returns, so it may be donated afterwards.
        progress: JSON-able position of everything that is not in `state`.
        validation: mean weighted F1 (0 to 1) measured at this step, if it was measured.
    """
    optimizer = _optimizer_item(state)
    manager.save(
        step,
        args=ocp.args.Composite(
            params=ocp.args.StandardSave(state.params),
            optimizer=ocp.args.StandardSave(optimizer),
            progress=ocp.args.JsonSave(dict(progress)),
        ),
        metrics={} if validation is None else {VALIDATION_METRIC: validation},
    )


def restore(
    manager: ocp.CheckpointManager, abstract: TrainState
) -> tuple[int, TrainState, dict[str, Any]] | None:
    """Newest checkpoint as (step, state, progress), or None where there is none yet.

    Args:
        manager: from `open_checkpoints`.
        abstract: shapes, dtypes and shardings to restore into; the mesh may differ from the one
            that saved.
    """
    step = manager.latest_step()
    if step is None:
        return None
    optimizer = _optimizer_item(abstract)
    restored = manager.restore(
        step,
        args=ocp.args.Composite(
            params=ocp.args.StandardRestore(abstract.params),
            optimizer=ocp.args.StandardRestore(optimizer),
            progress=ocp.args.JsonRestore(),
        ),
    )
    state = TrainState(params=restored["params"], **restored["optimizer"])
    return step, state, restored["progress"]


def _optimizer_item(state: TrainState) -> dict[str, Any]:
    """The item `optimizer`: all of a state but its weights."""
    item = {"opt_state": state.opt_state, "num_updates": state.num_updates}
    if state.entropy_control is not None:
        item["entropy_control"] = state.entropy_control
    return item


def restore_params(run_folder: Path, which: str | int, abstract_params: Any) -> tuple[int, Any]:
    """Weights alone of a run's `best`, `latest` or numbered checkpoint, and its step.

    Raises:
        UserError: the run has no such checkpoint.
    """
    folder = Path(run_folder) / "checkpoints"
    if not folder.is_dir():
        raise _missing(run_folder, which, [])
    with open_checkpoints(folder, read_only=True) as manager:
        step = choose_step(manager, which)
        if step is None:
            raise _missing(run_folder, which, manager.all_steps())
        restored = manager.restore(
            step, args=ocp.args.Composite(params=ocp.args.StandardRestore(abstract_params))
        )
    return step, restored["params"]


def choose_step(manager: ocp.CheckpointManager, which: str | int) -> int | None:
    """Step of `best` (newest of equals; latest if none was validated), of `latest`, or N."""
    steps = sorted(manager.all_steps())
    if which == "latest" or not steps:
        return steps[-1] if steps else None
    if which != "best":
        return int(which) if int(which) in steps else None
    scores = {step: (manager.metrics(step) or {}).get(VALIDATION_METRIC) for step in steps}
    scored = [(score, step) for step, score in scores.items() if score is not None]
    return max(scored)[1] if scored else steps[-1]


def abstract_like(state: Any, shardings: Any) -> Any:
    """Shapes and dtypes of `state` with the given shardings, for `restore`."""
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        state,
        shardings,
    )


def _score(metrics: Mapping[str, float]) -> float:
    """What checkpoints are ranked by; those that were not validated come last."""
    return metrics.get(VALIDATION_METRIC, -math.inf)


def _missing(run_folder: Path, which: str | int, steps: Any) -> UserError:
    return UserError(
        what=f"{run_folder} has no checkpoint {which!r}",
        expected="`best`, `latest` or one of the saved steps",
        got=f"saved steps {sorted(steps)}",
        remedy="train first, or name one of the saved steps",
    )
