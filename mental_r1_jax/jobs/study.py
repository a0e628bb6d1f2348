"""`mental-r1 study`: methods x seeds x varied keys over one recipe.

1. Every cell's recipe is resolved and validated before anything runs.
2. Cells run as processes of this package, shared cold starts once; what is done is skipped.
3. A failed task is named with its log; what does not need it goes on.
4. `study.json` and `study.html` compare the cells that are finished.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

import yaml

from mental_r1_jax.errors import UserError
from mental_r1_jax.study.cells import Plan, Task, plan_study
from mental_r1_jax.study.page import study_page
from mental_r1_jax.study.results import study_document
from mental_r1_jax.study.running import Outcome, is_done, log_file, run_tasks, seconds_by_kind
from mental_r1_jax.study.schema import Study

STUDY_FILE, NUMBERS_FILE, PAGE_FILE = "study.yaml", "study.json", "study.html"


def run(config: Study, *, dry_run: bool = False) -> None:
    """Run, or resume, a study; with `dry_run` only print its tasks and their predicted time.

    Ends the process with status 1 where a task failed, 143 where a signal asked to stop.

    Raises:
        UserError: a cell's recipe is wrong, or the folder holds something else.
    """
    plan, folder = plan_study(config), config.output_dir
    _check_folder(folder)
    if dry_run:
        print(describe(config, plan))
        return
    folder.mkdir(parents=True, exist_ok=True)
    document = config.model_dump(mode="json")
    text = yaml.safe_dump(document, sort_keys=False, allow_unicode=True)
    (folder / STUDY_FILE).write_text(text, encoding="utf-8")
    outcome = run_tasks(plan.tasks, folder, processes=config.processes)
    write_results(config, plan)
    _end(outcome, folder)


def write_results(study: Study, plan: Plan) -> None:
    """Write `study.json` and `study.html` of the finished cells, if there are any."""
    folder = study.output_dir
    finished = [cell for cell in plan.cells if is_done(folder, plan.tasks[cell.tasks[-1]])]
    if not finished:
        return
    missing = [cell.name for cell in plan.cells if cell not in finished]
    document = study_document(study, finished, missing)
    text = json.dumps(document, indent=1, allow_nan=False, ensure_ascii=False)
    page = study_page(document, title=f"Study: {folder.name}")
    for name, content in ((NUMBERS_FILE, text + "\n"), (PAGE_FILE, page)):
        staging = folder / f"{name}.tmp"
        staging.write_text(content, encoding="utf-8")
        os.replace(staging, folder / name)
        print(f"written: {folder / name}")


def describe(study: Study, plan: Plan) -> str:
    """The tasks, which of them are done, and how long the others take as far as is known."""
    seconds = seconds_by_kind(study.output_dir, plan.tasks)
    todo = {n: task for n, task in plan.tasks.items() if not is_done(study.output_dir, task)}
    lines = [
        f"{len(plan.cells)} cells ({len(study.seeds)} seeds), {len(plan.tasks)} tasks, "
        f"{len(plan.tasks) - len(todo)} of them done"
    ]
    for name, task in plan.tasks.items():
        known = _minutes(seconds.get(task.kind))
        lines.append(f"  {name}: {known if name in todo else 'done'}")
    lines.append(_total(todo, seconds, study.processes))
    return "\n".join(lines)


def _total(todo: Mapping[str, Task], seconds: Mapping[str, float], processes: int) -> str:
    """Predicted time of all that is left."""
    known = [seconds[task.kind] for task in todo.values() if task.kind in seconds]
    unknown = sorted({task.kind for task in todo.values()} - set(seconds))
    line = f"left: {_minutes(sum(known) / processes)} with {processes} process(es)"
    if unknown:
        line += f", and what has not been timed yet: {', '.join(unknown)}"
    return line


def _minutes(seconds: float | None) -> str:
    return "not timed yet" if seconds is None else f"about {seconds / 60:.1f} min"


def _check_folder(folder: Path) -> None:
    """Refuse a folder that is not a study's."""
    if folder.is_dir() and any(folder.iterdir()) and not (folder / STUDY_FILE).is_file():
        raise UserError(
            what=f"{folder} is not empty and holds no study",
            expected="a new folder, or the folder of a study to resume",
            got=f"{sorted(path.name for path in folder.iterdir())[:5]}",
            remedy="choose another output_dir; nothing was touched",
        )


def _end(outcome: Outcome, folder: Path) -> None:
    """Say what is missing, and end with the status that tells it."""
    for name in outcome.failed:
        print(f"failed: {name}, see {log_file(folder, name)}")
    if outcome.left_out:
        print(f"left out, because they need a failed one: {', '.join(outcome.left_out)}")
    if outcome.stopped:
        print("stopped by a signal; run the same command to resume")
        sys.exit(128 + signal.SIGTERM)
    if outcome.failed:
        print("run the same command to try again")
        sys.exit(1)
