"""Files that are not CSV, labels that are nearly right, and posts with signs that nobody sees."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mental_r1_jax.data.checked_sets import check_set
from mental_r1_jax.data.file_kinds import foreign_kind
from mental_r1_jax.data.label_hint import label_hint
from mental_r1_jax.data.loading import load_examples
from mental_r1_jax.data.oddities import only_labels
from mental_r1_jax.data.records import Example
from mental_r1_jax.errors import UserError
from mental_r1_jax.jobs.data import run
from tests.data.folders import MOOD, QUESTION, csv_text, made_up_rows, write_set
from tests.jobs.test_data_job import recipe

ROWS = made_up_rows("train", 6)
VALID = csv_text(ROWS)


def workbook() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("xl/worksheets/sheet1.xml", "<worksheet/>")
    return buffer.getvalue()


def parquet() -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": ["tea"], "label": ["Calm"]}), sink)
    return sink.getvalue().to_pybytes()


def separated(delimiter: str) -> bytes:
    lines = [delimiter.join(("text", "label", "mental_prompt"))]
    lines += [delimiter.join((text, label, "Q")) for text, label, _ in ROWS if "\n" not in text]
    return "\n".join(lines).encode()


JSON_ROWS = [{"text": text, "label": label} for text, label, _ in ROWS]
FOREIGN = {
    "workbook": (workbook(), "Excel", "saved as CSV"),
    "old workbook": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(500), "Excel", "saved as CSV"),
    "gzip": (gzip.compress(VALID.encode()), "gzip", "gunzip"),
    "bzip2": (bz2.compress(VALID.encode()), "bzip2", "bunzip2"),
    "xz": (lzma.compress(VALID.encode()), "xz", "unxz"),
    "parquet": (parquet(), "parquet", "pyarrow"),
    "pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
        "Git LFS",
        "git lfs pull",
    ),
    "page": (b"\n<!DOCTYPE html>\n<html><body>404</body></html>", "web page", "raw file"),
    "sep line": (b"sep=;\n" + separated(";"), "sep=", "commas"),
    "sep line, commas": (b"\xef\xbb\xbfsep=,\n" + VALID.encode(), "sep=", "no such line"),
    "semicolons": (separated(";"), "semicolons", "commas"),
    "tabs": (separated("\t"), "tabs", "commas"),
    "bars": (separated("|"), "vertical bars", "commas"),
    "JSON lines": ("\n".join(map(json.dumps, JSON_ROWS)).encode(), "JSON lines", "as CSV"),
    "JSON": (json.dumps(JSON_ROWS, indent=1).encode(), "JSON", "as CSV"),
    "JSON object": (json.dumps({"rows": JSON_ROWS}, indent=1).encode(), "JSON", "as CSV"),
    "UTF-16 LE": (VALID.encode("utf-16-le"), "UTF-16 without", "UTF-8"),
    "UTF-16 BE": (VALID.encode("utf-16-be"), "UTF-16 without", "UTF-8"),
    "UTF-32": (VALID.encode("utf-32"), "UTF-32", "UTF-8"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_file_that_is_not_csv_is_named_for_what_it_is(tmp_path: Path, name: str) -> None:
    payload, kind, way_out = FOREIGN[name]
    write_set(tmp_path, {"train": payload})
    (error,) = check_set(tmp_path, MOOD).errors
    assert (error.kind, error.line, Path(error.file).name) == ("not CSV", 1, "train_clean.csv")
    assert kind in error.value and way_out in error.expected


def test_it_is_one_error_of_the_user(tmp_path: Path) -> None:
    for split in ("train", "validation", "test"):
        write_set(tmp_path / "csv", {split: FOREIGN["gzip"][0]})
        with pytest.raises(UserError, match="(?s)1 errors.*gzip"):
            load_examples(recipe(tmp_path, "none"), "train")


def test_csv_is_not_taken_for_something_else() -> None:
    for text in (
        VALID,
        "text,label\n{},Calm\n",
        '"text","label"\n',
        "id;x,text,label\n",
        "label,text\n<html>,Calm\n",
        "TEXT,LABEL\n",
        "",
        "a",
    ):
        for encoding in ("utf-8", "utf-8-sig"):
            assert foreign_kind(text.encode(encoding)) is None


@settings(max_examples=60)
@given(
    st.binary(max_size=200)
    | st.text(max_size=100).map(lambda t: f"text,label\n{t}".encode("utf-8", "surrogatepass"))
    | st.text(alphabet='text,label;"\n\r\t{[sep=Calm', max_size=80).map(str.encode)
)
def test_any_bytes_are_read_or_reported(tmp_path_factory, payload: bytes) -> None:
    """Reading never raises; what cannot be used is in the errors."""
    root = tmp_path_factory.mktemp("fuzz")
    write_set(root, {"train": payload})
    checked = check_set(root, MOOD)
    assert checked.errors or checked.examples["train"]
    for problem in (*checked.errors, *checked.warnings):
        str(problem)


# --- labels ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "labels", "meant", "differs"),
    [
        ("calm", ("Calm", "Upset"), "Calm", "case"),
        ("Calm ", ("Calm", "Upset"), "Calm", "blanks"),
        ("Not  depressed", ("Not depressed", "Severely depressed"), "Not depressed", "blanks"),
        ("Cal\u200bm", ("Calm", "Upset"), "Calm", "invisible characters"),
        ("Calm\u00a0", ("Calm", "Upset"), "Calm", "blanks"),
        ("Ｃalm", ("Calm", "Upset"), "Calm", "Unicode form"),
        ("cafe\u0301", ("caf\u00e9", "tea"), "caf\u00e9", "Unicode form"),
        ("[3\u20134]", ("[3-4]", "[1-2]"), "[3-4]", "dashes"),
        ("1.0", ("0", "1"), "1", "number format"),
        (" CALM", ("Calm", "Upset"), "Calm", "blanks and case"),
        ("1", ("0.0", "1.0"), "1.0", "number format"),
    ],
)
def test_the_likely_label_and_its_difference_are_named(value, labels, meant, differs) -> None:
    assert label_hint(value, labels) == f" (is {meant!r} meant? It differs in {differs})"


@pytest.mark.parametrize("value", ["Clam", "", "10", "a post that stands in the wrong column"])
def test_other_labels_get_no_hint(value: str) -> None:
    assert label_hint(value, ("Calm", "Upset", "1")) == ""


def test_the_hint_stands_in_the_error(tmp_path: Path) -> None:
    write_set(tmp_path, {"train": csv_text([*ROWS, ("tea", "calm", QUESTION)])})
    (error,) = check_set(tmp_path, MOOD).errors
    assert error.value == "'calm'" and error.expected.endswith(
        "(is 'Calm' meant? It differs in case)"
    )


# --- oddities --------------------------------------------------------------------------------


def test_control_characters_are_said_once_a_kind_with_their_number(tmp_path: Path) -> None:
    odd = [(f"tea {i}\x00\x07", "Calm", QUESTION) for i in range(3)]
    odd += [("milk\x1b[2J", "Calm", QUESTION), ("tab\tand\r\nlines", "Calm", QUESTION)]
    write_set(tmp_path, {"train": csv_text([*ROWS, *odd])})
    checked = check_set(tmp_path, MOOD)
    assert checked.errors == ()
    values = [p.value for p in checked.warnings if p.kind == "control characters"]
    assert values == [
        "NUL in 3 posts, here and below",
        "escape characters in 1 posts, here and below",
        "other control characters in 3 posts, here and below",
    ]


def test_a_split_with_one_label_is_a_warning(tmp_path: Path) -> None:
    write_set(tmp_path, {"test": csv_text([(f"tea {i}", "Calm", QUESTION) for i in range(4)])})
    (warning,) = check_set(tmp_path, MOOD).warnings
    assert (warning.kind, Path(warning.file).name) == ("one label", "test_clean.csv")
    posts = [Example("Mood", "test", i, "tea", "Calm", "Q") for i in range(2)]
    other = Example("Mood", "test", 2, "tea", "Upset", "Q")
    assert only_labels({"A": posts, "B": [*posts, other], "C": []}) == {"A": "Calm"}


def test_repeats_are_one_line_and_all_rows_are_in_a_file(tmp_path: Path, capsys) -> None:
    rows = [(f"tea {i % 20}", MOOD.labels[i % 3], QUESTION) for i in range(60)]
    write_set(tmp_path / "csv", {"train": csv_text(rows)})
    assert run(recipe(tmp_path, "no/model")) == 0
    output = capsys.readouterr().out
    (line,) = [line for line in output.splitlines() if line.startswith("warning: ")]
    assert "repeated in split" in line and line.endswith("(40 such posts)")
    file = tmp_path / "tfds" / "Mood-warnings.txt"
    listed = file.read_text(encoding="utf-8").splitlines()
    assert len(listed) == 40 and all("repeated in split" in line for line in listed)
    assert "tea 1" not in file.read_text(encoding="utf-8")  # posts by hash only
    assert file.stat().st_mode & 0o777 == 0o600
    assert str(file) in output
