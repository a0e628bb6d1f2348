"""Posts with several labels: each topic is a question about each post, and none is a repeat."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from mental_r1_jax.config import CustomSet, DataConfig, ExperimentConfig
from mental_r1_jax.data.benchmarks import SPLITS, spec_for
from mental_r1_jax.data.checked_sets import check_set, content_hash
from mental_r1_jax.data.questions import in_words
from mental_r1_jax.data.records import CheckedSet
from mental_r1_jax.errors import UserError
from tests.data.folders import csv_text

TOPICS = {"sleep": "Does the writer sleep badly?", "work": "Is work a burden here?"}


def topics_of(tmp_path: Path, rows: Sequence[dict], **keys) -> CheckedSet:
    file = tmp_path / "posts.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    mine = CustomSet.model_validate({"files": str(file), "topics": TOPICS, **keys})
    return check_set(tmp_path, spec_for("Needs", {"Needs": mine}), "drop")


def diary(count: int = 40) -> list[dict]:
    """Posts that have each topic by turns, both, or none."""
    kinds: list[list[str]] = [["sleep"], ["work"], ["sleep", "work"], []]
    return [{"text": f"day {i}, tea", "label": kinds[i % 4]} for i in range(count)]


def test_each_topic_is_a_question_about_each_post(tmp_path: Path) -> None:
    rows = diary()
    found = topics_of(tmp_path, rows)
    assert not found.errors
    assert found.spec.labels == ("Yes", "No") and found.spec.positive_labels == ("Yes",)
    answers = {}
    for split in SPLITS:
        for x in found.examples[split]:
            (topic,) = [topic for topic, asks in TOPICS.items() if x.question.startswith(asks)]
            assert x.question.endswith("\n* Yes\n* No\nStatement: ")
            answers[x.text, topic] = x.label, split
    # "drop" took none of them: the second topic is no repeat of the first.
    assert {key: label for key, (label, _) in answers.items()} == {
        (row["text"], topic): "Yes" if topic in row["label"] else "No"
        for row in rows
        for topic in TOPICS
    }
    for row in rows:  # both questions about a post lie on one side
        assert len({answers[row["text"], topic][1] for topic in TOPICS}) == 1
    assert not [w for w in found.warnings if w.kind.startswith("repeated")]


def test_a_post_that_is_there_twice_is_dropped_with_both_questions(tmp_path: Path) -> None:
    rows = diary()
    found = topics_of(tmp_path, [*rows, {"text": "DAY 3, tea", "label": ["work"]}])
    assert sum(len(found.examples[split]) for split in SPLITS) == 80
    repeats = [w for w in found.warnings if w.kind == "repeated in split"]
    assert [w.line for w in repeats] == [41, 41]
    assert ["labelled differently" in w.expected for w in repeats] == [False, True]


@pytest.mark.parametrize(
    ("cell", "topics"),
    [
        ("sleep", {"sleep"}),
        ("sleep; work", {"sleep", "work"}),
        ("", set()),
        (" work ;", {"work"}),
        ("3", {"work"}),
        (["3", "sleep"], {"sleep", "work"}),
        ([], set()),
    ],
)
def test_labels_of_a_cell(tmp_path: Path, cell, topics: set[str]) -> None:
    rows = [*diary(), {"text": "the one", "label": cell}]
    found = topics_of(tmp_path, rows, label_map={3: "work"})
    assert not found.errors
    mine = [x for split in SPLITS for x in found.examples[split] if x.text == "the one"]
    said = {topic for x in mine for topic in TOPICS if x.question.startswith(TOPICS[topic])}
    yes = {t for x in mine for t in TOPICS if x.label == "Yes" and x.question.startswith(TOPICS[t])}
    assert said == set(TOPICS) and yes == topics


def test_a_label_that_is_no_topic_is_one_error(tmp_path: Path) -> None:
    rows = [*diary(), {"text": "tea", "label": ["sleep", "Work"]}, {"text": " ", "label": []}]
    errors = topics_of(tmp_path, rows).errors
    assert [(e.line, e.column, e.kind) for e in errors] == [
        (41, "label", "unknown label"),
        (42, "text", "empty text"),
    ]
    assert "is 'work' meant?" in str(errors[0])


def test_tables_and_answers_may_be_called_otherwise(tmp_path: Path) -> None:
    file = tmp_path / "posts.csv"
    rows = [(f"day {i}", ("sleep|work", "work", "")[i % 3]) for i in range(30)]
    file.write_text(csv_text(rows, header=("text", "label")), "utf-8")
    mine = CustomSet(
        labels=("absent", "present"),
        positive_labels=("present",),
        files=file,
        topics=TOPICS,
        topic_separator="|",
    )
    found = check_set(tmp_path, spec_for("Needs", {"Needs": mine}))
    counts = Counter(x.label for split in SPLITS for x in found.examples[split])
    assert not found.errors and counts == {"present": 30, "absent": 30}
    other = mine.model_copy(update={"positive_labels": ("absent",)})
    hashes = [content_hash(tmp_path, spec_for("N", {"N": one})) for one in (mine, other)]
    assert hashes[0] != hashes[1]


def test_what_stands_around_a_topic_is_in_the_words_of_the_recipe(tmp_path: Path) -> None:
    asks = {"sleep": "¿Duerme mal?", "work": "¿Sufre por el trabajo?"}
    found = topics_of(tmp_path, diary(), topics=asks, labels=["Sí", "No"], positive_labels=["Sí"])

    def recipe(**text) -> ExperimentConfig:
        data = DataConfig(sets=("Needs",), custom_sets={"Needs": found.spec.source})
        return ExperimentConfig(model={"path": "x"}, data=data, run={"output_dir": "x"}, text=text)

    posts = found.examples["train"]
    assert in_words(recipe(), found.spec, posts) is posts
    spanish = in_words(recipe(language="spanish"), found.spec, posts)
    assert len(spanish) == len(posts)
    for before, after in zip(posts, spanish, strict=True):
        assert (after.text, after.label) == (before.text, before.label)
        assert after.question.split("\n")[0] == before.question.split("\n")[0]
        assert "Reply with" in before.question and "Reply with" not in after.question
    with pytest.raises(UserError, match="Needs.topics"):
        in_words(recipe(wording={"questions": {"Needs": "¿Y?"}}), found.spec, posts)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"split": {"validation": 0.5, "test": 0.5}}, "leave posts to train on"),
        ({"topics": {"sleep": " "}}, "every topic needs a question"),
        ({"topics": TOPICS, "labels": ["a", "b"]}, "name the answer that says yes"),
        ({"topics": TOPICS, "labels": ["Yes", "No", "Maybe"]}, "two answers"),
        ({"topics": TOPICS, "question": "Is it?"}, "ask their own questions"),
        ({"topics": TOPICS, "label_map": {"x": "y"}}, "not among topics"),
        ({"topic_separator": ","}, "there are none"),
        (
            {"files": {s: "x" for s in SPLITS}, "split": {"seed": 1}},
            "these files are split already",
        ),
    ],
)
def test_keys_that_contradict_each_other_are_refused(keys: dict, message: str) -> None:
    given = {"files": "posts.csv", "labels": ["Yes", "No"], **keys}
    with pytest.raises(ValueError, match=message):
        CustomSet.model_validate(given)
