"""Files that people bring, with the faults that such files have; each is read or named."""

from __future__ import annotations

import io
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from mental_r1_jax.config import CustomSet, label_text
from mental_r1_jax.data.benchmarks import spec_for
from mental_r1_jax.data.reading import container_of, read_file
from mental_r1_jax.data.records import Example
from mental_r1_jax.data.rows import CheckedRows, check_rows

SECRET = "nobody may see this made-up post"


def read(name: str, content: str | bytes, **keys: Any) -> CheckedRows:
    """The rows of one file of a set with the labels Yes and No."""
    described = {"labels": ["Yes", "No"], "question": "Calm?", "files": name, **keys}
    spec = spec_for("Tea", {"Tea": CustomSet.model_validate(described)})
    payload = content.encode() if isinstance(content, str) else content
    found = read_file(Path(name), payload, spec)
    return check_rows(found.events, spec, "train", found.names)


def examples(checked: CheckedRows) -> list[Example]:
    """The posts, after a look that nothing is wrong."""
    assert checked.errors == ()
    return [found.example for found in checked.found]


def places(checked: CheckedRows) -> list[tuple[int | None, str, str]]:
    """Line, column and kind of every error."""
    return [(p.line, p.column, p.kind) for p in checked.errors]


def lines(*rows: Any) -> str:
    """JSON lines."""
    return "".join(json.dumps(row) + "\n" for row in rows)


def parquet(columns: dict[str, Any]) -> bytes:
    """A Parquet file."""
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), buffer)
    return buffer.getvalue()


def turns(*texts: str) -> dict[str, Any]:
    """A conversation in which user and assistant take turns."""
    roles = ("user", "assistant") * len(texts)
    return {"messages": [{"role": r, "content": t} for r, t in zip(roles, texts, strict=False)]}


# --- containers ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("a.csv", b"text,label\n", "csv"),
        ("a.txt", b"text,label\n", "csv"),
        ("a.txt", b"text\tlabel, which\n", "csv"),
        ("a.txt", b"text\tlabel\n", "tsv"),
        ("a.tab", b"text,label\n", "tsv"),
        ("a.ndjson", b"", "jsonl"),
        ("a.json", b'\xef\xbb\xbf {"text": "tea"}\n', "jsonl"),
        ("a.jsonl", b" \n[\n", "json"),
        ("a.csv", b'{"text": "tea"}\n', "jsonl"),
        ("a.PQ", b"torn", "parquet"),
        ("a.csv", b"PAR1", "parquet"),
    ],
)
def test_a_container_is_told_by_content_then_by_ending(name: str, content: bytes, kind: str):
    assert container_of(Path(name), content, "auto") == kind
    assert container_of(Path(name), content, "tsv") == "tsv"


def test_every_broken_line_of_json_lines_is_named_and_the_others_are_read() -> None:
    rows = [
        '{"text": "tea", "label": "Yes"}',
        "",
        '{"text": "tea", "label": "Yes"',
        '{"text": "tea", "label": "Yes"} {}',
        '["tea", "Yes"]',
        '{"text": "a", "text": "b", "label": "Yes"}',
        '{"text": "tea", "label": "Yes", "n": ' + "9" * 5000 + "}",
        '{"text": "tea", "label": "Yes", "n": ' + "[" * 100_000,
        '{"text": "\\ud83d", "label": "Yes"}',
        '{"text": "\\ud83d\\ude00 and\u2028tea", "label": "No"}',
    ]
    checked = read("a.jsonl", "\n".join(rows))
    assert places(checked) == [
        (3, "", "not JSON"),
        (4, "", "not JSON"),
        (5, "", "not an object"),
        (6, "", "not JSON"),
        (7, "", "not JSON"),
        (8, "", "not JSON"),
        (9, "text", "not Unicode"),
    ]
    said = [problem.value for problem in checked.errors]
    assert "'text' twice" in said[3] and "5000 digits" in said[4] and "too deep" in said[5]
    assert [(found.line, found.example.text) for found in checked.found] == [
        (1, "tea"),
        (10, "\U0001f600 and\u2028tea"),
    ]


def test_a_json_list_is_read_up_to_its_fault_whose_line_is_named() -> None:
    content = '\ufeff[\n {"text": "tea", "label": "Yes"},\n {"text": "milk",\n  "label": "No"}\n'
    assert [e.text for e in examples(read("a.json", content + "]"))] == ["tea", "milk"]
    for end, line in (("", 4), (' {"text"', 5), ("] {}", 5), (",", 5), (", x]", 5)):
        checked = read("a.json", content + end)
        assert places(checked) == [(line, "", "not JSON")], end
        assert [found.line for found in checked.found] == [2, 3]


