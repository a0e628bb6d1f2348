"""The command line: `mental-r1 VERB CONFIG.yaml [section.key=value ...]`, one verb a job.

`push` takes no recipe, for what an exported folder is does not depend on one.

Exit status: 0 success, 1 a study with failed cells, 2 a user's mistake (one message, no traceback);
143, 130 and 129 ended by SIGTERM, Ctrl-C and SIGHUP, `sft` and `train` after the step at work is
done and saved.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import gc
import importlib
import logging
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mental_r1_jax.addresses import is_address
from mental_r1_jax.bucket import opened
from mental_r1_jax.errors import UserError, mistake_of_surroundings, visible
from mental_r1_jax.recipe import config_of_model, load_config
from mental_r1_jax.study.schema import load_study


@dataclasses.dataclass(frozen=True)
class Verb:
    """What the command line must know of a verb; the rest is `jobs/VERB.py`.

    Attributes:
        description: one line for `--help`.
        options: flag -> settings of `add_argument`, or the help of a plain switch. The values are
            keyword arguments of the job's `run(config, ...)`.
        stops_between_steps: see `hosts.joined`; None: the verb runs in one process only.
        compiles: whether JAX compiles anything for it, so that the program cache is opened.
        of_study: whether it is given a study file instead of a recipe.
        of_recipe: whether it is given a recipe and overrides; otherwise `options` has all there is,
            and the job's `run` takes nothing else.
        files: positional arguments behind the first, which then is a model instead of a recipe.
    """

    description: str
    options: Mapping[str, str | dict[str, Any]] = dataclasses.field(default_factory=dict)
    stops_between_steps: bool | None = None
    compiles: bool = True
    of_study: bool = False
    of_recipe: bool = True
    files: Mapping[str, str] = dataclasses.field(default_factory=dict)


def _numbers(text: str) -> tuple[int, ...]:
    """Whole numbers between commas."""
    return tuple(int(word) for word in text.split(","))


VERBS = {
    "data": Verb(
        "check and build the data sets, and print what is in them",
        {"--guess": "look at a file of posts instead of a recipe: print the lines that read it"},
        compiles=False,
    ),
    "sft": Verb("supervised cold start on traces", stops_between_steps=True),
    "train": Verb(
        "train by CRPO; running the same command again resumes",
        {"--dry-run": "print the resolved recipe, batch arithmetic and memory estimate, and stop"},
        stops_between_steps=True,
    ),
    "evaluate": Verb(
        "weighted F1 and more on held-out posts, with a report",
        {
            "--against": {
                "type": Path,
                "metavar": "FOLDER",
                "help": "compare with this finished evaluation, or run; where the first argument "
                "is the folder of one, too, nothing is evaluated",
            },
            "--audit": {
                "action": "append",
                "choices": ["stages", "groups", "memory"],
                "help": "whether stages matter, whether it matters who is said to write, or what "
                "is repeated; may be given several times",
            },
        },
        stops_between_steps=False,
    ),
    "board": Verb(
        "compare runs on one page: figures, what differs, curves overlaid",
        {
            "runs": {"metavar": "RUN", "type": Path, "nargs": "+", "help": "a run folder"},
            "--output": {
                "metavar": "PAGE",
                "type": Path,
                "default": Path("board.html"),
                "help": "the page to write (board.html)",
            },
            "--pictures": {
                "metavar": "FOLDER",
                "type": Path,
                "help": "write each panel as an SVG file, too",
            },
        },
        compiles=False,
        of_recipe=False,
    ),
    "export": Verb(
        "write the Hugging Face folder of a run",
        {"--verify": "reload with transformers (needs torch) and compare logits and text"},
    ),
    "push": Verb(
        "upload an exported folder to the Hugging Face hub; private unless --public",
        {
            "folder": {"metavar": "EXPORT_FOLDER", "type": Path, "help": "what `export` wrote"},
            "hub_id": {"metavar": "HUB_ID", "help": "owner/name"},
            "--public": "make a new repository that everybody may read",
            "--revision": {"default": "main", "metavar": "BRANCH", "help": "made if not there"},
            "--replace": "replace what the branch holds; it remains in the history",
            "--no-gguf": "leave out the file for llama.cpp",
            "--dry-run": "check, list the files with their sizes, and send nothing",
        },
        compiles=False,
        of_recipe=False,
    ),
    "plan": Verb(
        "memory, traffic, time and cost on a TPU topology, from any machine",
        {
            "--topology": {"help": "one slice (needed): v5p:2x2x4, or by its type, v5p-32"},
            "--slices": {
                "type": int,
                "default": 1,
                "help": "slices joined by the data-centre network",
            },
            "--json": {
                "dest": "json_path",
                "metavar": "OUT",
                "type": Path,
                "help": "write the plan here, too",
            },
            "--sweep": "try every mesh and rank them",
        },
    ),
    "quickstart": Verb(
        "the whole path on made-up posts with a tiny model, on a CPU",
        {"--model-only": "only make the tiny start model"},
    ),
    "study": Verb(
        "run methods x seeds x varied keys of a study file, and compare them",
        {
            "--dry-run": "print the cells and their predicted time, and stop",
            "--seeds": {"type": _numbers, "help": "run these only, as in --seeds 0,1"},
            "--join": {
                "type": Path,
                "metavar": "CELLS",
                "action": "append",
                "default": [],
                "help": "a cells.jsonl of another part of the study; its cells are done",
            },
            "--publish": {
                "type": Path,
                "metavar": "OUT",
                "help": "write the finished cells there, too, without answers to single posts",
            },
        },
        compiles=False,
        of_study=True,
    ),
    "sample": Verb(
        "one post in, staged reasoning and answer out",
        {
            "--post": {"help": "the text to assess; otherwise standard input"},
            "--set": {"dest": "set_name", "help": "whose question to ask"},
        },
    ),
    "predict": Verb(
        "a file of unlabelled posts in, a label with reasons for each out",
        {
            "--column": {"default": "text", "help": "of the posts; text unless given"},
            "--id": {"dest": "id_column", "help": "a column to copy beside each answer"},
            "--set": {"dest": "set_name", "help": "whose question to ask"},
            "--recipe": {"help": "YAML; otherwise that of the run, or the defaults"},
            "--min-confidence": {
                "type": float,
                "help": "abstain where a smaller share of the votes agrees",
            },
            "--include-text": "write the posts beside the answers",
        },
        stops_between_steps=False,
        files={"posts": "CSV, JSONL or Parquet", "output": "JSONL or Parquet, by its suffix"},
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit status."""
    parser = make_parser()
    # argparse does not take overrides that stand after an option; they come back as unknown.
    options, late = parser.parse_known_args(arguments)
    overridden = VERBS[options.verb].of_recipe
    unknown = [argument for argument in late if argument.startswith("-") or not overridden]
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if overridden:
        options.overrides += late
    try:
        _run(**vars(options))
    except Exception as error:
        mistake = error if isinstance(error, UserError) else mistake_of_surroundings(error)
        if mistake is None:
            raise
        print(visible(f"error: {mistake}"), file=sys.stderr)
        return 2
    return 0


