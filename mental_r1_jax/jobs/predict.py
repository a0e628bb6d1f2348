"""`mental-r1 predict`: unlabelled posts in, a label with reasons for each out.

1. Read the whole file of posts once: whatever is wrong with it is said before a model is opened.
2. Open the model, and make sure that what is there already answers to this very command.
3. Answer batch after batch; each is kept as soon as it is done, so that a kill loses few.
4. Write the answers in the order of the posts; the file appears whole.

Neither posts nor answers are printed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from rich.console import Console

import mental_r1_jax
from mental_r1_jax.config import ExperimentConfig
from mental_r1_jax.console.bar import item_bar
from mental_r1_jax.console.progress import open_console
from mental_r1_jax.data.benchmarks import BenchmarkSpec, spec_for
from mental_r1_jax.data.questions import worded_question
from mental_r1_jax.data.unlabelled import PostsFile, Survey, sha256_of, survey
from mental_r1_jax.errors import UserError
from mental_r1_jax.models.fingerprint import fingerprint
from mental_r1_jax.opening.devices import open_mesh
from mental_r1_jax.opening.model_source import ModelSource, load_weights, open_model, public_name
from mental_r1_jax.prediction import answers_file, journal
from mental_r1_jax.prediction.bulk import (
    FLAGS,
    WINDOW_BATCHES,
    Asking,
    Record,
    answer_posts,
    columns_of,
)
from mental_r1_jax.prediction.predictor import Predictor, make_predictor
from mental_r1_jax.prediction.prompt_shape import PREFIX_STEP, REST_STEP
from mental_r1_jax.private_files import check_writable, make_private_folder
from mental_r1_jax.runs.interruption import ends_with_a_line
from mental_r1_jax.runs.run_lock import run_lock
from mental_r1_jax.text.prompts import render_prompt
from mental_r1_jax.text.wording import grammar_of

# Of the recipe's section `rollout`: what answers do not depend on.
_OF_TRAINING = {"prompts_per_step", "num_generations", "keep_groups", "max_rounds"}


def run(
    config: ExperimentConfig,
    *,
    model: str,
    posts: Path,
    output: Path,
    column: str,
    id_column: str | None,
    set_name: str | None,
    min_confidence: float | None,
    include_text: bool,
) -> Path:
    """Answer all posts of a file; returns `output`.

    Args:
        config: the recipe: `rollout` lengths, `evaluate` batch size and votes.
        model: run folder, Hugging Face or PEFT folder, or hub id.
        posts: CSV, JSON lines or Parquet.
        output: JSON lines or Parquet.
        column: of the posts.
        id_column: copied beside each answer; None copies nothing.
        set_name: whose question to ask; None takes the recipe's only set.
        min_confidence: see `Asking`.
        include_text: write the posts beside the answers.

    Raises:
        UserError: something given is wrong, or the output belongs to something else.
    """
    _refuse_several_processes()
    asking = Asking(
        _spec(config, set_name),
        min_confidence,
        id_column is not None,
        include_text,
        grammar_of(config.text),
    )
    _check_options(config, min_confidence)
    _check_output(output)
    file = PostsFile(posts, column, id_column)
    order = Order(file, survey(file), asking, output)
    journal.check_facts(output, _facts(order))
    line = f"prediction into {output} ended; finished batches are kept; the same command goes on"
    with ends_with_a_line(line):
        return _predict(config, model, order)


@dataclasses.dataclass(frozen=True)
class Order:
    """What is to be done, whatever the model.

    Attributes:
        file: the posts.
        surveyed: what is known of them.
        asking: the question.
        output: the file to write.
    """

    file: PostsFile
    surveyed: Survey
    asking: Asking
    output: Path

    @property
    def suffix(self) -> str:
        """What kind of file the output is."""
        return self.output.suffix.lower()


def _predict(config: ExperimentConfig, name: str, order: Order) -> Path:
    """Open the model `name` and do what is left to be done."""
    console, output = open_console(), order.output
    model = open_model(name, config)
    rows = {"evaluate.batch_size": config.evaluate.batch_size}
    mesh = open_mesh(config, rows=rows, model=model.decoder)
    params = load_weights(model, mesh, which="best")
    facts = _facts(order) | _facts_of_model(config, model, mesh, params, order.asking.spec)
    folder = journal.unfinished_folder(output)
    if journal.check_facts(output, facts) and not folder.is_dir():
        console.print(f"{output} is finished already", markup=False)
        return output
    make_private_folder(folder)
    with run_lock(folder):
        # Once more: another process may have been at work until now.
        if not journal.check_facts(output, facts):
            predictor = make_predictor(model, config, mesh, "predict")
            with journal.Journal(journal.begin(output, facts)) as done:
                console.print(_first_line(public_name(name), order, done), markup=False)
                _answer_all(predictor, params, order, done, console)
                summary = _finish(order, done, facts)
            console.print(_in_words(summary), markup=False)
    journal.remove_unfinished(output)
    console.print(f"answers: {output}", markup=False)
    return output


def _answer_all(
    predictor: Predictor, params: Any, order: Order, done: journal.Journal, console: Console
) -> None:
    """Answer the posts that have no answer, and keep every batch."""
    posts = order.file.posts()
    with item_bar(console, "posts", order.surveyed.rows, done.rows) as show:
        for records in answer_posts(predictor, params, posts, order.asking, done.batches):
            done.append(records)
            show(done.rows)


def _finish(order: Order, done: journal.Journal, facts: Mapping[str, Any]) -> dict[str, int]:
    """Write the output; returns how many posts were abstained from, and have each flag."""
    folder = journal.unfinished_folder(order.output)
    if sha256_of(order.file.path) != order.surveyed.sha256 or done.rows != order.surveyed.rows:
        raise UserError(
            what=f"{order.file.path} has changed while it was read",
            expected=f"the same {order.surveyed.rows} posts until the end",
            got=f"another content, and answers to {done.rows} posts",
            remedy=f"remove {folder} and give the command again",
        )
    counts = Counter[str]()

    def counted() -> Iterator[Record]:
        for record in done.in_order():
            counts.update(["posts", *(["abstained"] if record["abstained"] else [])])
            counts.update(record["flags"])
            yield record

    answers_file.write_answers(
        folder / journal.STAGED_FILE,
        order.suffix,
        counted(),
        columns_of(order.asking),
        numbered=order.surveyed.numbered,
    )
    summary = {name: counts[name] for name in ("posts", "abstained", *FLAGS)}
    journal.end(order.output, facts, summary)
    return summary


def _first_line(name: str, order: Order, done: journal.Journal) -> str:
    kept = f", {done.rows:,} of them answered before" if done.rows else ""
    return f"answering {order.surveyed.rows:,} posts with {name}{kept}"


def _in_words(summary: dict[str, int]) -> str:
    """What became of the posts, in one line."""
    found = [f"{count:,} {name}" for name, count in summary.items() if count or name == "posts"]
    return ", ".join(found)


def _refuse_several_processes() -> None:
    if jax.process_count() > 1:
        raise UserError(
            what="predict runs in one process",
            expected="one process, with all devices of one host",
            got=f"{jax.process_count()} processes",
            remedy="split the posts into as many files, and give each host its own command",
        )


def _spec(config: ExperimentConfig, set_name: str | None) -> BenchmarkSpec:
    """The set whose question is asked."""
    if set_name is None and len(config.data.sets) > 1:
        raise UserError(
            what="the recipe has several sets",
            expected="the one whose question to ask about the posts",
            got=", ".join(config.data.sets),
            remedy="choose one with --set",
        )
    spec = spec_for(set_name or config.data.sets[0], config.data.custom_sets)
    spec = dataclasses.replace(spec, question=worded_question(config, spec))
    if spec.question is None:
        raise UserError(
            what=f"the set {spec.name!r} has no question of its own",
            expected=f"data.custom_sets.{spec.name}.question",
            got="questions only in the mental_prompt column of its files",
            remedy="write the question into the recipe",
        )
    return spec


def _check_options(config: ExperimentConfig, threshold: float | None) -> None:
    """Refuse a threshold that nothing, or everything, falls under."""
    if threshold is not None and not 0 < threshold <= 1:
        raise UserError(
            what="--min-confidence is a share of the votes",
            expected="a number above 0, up to 1",
            got=f"{threshold:g}",
            remedy="give 0.7, say",
        )
    if threshold is not None and config.evaluate.num_votes == 1:
        raise UserError(
            what="--min-confidence needs votes",
            expected="evaluate.num_votes of 2 or more",
            got="evaluate.num_votes=1, one greedy answer, which has no confidence",
            remedy="add evaluate.num_votes=8, say",
        )


def _check_output(output: Path) -> None:
    """Refuse a path that the answers cannot be written to, before hours of work for them."""
    if output.suffix.lower() not in answers_file.SUFFIXES:
        raise UserError(
            what=f"cannot tell what kind of file {output} is to be",
            expected=f"a name that ends in {' or '.join(answers_file.SUFFIXES)}",
            got=output.suffix or "a name without a suffix",
            remedy="choose such a name",
        )
    if not output.absolute().parent.is_dir():
        raise UserError(
            what=f"the folder of {output} is not there",
            expected="a folder for the answers",
            got=str(output.absolute().parent),
            remedy="make the folder, or correct the path",
        )
    check_writable(output.absolute().parent)
    # The longest name beside it, written last: one that is too long is refused here.
    with contextlib.suppress(FileNotFoundError):
        os.lstat(f"{journal.manifest_of(output)}.tmp")


def _facts(order: Order) -> dict[str, Any]:
    """What answers depend on, as far as it is known before a model is opened."""
    asking = order.asking
    return {
        "posts": order.surveyed.sha256,
        "column": order.file.column,
        "id": order.file.id_column,
        "question": [asking.spec.name, *asking.spec.labels, asking.spec.question],
        "min_confidence": asking.min_confidence,
        "include_text": asking.include_text,
        "format": order.suffix,
        "version": mental_r1_jax.__version__,
    }


def _facts_of_model(
    config: ExperimentConfig, model: ModelSource, mesh: Mesh, params: Any, spec: BenchmarkSpec
) -> dict[str, Any]:
    """What answers depend on besides."""
    rollout = config.rollout
    question, limit = spec.question or "", rollout.max_prompt_length
    prompt = render_prompt(model.tokenizer, question, "A post.", limit, grammar_of(config.text))
    return {
        "weights": fingerprint(params),
        "prompt": hashlib.sha256(repr((prompt.text, prompt.ids)).encode()).hexdigest(),
        "rollout": rollout.model_dump(mode="json", exclude=_OF_TRAINING),
        "votes": config.evaluate.num_votes,
        "batch_size": config.evaluate.batch_size,
        "window": WINDOW_BATCHES,
        "prompt_steps": [PREFIX_STEP, REST_STEP],
        "answer_match": config.rewards.answer_match,
        "compute_dtype": config.model.compute_dtype,
        "seed": config.run.seed,
        "mesh": dict(mesh.shape),
    }
