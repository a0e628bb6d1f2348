"""`mental-r1 study`: methods x seeds x varied keys over one recipe.

1. Every cell's recipe is resolved and validated before anything runs.
2. Cells run as processes of this package, shared cold starts once; what is done is skipped.
3. A failed task is named with its log; what does not need it goes on.
4. `cells.jsonl` has the finished cells, `study.json` and `study.html` compare them with each other
   and with those of other parts of the study.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from mental_r1_jax.errors import UserError
from mental_r1_jax.evaluation.report import PREDICTIONS_FILE
from mental_r1_jax.study.cells import Plan, Task, plan_study
from mental_r1_jax.study.hard_subset import (
    HARD_FILE,
    HardSubset,
    add_hard_scores,
    choose_posts,
    read_hard_subset,
    write_hard_subset,
)
from mental_r1_jax.study.page import study_page
from mental_r1_jax.study.parts import CELLS_FILE, cells_text, join_cells, without_answers
from mental_r1_jax.study.reading import CellResult, read_cell
from mental_r1_jax.study.results import resample, study_document
from mental_r1_jax.study.running import (
    Outcome,
    is_done,
    log_file,
    run_tasks,
    seconds_by_kind,
    write_whole,
)
from mental_r1_jax.study.schema import Study

STUDY_FILE, NUMBERS_FILE, PAGE_FILE = "study.yaml", "study.json", "study.html"


def run(
    config: Study,
    *,
    dry_run: bool = False,
    seeds: Sequence[int] | None = None,
    join: Sequence[Path] = (),
    publish: Path | None = None,
) -> None:
    """Run, or resume, a study; with `dry_run` only print its tasks and their predicted time.

    Ends the process with status 1 where a task failed, 143 where a signal asked to stop.

    Args:
        seeds: run the cells of these seeds only.
        join: files of cells that other parts of the study have made; they are not run here.
        publish: write the cells there, too, without their answers.

    Raises:
        UserError: a cell's recipe is wrong, a file cannot be joined, the study lacks one of
            `seeds`, its folder holds something else, or `publish` lies in no folder.
    """
    if publish is not None and not publish.absolute().parent.is_dir():
        raise UserError(
            what=f"the cells cannot be written to {publish}",
            expected="a file in a folder that is there",
            got=f"no folder {publish.parent}",
            remedy="make the folder, or give --publish another file",
        )
    plan, folder = plan_study(config), config.output_dir
    joined = join_cells(join, plan, folder)
    tasks = _tasks_to_run(config, plan, seeds, joined)
    _check_folder(folder)
    if dry_run:
        print(describe(config, plan, tasks))
        return
    folder.mkdir(parents=True, exist_ok=True)
    document = config.model_dump(mode="json")
    text = yaml.safe_dump(document, sort_keys=False, allow_unicode=True)
    (folder / STUDY_FILE).write_text(text, encoding="utf-8")
    outcome = run_tasks(tasks, folder, processes=config.processes)
    write_results(config, plan, joined, publish)
    _end(outcome, folder)


def _tasks_to_run(
    study: Study, plan: Plan, seeds: Sequence[int] | None, joined: Mapping[str, CellResult]
) -> dict[str, Task]:
    """The tasks behind the cells of `seeds` that are not joined, in order."""
    unknown = sorted(set(seeds or ()) - set(study.seeds))
    if unknown:
        raise UserError(
            what=f"the study has no seed {', '.join(map(str, unknown))}",
            expected=f"some of {', '.join(map(str, study.seeds))}",
            got=f"--seeds {','.join(map(str, seeds or ()))}",
            remedy="name seeds of the study, or add them to its file",
        )
    chosen = [c for c in plan.cells if c.name not in joined and (not seeds or c.seed in seeds)]
    needed = {name for cell in chosen for name in cell.tasks}
    frozen = (study.output_dir / HARD_FILE).is_file()
    if not frozen and (not seeds or study.seeds[0] in seeds):
        needed.update(plan.hard_subset)
    return {name: task for name, task in plan.tasks.items() if name in needed}


def write_results(
    study: Study, plan: Plan, joined: Mapping[str, CellResult], publish: Path | None = None
) -> None:
    """Write `cells.jsonl`, `study.json` and `study.html` of the finished cells, if there are any.

    Args:
        joined: cells of other parts, by name; one that is finished here, too, is taken from here.
        publish: a file for the cells without their answers.
    """
    folder = study.output_dir
    own = [cell for cell in plan.cells if is_done(folder, plan.tasks[cell.tasks[-1]])]
    by_name = {**joined, **{cell.name: read_cell(cell) for cell in own}}
    results = [by_name[cell.name] for cell in plan.cells if cell.name in by_name]
    if not results:
        return
    missing = [cell.name for cell in plan.cells if cell.name not in by_name]
    hard = _hard_subset(study, plan)
    document = study_document(study, results, missing, hard)
    text = json.dumps(document, indent=1, allow_nan=False, ensure_ascii=False)
    page = study_page(document, title=f"Study: {folder.name}")
    files = {
        folder / CELLS_FILE: cells_text(plan, folder, results),
        folder / NUMBERS_FILE: text + "\n",
        folder / PAGE_FILE: page,
    }
    if publish is not None:
        scored = results if hard is None else add_hard_scores(results, hard)
        public = without_answers(scored, resample(study, results), hard)
        files[publish] = cells_text(plan, folder, public)
    for file, content in files.items():
        write_whole(file, content)
        print(f"written: {file}")


def _hard_subset(study: Study, plan: Plan) -> HardSubset | None:
    """The hard subset: of the given file, or chosen once and frozen in the study's folder."""
    if study.hard_subset is None:
        return None
    file = study.hard_subset.file or study.output_dir / HARD_FILE
    if plan.hard_subset and not file.is_file():
        task = plan.tasks[plan.hard_subset[-1]]
        if not is_done(study.output_dir, task):
            print("no scores on the hard subset: its posts are chosen with the first seed")
            return None
        predictions = task.product.with_name(PREDICTIONS_FILE)
        choice = study.hard_subset
        write_hard_subset(choose_posts(predictions, choice.share, choice.samples), file)
        print(f"written: {file}")
    return read_hard_subset(file)


def describe(study: Study, plan: Plan, tasks: Mapping[str, Task]) -> str:
    """The tasks, which of them are done, and how long the others take as far as is known."""
    seconds = seconds_by_kind(study.output_dir, plan.tasks)
    todo = {name: task for name, task in tasks.items() if not is_done(study.output_dir, task)}
    lines = [
        f"{len(plan.cells)} cells ({len(study.seeds)} seeds), {len(tasks)} tasks, "
        f"{len(tasks) - len(todo)} of them done"
    ]
    for name, task in tasks.items():
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