def make_parser() -> argparse.ArgumentParser:
    """The parser, one sub-command a verb."""
    parser = argparse.ArgumentParser(prog="mental-r1", description=__doc__.split("\n\n")[0])
    commands = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, verb in VERBS.items():
        command = commands.add_parser(name, help=verb.description, description=verb.description)
        if verb.files:
            described = "folder of a run or a model, or a hub id"
            command.add_argument("config", metavar="model", help=described)
        elif verb.of_recipe:
            given = "a study file" if verb.of_study else "a YAML recipe, or the folder of a run"
            command.add_argument("config", help=given)
        for file, described in verb.files.items():
            command.add_argument(file, type=Path, help=described)
        if verb.of_recipe:
            command.add_argument(
                "overrides",
                nargs="*",
                metavar="section.key=value",
                help="values that replace those of the recipe",
            )
        for flag, settings in verb.options.items():
            switch = {"action": "store_true", "help": settings}
            command.add_argument(flag, **(switch if isinstance(settings, str) else settings))
    return parser


def quiet_libraries() -> None:
    """Silence advice that does not concern us: transformers runs here without PyTorch by design."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")


def quiet_writers() -> None:
    """Leave a failed checkpoint to its one error.

    Orbax raises it again in our thread. In its own threads it logs the same with a traceback, once
    a tensor; of several writes that failed asyncio logs all but the first, those that come straight
    from tensorstore without a traceback; and tensorstore reports those that were still under way to
    an event loop that is closed by then, which Python prints.
    """
    # absl names whoever called it only where it has made its logger itself.
    importlib.import_module("absl.logging")
    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(_is_news)
    sys.unraisablehook = _print_unraisable


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a record is more than what Orbax raises again."""
    if not record.exc_info:
        return True
    # asyncio does not know who has started a task, but the traceback comes from there.
    files = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(record.exc_info[2])]
    of_tensorstore = record.name == "asyncio" and not files
    return not (of_tensorstore or any("orbax" in file for file in [record.pathname, *files]))


