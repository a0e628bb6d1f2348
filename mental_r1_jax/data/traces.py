"""Traces for a supervised cold start: from JSONL, from the rows of the posts, or from templates.

Small models do not follow the grammar of stages by prompt alone, and reinforcement learning can't
reward what is never sampled. A cold start on a few traces teaches the form. The template traces are
our addition; the paper has no cold start. They quote a few words of the post and name the label;
they contain no insight, and a stronger model's traces in a JSONL file are the better choice.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mental_r1_jax.data.loading import spread
from mental_r1_jax.data.reasoning import is_staged, staged_completion, without_tags
from mental_r1_jax.data.records import Example
from mental_r1_jax.errors import UserError
from mental_r1_jax.text.stages import GRAMMAR, Grammar
from mental_r1_jax.text_section import fill

_QUOTED_WORDS = 3
_SHOWN_ROWS = 5
# Longer "words" are addresses, rows of signs and the like; they would burst the completion.
_WORD_LIMIT = 15

# Of languages without spaces between words.
_QUOTED_CHARACTERS = 6


@dataclass(frozen=True)
class Trace:
    """One supervised example.

    Attributes:
        question: the fixed start of the user turn, never truncated.
        post: the rest of the user turn, truncated where the prompt is too long.
        completion: what to write after the prefill.
    """

    question: str
    post: str
    completion: str


def read_traces(path: Path, grammar: Grammar = GRAMMAR) -> list[Trace]:
    """Read JSONL lines `{"prompt": user turn, "completion": staged text}`.

    A completion may begin with the prefill, which is then taken off.

    Raises:
        UserError: lists every line that is not such an object or not well formed.
    """
    if not path.is_file():
        raise UserError(
            "the file of traces is not there",
            'JSONL lines with "prompt" and "completion"',
            str(path),
            "Correct sft.traces, or set it to null for template traces.",
        )
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not text in UTF-8",
            'JSONL lines with "prompt" and "completion"',
            str(error),
            "Save the file as UTF-8.",
        ) from None
    traces, faults = [], []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        trace = _trace_of(line, grammar)
        if isinstance(trace, Trace):
            traces.append(trace)
        else:
            faults.append(f"line {number}: {trace}")
    if faults or not traces:
        raise UserError(
            f"{path} cannot be used",
            'one JSON object a line, "prompt" and "completion", the completion in the stages '
            f"{', '.join(stage.name for stage in grammar.stages)}",
            "\n" + "\n".join(f"  - {fault}" for fault in faults) if faults else "no line at all",
            "Mend or remove these lines.",
        )
    return traces


def template_traces(
    sources: Mapping[str, Sequence[Example]],
    labels: Mapping[str, Sequence[str]],
    *,
    per_set: int | None,
    label_noise: float,
    seed: int,
    grammar: Grammar = GRAMMAR,
) -> list[Trace]:
    """Write a trace for `per_set` posts of each set, evenly spaced (all of them if None).

    Args:
        sources: labelled training posts by set.
        labels: set name -> its labels.
        per_set: traces of each set.
        label_noise: share of traces whose label is drawn at random from the set's labels.
        seed: seed of wordings and noise; a post's trace depends on (seed, set, row) alone.
        grammar: the stages and their wordings.

    Raises:
        UserError: a stage has no wording.
    """
    _check_wordings(grammar)
    traces = []
    for name, source in sources.items():
        for example in spread(source, per_set):
            rng = random.Random(f"{seed}/{name}/{example.row}")
            noisy = rng.random() < label_noise
            label = rng.choice(labels[name]) if noisy else example.label
            completion = template_completion(example.text, label, rng, grammar)
            traces.append(Trace(example.question, example.text, completion))
    return traces


def row_traces(
    sources: Mapping[str, Sequence[Example]],
    *,
    per_set: int | None,
    free_reasoning: Literal["refuse", "last_stage"],
    seed: int,
    grammar: Grammar = GRAMMAR,
) -> list[Trace]:
    """Make a trace of each post that came with reasoning; posts without any are left out.

    Args:
        sources: labelled training posts by set.
        per_set: traces of each set, evenly spaced; all of them if None.
        free_reasoning: whether reasoning without stages is refused, or becomes the last stage.
        seed: of the template words that stand in the other stages then.
        grammar: the wording of template words; the recipe makes sure that it has the five stages.

    Raises:
        UserError: no post came with reasoning, or free reasoning is refused.
    """
    traces = []
    for name, source in sources.items():
        reasoned = [example for example in source if example.reasoning is not None]
        free = [example for example in reasoned if not is_staged(example.reasoning or "")]
        if free and free_reasoning == "refuse":
            rows = ", ".join(str(example.row + 1) for example in free[:_SHOWN_ROWS])
            raise UserError(
                f"{len(free)} of {len(reasoned)} posts of {name!r} came with reasoning that "
                "is not in stages",
                f"the stages {', '.join(stage.name for stage in grammar.stages)} and an answer",
                f"none of their tags, in row {rows}{', ...' if len(free) > _SHOWN_ROWS else ''}",
                "Rewrite the reasoning, or set sft.free_reasoning=last_stage.",
            )
        traces += [_row_trace(example, seed, grammar) for example in spread(reasoned, per_set)]
    if not traces:
        raise UserError(
            "no training post came with reasoning",
            "a layout with responses, or columns.reasoning, in data.custom_sets",
            f"none in {', '.join(sources)}",
            "Name the column, or set sft.traces to null for template traces.",
        )
    return traces


def _row_trace(example: Example, seed: int, grammar: Grammar) -> Trace:
    """The trace of one post that has reasoning."""
    reasoning = example.reasoning or ""
    if is_staged(reasoning):
        completion = staged_completion(reasoning)
    else:
        rng = random.Random(f"{seed}/{example.set_name}/{example.row}")
        last = without_tags(reasoning)
        completion = template_completion(example.text, example.label, rng, grammar, last)
    return Trace(example.question, example.text, completion)


def template_completion(
    post: str,
    label: str,
    rng: random.Random,
    grammar: Grammar = GRAMMAR,
    last_stage: str | None = None,
) -> str:
    """One staged completion (after the prefill) that quotes `post` and decides for `label`.

    Args:
        post: whose words are quoted.
        label: the answer.
        rng: of the wording.
        grammar: the stages and their wordings.
        last_stage: what stands in the last stage, in place of template words.
    """
    quote = _quote(post, rng, grammar)
    contents = [rng.choice(stage.traces) for stage in grammar.stages]
    contents = [fill(one, quote=quote, label=label) for one in contents]
    return grammar.render(contents[:-1] + [last_stage or contents[-1]], label)


def _quote(post: str, rng: random.Random, grammar: Grammar) -> str:
    """A few words of `post`, or a few characters where no spaces part its words."""
    words = post.replace("<", " ").replace(">", " ").split()
    if not grammar.spaced:
        text = " ".join(words) or grammar.nothing
        start = rng.randrange(max(1, len(text) - _QUOTED_CHARACTERS + 1))
        return text[start : start + _QUOTED_CHARACTERS]
    words = [word for word in words if len(word) <= _WORD_LIMIT] or [grammar.nothing]
    start = rng.randrange(max(1, len(words) - _QUOTED_WORDS + 1))
    return " ".join(words[start : start + _QUOTED_WORDS])


def _check_wordings(grammar: Grammar) -> None:
    """Raise unless a template trace can say something in every stage."""
    missing = [stage.name for stage in grammar.stages if not stage.traces]
    if missing:
        raise UserError(
            "template traces have nothing to say in a stage",
            "wordings of every stage of the grammar",
            f"none of {', '.join(missing)}",
            "Write them into text.grammar or text.wording, or give traces of your own in "
            "sft.traces.",
        )


def _trace_of(line: str, grammar: Grammar) -> Trace | str:
    """The trace in a line, or what is wrong with it."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        return f"not JSON ({error})"
    if not isinstance(record, dict):
        return f"a {type(record).__name__}, not an object"
    for key in ("prompt", "completion"):
        if not isinstance(record.get(key), str) or not record[key].strip():
            return f"{key!r} is missing, empty or not a string"
    completion = record["completion"].removeprefix(grammar.prefill)
    parsed = grammar.parse(completion)
    if not parsed.well_formed:
        return f"not well formed: {parsed.reason}"
    return Trace("", record["prompt"], completion)
