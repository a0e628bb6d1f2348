"""Traces for a supervised cold start: read from JSONL, or written from templates.

Small models do not follow the five-stage grammar by prompt alone, and reinforcement learning can't
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

from mental_r1_jax.data.loading import spread
from mental_r1_jax.data.records import Example
from mental_r1_jax.errors import UserError
from mental_r1_jax.text.stages import GRAMMAR

_QUOTED_WORDS = 3
# Longer "words" are addresses, rows of signs and the like; they would burst the completion.
_WORD_LIMIT = 15

# For each stage two wordings; the last stage names the label, the first quotes the post. Few words
# and few wordings on purpose: what a trace leaves open is noise for the label that CRPO learns.
_WORDINGS: tuple[tuple[str, ...], ...] = (
    ("The writer says: {quote}.", "It is about this: {quote}."),
    ("This matters to the writer.", "It bears on daily life."),
    ("Some support may be there.", "The means to cope are unclear."),
    ("Strong feelings are likely.", "The writer may look for help."),
    ("This points to {label}.", "Taken together: {label}."),
)


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


def read_traces(path: Path) -> list[Trace]:
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
        trace = _trace_of(line)
        if isinstance(trace, Trace):
            traces.append(trace)
        else:
            faults.append(f"line {number}: {trace}")
    if faults or not traces:
        raise UserError(
            f"{path} cannot be used",
            'one JSON object a line, "prompt" and "completion", the completion in five stages',
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
) -> list[Trace]:
    """Write a trace for `per_set` posts of each set, evenly spaced (all of them if None).

    Args:
        sources: labelled training posts by set.
        labels: set name -> its labels.
        per_set: traces of each set.
        label_noise: share of traces whose label is drawn at random from the set's labels.
        seed: seed of wordings and noise; a post's trace depends on (seed, set, row) alone.
    """
    traces = []
    for name, source in sources.items():
        for example in spread(source, per_set):
            rng = random.Random(f"{seed}/{name}/{example.row}")
            noisy = rng.random() < label_noise
            label = rng.choice(labels[name]) if noisy else example.label
            completion = template_completion(example.text, label, rng)
            traces.append(Trace(example.question, example.text, completion))
    return traces


def template_completion(post: str, label: str, rng: random.Random) -> str:
    """One staged completion (after the prefill) that quotes `post` and decides for `label`."""
    words = post.replace("<", " ").replace(">", " ").split()
    words = [word for word in words if len(word) <= _WORD_LIMIT] or ["nothing"]
    start = rng.randrange(max(1, len(words) - _QUOTED_WORDS + 1))
    quote = " ".join(words[start : start + _QUOTED_WORDS])
    contents = [rng.choice(wordings) for wordings in _WORDINGS]
    return GRAMMAR.render([content.format(quote=quote, label=label) for content in contents], label)


def _trace_of(line: str) -> Trace | str:
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
    completion = record["completion"].removeprefix(GRAMMAR.prefill)
    parsed = GRAMMAR.parse(completion)
    if not parsed.well_formed:
        return f"not well formed: {parsed.reason}"
    return Trace("", record["prompt"], completion)