def _print_unraisable(found: Any) -> None:
    """As Python does, but for writes that outlive their event loop."""
    trace = found.exc_traceback
    of_loop = trace is not None and trace.tb_frame.f_code.co_name == "call_soon_threadsafe"
    if not (of_loop and str(found.exc_value) == "Event loop is closed"):
        sys.__unraisablehook__(found)


def collect_garbage_rarely() -> None:
    """Look for cyclic garbage after 100,000 new objects instead of some hundred.

    Imports and traces make millions of objects that stay; searching them over and over took a sixth
    of the time to the first step.
    """
    gc.set_threshold(100_000)


def _alone(argument: str, others: Sequence[str], use: str) -> Path:
    """The path that stands in place of a recipe, with nothing beside it that nobody would read."""
    if others:
        raise UserError(
            what="there is no recipe here whose keys could change anything",
            expected=use,
            got=" ".join(others),
            remedy="leave them out, or give a recipe",
        )
    return Path(argument)


def _ran_without_recipe(
    verb: str, config: str, overrides: Sequence[str], given: dict[str, Any]
) -> bool:
    """Run what needs no recipe, if this is such a command."""
    job = f"mental_r1_jax.jobs.{verb}"
    if not VERBS[verb].of_recipe:
        importlib.import_module(job).run(**given)
    elif VERBS[verb].of_study:
        study = load_study(config, overrides)
        importlib.import_module(job).run(study, **given)
    elif given.get("guess"):
        file = _alone(config, overrides, "mental-r1 data FILE --guess")
        importlib.import_module(job).run(file, **given)
    elif given.get("against") is not None and Path(config).is_dir():
        others = [*overrides, *(given["audit"] or ())]
        first = _alone(config, others, "mental-r1 evaluate FOLDER --against FOLDER")
        importlib.import_module("mental_r1_jax.jobs.compare").run(first, given["against"])
    else:
        return False
    return True


def _run(verb: str, config: str = "", overrides: Sequence[str] = (), **given: Any) -> None:
    """Hand over to the verb's job; imported here, so that `--help` needs no JAX."""
    if _ran_without_recipe(verb, config, overrides, given):
        return
    if is_address(config):
        config = str(opened(config))
    if VERBS[verb].files:
        given["model"] = config
        recipe = config_of_model(config, overrides, given.pop("recipe"), given["set_name"])
    else:
        recipe = load_config(config, overrides)
    if verb == "plan":
        given["name"] = Path(config).stem
    quiet_libraries()
    quiet_writers()
    collect_garbage_rarely()
    if VERBS[verb].compiles:
        from mental_r1_jax.programs import cache

        cache.use_cache(recipe.run)
    with contextlib.ExitStack() as stack:
        if VERBS[verb].stops_between_steps is not None:
            from mental_r1_jax import hosts

            stops = VERBS[verb].stops_between_steps
            stack.enter_context(hosts.joined(stops_between_steps=bool(stops)))
        importlib.import_module(f"mental_r1_jax.jobs.{verb}").run(recipe, **given)
