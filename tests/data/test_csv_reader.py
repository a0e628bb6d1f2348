"""Every fault in a CSV folder is reported, with its place, and no post is ever repeated."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import random
from pathlib import Path

import pytest

from mental_r1_jax.config import CustomSet
from mental_r1_jax.data.benchmarks import SPLITS, BenchmarkSpec, spec_for
from mental_r1_jax.data.checked_sets import check_set, content_hash
from mental_r1_jax.data.records import CheckedSet, Problem
from tests.data.folders import MOOD, QUESTION, csv_text, made_up_rows, made_up_text, write_set

HEADER = "text,label,mental_prompt\n"


def check(root: Path, train: str | bytes, spec: BenchmarkSpec = MOOD, **options) -> CheckedSet:
    """Check a set whose training file is `train`."""
    write_set(root, {"train": train})
    return check_set(root, spec, **options)


def places(problems: tuple[Problem, ...]) -> list[tuple[str, int | None, str, str]]:
    """File, line, column and kind of each problem."""
    return [(Path(p.file).name, p.line, p.column, p.kind) for p in problems]


def test_valid_set_is_read_as_written(tmp_path: Path) -> None:
    write_set(tmp_path, count=7)
    checked = check_set(tmp_path, MOOD)
    assert checked.errors == checked.warnings == ()
    for split in SPLITS:
        examples = checked.examples[split]
        assert [(e.text, e.label, e.question) for e in examples] == made_up_rows(split, 7)
        assert [(e.set_name, e.split, e.row) for e in examples] == [
            ("Mood", split, row) for row in range(7)
        ]


@pytest.mark.parametrize(
    ("row", "column", "kind"),
    [
        ("tea,Angry,Q", "label", "unknown label"),
        ("tea,calm,Q", "label", "unknown label"),
        ("tea,Calm ,Q", "label", "unknown label"),
        ("tea,,Q", "label", "unknown label"),
        (" ,Calm,Q", "text", "empty text"),
        ("tea,Calm,", "mental_prompt", "empty question"),
        ("tea,Calm", "", "wrong number of cells"),
        ("tea,milk,Calm,Q", "", "wrong number of cells"),
        ('"tea,Calm,Q', "text", "unbalanced quotes"),
        ('tea",Calm,Q', "text", "unbalanced quotes"),
        ('tea,Calm,"Q', "mental_prompt", "unbalanced quotes"),
    ],
)
def test_line_of_a_fault_is_where_its_row_starts(
    tmp_path: Path, row: str, column: str, kind: str
) -> None:
    # Line 1 header, lines 2 to 4 one row, line 5 blank, line 6 the fault, line 7 a second one.
    before = HEADER + '"first\nof three\nlines",Calm,Q\n\n'
    checked = check(tmp_path, before + row + "\nlast,nonsense,Q\n")
    assert places(checked.errors) == [
        ("train_clean.csv", 6, column, kind),
        ("train_clean.csv", 7, "label", "unknown label"),
    ]
    assert "'Calm', 'Upset', '[3-4]'" in checked.errors[1].expected
    assert checked.errors[1].value == "'nonsense'"


def test_all_lines_that_are_not_utf8_are_named(tmp_path: Path) -> None:
    text = HEADER + "one,Calm,Q\ncaf\xe9 \xe9,Calm,Q\ngood,Calm,Q\nna\xefve,bad,Q\n"
    checked = check(tmp_path, text.encode("latin-1"))
    assert places(checked.errors) == [
        ("train_clean.csv", 3, "", "not UTF-8"),
        ("train_clean.csv", 5, "", "not UTF-8"),
        ("train_clean.csv", 5, "label", "unknown label"),
    ]
    assert checked.errors[0].value == "byte 0xe9"


def test_utf16_is_one_error_and_a_utf8_byte_order_mark_is_none(tmp_path: Path) -> None:
    valid = csv_text(made_up_rows("train", 3))
    assert places(check(tmp_path, valid.encode("utf-16")).errors) == [
        ("train_clean.csv", 1, "", "not UTF-8")
    ]
    checked = check(tmp_path, valid.encode("utf-8-sig"))
    assert checked.errors == ()
    assert len(checked.examples["train"]) == 3


def test_windows_line_ends(tmp_path: Path) -> None:
    checked = check(tmp_path, HEADER.replace("\n", "\r\n") + "tea,Calm,Q\r\ntea,No,Q\r\n")
    assert places(checked.errors) == [("train_clean.csv", 3, "label", "unknown label")]


@pytest.mark.parametrize(
    ("content", "kind", "words"),
    [
        ("text,labels,mental_prompt\ntea,Calm,Q\n", "missing column", "is 'labels' meant"),
        ("tea,Calm,Q\n", "missing column", "columns"),
        ("text,label,text\ntea,Calm,tea\n", "repeated column", "once"),
        ('"text,label,mental_prompt\ntea,Calm,Q\n', "quotes", "column names"),
        ("", "no rows", "empty file"),
        (HEADER, "no rows", "header without rows"),
    ],
)
def test_files_that_cannot_be_understood(
    tmp_path: Path, content: str, kind: str, words: str
) -> None:
    checked = check(tmp_path, content)
    assert {p.kind for p in checked.errors} == {kind}
    assert any(words in str(p) for p in checked.errors)


def test_missing_files_are_all_named(tmp_path: Path) -> None:
    folder = write_set(tmp_path)
    (folder / "train_clean.csv").unlink()
    (folder / "val_clean.csv").unlink()
    errors = check_set(tmp_path, MOOD).errors
    assert [p.expected for p in errors] == ["train_clean.csv", "val_clean.csv or dev_clean.csv"]
    (missing,) = check_set(tmp_path / "elsewhere", MOOD).errors
    assert missing.kind == "missing file"


def test_validation_file_may_have_the_other_name(tmp_path: Path) -> None:
    folder = write_set(tmp_path)
    dev_spec = dataclasses.replace(MOOD, validation_file="dev")
    assert len(check_set(tmp_path, dev_spec).examples["validation"]) == 6
    (folder / "dev_clean.csv").write_text(csv_text(made_up_rows("dev", 2)), encoding="utf-8")
    assert len(check_set(tmp_path, dev_spec).examples["validation"]) == 2
    assert len(check_set(tmp_path, MOOD).examples["validation"]) == 6


def test_set_without_a_question_column(tmp_path: Path) -> None:
    train = csv_text([("tea", "Calm", "7"), ("milk", "Upset", "8")], ("text", "label", "id"))
    checked = check(tmp_path, train)
    assert checked.errors == ()
    assert {e.question for e in checked.examples["train"]} == {MOOD.question}
    assert "no question" in {p.kind for p in checked.warnings}

    (error,) = check_set(tmp_path, dataclasses.replace(MOOD, question=None)).errors
    assert (error.kind, error.column) == ("missing column", "mental_prompt")


def test_repeats_and_lengths_are_warnings(tmp_path: Path) -> None:
    repeated = made_up_text("test", 1)
    rows = [
        ("so much tea", "Calm", QUESTION),
        ("So  much tea", "Upset", QUESTION),
        (repeated, "Calm", QUESTION),
        ("x", "[3-4]", QUESTION),
        ("y" * 101, "[3-4]", QUESTION),
        (repeated, "Calm", QUESTION),
    ]
    write_set(tmp_path, {"train": csv_text(rows)})
    checked = check_set(tmp_path, MOOD, absurd_post_chars=100)
    assert checked.errors == ()
    # A row is as many physical lines as its question: no text has a line break.
    height = QUESTION.count("\n") + 1
    assert [(p.line, p.kind) for p in checked.warnings] == [
        (2 + height * 1, "repeated in split"),
        (2 + height * 2, "repeated across splits"),
        (2 + height * 5, "repeated across splits"),
        (2 + height * 3, "absurd length"),
        (2 + height * 4, "absurd length"),
    ]
    assert "labelled differently" in checked.warnings[0].expected
    assert "test_clean.csv" in checked.warnings[1].expected
    assert len(checked.examples["train"]) == 6

    dropped = check_set(tmp_path, MOOD, "drop", absurd_post_chars=100)
    assert [e.row for e in dropped.examples["train"]] == [0, 3, 4]
    assert len(dropped.examples["test"]) == 6
    # The only post labelled "Upset" was a repeat.
    assert [p.kind for p in dropped.warnings if p not in checked.warnings] == ["absent label"]


def test_split_that_dropping_leaves_empty_is_an_error(tmp_path: Path) -> None:
    write_set(tmp_path, {"train": csv_text(made_up_rows("test", 6))})
    assert check_set(tmp_path, MOOD).errors == ()
    (error,) = check_set(tmp_path, MOOD, "drop").errors
    assert (error.kind, Path(error.file).name) == ("no rows", "train_clean.csv")


def test_two_lost_quotes_that_leave_well_formed_csv(tmp_path: Path) -> None:
    rows = 'one,Calm,Q\n"two, or so,Calm,Q\nthree,Upset,Q\nfour, or so",Calm,Q\n'
    assert places(check(tmp_path, HEADER + rows).errors) == [
        ("train_clean.csv", 3, "text", "unbalanced quotes")
    ]
    harmless = 'one,Calm,Q\n"I said,Calm,Q?\nand left",Upset,Q\n'
    assert check(tmp_path, HEADER + harmless).errors == ()
    # Without a question column the same may be a real post.
    narrow = check(tmp_path, 'text,label\none,Calm\n"two,Calm\nthree",Upset\n')
    assert narrow.errors == ()
    assert "row inside a text" in {p.kind for p in narrow.warnings}


def test_label_without_training_posts_is_a_warning(tmp_path: Path) -> None:
    checked = check(tmp_path, csv_text(made_up_rows("train", 2)))
    assert [(p.kind, p.value) for p in checked.warnings] == [
        ("absent label", "no row labelled '[3-4]'")
    ]


def test_reports_hold_no_post(tmp_path: Path) -> None:
    secret = "nobody may read this sentence in a log"
    digest = hashlib.sha256(secret.encode()).hexdigest()[:8]
    rows = [
        f"{secret},Calm,Q",
        f"{secret},Upset,Q",  # repeated
        f"{secret},Clam,Q",
        f"tea,{secret},Q",  # columns swapped
        f'"{secret},Calm,Q',
        f'{secret}",Calm,Q',
        f"{secret},{secret},Calm,Q",
        f"caf\xe9 {secret},Calm,Q",
    ]
    text = HEADER + "\n".join(rows) + "\n"
    checked = check(tmp_path, text.encode("latin-1"), absurd_post_chars=5)
    no_header = check(tmp_path / "other", f"{secret},Calm,Q\n")
    reports = "\n".join(
        map(
            str, (*checked.errors, *checked.warnings, *no_header.errors, *checked.examples.values())
        )
    )
    assert "nobody" not in reports
    assert "sentence" not in reports
    assert f"{len(secret)} characters, sha256 {digest}" in reports
    assert len(checked.errors) == 5  # the two single quotes make one well-formed cell


def test_content_hash_follows_files_spec_and_options(tmp_path: Path) -> None:
    folder = write_set(tmp_path)
    base = content_hash(tmp_path, MOOD)
    assert check_set(tmp_path, MOOD).content_hash == base
    assert check_set(tmp_path, MOOD, absurd_post_chars=1).content_hash == base
    variants = [
        content_hash(tmp_path, MOOD, "drop"),
        content_hash(tmp_path, dataclasses.replace(MOOD, labels=("Calm", "Upset"))),
        content_hash(tmp_path, dataclasses.replace(MOOD, question="Other?\nStatement: ")),
    ]
    file = folder / "test_clean.csv"
    file.write_bytes(file.read_bytes().replace(b"tea", b"pie"))
    variants.append(content_hash(tmp_path, MOOD))
    assert len({base, *variants}) == 5


# --- random corruption -----------------------------------------------------------------------


def corrupted(rng: random.Random, record: str) -> str:
    """The record of one row with one fault that every reader must report."""

    def unknown_label() -> str:
        return record.replace(",Calm,", ",Clam,").replace(",Upset,", ",Upst,")

    def no_text() -> str:
        return "," + record[record.index(",Calm," if ",Calm," in record else ",Upset,") + 1 :]

    def extra_cell() -> str:
        return record.replace(",Calm,", ",,Calm,").replace(",Upset,", ",,Upset,")

    def lost_cell() -> str:
        return record[: record.index(',"')]

    def lost_quote() -> str:
        quotes = [i for i, c in enumerate(record) if c == '"']
        where = rng.choice(quotes)
        return record[:where] + record[where + 1 :]

    def stray_quote() -> str:
        where = rng.randrange(len(record))
        return record[:where] + '"' + record[where:]

    def bad_byte() -> str:
        return "\udce9" + record

    return rng.choice(
        (unknown_label, no_text, extra_cell, lost_cell, lost_quote, stray_quote, bad_byte)
    )()


def test_random_corruptions_are_all_reported(tmp_path: Path) -> None:
    folder = write_set(tmp_path)
    labels = ("Calm", "Upset")
    records = [
        csv_text([(made_up_text("train", i), labels[i % 2], QUESTION)]).split("\n", 1)[1][:-1]
        for i in range(12)
    ]
    for seed in range(400):
        rng = random.Random(seed)
        bad = rng.sample(range(len(records)), rng.randint(1, 4))
        file = [corrupted(rng, r) if i in bad else r for i, r in enumerate(records)]
        starts, line = [], 2
        for record in file:
            starts.append(line)
            line += record.count("\n") + 1
        starts.append(line)
        payload = (HEADER + "\n".join(file) + "\n").encode("utf-8", "surrogateescape")
        (folder / "train_clean.csv").write_bytes(payload)
        errors = check_set(tmp_path, MOOD).errors
        covered = {line for error in errors for line in lines_of(error)}
        for row in bad:
            span = set(range(starts[row], starts[row + 1]))
            assert span & covered, (seed, row, file[row])
        # Nor is a row blamed that is right, unless an open quote hid it.
        hidden = {n for e in errors if e.kind == "unbalanced quotes" for n in lines_of(e)}
        blamed = {error.line for error in errors} - hidden
        for line in blamed:
            assert any(starts[row] <= line < starts[row + 1] for row in bad), (seed, line)


def lines_of(error: Problem) -> range:
    """The lines that an error speaks of: its own, and those that it says were not checked."""
    assert error.line is not None
    words = error.value.replace(",", "").split()
    last = int(words[words.index("to") + 1]) if "to" in words else error.line
    return range(error.line, last + 1)


# --- the real sets ---------------------------------------------------------------------------

YES_NO = ("Yes", "No")
USER_SETS = {
    "CSSRS": CustomSet(labels=("Indicator", "Ideation", "Behavior", "Attempt")),
    "DR": CustomSet(labels=YES_NO),
    "Loneliness": CustomSet(labels=YES_NO),
    "SAD": CustomSet(
        labels=(
            "Work",
            "Health",
            "School",
            "Family",
            "Financial",
            "Social",
            "Emotional Turmoil",
            "Everyday Decision",
            "Other",
        )
    ),
}


@pytest.mark.shared
@pytest.mark.parametrize("name", ["Dreaddit", "DepSeverity", "SDCNL", "LT-EDI", *USER_SETS])
def test_real_sets_have_no_errors_and_read_as_the_standard_library_reads_them(
    shared_dir: Path, name: str
) -> None:
    root = shared_dir / "data"
    checked = check_set(root, spec_for(name, USER_SETS))
    assert checked.errors == ()
    for split, stem in {"train": "train", "validation": "val", "test": "test"}.items():
        path = root / name / f"{stem}_clean.csv"
        with path.open(encoding="utf-8", newline="") as file:
            rows = [
                hash((r["text"], r["label"], r["mental_prompt"]))
                for r in csv.DictReader(file, strict=True)
            ]
        # Hashes, so that a failing assertion prints no post.
        assert [hash((e.text, e.label, e.question)) for e in checked.examples[split]] == rows
