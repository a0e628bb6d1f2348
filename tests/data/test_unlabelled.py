"""Files of unlabelled posts: read as other programs wrote them, or refused with every place."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from mental_r1_jax.data import unlabelled
from mental_r1_jax.data.unlabelled import PostsFile, UnlabelledPost, survey
from mental_r1_jax.errors import UserError

SECRET = "the writer told nobody about the tea"

Rows = list[tuple[str | None, str | int | None]]


def write(path: Path, rows: Rows) -> PostsFile:
    """Write posts and ids as others do, with columns that nobody asked for."""
    if path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["extra", "id", "post"])
            writer.writerows([['x,"y', "" if i is None else i, t] for t, i in rows])
    elif path.suffix == ".jsonl":
        lines = [json.dumps({"post": t, "extra": {"a": [1]}, "id": i}) + "\n" for t, i in rows]
        path.write_text("".join(lines), encoding="utf-8")
    else:
        texts, ids = [t for t, _ in rows], [i for _, i in rows]
        pq.write_table(pa.table({"id": ids, "extra": texts, "post": texts}), path, row_group_size=3)
    return PostsFile(path, "post", "id")


texts = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\r"), max_size=30)


@pytest.mark.parametrize("suffix", unlabelled.SUFFIXES)
@given(posts=st.lists(texts, min_size=1, max_size=9))
@example(posts=["a,b", 'a "b" c', "two\nlines", "\0", "", " ", "é\u2028\x85x", "tea", "tea"])
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_others_wrote_is_read(tmp_path: Path, suffix: str, posts: list[str]) -> None:
    file = write(tmp_path / f"posts{suffix}", [(text, f"i{n}") for n, text in enumerate(posts)])
    expected = [UnlabelledPost(n, text, f"i{n}") for n, text in enumerate(posts)]
    assert list(file.posts()) == expected
    found = survey(file)
    assert found.rows == len(posts) and not found.numbered
    assert [post.post_id for post in PostsFile(file.path, "post").posts()] == [None] * len(posts)


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_null_is_an_empty_post_and_numbers_stay_numbers(tmp_path: Path, suffix: str) -> None:
    file = write(tmp_path / f"posts{suffix}", [("tea", 7), (None, None), ("", -1)])
    assert [(p.text, p.post_id) for p in file.posts()] == [("tea", 7), ("", None), ("", -1)]
    assert survey(file).numbered
    (tmp_path / "mixed.jsonl").write_text('{"post":"a","id":7}\n{"post":"b","id":"7"}\n')
    assert not survey(PostsFile(tmp_path / "mixed.jsonl", "post", "id")).numbered


def test_marks_line_ends_blank_lines_and_long_cells_of_csv(tmp_path: Path) -> None:
    path, long = tmp_path / "posts.csv", "tea " * 100_000
    path.write_bytes(
        b'\xef\xbb\xbftext\r\n\r\none\r\n"two\r\nlines"\r\n' + long.encode() + b"\r\n\r\n"
    )
    assert [p.text for p in PostsFile(path, "text").posts()] == ["one", "two\r\nlines", long]
    path.write_bytes(b"text\rone\rtwo\r")
    assert [p.text for p in PostsFile(path, "text").posts()] == ["one", "two"]


FAULTS = {
    "a broken byte": (".csv", b"text,n\nok,1\ncaf\xe9 SECRET,2\n", ["line 3: the byte 0xe9"]),
    "a broken byte elsewhere": (".csv", b"text,n\nSECRET,\xff\n", ["line 2: the byte 0xff"]),
    "too many cells": (
        ".csv",
        b"text,n\nSECRET,1,2\nok,1\nSECRET\n",
        ["line 2: 3 cells", "line 4: 1 cells"],
    ),
    "a lost quote": (".csv", b'text,n\nok,1\n"SECRET,2\nSECRET,3\n', ["line 3: quotes"]),
    "a stray quote": (".csv", b'text,n\n"SECRET" x,2\n', ["line 2: quotes"]),
    "two columns of one name": (".csv", b"text,text\nSECRET,1\n", ["2 columns 'text'", "--column"]),
    "no such column": (".csv", b"post,n\nSECRET,1\n", ["no column 'text'", "'post', 'n'"]),
    "no header": (".csv", b"SECRET\n", ["no column 'text'", "36 characters, sha256"]),
    "a header alone": (".csv", b"text,n\n", ["holds no post"]),
    "nothing": (".csv", b"", ["holds no post"]),
    "UTF-16": (".csv", "text\nSECRET\n".encode("utf-16-le"), ["UTF-16 without"]),
    "UTF-16 with a mark": (".csv", "text\nSECRET\n".encode("utf-16"), ["no column 'text'"]),
    "a workbook": (".csv", b"PK\x03\x04SECRET", ["an Excel workbook"]),
    "JSON of another kind": (
        ".jsonl",
        b'["SECRET"]\n{"text": 1}\n7\n',
        ["line 1: a list", "line 2: 'text' is a int", "line 3: a int"],
    ),
    "broken JSON": (
        ".jsonl",
        b'{"text": "SECRET\n{"text": "a"}\n{\n',
        ["line 1: not JSON", "line 3: not JSON"],
    ),
    "a byte in JSON": (".jsonl", b'{"text": "SECRET \xe9"}\n', ["line 1: the byte 0xe9"]),
    "a missing key": (
        ".jsonl",
        b'{"text": "a"}\n{"SECRET one": 1}\n',
        ["line 2: no 'text'", "sha256"],
    ),
    "deep JSON": (".jsonl", b"[" * 100_000 + b"\n", ["line 1: not usable JSON"]),
    "a long number": (".jsonl", b'{"text": ' + b"9" * 5000 + b"}\n", ["line 1: not usable JSON"]),
    "no Parquet": (".parquet", b"SECRET", ["cannot be read as Parquet"]),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_told_by_its_place_and_without_the_post(tmp_path: Path, name: str) -> None:
    suffix, content, expected = FAULTS[name]
    path = tmp_path / f"posts{suffix}"
    path.write_bytes(content.replace(b"SECRET", SECRET.encode()))
    with pytest.raises(UserError) as refused:
        survey(PostsFile(path, "text"))
    message = str(refused.value)
    assert all(part in message for part in expected), message
    assert str(path) in message and "writer" not in message and "tea" not in message


def test_faults_are_counted_and_the_first_ten_are_listed(tmp_path: Path) -> None:
    path = tmp_path / "posts.jsonl"
    path.write_text('{"text": "a"}\n' + "7\n" * 25)
    with pytest.raises(UserError) as refused:
        survey(PostsFile(path, "text"))
    assert str(refused.value).count("a int, not an object") == 10
    assert "and 15 more" in str(refused.value)


def test_wrong_types_of_parquet(tmp_path: Path) -> None:
    broken = pa.array([b"tea", b"caf\xe9"]).cast(pa.binary())
    text = pa.StringArray.from_buffers(2, *broken.buffers()[1:])
    ids = pa.array([True, False])
    pq.write_table(pa.table({"text": text, "number": [1, 2], "id": ids}), tmp_path / "a.parquet")
    for column, id_column, expected in (
        ("text", None, "row 1: text that is not UTF-8"),
        ("number", None, "row 0: 'number' is a int"),
        ("text", "id", "row 0: 'id' is a bool"),
        ("post", None, "no column 'post'"),
    ):
        with pytest.raises(UserError, match=expected):
            survey(PostsFile(tmp_path / "a.parquet", column, id_column))


def test_categories_and_large_text_of_parquet(tmp_path: Path) -> None:
    words = pa.array(["tea", None, "tea"])
    table = {"a": words.dictionary_encode(), "b": words.cast(pa.large_string())}
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    for column in table:
        assert [p.text for p in PostsFile(tmp_path / "a.parquet", column).posts()] == [
            "tea",
            "",
            "tea",
        ]


def test_a_path_that_is_no_file_of_posts(tmp_path: Path) -> None:
    (tmp_path / "folder.csv").mkdir()
    for name, expected in (
        ("none.csv", "Got nothing"),
        ("folder.csv", "Got a folder"),
        ("posts.xlsx", "ends in .csv, .jsonl, .parquet"),
        ("posts", "a name without a suffix"),
    ):
        with pytest.raises(UserError, match=expected):
            survey(PostsFile(tmp_path / name, "text"))


def test_posts_are_in_no_repr() -> None:
    assert SECRET not in repr(UnlabelledPost(0, SECRET))
