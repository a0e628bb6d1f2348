"""Every format of docs/data.md: read as the page shows, refused as it says, made prompts of."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml

from mental_r1_jax.config import CustomSet, ExperimentConfig
from mental_r1_jax.data.benchmarks import SPLITS, spec_for
from mental_r1_jax.data.checked_sets import check_set, content_hash
from mental_r1_jax.data.guessing import guess_lines
from mental_r1_jax.data.loading import load_examples
from mental_r1_jax.data.reading import read_file
from mental_r1_jax.data.rows import CheckedRows, check_rows
from mental_r1_jax.data.traces import row_traces
from mental_r1_jax.errors import UserError
from mental_r1_jax.text.prompts import render_prompt
from mental_r1_jax.text.stages import GRAMMAR
from tests.data.byte_tokenizer import save_byte_tokenizer
from tests.data.documented import Format, documented_formats

FORMATS = documented_formats()
by_name = pytest.mark.parametrize("one", FORMATS, ids=lambda one: one.name.replace(" ", "_"))


def read(one: Format, payload: bytes) -> CheckedRows:
    """The rows of one file, with the page's lines."""
    spec = spec_for("Stress", {"Stress": CustomSet.model_validate(one.keys)})
    found = read_file(Path(one.file), payload, spec)
    return check_rows(found.events, spec, "train", found.names)


def test_the_page_shows_every_format_and_layout() -> None:
    assert {Path(one.file).suffix for one in FORMATS} == {
        ".csv",
        ".tsv",
        ".json",
        ".jsonl",
        ".parquet",
    }
    assert len(FORMATS) == 11


@by_name
def test_the_sound_rows_of_the_page_are_read(one: Format) -> None:
    checked = read(one, one.sound)
    assert checked.errors == checked.warnings == ()
    examples = [found.example for found in checked.found]
    assert [example.label for example in examples] == ["Yes", "No"]
    # Posts and questions are whole: nothing of the row's frame is left in them.
    assert [example.text.replace("\n\n", " ") for example in examples] in (
        ["Tea, and then more tea", "No tea today"],
        ["Tea I drink it all day", "Milk None for me"],
    )
    asked = {example.question.split("\n")[0] for example in examples}
    assert asked in ({"Is the writer under stress?"}, {"Is the poster stressed?"})
    assert all(example.question.endswith("\nStatement: ") for example in examples)


@by_name
def test_the_wrong_row_of_the_page_is_refused_in_its_words(one: Format) -> None:
    checked = read(one, one.wrong)
    assert [str(problem) for problem in checked.errors] == [one.message]


@by_name
def test_the_guessed_lines_read_the_same_posts(
    one: Format, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Labels that are numbers are read as such: a name for them is the user's to give."""
    monkeypatch.chdir(tmp_path)
    # A column of another name is taken for that of the labels where its values occur again.
    more = b"3,More tea,1,ann\n4,Still no tea,0,bob\n" if "stressed" in str(one.keys) else b""
    payload = one.sound + more
    Path(one.file).write_bytes(payload)
    guess = guess_lines(Path(one.file))
    assert guess.problems == ()
    keys = yaml.safe_load(guess.lines)["data"]["custom_sets"]["posts"]
    spec = spec_for("posts", {"posts": CustomSet.model_validate(keys)})
    found = read_file(Path(one.file), payload, spec)
    guessed = check_rows(found.events, spec, "train", found.names).found
    documented = read(one, payload).found
    assert guess.rows == len(documented) >= 2
    for mine, theirs in zip(guessed, documented, strict=True):
        assert mine.example.text == theirs.example.text
        assert mine.example.reasoning == theirs.example.reasoning
        named = {"1": "Yes", "0": "No", "true": "Yes", "false": "No"}
        assert named.get(mine.example.label, mine.example.label) == theirs.example.label


def test_all_formats_go_from_files_to_prompts_and_traces(tmp_path: Path) -> None:
    tokenizer = save_byte_tokenizer(tmp_path / "model")
    sets = {}
    for number, one in enumerate(FORMATS):
        files = {}
        for split in SPLITS:
            file = tmp_path / f"{number}_{split}{Path(one.file).suffix}"
            file.write_bytes(one.sound)
            files[split] = file
        # The same file is all splits, so whoever wrote its posts is in all of them.
        keys = {**one.keys, "files": files, "whole_groups": False}
        sets[f"Set{number}"] = CustomSet.model_validate(keys)
    config = ExperimentConfig(
        model={"path": "none"},
        data={"sets": tuple(sets), "custom_sets": sets, "tfds_dir": tmp_path / "tfds"},
        run={"output_dir": tmp_path / "run"},
    )
    posts = load_examples(config, "train")
    for name, of_set in posts.items():
        first, second = of_set
        assert (first.label, second.label) == ("Yes", "No"), name
        prompt = render_prompt(tokenizer, first.question, first.text, 4096)
        assert first.question + first.text in prompt.text and not prompt.truncated
    with pytest.raises(UserError, match=r"not in stages.*free_reasoning=last_stage"):
        row_traces(posts, per_set=None, free_reasoning="refuse", seed=0)
    traces = row_traces(posts, per_set=None, free_reasoning="last_stage", seed=0)
    reasons = sum(post.reasoning is not None for of_set in posts.values() for post in of_set)
    assert len(traces) == reasons == 7
    for trace in traces:
        parsed = GRAMMAR.parse(trace.completion)
        assert parsed.well_formed and parsed.answer in ("Yes", "No")
    start, end = parsed.stage_spans[-1]
    assert trace.completion[start:end] == "No end."


def test_the_hash_follows_every_file_and_every_key_of_reading(tmp_path: Path) -> None:
    one = FORMATS[0]
    files = {split: str(tmp_path / f"{split}.csv") for split in SPLITS}
    for file in files.values():
        Path(file).write_bytes(one.sound)
    keys = {**one.keys, "files": files}

    def hashed(**changes: object) -> str:
        described = CustomSet.model_validate(keys | changes)
        spec = spec_for("Stress", {"Stress": described})
        made = content_hash(tmp_path, spec)
        assert check_set(tmp_path, spec).content_hash == made
        return made

    seen = {hashed()}
    for changes in (
        {"format": "csv"},
        {"layout": "columns"},
        {"columns": {**one.keys["columns"], "group": None}},
        {"label_map": {"0": "No", "1": "No"}},
        {"columns": {"label": "stressed"}, "text_columns": ["id", "body"]},
        {"question": "Another?"},
        {"labels": ["No", "Yes"]},
    ):
        seen.add(hashed(**changes))
    for file in files.values():
        Path(file).write_bytes(one.sound + b"3,More tea,1,ann\n")
        seen.add(hashed())
    assert len(seen) == 8 + 3
    # What is in no record does not build a set anew.
    assert hashed(asks_for="stress", positive_labels=["Yes"]) in seen


def test_paths_count_from_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = FORMATS[0]
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / one.file).write_bytes(one.sound)
    monkeypatch.chdir(tmp_path)
    files = dict.fromkeys(SPLITS, os.path.join("files", one.file))
    described = CustomSet.model_validate({**one.keys, "files": files, "whole_groups": False})
    spec = spec_for("Stress", {"Stress": described})
    assert not check_set(Path("nowhere"), spec).errors
    monkeypatch.chdir(tmp_path / "files")
    errors = check_set(Path("nowhere"), spec).errors
    assert {(p.file, p.kind) for p in errors} == {("files/posts.csv", "missing file")}
    assert len(errors) == 3