@pytest.mark.parametrize(
    ("content", "kind", "words"),
    [
        ("", "no rows", "an empty file"),
        (" \n\n", "no rows", "an empty file"),
        ("[]", "no rows", "no rows"),
        ('{"text": {"0": "a"},\n "label": {"0": "Yes"}}', "not JSON", "an object of JSON"),
        ('{"data": [{"text": "tea", "label": "Yes"}]}', "missing column", "columns 'data'"),
        ("[1, 2]", "not an object", "orient='records'"),
        (lines({"post": "tea", "label": "Yes"}), "missing column", "columns 'post', 'label'"),
    ],
)
def test_json_that_is_no_rows_is_told_in_few_words(content: str, kind: str, words: str) -> None:
    checked = read("a.json", content)
    assert {problem.kind for problem in checked.errors} == {kind}
    assert any(words in str(problem) for problem in checked.errors)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.tsv"])
def test_other_encodings_and_archives_are_named(name: str) -> None:
    for payload, words in (
        ('{"text": 1}'.encode("utf-16"), "UTF-16"),
        ('{"text": 1}'.encode("utf-16-le"), "UTF-16"),
        (b"\x1f\x8b\x08", "gunzip"),
    ):
        (problem,) = read(name, payload).errors
        assert words in str(problem)
    wrong = (
        b'[{"text": "caf\xe9", "label": "Yes"}]' if name == "a.json" else b"text\tlabel\ncaf\xe9"
    )
    assert (1 if name == "a.json" else 2, "", "not UTF-8") in places(
        read(name, wrong if name != "a.jsonl" else b'\n{"text": "caf\xe9", "label": "Yes"}')
    )


def test_tab_separated_rows_after_a_lost_quote_are_read() -> None:
    content = 'post\ty\n"tea\tYes\nmilk, cold\tNo\n"two\nlines"\tYes\nx\n'
    checked = read("a.tsv", content, columns={"text": "post", "label": "y"})
    assert places(checked) == [(2, "post", "unbalanced quotes"), (6, "", "wrong number of cells")]
    assert [found.example.text for found in checked.found] == ["milk, cold", "two\nlines"]


def test_a_missing_column_names_the_near_one_and_a_repeated_one_is_refused() -> None:
    (missing,) = read("a.csv", "posts,label\ntea,Yes\n", columns={"text": "post"}).errors
    assert (missing.kind, "is 'posts' meant" in str(missing)) == ("missing column", True)
    twice = read("a.csv", "post,post,label\ntea,tea,Yes\n", columns={"text": "post"})
    assert places(twice) == [(1, "post", "repeated column")]


# --- Parquet ---------------------------------------------------------------------------------


def test_parquet_of_any_type_that_holds_text_and_labels() -> None:
    for texts, labels in (
        (pyarrow.array(["tea", "milk"]).dictionary_encode(), pyarrow.array([1, 0], "int8")),
        (pyarrow.array(["tea", "milk"], pyarrow.large_string()), pyarrow.array([1.0, 0.0])),
        (["tea", "milk"], pyarrow.array([Decimal("1.00"), Decimal("0.00")])),
        (["tea", "milk"], pyarrow.array(["1", "0"]).dictionary_encode()),
    ):
        content = parquet({"text": texts, "label": labels, "more": [[1], None]})
        posts = examples(read("a.parquet", content, label_map={1: "Yes", 0: "No"}))
        assert [(post.text, post.label) for post in posts] == [("tea", "Yes"), ("milk", "No")]


def test_parquet_of_wrong_types_is_said_once_and_single_rows_by_number() -> None:
    numbers = read("a.parquet", parquet({"text": [1, 2, 3], "label": ["Yes"] * 3}))
    (problem,) = numbers.errors
    assert (problem.column, problem.value) == ("text", "a number in all 3 rows")
    binary = read("a.parquet", parquet({"text": [b"tea", b"x"], "label": ["Yes"] * 2}))
    assert binary.errors[0].value == "bytes in all 2 rows"
    nulls = read("a.parquet", parquet({"text": ["tea", None], "label": [None, "No"]}))
    assert places(nulls) == [(1, "label", "missing label"), (2, "text", "wrong type")]


def test_a_torn_parquet_file_is_one_problem(tmp_path: Path) -> None:
    whole = parquet({"text": ["tea"] * 50, "label": ["Yes"] * 50})
    assert len(examples(read("a.parquet", whole))) == 50
    for length in (4, len(whole) // 2, len(whole) - 1):
        assert places(read("a.parquet", whole[:length])) == [(None, "", "not Parquet")]
    assert places(read("a.csv", whole, format="parquet")) == []
    assert places(read("a.parquet", "text,label\n", format="parquet")) == [
        (None, "", "not Parquet")
    ]


# --- labels ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("1.0", "1.0"),
        (1, "1"),
        (1.0, "1"),
        (-0.0, "0"),
        (0.5, "0.5"),
        (Decimal("2.00"), "2"),
        (True, "true"),
        (1e300, "1e+300"),
        (float("inf"), "inf"),
        (float("nan"), None),
        (None, None),
        ([], None),
    ],
)
def test_the_text_of_a_label(value: Any, text: str | None) -> None:
    assert label_text(value) == text


