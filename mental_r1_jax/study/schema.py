"""What a study file may say: methods, seeds and varied keys over one recipe.

A method is a mapping of recipe keys, written with their dots, and of the few words of `Method`:

    methods:
      grpo: {crpo.stage_entropy_rule: off}
      crpo: {vary: {crpo.stage_entropy_scale: [0.001, 0.01]}}
      sft: {verb: sft, match: completions}
      cold_start: {verb: none}
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field, NonNegativeInt, PositiveInt

from mental_r1_jax.config import LocalPath, Section
from mental_r1_jax.errors import UserError
from mental_r1_jax.recipe import parse_override, parse_yaml, recipe_text
from mental_r1_jax.recipe_problems import describe_problem

# Keys that tell the cells of a study apart, so that only the study itself may set them.
SET_BY_THE_STUDY = (
    "run.output_dir",
    "run.seed",
    "evaluate.model",
    "evaluate.output_dir",
    "evaluate.split",
)

Keys = dict[str, Any]
Varied = dict[str, Annotated[tuple[Any, ...], Field(min_length=1)]]


def _several(value: Any) -> Any:
    """A single name as a list of one."""
    return (value,) if isinstance(value, str) else value


Names = Annotated[tuple[str, ...], pydantic.BeforeValidator(_several), Field(min_length=1)]


class Method(Section):
    """One way to train.

    Attributes:
        verb: `train`; `sft` to go on with supervised traces; `none` to evaluate the start itself.
        match: of `sft`: as many `updates` as `train` would make, or in each of them as many
            `completions` as well; null leaves `sft.num_steps` and `sft.batch_size` to the keys.
        cold_start: whether it starts from the seed's cold start; null does as the study says.
        keys: its values of the recipe; they may stand beside these words, as they have dots.
        vary: recipe key -> values; one cell for each combination and seed.
    """

    verb: Literal["train", "sft", "none"] = "train"
    match: Literal["updates", "completions"] | None = None
    cold_start: bool | None = None
    keys: Keys = {}
    vary: Varied = {}

    @pydantic.model_validator(mode="before")
    @classmethod
    def _gather_keys(cls, given: Any) -> Any:
        """Move entries whose name has a dot into `keys`; a method without a line has none."""
        if not isinstance(given, Mapping):
            return {} if given is None else given
        dotted = {key: value for key, value in given.items() if "." in str(key)}
        rest = {key: value for key, value in given.items() if key not in dotted}
        return {**rest, "keys": {**rest.get("keys", {}), **dotted}} if dotted else rest

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> Method:
        if self.match is not None and self.verb != "sft":
            raise ValueError(f"match belongs to verb: sft, got verb: {self.verb}")
        return self


class HardSubsetChoice(Section):
    """Which posts are the hard ones; see `study/hard_subset.py`.

    Attributes:
        share: of each set's posts, those that samples of the start model get wrong most often.
        samples: answers that are sampled for each post.
        file: a `hard_subset.json` of another study on the same posts, to take in place of choosing.
    """

    share: Annotated[float, Field(gt=0, lt=1)] = 0.2
    samples: Annotated[int, Field(ge=2)] = 8
    file: LocalPath | None = None


class Study(Section):
    """A study file.

    Attributes:
        output_dir: the folder of the study; the same command again resumes what is unfinished.
        recipe: the recipe of all cells, relative to the study's file.
        seeds: each cell is run with each of them.
        methods: name -> what it changes in the recipe.
        baseline: the method that all others are compared with, seed by seed, or several such
            methods; curves are drawn over those of the first.
        keys: values of the recipe for every cell; a method's win.
        vary: recipe key -> values, for all methods.
        cold_start: whether methods start from a cold start (`sft`), made once for each seed.
        start_model: `recipe` starts from the recipe's `model.path`, `tiny` from a random tiny model
            of each seed, as the quickstart's.
        split: split of the sets that the cells are compared on.
        hard_subset: scores on the hardest posts as well; null leaves them out.
        processes: cells that run at the same time.
        bootstrap_samples: resamples of posts and seeds behind the intervals of the differences.
    """

    output_dir: LocalPath
    recipe: Path
    seeds: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)]
    methods: Annotated[dict[str, Method], Field(min_length=1)]
    baseline: Names
    keys: Keys = {}
    vary: Varied = {}
    cold_start: bool = True
    start_model: Literal["recipe", "tiny"] = "recipe"
    split: Literal["validation", "test"] = "test"
    hard_subset: HardSubsetChoice | None = None
    processes: PositiveInt = 1
    bootstrap_samples: PositiveInt = 2000

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> Study:
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"every seed may be named once, got seeds={list(self.seeds)}")
        if len(set(self.baseline)) != len(self.baseline):
            raise ValueError(f"every baseline may be named once, got {list(self.baseline)}")
        for name in self.methods:
            if not re.fullmatch(r"[A-Za-z0-9_.+-]{1,60}", name):
                raise ValueError(
                    f"a method's name becomes a folder: letters, digits and _.+- only, got {name!r}"
                )
        for name in self.baseline:
            if name not in self.methods:
                raise ValueError(f"baseline: expected some of {list(self.methods)}, got {name}")
            if self.methods[name].vary:
                raise ValueError(f"the baseline {name} may not vary keys of its own")
        for place, keys in _places(self):
            for key in keys:
                if key in SET_BY_THE_STUDY:
                    raise ValueError(f"{place}: {key} is set by the study itself; leave it out")
        return self


def load_study(path: str | Path, overrides: Sequence[str] = ()) -> Study:
    """Read a study file; `section.key=value` overrides are added to its `keys`.

    Raises:
        UserError: the file is missing, is not YAML, or does not describe a study.
    """
    file = Path(path)
    if not file.is_file():
        raise UserError(
            what="study not found",
            expected="a YAML file with methods, seeds and a recipe",
            got=str(file),
            remedy="give the path of a study, for example configs/study_synthetic.yaml",
        )
    tree = parse_yaml(recipe_text(file), what=f"{file} is not YAML")
    if not isinstance(tree, dict):
        raise UserError(
            what=f"{file} is not a study",
            expected="a mapping with output_dir, recipe, seeds, methods and baseline",
            got=type(tree).__name__,
            remedy="start from configs/study_synthetic.yaml; docs/studies.md explains it",
        )
    if isinstance(tree.get("recipe"), str):
        tree["recipe"] = file.parent / tree["recipe"]
    if overrides:
        given = {".".join(keys): value for keys, value in map(parse_override, overrides)}
        tree["keys"] = {**(tree.get("keys") or {}), **given}
    try:
        return Study.model_validate(tree)
    except pydantic.ValidationError as error:
        problems = [describe_problem(problem, Study) for problem in error.errors()]
        raise UserError(
            what=f"{len(problems)} problem(s) in {file}",
            expected="the words of a study; keys of the recipe are written with their dot",
            got="\n" + "\n".join(f"  - {problem}" for problem in problems),
            remedy="correct the study; docs/studies.md explains every word",
        ) from None


def _places(study: Study) -> list[tuple[str, list[str]]]:
    """(where, recipe keys) of everything in a study that names keys."""
    places = [("keys", list(study.keys)), ("vary", list(study.vary))]
    for name, method in study.methods.items():
        places.append((f"methods.{name}", [*method.keys, *method.vary]))
    return places
