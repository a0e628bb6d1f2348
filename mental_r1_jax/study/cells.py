"""From a study to its cells, and from these to the verbs that make them; nothing is run here.

A cell is an arm (a method with its varied values) and a seed. Its tasks are commands of this
package: the tiny start model and the cold start, which the cells of a seed share, then `train` or
`sft`, then `evaluate`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mental_r1_jax.addresses import is_address
from mental_r1_jax.config import ExperimentConfig
from mental_r1_jax.errors import UserError
from mental_r1_jax.recipe import load_config
from mental_r1_jax.study.schema import Method, Study

# Sections of a method that also shape its cold start; the rest concern the training after it.
_COLD_SECTIONS = ("data", "model", "sft", "text")
# Sections that a method changes for training only: all cells answer the same posts, read the same.
_JUDGED_ALIKE = ("data", "rewards")

_HARD = "hard_subset"  # task and folder of the evaluation that the hard subset is chosen from

Values = tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class Arm:
    """A method with one combination of its varied values.

    Attributes:
        method: its name in the study.
        values: (recipe key, value), those that the study varies first.
        name: for folders.
        label: for people.
        baselines: for each baseline of the study, the name of the arm it is compared with.
    """

    method: str
    values: Values
    name: str
    label: str
    baselines: Mapping[str, str]


@dataclass(frozen=True)
class Task:
    """One command of this package: `VERB RECIPE OPTIONS`.

    Attributes:
        name: unique in the study; of its recipe, log and record.
        verb: the verb.
        kind: tasks of one kind take about the same time.
        config: its recipe.
        needs: tasks that must have ended well before it.
        product: a file or folder that is there once it has ended well.
        options: further arguments.
    """

    name: str
    verb: str
    kind: str
    config: ExperimentConfig
    needs: tuple[str, ...]
    product: Path
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cell:
    """An arm with a seed.

    Attributes:
        name: of the cell.
        arm: its arm.
        seed: its seed.
        run: folder of its training; of its start where nothing is trained.
        evaluation: folder of its evaluation.
        tasks: names of the tasks behind it, in order, shared ones included.
    """

    name: str
    arm: Arm
    seed: int
    run: Path
    evaluation: Path
    tasks: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """All cells of a study, and every task once, in an order in which they can be run.

    Attributes:
        cells: the cells.
        tasks: by name, those of the cells and of the hard subset.
        hard_subset: names of the tasks behind the choice of the hard subset, in order, the last an
            evaluation; empty where none is chosen.
    """

    cells: tuple[Cell, ...]
    tasks: Mapping[str, Task]
    hard_subset: tuple[str, ...] = ()


def plan_study(study: Study) -> Plan:
    """Resolve and validate the recipe of every cell.

    Raises:
        UserError: a method or a varied value does not fit the recipe; names method and key.
    """
    tasks: dict[str, Task] = {}
    cells = []
    for seed, arm in itertools.product(study.seeds, arms_of(study)):
        made = list(_tasks_of(study, arm, seed))
        for task in made:
            if tasks.setdefault(task.name, task) != task:
                raise UserError(
                    what=f"two cells of the study would be called {task.name}",
                    expected="names that differ in letters, digits or _.+-",
                    got=arm.label,
                    remedy="rename the method, or change the varied values",
                )
        name, judged = f"{arm.name}-seed{seed}", made[-1].config.evaluate
        folder, model = judged.output_dir, judged.model
        assert folder is not None and model is not None, "a cell's evaluation names both"
        cells.append(Cell(name, arm, seed, Path(model), folder, tuple(t.name for t in made)))
    hard: dict[str, Task] = {}
    if study.hard_subset is not None and study.hard_subset.file is None:
        hard = {task.name: task for task in _hard_subset_tasks(study, study.hard_subset.samples)}
    return Plan(tuple(cells), tasks | hard, tuple(hard))


def _hard_subset_tasks(study: Study, samples: int) -> list[Task]:
    """The start of the first seed, made as for any cell, and several answers of it to each post."""
    itself = Method(verb="none")
    named = study.model_copy(update={"methods": {_HARD: itself}, "baseline": (_HARD,), "vary": {}})
    (arm,) = arms_of(named)
    *before, evaluation = _tasks_of(named, arm, study.seeds[0])
    votes = {"num_votes": samples, "confidence": "votes"}
    judged = evaluation.config.evaluate.model_copy(update=votes)
    config = evaluation.config.model_copy(update={"evaluate": judged})
    return [*before, dataclasses.replace(evaluation, name=_HARD, kind="hard subset", config=config)]


def arms_of(study: Study) -> list[Arm]:
    """The arms, in the order of the study's methods and values."""
    arms = []
    for name, method in study.methods.items():
        own = list(_combinations(method.vary))
        for shared, values in itertools.product(_combinations(study.vary), own):
            everything = (*shared, *values)
            arms.append(
                Arm(
                    method=name,
                    values=everything,
                    name=_slug(name, everything),
                    label=", ".join([name, *(f"{_last(k)}={_text(v)}" for k, v in everything)]),
                    baselines={one: _slug(one, shared) for one in study.baseline},
                )
            )
    return arms


