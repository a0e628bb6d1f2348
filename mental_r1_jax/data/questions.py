"""The question of a set in the words of the recipe.

What is ours is worded: our question of a set that we know, and what we put around a question. What
stands in the files of a set (the column `mental_prompt`) stays as it is, unless the recipe's own
wording has a question for the set.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from mental_r1_jax.config import ExperimentConfig
from mental_r1_jax.data.benchmarks import BenchmarkSpec, asked, question_text
from mental_r1_jax.data.changed_posts import ChangedPosts
from mental_r1_jax.data.records import Example
from mental_r1_jax.errors import UserError
from mental_r1_jax.text.wording import (
    QuestionWords,
    built_in_questions,
    own_questions,
    question_words,
)


def worded_question(config: ExperimentConfig, spec: BenchmarkSpec) -> str | None:
    """Return the question of a set for posts whose files have none; None where we have none.

    Of these the first that there is: `text.wording`, `data.custom_sets`, our own in the recipe's
    language, our own in English.
    """
    words, name = question_words(config.text), spec.name
    if name in own_questions(config.text):
        return _whole(own_questions(config.text)[name], spec, words)
    if name in config.data.custom_sets:
        question = config.data.custom_sets[name].question
        return None if question is None else _whole(question, spec, words)
    if name in built_in_questions(config.text):
        return _whole(built_in_questions(config.text)[name], spec, words)
    return spec.question


def in_words(
    config: ExperimentConfig, spec: BenchmarkSpec, posts: Sequence[Example]
) -> Sequence[Example]:
    """Return the posts of a set with their questions in the words of the recipe.

    Raises:
        UserError: the recipe's own wording has one question for a set that asks one for each topic.
    """
    if spec.source is not None and spec.source.topics:
        return _topics_in_words(config, spec, posts)
    question = worded_question(config, spec)
    everywhere = spec.name in own_questions(config.text)
    if question is None or (question == spec.question and not everywhere):
        return posts
    return _reworded(posts, {None if everywhere else spec.question: question})


def _topics_in_words(
    config: ExperimentConfig, spec: BenchmarkSpec, posts: Sequence[Example]
) -> Sequence[Example]:
    """The posts of a set with topics; only what we put around a topic's question is worded."""
    assert spec.source is not None  # the caller asked
    if spec.name in own_questions(config.text):
        raise UserError(
            f"text.wording has one question for the set {spec.name!r}, which has topics",
            "a question for each topic, in the recipe's language",
            "one for all",
            f"Write the questions into data.custom_sets.{spec.name}.topics.",
        )
    words, labels = question_words(config.text), spec.labels
    changes: dict[str | None, str] = {
        asked(asks, labels): _whole(asks, spec, words) for asks in spec.source.topics.values()
    }
    if all(before == after for before, after in changes.items()):
        return posts
    return _reworded(posts, changes)


def _reworded(posts: Sequence[Example], changes: Mapping[str | None, str]) -> Sequence[Example]:
    """Posts that are asked other questions.

    Args:
        posts: the posts.
        changes: question -> what takes its place, others stay; that of None replaces all.
    """

    def change(post: Example) -> Example:
        after = changes.get(post.question, changes.get(None))
        return post if after is None else dataclasses.replace(post, question=after)

    return ChangedPosts(posts, change)


def _whole(question: str, spec: BenchmarkSpec, words: QuestionWords) -> str:
    """A question with its labels and the beginning of the post's line, which it may have."""
    ends = (words.statement.strip(), QuestionWords().statement.strip())
    if question.rstrip().endswith(ends):
        return question
    return question_text(question.strip(), spec.labels, words)
