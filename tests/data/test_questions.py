"""Whose question a post is asked: the files', the user's, or ours in the recipe's language."""

from __future__ import annotations

import pytest

from mental_r1_jax.config import ExperimentConfig
from mental_r1_jax.data.benchmarks import BENCHMARKS
from mental_r1_jax.data.loading import set_spec, worded_spec
from mental_r1_jax.data.questions import in_words
from mental_r1_jax.data.records import Example
from mental_r1_jax.recipe import parse_config
from mental_r1_jax.text.wording import built_in

MINIMAL = """
model: {path: somewhere}
data:
  root: nowhere
  sets: [FIG, Mood, Whole, Bare]
  custom_sets:
    Mood: {labels: [好, 不好], question: 作者的心情如何？}
    Whole: {labels: [A, B], question: "A or B?\\nStatement: "}
    Bare: {labels: [A, B]}
run: {output_dir: out}
"""
CHINESE = "text.language=chinese"


def recipe(*overrides: str) -> ExperimentConfig:
    return parse_config(MINIMAL, overrides, source="test")


def asked(config: ExperimentConfig, name: str, in_file: str | None) -> str:
    """What a post of a set is asked, whose file has this question or none."""
    spec = set_spec(config.data, name)
    question = spec.question if in_file is None else in_file
    post = Example(name, "train", 0, "雨下了一整天", spec.labels[0], question or "")
    (worded,) = in_words(config, spec, [post])
    assert (worded.text, worded.label, worded.row) == (post.text, post.label, post.row)
    return worded.question


def test_english_is_what_the_sets_say():
    config = recipe()
    for name in config.data.sets:
        assert worded_spec(config, name) == set_spec(config.data, name)
    posts = [Example("FIG", "train", 0, "rain", "No", BENCHMARKS["FIG"].question)]
    assert in_words(config, set_spec(config.data, "FIG"), posts) is posts


def test_a_question_of_ours_is_in_the_language_with_the_labels_as_they_are():
    question = built_in("chinese").questions["FIG"]
    expected = f"{question}\n请只用下列标签之一作答，写法须与此处完全一致：\n* Yes\n* No\n文本："
    assert asked(recipe(CHINESE), "FIG", None) == expected
    assert worded_spec(recipe(CHINESE), "FIG").question == expected


def test_a_question_of_the_user_keeps_its_words_and_gets_the_language_s_frame():
    expected = (
        "作者的心情如何？\n请只用下列标签之一作答，写法须与此处完全一致：\n* 好\n* 不好\n文本："
    )
    assert asked(recipe(CHINESE), "Mood", None) == expected
    assert asked(recipe(CHINESE), "Whole", None) == "A or B?\nStatement: "
    ours = recipe(CHINESE, "data.custom_sets.Whole.question='甲还是乙？文本：'")
    assert asked(ours, "Whole", None) == "甲还是乙？文本："
    assert worded_spec(recipe(CHINESE), "Bare").question is None


@pytest.mark.parametrize("name", ["FIG", "Mood", "Bare"])
def test_a_question_of_the_files_stays_unless_the_own_wording_has_one(name: str):
    theirs = "他们自己的问题？\n文本："
    assert asked(recipe(CHINESE), name, theirs) == theirs
    own = f"text.wording={{questions: {{{name}: 我的问题？}}}}"
    assert asked(recipe(CHINESE, own), name, theirs).startswith("我的问题？\n请只用")
    assert asked(recipe(own), name, theirs).endswith("\nStatement: ")


def test_slices_and_single_posts_are_worded_alike():
    config, spec = recipe(CHINESE), BENCHMARKS["FIG"]
    posts = [Example("FIG", "train", i, f"雨 {i}", "No", spec.question) for i in range(4)]
    worded = in_words(config, spec, posts)
    assert len(worded) == 4
    assert list(worded[1:3]) == [worded[1], worded[2]] == list(worded)[1:3]
    assert worded[-1].row == 3 and worded[-1].question.endswith("文本：")