def _tasks_of(study: Study, arm: Arm, seed: int) -> Iterator[Task]:
    """The tasks of one cell, in order."""
    method, root = study.methods[arm.method], study.output_dir
    changes = {**method.keys, **dict(arm.values)}
    needs: tuple[str, ...] = ()
    seeded: dict[str, Any] = {"run.seed": seed}
    if study.start_model == "tiny":
        folder = root / "start_models" / f"seed{seed}"
        config = _resolve(study, arm, {**seeded, "run.output_dir": str(folder)})
        start = folder / "tiny_model"
        name = f"start_model-seed{seed}"
        product = start / "config.json"
        yield Task(name, "quickstart", "start model", config, needs, product, ("--model-only",))
        needs, seeded = (name,), {**seeded, "model.path": str(start)}
    if study.cold_start if method.cold_start is None else method.cold_start:
        early = {k: v for k, v in changes.items() if _in_cold_start(k, method)}
        name = f"{_slug('cold_start', tuple(early.items()))}-seed{seed}"
        folder = root / "cold_starts" / name
        config = _resolve(study, arm, {**early, **seeded, "run.output_dir": str(folder)})
        yield Task(name, "sft", "cold start", config, needs, folder / "metrics.jsonl")
        needs, seeded = (name,), {**seeded, "model.path": str(folder)}
    folder = root / "runs" / f"{arm.name}-seed{seed}"
    config = _resolve(study, arm, {**changes, **seeded, "run.output_dir": str(folder)})
    model = folder
    if method.verb == "none":
        model = _local_model(config)
    else:
        name = f"{method.verb}-{arm.name}-seed{seed}"
        trained = _matched(config, method, arm)
        product = folder / "metrics.jsonl"
        yield Task(name, method.verb, f"{method.verb} {arm.method}", trained, needs, product)
        needs = (name,)
    yield _evaluation(study, arm, seed, config, model, needs)


def _local_model(config: ExperimentConfig) -> Path:
    """The model of a cell that trains nothing.

    Raises:
        UserError: it is a run in a bucket.
    """
    name = config.model.path
    if is_address(name):
        raise UserError(
            what="a method without training evaluates a run in a bucket",
            expected="model.path: a path on this machine, or a hub id",
            got=name,
            remedy="export the run (mental-r1 export), and give the folder",
        )
    return Path(name)


def _evaluation(
    study: Study, arm: Arm, seed: int, config: ExperimentConfig, model: Path, needs: tuple[str, ...]
) -> Task:
    """The evaluation of a cell: its recipe, with posts and reading of answers as the study's."""
    common = _resolve(study, arm, {})
    name = f"{arm.name}-seed{seed}"
    folder = study.output_dir / "runs" / name / "evaluation" / study.split
    if study.methods[arm.method].verb == "none":
        folder = study.output_dir / "evaluations" / name / study.split
    evaluate = config.evaluate.model_copy(
        update={"model": str(model), "output_dir": folder, "split": study.split}
    )
    alike = {section: getattr(common, section) for section in _JUDGED_ALIKE}
    judged = config.model_copy(update={**alike, "evaluate": evaluate})
    product = folder / "report.html"  # the last file that an evaluation writes
    return Task(f"evaluate-{name}", "evaluate", "evaluate", judged, needs, product)


def _in_cold_start(key: str, method: Method) -> bool:
    """Whether a method's key also holds for its cold start; `sft` of an SFT method is its own."""
    section = key.partition(".")[0]
    return section in _COLD_SECTIONS and not (section == "sft" and method.verb == "sft")


def _matched(config: ExperimentConfig, method: Method, arm: Arm) -> ExperimentConfig:
    """With as many updates, or completions, as `train` would make of the same recipe."""
    if method.match is None:
        return config
    if config.run.num_steps is None:
        raise UserError(
            what=f"method {arm.method}: match: {method.match} needs to know how long training is",
            expected="run.num_steps",
            got="run.num_steps=null",
            remedy="set run.num_steps in the study's keys, or sft.num_steps instead of match",
        )
    changed: dict[str, Any] = {"num_steps": config.run.num_steps * config.crpo.num_iterations}
    if method.match == "completions":
        rollout = config.rollout
        changed["num_steps"] = config.run.num_steps
        changed["batch_size"] = rollout.prompts_per_step * rollout.num_generations
    return config.model_copy(update={"sft": config.sft.model_copy(update=changed)})


def _resolve(study: Study, arm: Arm, changes: Mapping[str, Any]) -> ExperimentConfig:
    """The study's recipe with its keys and `changes`, validated."""
    merged = {**study.keys, **changes}
    overrides = [f"{key}={_yaml(value)}" for key, value in merged.items()]
    try:
        return load_config(study.recipe, overrides)
    except UserError as error:
        raise UserError(
            what=f"method {arm.label} does not fit the recipe: {error.what}",
            expected=error.expected,
            got=error.got,
            remedy="correct the keys of the method, of vary or of the study",
        ) from None


def _combinations(vary: Mapping[str, tuple[Any, ...]]) -> Iterator[Values]:
    """Every combination of one value a key; one empty combination where nothing varies."""
    for values in itertools.product(*vary.values()):
        yield tuple(zip(vary, values, strict=True))


def _slug(first: str, values: Values) -> str:
    """A name for folders: letters, digits and `_.+-`; long ones end in a hash of the whole."""
    parts = [first, *(f"{_last(key)}-{_text(value)}" for key, value in values)]
    slug = re.sub(r"[^A-Za-z0-9_.+-]+", "_", "-".join(parts))
    if len(slug) <= 80:
        return slug
    return f"{slug[:70]}-{hashlib.sha256('-'.join(parts).encode()).hexdigest()[:8]}"


def _last(key: str) -> str:
    return key.rpartition(".")[2]


def _text(value: Any) -> str:
    """A value for people and folders: as YAML would have it on one line."""
    return value if isinstance(value, str) else _yaml(value)


def _yaml(value: Any) -> str:
    """A value on one line that YAML reads back: JSON is YAML."""
    return json.dumps(value, ensure_ascii=False, default=str)
