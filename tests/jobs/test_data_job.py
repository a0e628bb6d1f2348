"""`mental-r1 data`: everything reported, nothing built on error, the right numbers in the table."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import yaml

from mental_r1_jax import cli
from mental_r1_jax.config import CustomSet, ExperimentConfig
from mental_r1_jax.data.guessing import guess_lines
from mental_r1_jax.data.loading import load_examples
from mental_r1_jax.data.records import Example
from mental_r1_jax.errors import UserError
from mental_r1_jax.jobs.data import run
from mental_r1_jax.text.prompts import system_instruction
from mental_r1_jax.text.stages import GRAMMAR
from mental_r1_jax.text.token_counts import token_lengths
from mental_r1_jax.text.tokenizer import load_tokenizer
from tests.data.byte_tokenizer import save_byte_tokenizer
from tests.data.folders import MOOD, QUESTION, csv_text, made_up_rows, write_set

DEGREES = [
    ("Tea, and more tea", "Ideation"),
    ("No tea", "Attempt"),
    ("Milk", "Ideation"),
    ("Water today", "Attempt"),
    ("Cold water", "Ideation"),
    ("Warm milk", "Ideation"),
]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer without merges: one token for every byte, so that lengths can be counted."""
    folder = tmp_path_factory.mktemp("model")
    save_byte_tokenizer(folder)
    return folder


def recipe(tmp_path: Path, model: str, **rollout) -> ExperimentConfig:
    """A recipe over the made-up set Mood."""
    return ExperimentConfig(
        model={"path": model},
        data={
            "root": tmp_path / "csv",
            "sets": ("Mood",),
            "custom_sets": {"Mood": CustomSet(labels=MOOD.labels)},
            "tfds_dir": tmp_path / "tfds",
        },
        run={"output_dir": tmp_path / "run"},
        rollout=rollout,
    )