def test_equal_numbers_are_one_label_and_booleans_are_no_numbers() -> None:
    values = [1, 1.0, "1", "1.0", 0, "0.00"]
    content = lines(*({"text": "tea", "label": value} for value in values))
    labels = [e.label for e in examples(read("a.jsonl", content, label_map={1: "Yes", "0": "No"}))]
    assert labels == ["Yes"] * 4 + ["No"] * 2
    for wrong in (True, "2", "nan", "", 0.5):
        checked = read("a.jsonl", lines({"text": "tea", "label": wrong}), label_map={1: "Yes"})
        assert places(checked) == [(1, "label", "unknown label")]
    booleans = lines(*({"text": "tea", "label": value} for value in (True, "True", "TRUE", False)))
    labels = [
        e.label for e in examples(read("a.jsonl", booleans, label_map={True: "Yes", False: "No"}))
    ]
    assert labels == ["Yes", "Yes", "Yes", "No"]


def test_the_dashes_of_a_paper_are_the_hyphens_of_its_file() -> None:
    labels = ["[1-2]", "[2-3]"]
    content = lines({"text": "tea", "label": "[1\u20132]"}, {"text": "milk", "label": "[2-3]"})
    assert [e.label for e in examples(read("a.jsonl", content, labels=labels))] == labels
    dashed = ["[1\u20132]", "[2\u20133]"]
    assert [e.label for e in examples(read("a.jsonl", content, labels=dashed))] == dashed
    both = ["1-2", "1\u20132"]  # labels that differ in nothing else are told apart
    content = lines({"text": "tea", "label": "1\u20132"}, {"text": "milk", "label": "1\u20142"})
    checked = read("a.jsonl", content, labels=both)
    assert [found.example.label for found in checked.found] == ["1\u20132"]
    assert places(checked) == [(2, "label", "unknown label")]


def test_labels_that_are_no_label_at_all() -> None:
    values = [None, float("nan"), {"a": 1}, [{"a": 1}], ["Yes", "No"]]
    checked = read("a.jsonl", lines(*({"text": "tea", "label": value} for value in values)))
    assert places(checked) == [
        (1, "label", "missing label"),
        (2, "label", "missing label"),
        (3, "label", "wrong type"),
        (4, "label", "wrong type"),
        (5, "label", "several labels"),
    ]


def test_a_full_stop_behind_a_label_goes_unless_it_belongs_to_it() -> None:
    answers = ["Yes", "Yes.", " Yes . Reasoning: tea", "No; Reasoning:", "<think>tea</think>\nNo."]
    rows = (turns("tea", answer) for answer in answers)
    posts = examples(read("a.jsonl", lines(*rows)))
    assert [post.label for post in posts] == ["Yes", "Yes", "Yes", "No", "No"]
    assert [post.reasoning for post in posts] == [None, None, "tea", None, "tea"]
    (post,) = examples(read("a.jsonl", lines(turns("tea", "p.m.")), labels=["p.m.", "p.m"]))
    assert post.label == "p.m."


# --- posts and questions ---------------------------------------------------------------------


def test_a_post_may_hold_the_marks_around_it() -> None:
    post = 'he said "tea" Question: what? and Post: "more'
    query = f'Consider this post: "{post}" Question: Is the poster calm?'
    content = lines({"query": query, "gpt-3.5-turbo": "No"})
    (example,) = examples(read("a.jsonl", content, question=None))
    assert example.text == post
    assert example.question.startswith("Is the poster calm?\nReply with one of these labels")
    own = read("a.jsonl", content, question="Mine?\nStatement: ")
    assert examples(own)[0].question == "Mine?\nStatement: "


def test_a_row_without_a_question_says_where_one_could_stand() -> None:
    checked = read("a.jsonl", lines(turns("tea", "Yes")), question=None)
    assert places(checked) == [(1, "messages", "empty question")]
    assert "the set's `question` in the recipe" in str(checked.errors[0])
    many = read("a.jsonl", lines(*[turns("tea", "Yes")] * 9), question=None)
    assert [problem.value for problem in many.errors] == ["'' in all 9 rows"]


