"""Do the stages matter? Reasonings with one stage cut off or exchanged, and the answer forced.

Nothing is generated: p(label) is measured after each changed reasoning (see `label_scores`), and
compared with that after the whole one. All reasonings, the whole one too, are encoded from their
text, so that equal texts are equal tokens.

Source: early answering and corrupted reasoning of Lanham et al., 2023 (arXiv 2307.13702).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mental_r1_jax.evaluation.audit_numbers import effect, mean_estimate
from mental_r1_jax.evaluation.metrics import Prediction
from mental_r1_jax.text.forced_answer import cut_at_answer
from mental_r1_jax.text.stages import GRAMMAR, Grammar

Changed = tuple[int, str]  # position of a prediction, and a completion to put in place of its own
Ask = Callable[[Sequence[Changed]], Sequence[tuple[float, ...]]]

Spans = tuple[tuple[int, int] | None, ...]


def audit_stages(
    predictions: Sequence[Prediction],
    ask: Ask,
    *,
    samples: int,
    seed: int,
    grammar: Grammar = GRAMMAR,
) -> dict[str, Any]:
    """How far each stage moves the answer, by set, as JSON types.

    For each stage, over the completions that have it:
    1. `swap`: its content is that of the next post of the set whose content differs; compared with
       the whole reasoning.
    2. `cut`: the reasoning ends after it; compared with the reasoning that ends before it, so that
       a stage without effect has 0. `agreement` is the share of posts whose likeliest label is
       that after the whole reasoning already.

    Args:
        predictions: with their completions.
        ask: p(label) after each changed completion, its answer forced.
        samples: resamples behind the intervals.
        seed: seed of the resampling.
        grammar: has the stages and the tags.
    """
    texts = [cut_at_answer(p.completion, grammar)[0] for p in predictions]
    spans = [grammar.parse(text).stage_spans for text in texts]
    wanted: dict[tuple[str, int, int], str] = {}
    for name in dict.fromkeys(p.set_name for p in predictions):
        own = [i for i, p in enumerate(predictions) if p.set_name == name]
        wanted |= _changes(own, texts, spans, grammar)
    # Before a stage is after the one before it, so many of them are equal.
    changed = list(dict.fromkeys((i, text) for (_, _, i), text in wanted.items()))
    answers = dict(zip(changed, ask(changed), strict=True))
    found = {key: answers[key[2], text] for key, text in wanted.items()}
    sets = {}
    for name in dict.fromkeys(p.set_name for p in predictions):
        own = [i for i, p in enumerate(predictions) if p.set_name == name]
        sets[name] = _set_document(own, found, grammar, samples=samples, seed=seed)
    return {"sets": sets}


def _changes(
    own: Sequence[int], texts: Sequence[str], spans: Sequence[Spans], grammar: Grammar
) -> dict[tuple[str, int, int], str]:
    """The completions to ask about, by kind, stage and position of the prediction.

    Kinds: `whole` (stage 0), `before` and `after` a stage, and `swap`.
    """
    changed: dict[tuple[str, int, int], str] = {("whole", 0, i): texts[i] for i in own}
    for stage, called in enumerate(grammar.stages):
        having = [i for i in own if spans[i][stage] is not None]
        for place, i in enumerate(having):
            start, end = _span(spans[i], stage)
            opening, closing = (f"{sign}{called.name}>" for sign in ("<", "</"))
            before = texts[i][:start].removesuffix(opening).rstrip()
            changed["before", stage, i] = before
            changed["after", stage, i] = texts[i][: end + len(closing)]
            others = [*having[place + 1 :], *having[:place]]
            contents = (texts[j][slice(*_span(spans[j], stage))] for j in others)
            other = next((c for c in contents if c != texts[i][start:end]), None)
            if other is not None:
                changed["swap", stage, i] = texts[i][:start] + other + texts[i][end:]
    return changed


def _span(spans: Spans, stage: int) -> tuple[int, int]:
    """The span of a stage that is there."""
    span = spans[stage]
    assert span is not None
    return span


def _set_document(
    own: Sequence[int],
    found: Mapping[tuple[str, int, int], tuple[float, ...]],
    grammar: Grammar,
    *,
    samples: int,
    seed: int,
) -> dict[str, Any]:
    """Effects of every stage in one set."""

    def of(kind: str, stage: int, rows: Sequence[int]) -> Any:
        num_labels = len(found["whole", 0, own[0]])
        return np.array([found[kind, stage, i] for i in rows]).reshape(-1, num_labels)

    options = {"samples": samples, "seed": seed}
    stages = {}
    for place, stage in enumerate(grammar.stages):
        cut = [i for i in own if ("after", place, i) in found]
        swapped = [i for i in own if ("swap", place, i) in found]
        answers = {
            key: of("whole", 0, rows).argmax(axis=1)
            for key, rows in (("cut", cut), ("swap", swapped))
        }
        after = of("after", place, cut)
        stages[stage.name] = {
            "swap": effect(
                of("whole", 0, swapped), of("swap", place, swapped), answers["swap"], **options
            ),
            "cut": effect(of("before", place, cut), after, answers["cut"], **options)
            | {"agreement": mean_estimate(after.argmax(axis=1) == answers["cut"], **options)},
        }
    return {"n": len(own), "stages": stages}
