"""Answers to any number of unlabelled posts, in bounded memory.

Posts are taken a window at a time and share batches with those of like length in their window. The
sequence of batches depends on the posts and the recipe alone, so that what was answered before a
kill is a beginning of it, and the rest comes out as it would have without the kill.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from mental_r1_jax import hosts
from mental_r1_jax.data.benchmarks import BenchmarkSpec
from mental_r1_jax.data.unlabelled import PostId, UnlabelledPost
from mental_r1_jax.evaluation.metrics import vote
from mental_r1_jax.prediction.label_scores import refuse_non_finite
from mental_r1_jax.prediction.predictor import Predictor, ask, length_batches
from mental_r1_jax.prediction.prompt_shape import PromptShape
from mental_r1_jax.text.answers import AnswerReader
from mental_r1_jax.text.prompts import RenderedPrompt, render_prompt
from mental_r1_jax.text.stages import GRAMMAR, Grammar
from mental_r1_jax.text.tokenizer import printable
from mental_r1_jax.types import Completions

# Batches of a window. Of more, lengths in a batch differ less; but their posts are held at once.
WINDOW_BATCHES = 32

EMPTY, NUL, BROKEN = "empty", "nul", "broken_unicode"
POST_CUT, ANSWER_CUT = "post_truncated", "answer_truncated"
# What may stand in the column `flags`.
FLAGS = (EMPTY, NUL, BROKEN, POST_CUT, ANSWER_CUT)

Record = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Asking:
    """What is asked about every post, and what is told of the answer.

    Attributes:
        spec: the set whose question and labels count; it has a question.
        min_confidence: answers that fewer of the votes (from 0 to 1) agree on count as abstained;
            None: none does.
        with_id: whether records have the post's id.
        include_text: whether records have the post.
        grammar: form of the answers, and wording of the prompts.
    """

    spec: BenchmarkSpec
    min_confidence: float | None = None
    with_id: bool = False
    include_text: bool = False
    grammar: Grammar = GRAMMAR


@dataclasses.dataclass(frozen=True)
class PostBatch:
    """Posts that are asked about together.

    Attributes:
        posts: the posts, each once.
        prompts: their prompts, as many as a batch has rows; none where the posts are empty.
        rows: of each prompt the position of its post in the file.
        shape: in which the prompts are run.
    """

    posts: tuple[UnlabelledPost, ...]
    prompts: tuple[RenderedPrompt, ...] = ()
    rows: tuple[int, ...] = ()
    shape: PromptShape | None = None


def answer_posts(
    predictor: Predictor,
    params: Any,
    posts: Iterable[UnlabelledPost],
    asking: Asking,
    done: int = 0,
) -> Iterator[list[Record]]:
    """Yield the records of each batch, one a post, without the first `done` batches.

    While the device answers a batch, the host reads the answers before and renders the next.

    Args:
        predictor: from `make_predictor`.
        params: weights on the predictor's mesh.
        posts: all posts, in the order of their rows.
        asking: the question.
        done: batches whose records are there.

    Raises:
        UserError: the model computes no numbers, or its prompts leave no room for a post.
    """
    under_way: tuple[PostBatch, Completions | None] | None = None
    for batch in post_batches(predictor, posts, asking, done):
        started = (batch, _start(predictor, params, batch))
        if under_way is not None:
            yield _records(predictor, *under_way, asking)
        under_way = started
    if under_way is not None:
        yield _records(predictor, *under_way, asking)


def post_batches(
    predictor: Predictor, posts: Iterable[UnlabelledPost], asking: Asking, done: int
) -> Iterator[PostBatch]:
    """Yield the batches of `posts` behind the first `done`; of those nothing is rendered.

    The empty posts of a window are a batch of their own, its first.
    """
    size = predictor.config.evaluate.batch_size
    for window in windows(posts, WINDOW_BATCHES * size):
        empty = [post for post in window if is_empty(post.text)]
        filled = [post for post in window if not is_empty(post.text)]
        count = bool(empty) + -(-len(filled) // size)
        if done < count:
            made = [PostBatch(tuple(empty))] if empty else []
            made += _filled_batches(predictor, filled, asking) if filled else []
            yield from made[done:]
        done = max(0, done - count)


def windows(posts: Iterable[UnlabelledPost], size: int) -> Iterator[list[UnlabelledPost]]:
    """Yield `posts`, `size` at a time."""
    rest = iter(posts)
    while window := list(itertools.islice(rest, size)):
        yield window


def is_empty(text: str) -> bool:
    """Whether there is nothing to ask about; NUL is no text."""
    return not text.replace("\0", "").strip()


def _filled_batches(
    predictor: Predictor, posts: Sequence[UnlabelledPost], asking: Asking
) -> list[PostBatch]:
    config, tokenizer = predictor.config, predictor.model.tokenizer
    question, limit = asking.spec.question or "", config.rollout.max_prompt_length
    prompts = [
        render_prompt(tokenizer, question, post.text, limit, asking.grammar) for post in posts
    ]
    # Whatever a small window has in common beyond the question would be one more compiled shape.
    others = [render_prompt(tokenizer, question, text, limit, asking.grammar) for text in "ab"]
    shape = PromptShape.of(prompts, others)
    return [
        PostBatch(
            posts=tuple(posts[place] for place in dict.fromkeys(batch)),
            prompts=tuple(prompts[place] for place in batch),
            rows=tuple(posts[place].row for place in batch),
            shape=shape,
        )
        for batch in length_batches(prompts, config.evaluate.batch_size)
    ]


def _start(predictor: Predictor, params: Any, batch: PostBatch) -> Completions | None:
    """Answers under way; None where there is nothing to answer."""
    if batch.shape is None:
        return None
    return ask(predictor, params, batch.prompts, batch.rows, batch.shape)


def _records(
    predictor: Predictor, batch: PostBatch, completions: Completions | None, asking: Asking
) -> list[Record]:
    """Wait for the answers to a batch, and read them."""
    if completions is None:
        return [_record(post, asking, flags=[EMPTY, *_text_flags(post)]) for post in batch.posts]
    wanted = (completions.completion_ids, completions.completion_mask, completions.finished)
    ids, mask, finished = map(hosts.fetch_rows, wanted)
    refuse_non_finite(hosts.fetch_rows(completions.decode_logprobs), mask)
    tokenizer = predictor.model.tokenizer
    spec = asking.spec
    reader = AnswerReader({spec.name: spec.labels}, predictor.config.rewards.answer_match)
    records = []
    for place, post in enumerate(batch.posts):
        texts = [
            tokenizer.decode(own[real]).text
            for own, real in zip(ids[place], mask[place], strict=True)
        ]
        parsed = [asking.grammar.parse(text) for text in texts]
        answers = [reader.read(spec.name, one.answer) for one in parsed]
        label = vote(answers)
        chosen = answers.index(label)
        flags = _text_flags(post)
        flags += [POST_CUT] if batch.prompts[place].truncated else []
        flags += [] if finished[place, chosen] else [ANSWER_CUT]
        stages = [
            None if span is None else printable(texts[chosen][slice(*span)]).strip()
            for span in parsed[chosen].stage_spans
        ]
        records.append(
            _record(
                post,
                asking,
                label=label,
                confidence=vote_share(answers),
                well_formed=parsed[chosen].well_formed,
                num_tokens=int(np.sum(mask[place, chosen])),
                answer=parsed[chosen].answer,
                stages=stages,
                flags=flags,
            )
        )
    return records


def columns_of(asking: Asking) -> list[str]:
    """The keys of every record, in their order."""
    return list(_record(UnlabelledPost(0, ""), asking, flags=[]))


def vote_share(answers: Sequence[str | None]) -> float | None:
    """Share of all votes that name the label of the vote; None for a single answer, or no label.

    Unreadable votes count as votes for something else.
    """
    label = vote(answers)
    return answers.count(label) / len(answers) if len(answers) > 1 and label is not None else None


def _record(
    post: UnlabelledPost,
    asking: Asking,
    *,
    flags: list[str],
    label: str | None = None,
    confidence: float | None = None,
    well_formed: bool = False,
    num_tokens: int = 0,
    answer: str | None = None,
    stages: Sequence[str | None] = (),
) -> Record:
    """What is written about a post; of one without an answer, nothing but its row and flags."""
    threshold, names = asking.min_confidence, [stage.name for stage in asking.grammar.stages]
    unsure = threshold is not None and (confidence is None or confidence < threshold)
    return {
        "row": post.row,
        **({"id": _writable(post.post_id)} if asking.with_id else {}),
        "label": label,
        "confidence": confidence,
        "abstained": label is None or unsure,
        "well_formed": well_formed,
        "flags": flags,
        "num_tokens": num_tokens,
        "answer": None if answer is None else printable(answer),
        **{f"stage_{name}": text for name, text in itertools.zip_longest(names, stages)},
        **({"text": printable(post.text)} if asking.include_text else {}),
    }


def _writable(post_id: PostId) -> PostId:
    """An id that UTF-8 can hold."""
    return printable(post_id) if isinstance(post_id, str) else post_id


def _text_flags(post: UnlabelledPost) -> list[str]:
    """What is odd about a text, whatever the answer."""
    flags = [NUL] if "\0" in post.text else []
    return flags + ([BROKEN] if printable(post.text) != post.text else [])
