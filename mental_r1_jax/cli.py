"""The command line: `mental-r1 VERB CONFIG.yaml [section.key=value ...]`, one verb a job.

Exit status: 0 success, 2 a user's mistake (one message, no traceback), 143 stopped by a signal
after saving.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from mental_r1_jax.config import ExperimentConfig
from mental_r1_jax.errors import UserError
from mental_r1_jax.recipe import load_config

VERBS = {
    "data": "check and build the data sets, and print what is in them",
    "sft": "supervised cold start on traces",
    "train": "train by CRPO; running the same command again resumes",
    "evaluate": "weighted F1 and more on held-out posts, with a report",
    "export": "write the Hugging Face folder of a run",
    "plan": "memory, traffic, time and cost on a TPU topology, from any machine",
    "sample": "one post in, staged reasoning and answer out",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit status."""
    parser = make_parser()
    # argparse does not take overrides that stand after an option; they come back as unknown.
    options, late = parser.parse_known_args(arguments)
    unknown = [argument for argument in late if argument.startswith("-")]
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    try:
        overrides = [*options.overrides, *late]
        if getattr(options, "verify", False):
            overrides.append("export.verify=true")
        _run(options, load_config(options.config, overrides))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


# What runs on many processes at the same time; the others need one.
JOINING = ("sft", "train", "evaluate")


def make_parser() -> argparse.ArgumentParser:
    """The parser, one sub-command a verb."""
    parser = argparse.ArgumentParser(prog="mental-r1", description=__doc__.split("\n\n")[0])
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb, description in VERBS.items():
        command = verbs.add_parser(verb, help=description, description=description)
        command.add_argument("config", help="a YAML recipe, or the folder of a run")
        command.add_argument(
            "overrides",
            nargs="*",
            metavar="section.key=value",
            help="values that replace those of the recipe",
        )
        if verb == "train":
            command.add_argument(
                "--dry-run",
                action="store_true",
                help="print the resolved recipe, batch arithmetic and memory estimate, and stop",
            )
        if verb == "export":
            command.add_argument(
                "--verify",
                action="store_true",
                help="reload with transformers (needs torch) and compare logits and text",
            )
        if verb == "plan":
            command.add_argument(
                "--topology", help="one slice (needed): v5p:2x2x4, or by its type, v5p-32"
            )
            command.add_argument(
                "--slices", type=int, default=1, help="slices joined by the data-centre network"
            )
            command.add_argument("--json", metavar="OUT", help="write the plan to this file, too")
            command.add_argument(
                "--sweep", action="store_true", help="try every mesh and rank them"
            )
        if verb == "sample":
            command.add_argument("--post", help="the text to assess; otherwise standard input")
            command.add_argument("--set", dest="set_name", help="whose question to ask")
    return parser


def quiet_libraries() -> None:
    """Silence advice that does not concern us: transformers runs here without PyTorch by design."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")


def collect_garbage_rarely() -> None:
    """Look for cyclic garbage after 100,000 new objects instead of some hundred.

    Imports and traces make millions of objects that stay; searching them over and over took a sixth
    of the time to the first step.
    """
    gc.set_threshold(100_000)


def _run(options: argparse.Namespace, config: ExperimentConfig) -> None:
    """Hand over to the verb's job; imported here, so that `--help` needs no JAX."""
    quiet_libraries()
    collect_garbage_rarely()
    if options.verb != "data":
        from mental_r1_jax import compilation_cache

        compilation_cache.use_cache(config.run)
    if options.verb in JOINING:
        from mental_r1_jax import hosts

        with hosts.joined(stops_between_steps=options.verb != "evaluate"):
            _run_job(options, config)
    else:
        _run_job(options, config)


def _run_job(options: argparse.Namespace, config: ExperimentConfig) -> None:
    """Run the verb's job in this process, alone or one of several."""
    match options.verb:
        case "data":
            from mental_r1_jax.jobs import data

            data.run(config)
        case "sft":
            from mental_r1_jax.jobs import sft

            sft.run(config)
        case "train":
            from mental_r1_jax.jobs import train

            train.run(config, dry_run=options.dry_run)
        case "evaluate":
            from mental_r1_jax.jobs import evaluate

            evaluate.run(config)
        case "export":
            from mental_r1_jax.jobs import export

            export.run(config)
        case "plan":
            from mental_r1_jax.jobs import plan

            plan.run(
                config,
                name=Path(options.config).stem,
                topology=options.topology,
                slices=options.slices,
                json_path=Path(options.json) if options.json else None,
                sweep=options.sweep,
            )
        case "sample":
            from mental_r1_jax.jobs import sample

            sample.run(config, post=options.post, set_name=options.set_name)


if __name__ == "__main__":
    sys.exit(main())