def test_table_of_a_valid_set(
    tmp_path: Path, model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_set(tmp_path / "csv", count=7)
    config = recipe(tmp_path, str(model_folder), max_prompt_length=4096)
    assert run(config) == 0
    output = capsys.readouterr().out
    (row,) = [line for line in output.splitlines() if "train" in line and "Mood" in line]
    assert "Calm 3, Upset 2, [3-4] 2" in row
    lengths = sorted(len(text.encode()) for text, _, _ in made_up_rows("train", 7))
    cells = [cell.strip() for cell in row.strip("│┃ ").split("│")]
    assert cells[-5:] == [str(n) for n in (lengths[3], lengths[6], lengths[6], lengths[6], 0)]
    assert len(load_examples(config, "train")["Mood"]) == 7


def test_truncated_posts_are_those_that_do_not_fit(model_folder: Path) -> None:
    question = "Which mood?\nStatement: "
    frame = f"{system_instruction()}\n{question}\n{GRAMMAR.prefill}"
    posts = [
        Example("Mood", "train", i, "x" * length, "Calm", question)
        for i, length in enumerate((10, 20, 21, 30))
    ]
    pairs = [(post.question, post.text) for post in posts]
    measured = token_lengths(load_tokenizer(model_folder), pairs, len(frame.encode()) + 20)
    assert measured.truncated == 2
    assert measured.percentiles == (21, 30, 30, 30)


def test_all_problems_are_printed_and_nothing_is_built(
    tmp_path: Path, model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = made_up_rows("train", 6)
    bad = csv_text([*rows, ("tea", "[bold]", "Q"), ("", "Calm", "Q"), rows[0], ("x", "Calm", "Q")])
    folder = write_set(tmp_path / "csv", {"train": bad, "test": b"caf\xe9"})
    with pytest.raises(UserError) as caught:
        run(recipe(tmp_path, str(model_folder)))
    output = capsys.readouterr().out
    lines = [line for line in output.splitlines() if line.startswith(("error: ", "warning: "))]
    file = folder / "train_clean.csv"
    # After the header six rows of five lines, one of them with a text of two: the next is at 33.
    assert f"error: {file}:33 [label] unknown label: got '[bold]'; expected one of" in output
    assert f"error: {file}:34 [text] empty text" in output
    assert f"error: {folder / 'test_clean.csv'}:1 not UTF-8" in output
    assert f"warning: {file}:35 [text] repeated in split" in output
    assert f"warning: {file}:40 [text] absurd length" in output
    assert len(lines) == 2 + 2 + 1 + 3  # warnings, rows, the byte, and the columns test lacks
    assert "1 unknown label" in str(caught.value)
    assert not (tmp_path / "tfds").exists()


def test_without_a_tokenizer_the_table_has_no_token_columns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_set(tmp_path / "csv")
    assert run(recipe(tmp_path, "no/such-model")) == 0
    output = capsys.readouterr().out
    assert "No token counts" in output
    assert "no/such-model" in output
    assert "p50" not in output
    assert "Calm 2" in output


def test_run_folder_lends_its_tokenizer(
    tmp_path: Path, model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_set(tmp_path / "csv")
    (tmp_path / "old_run").mkdir()
    (tmp_path / "old_run" / "base_model").symlink_to(model_folder)
    assert run(recipe(tmp_path, str(tmp_path / "old_run"), max_prompt_length=4096)) == 0
    assert "p50" in capsys.readouterr().out


def test_guess_prints_lines_that_read_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The columns of RSD-15K, with made-up posts; the lines make a recipe of it."""
    file = tmp_path / "RSD 15K.csv"
    rows = [(f"user{i % 3}", f"{text}", label, "2020") for i, (text, label) in enumerate(DEGREES)]
    file.write_text(csv_text(rows, ("users", "text", "sentiment", "time")), encoding="utf-8")
    assert cli.main(["data", str(file), "--guess"]) == 0
    output = capsys.readouterr().out
    lines, _, said = output.partition("# ")
    assert said.startswith("6 posts of ")
    described = yaml.safe_load(lines)["data"]["custom_sets"]["RSD_15K"]
    assert described.pop("question").endswith("?")
    assert described == {
        "files": str(file),
        "labels": ["Ideation", "Attempt"],
        "columns": {"label": "sentiment", "group": "users"},
    }
    CustomSet.model_validate(described)


def test_guess_finds_questions_and_reasoning_by_their_names(tmp_path: Path) -> None:
    rows = [
        {
            "question": "Calm?",
            "post": f"tea {i}",
            "label": "Yes" if i % 2 else "No",
            "Rationale": "x",
        }
        for i in range(4)
    ]
    file = tmp_path / "posts.json"
    file.write_text(json.dumps(rows), encoding="utf-8")
    guess = guess_lines(file)
    (described,) = yaml.safe_load(guess.lines)["data"]["custom_sets"].values()
    assert described["columns"] == {
        "text": "post",
        "question": "question",
        "reasoning": "Rationale",
    }
    assert "question" not in described and (guess.rows, guess.problems) == (4, ())


def test_guess_knows_the_names_that_a_parquet_file_keeps_for_numbers(tmp_path: Path) -> None:
    """As the library `datasets` writes its ClassLabel."""
    features = {
        "info": {"features": {"label": {"names": ["calm", "upset"], "_type": "ClassLabel"}}}
    }
    table = pyarrow.table({"text": ["tea", "milk", "water"], "label": [1, 0, 1]})
    named = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    for content, labels in ((named, ["calm", "upset"]), (table, ["1", "0"])):
        file = tmp_path / "posts.parquet"
        pyarrow.parquet.write_table(content, file)
        guess = guess_lines(file)
        (described,) = yaml.safe_load(guess.lines)["data"]["custom_sets"].values()
        assert described["labels"] == labels and guess.problems == ()
        assert described.get("label_map", {}) == (
            {0: "calm", 1: "upset"} if content is named else {}
        )
    torn = table.replace_schema_metadata({"huggingface": "{"})
    pyarrow.parquet.write_table(torn, file)
    assert guess_lines(file).rows == 3


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "no row that can be read"),
        ("text,label\n", "no row that can be read"),
        ('{"text": "tea"', "Expecting"),
        ("text,label\ntea,Yes\nmilk,Yes\n", "column of the labels"),
        (csv_text([(f"tea {i}", f"post {i} of my own") for i in range(30)], ("text", "label")),
         "column of the labels"),
        ("text,label\ntea,Yes\nmilk,No\n,No\n", "1 problems in"),
    ],
)  # fmt: skip
def test_guess_that_fails_is_one_error_without_a_post(
    tmp_path: Path, content: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "posts"
    file.write_text(content, encoding="utf-8")
    assert cli.main(["data", str(file), "--guess"]) == 2
    shown = capsys.readouterr()
    assert words in shown.err and "of my own" not in shown.out + shown.err


def test_guess_takes_a_file_that_is_there_and_no_keys(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["data", str(tmp_path / "none"), "--guess"]) == 2
    assert "the file is not there" in capsys.readouterr().err
    assert cli.main(["data", str(tmp_path), "a.b=1", "--guess"]) == 2
    assert "leave them out" in capsys.readouterr().err


def test_warnings_of_named_files_count_for_their_split(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {}
    for split, posts in (
        ("train", ["tea", "tea"]),
        ("validation", ["milk", "Milk "]),
        ("test", ["water"]),
    ):
        files[split] = tmp_path / f"{split}.csv"
        rows = [(post, MOOD.labels[i]) for i, post in enumerate([*posts, f"{split} ends"])]
        files[split].write_text(csv_text(rows, ("text", "label")), encoding="utf-8")
    described = CustomSet(labels=MOOD.labels, question="Mood?", files=files)
    config = recipe(tmp_path, "no/model")
    data = config.data.model_copy(update={"root": None, "custom_sets": {"Mood": described}})
    assert run(config.model_copy(update={"data": data})) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if "Mood" in line and "│" in line]
    assert [[cell.strip() for cell in row.strip("│┃ ").split("│")][-1] for row in rows] == [
        "1",
        "1",
        "0",
    ]


def test_one_file_is_split_and_its_warnings_stand_in_the_first_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "posts.csv"
    rows = [(f"day {i}", MOOD.labels[i % 3]) for i in range(30)]
    file.write_text(csv_text([*rows, rows[0]], ("text", "label")), encoding="utf-8")
    described = CustomSet(labels=MOOD.labels, question="Mood?", files=file)
    config = recipe(tmp_path, "no/model")
    data = config.data.model_copy(
        update={"root": None, "custom_sets": {"Mood": described}, "on_duplicate": "drop"}
    )
    assert run(config.model_copy(update={"data": data})) == 0
    lines = [
        line for line in capsys.readouterr().out.splitlines() if "Mood" in line and "│" in line
    ]
    cells = [[cell.strip() for cell in line.strip("│┃ ").split("│")] for line in lines]
    assert [(one[1], one[2], one[-1]) for one in cells] == [
        ("train", "24", "1"),
        ("validation", "3", "0"),
        ("test", "3", "0"),
    ]


def test_a_question_without_room_for_a_post_is_said_before_anything_is_built(
    tmp_path: Path, model_folder: Path
) -> None:
    write_set(tmp_path / "csv")
    frame = f"{system_instruction()}\n{QUESTION}\n{GRAMMAR.prefill}"
    for limit in (1, len(frame.encode())):
        with pytest.raises(UserError, match="no room for a post of the set 'Mood'") as caught:
            run(recipe(tmp_path, str(model_folder), max_prompt_length=limit))
        assert str(len(frame.encode())) in str(caught.value)
    assert not (tmp_path / "tfds").exists()
    assert run(recipe(tmp_path, str(model_folder), max_prompt_length=limit + 1)) == 0
