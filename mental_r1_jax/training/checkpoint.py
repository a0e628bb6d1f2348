"""Orbax checkpoints: weights, optimizer, and the position in data and randomness.

A checkpoint is the folder `checkpoints/STEP/` with four items, so that each can be read alone:
`params`, `optimizer` (moments, update count, and steered entropy coefficients where there are any),
`progress` (JSON: data position, and whatever else the loop needs to go on) and `metrics` (JSON: the
validation score). Random numbers are functions of (seed, step), so the step is the random state.
Saving is asynchronous and atomic: a half-written folder never counts. Every step has a manifest
(see `manifest`); `sound_steps` moves damaged ones out of the way before anything is restored.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers as policies
from orbax.checkpoint.utils import TMP_DIR_SUFFIX, is_gcs_path

from mental_r1_jax.bucket import checkpoints_of
from mental_r1_jax.errors import UserError
from mental_r1_jax.training import manifest
from mental_r1_jax.training.damage import sound_steps
from mental_r1_jax.training.train_step import TrainState

VALIDATION_METRIC = "weighted_f1"


class CheckpointManager(ocp.CheckpointManager):
    """Orbax's manager of a folder; every step gets its manifest before it is committed."""

    def __init__(
        self,
        folder: epath.Path,
        options: ocp.CheckpointManagerOptions,
        before_commit: Callable[[], None] | None = None,
    ) -> None:
        """Manage the steps in `folder`; the first process calls `before_commit` for each."""
        self._saving = -1
        self._before_commit = before_commit
        options.async_options = ocp.AsyncOptions(post_finalization_callback=self._sign)
        super().__init__(folder, options=options)

    def save(self, step: int, **parts: Any) -> bool:
        """Start writing `step`; see `ocp.CheckpointManager.save`."""
        self.wait_until_finished()  # until then the step before is being written, and signed
        self._saving = step
        return bool(super().save(step, custom_metadata=manifest.SIGNED, **parts))

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        """Close, which waits for what is being written, unless several processes end by an error.

        What is written needs all of them, and the others wait in the middle of a step for this one:
        they would wait for each other for ten minutes.
        """
        if error is None or jax.process_count() == 1:
            super().__exit__(kind, error, trace)

    def _sign(self) -> None:
        """Write the manifest; the first process calls it, when all have written their files."""
        if self._before_commit is not None:
            self._before_commit()
        final = self.directory / str(self._saving)
        # In a bucket, where nothing can be renamed, a step is written where it stays.
        unfinished = final.with_name(final.name + TMP_DIR_SUFFIX)
        manifest.write_manifest(unfinished if unfinished.exists() else final, self._saving)


def open_checkpoints(
    folder: Path | epath.Path,
    *,
    keep: int | None = None,
    read_only: bool = False,
    before_commit: Callable[[], None] | None = None,
) -> CheckpointManager:
    """Open `folder`, keeping the `keep` newest checkpoints and the best one by validation.

    Damaged steps must be out of the way, see `sound_steps`: they would be counted, or worse. What
    belongs to a step and lies elsewhere is brought to safety by `before_commit`; if it fails, so
    does the step.
    """
    ranked = policies.BestN(get_metric_fn=_score, n=1)
    policy = policies.AnyPreservationPolicy([policies.LatestN(keep), ranked])
    # `best_fn` decides nothing beside a policy, but without it Orbax writes no metrics at all.
    # Orbax's own `read_only` warns at every opening; not to create anything is all that is wanted.
    options = ocp.CheckpointManagerOptions(
        preservation_policy=policy, best_fn=_score, create=not read_only
    )
    return CheckpointManager(absolute(folder), options, before_commit)


def save(
    manager: CheckpointManager,
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
    manager: CheckpointManager, abstract: TrainState
) -> tuple[int, TrainState, dict[str, Any]] | None:
    """Newest checkpoint as (step, state, progress), or None where there is none yet.

    Args:
        manager: from `open_checkpoints`.
        abstract: shapes, dtypes and shardings to restore into; the mesh may differ from the one
            that saved.

    Raises:
        UserError: it has no manifest, and cannot be read.
    """
    step = manager.latest_step()
    if step is None:
        return None
    restored = _read(
        manager.directory / str(step),
        params=ocp.args.StandardRestore(abstract.params),
        optimizer=ocp.args.StandardRestore(_optimizer_item(abstract)),
        progress=ocp.args.JsonRestore(),
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
        UserError: the run has no such checkpoint, or it is damaged and no other one will do.
    """
    step = find_step(run_folder, which)
    folder = checkpoints_of(run_folder) / str(step)
    return step, _read(folder, params=ocp.args.StandardRestore(abstract_params)).params


def find_step(run_folder: Path, which: str | int) -> int:
    """Step of a run's sound `best`, `latest` or numbered checkpoint.

    Raises:
        UserError: the run has no such checkpoint, or it is damaged and no other one will do.
    """
    folder = checkpoints_of(run_folder)
    steps = sound_steps(
        folder,
        lambda sound: choose_step(validation_scores(folder, sound), which),
        only_reads=True,
        may_lack=("optimizer",),  # two thirds of a checkpoint, and who only reads leaves it behind
    )
    step = choose_step(validation_scores(folder, steps), which)
    if step is None:
        raise _missing(run_folder, which, steps)
    return step


def validation_scores(folder: epath.Path, steps: list[int]) -> dict[int, float | None]:
    """Weighted F1 (0 to 1) of each of the sound `steps`, None where it was not validated."""
    files = {step: folder / str(step) / "metrics" / "metrics" for step in steps}
    return {
        step: json.loads(file.read_text(encoding="utf-8")).get(VALIDATION_METRIC)
        for step, file in files.items()
    }


def choose_step(scores: Mapping[int, float | None], which: str | int) -> int | None:
    """Step of `best` (newest of equals; latest if none was validated), of `latest`, or N."""
    if which == "latest" or not scores:
        return max(scores, default=None)
    if which != "best":
        return int(which) if int(which) in scores else None
    scored = [(score, step) for step, score in scores.items() if score is not None]
    return max(scored)[1] if scored else max(scores)


def abstract_like(state: Any, shardings: Any) -> Any:
    """Shapes and dtypes of `state` with the given shardings, for `restore`."""
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        state,
        shardings,
    )


def _read(folder: epath.Path, **items: Any) -> Any:
    """Items of one checkpoint. Without a manifest, whatever stops Orbax is taken for damage."""
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader:
        try:
            return reader.restore(folder, args=ocp.args.Composite(**items))
        except Exception as error:
            if manifest.is_signed(folder):
                raise
            raise UserError(
                what=f"the checkpoint {folder} cannot be read",
                expected="a whole checkpoint; this one is of an older version, without a manifest",
                got=f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}",
                remedy="move this folder away to go on from the checkpoint before it",
            ) from error


def absolute(folder: Path | epath.Path) -> epath.Path:
    """`folder` as Orbax wants it."""
    return epath.Path(folder if is_gcs_path(folder) else Path(folder).absolute())


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