def test_joined_columns_leave_out_what_is_blank() -> None:
    rows = [("tea", None), ("", "milk"), ("a", "b"), (None, " ")]
    content = lines(*({"title": t, "selftext": s, "label": "No"} for t, s in rows))
    checked = read("a.jsonl", content, text_columns=["title", "selftext"])
    assert [found.example.text for found in checked.found] == ["tea", "milk", "a\n\nb"]
    assert places(checked) == [(4, "title + selftext", "empty text")]


def test_groups_are_text_or_none() -> None:
    values = ["ann", 7, 7.0, None, " ", float("nan"), {}]
    content = lines(*({"text": "tea", "label": "No", "who": value} for value in values))
    checked = read("a.jsonl", content, columns={"group": "who"})
    groups = [found.example.group for found in checked.found]
    assert groups == ["ann", "7", "7", None, None, None]
    assert places(checked) == [(7, "who", "wrong type")]


def test_an_input_that_is_blank_leaves_the_instruction_as_the_post() -> None:
    marked = {"instruction": 'Post: "tea" Question: Calm?', "input": "", "output": "Yes"}
    plain = {"instruction": "I drink tea", "output": "No"}
    posts = examples(read("a.json", json.dumps([marked, plain])))
    assert [post.text for post in posts] == ["tea", "I drink tea"]


@pytest.mark.parametrize(
    ("messages", "kind"),
    [
        ([], "order of turns"),
        ("tea", "wrong type"),
        (None, "wrong type"),
        ([["user", "tea"]], "wrong type"),
        ([{"role": "user", "content": "tea"}], "order of turns"),
        ([*turns("a", "Yes")["messages"]] * 2, "several turns"),
        ([*reversed(turns("a", "Yes")["messages"])], "order of turns"),
        ([{"role": "user", "content": None}], "wrong type"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "wrong type"),
        ([{"role": "user", "content": {"text": "tea"}}], "wrong type"),
        ([{"role": "tool", "content": "tea"}], "unknown role"),
        ([{"role": SECRET, "content": "tea"}], "unknown role"),
        ([{"role": 1, "content": "tea"}], "unknown role"),
        ([{"from": "user", "value": "tea"}], "unknown role"),
    ],
)
def test_conversations_that_are_not_one_turn_and_its_answer(messages: Any, kind: str) -> None:
    sound = turns("tea", "Yes")  # or the fault would be said of the whole file
    checked = read("a.jsonl", lines(sound, {"messages": messages}))
    assert places(checked) == [(2, "messages", kind)]
    assert SECRET not in str(checked.errors[0])


def test_a_label_beside_a_conversation_counts_and_the_answer_is_reasoning() -> None:
    rows = [turns("tea", f"{SECRET} of mine") | {"label": 1}, turns("tea", "No") | {"label": 1}]
    checked = read("a.jsonl", lines(*rows), label_map={1: "Yes", 0: "No"})
    (found,) = checked.found
    assert (found.example.label, found.example.reasoning) == ("Yes", f"{SECRET} of mine")
    assert places(checked) == [(2, "messages", "other answer")]
    content = parquet({"messages": [turns("tea", "No")["messages"]], "label": ["No"]})
    assert examples(read("a.parquet", content))[0].label == "No"


def test_content_in_parts_of_text_is_joined() -> None:
    parts = [{"type": "text", "text": "tea "}, {"type": "text", "text": "now"}]
    row = {"messages": [{"role": "user", "content": parts}, turns("", "No")["messages"][1]]}
    assert examples(read("a.jsonl", lines(row)))[0].text == "tea now"


# --- privacy ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "keys"),
    [
        ("a.jsonl", lines({"text": "tea", "label": SECRET}), {}),
        ("a.jsonl", lines({SECRET: "tea", "b": "c"}), {}),
        ("a.jsonl", f'{{"{SECRET}": 1, "{SECRET}": 2}}', {}),
        ("a.jsonl", SECRET, {"format": "jsonl"}),
        ("a.jsonl", lines({"query": SECRET, "gpt-3.5-turbo": "Yes"}), {"layout": "imhi"}),
        ("a.jsonl", lines(turns("tea", SECRET)), {}),
        ("a.jsonl", lines({"query": "tea", "response": "Yes", "label": SECRET}), {}),
        ("a.csv", f"{SECRET},label\ntea,Yes\n", {}),
        ("a.csv", f"text,label\ntea,{SECRET}\n", {}),
        ("a.parquet", parquet({SECRET: ["tea"]}), {}),
        ("a.parquet", parquet({"text": [1], "label": [SECRET]}), {}),
    ],
)
def test_no_complaint_holds_a_post(name: str, content: str | bytes, keys: dict[str, Any]) -> None:
    checked = read(name, content, **keys)
    assert checked.errors
    assert SECRET not in "".join(map(str, checked.errors))
