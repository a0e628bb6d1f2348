"""The formats of posts, each with a sound file; all go through the check of a whole set."""

from __future__ import annotations

import functools
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from mental_r1_jax.config import CustomSet
from mental_r1_jax.data.benchmarks import spec_for
from mental_r1_jax.data.checked_sets import check_set
from mental_r1_jax.data.guessing import guess_lines
from tests.data.folders import csv_text
from tests.fuzz.reader import JSON_WORDS, Reader

LABELLED = [{"text": "tea with milk", "label": "Calm"}, {"text": "no tea", "label": "Upset"}]
ASKED = "Is the writer calm?"
QUERY = f'Consider this post: "tea with milk" Question: {ASKED}'
RESPONSE = "Calm. Reasoning: tea helps."


def read_posts(folder: Path, content: bytes, *, name: str, keys: Mapping[str, Any]) -> None:
    """A set of one file in all splits; whatever is wrong must be among its problems."""
    file = folder / name
    file.write_bytes(content)
    files = dict.fromkeys(("train", "validation", "test"), file)
    described = CustomSet(labels=("Calm", "Upset"), files=files, **keys)
    checked = check_set(folder, spec_for("Tea", {"Tea": described}))
    assert checked.errors or checked.examples["train"]
    for problem in (*checked.errors, *checked.warnings):
        str(problem)
    for example in checked.examples["train"]:
        assert example.text.strip() and example.question.strip()
        assert example.label in described.labels
        f"{example.text}{example.question}{example.group}{example.reasoning}".encode()


def read_guess(folder: Path, content: bytes) -> None:
    """Any file, and the lines that would read it."""
    file = folder / "posts"
    file.write_bytes(content)
    assert guess_lines(file).lines


def parquet(rows: list[dict[str, Any]]) -> bytes:
    """The rows as Parquet."""
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


def json_lines(rows: list[dict[str, Any]]) -> bytes:
    """The rows as JSON lines."""
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def turns(user: str, answer: str, *, role: str, text: str, names: tuple[str, str]) -> list[Any]:
    """One turn and its answer."""
    return [{role: names[0], text: user}, {role: names[1], text: answer}]


CHAT = [
    {
        "messages": turns(
            f"{ASKED}\nStatement: {row['text']}",
            answer,
            role="role",
            text="content",
            names=("user", "assistant"),
        )
    }
    for row, answer in zip(LABELLED, (RESPONSE, "Upset"), strict=True)
]
SHAREGPT = [
    {"conversations": turns(QUERY, answer, role="from", text="value", names=("human", "gpt"))}
    for answer in (RESPONSE, "Upset")
]
IMHI = csv_text([("0", QUERY, RESPONSE), ("1", QUERY, "Upset")], ("", "query", "gpt-3.5-turbo"))
INSTRUCTION = [
    {"instruction": ASKED, "input": "tea with milk", "output": RESPONSE},
    {"instruction": ASKED, "input": "no tea", "output": "Upset"},
]
_QUESTION = {"question": ASKED}
_WORDS = (*JSON_WORDS, "Calm", "Upset", "\n", "\ufeff", "\u2028", "9" * 400, "[" * 2000)


def _reader(
    sound: bytes, name: str, words: tuple[str, ...], keys: Mapping[str, Any] | None = None
) -> Reader:
    return Reader(sound, words, functools.partial(read_posts, name=name, keys=keys or {}))


POSTS = {
    "tsv": _reader(
        b'body\tgrade\twriter\ntea, milk\t1\tann\n"two\nlines"\t0\tbob\n',
        "posts.tsv",
        ('"', "\t", ",", "\r", "\n", "body", "grade", "1.0", "True", "nan", "\0"),
        {
            "columns": {"text": "body", "label": "grade", "group": "writer"},
            "label_map": {1: "Calm", 0: "Upset"},
            **_QUESTION,
        },
    ),
    "jsonl": _reader(json_lines(LABELLED), "posts.jsonl", (*_WORDS, "text", "label"), _QUESTION),
    "json": _reader(
        json.dumps(LABELLED, indent=1).encode(), "posts.json", (*_WORDS, "text"), _QUESTION
    ),
    "parquet": _reader(
        parquet(LABELLED), "posts.parquet", ("PAR1", "\0", "\x15", "\x7f", "text"), _QUESTION
    ),
    "imhi": _reader(
        IMHI.encode(),
        "posts.csv",
        ('"', '""', ",", "\n", 'Post: ""', '"" Question:', "Reasoning:", "query", "Calm."),
    ),
    "instruction": _reader(
        json.dumps(INSTRUCTION).encode(),
        "posts.json",
        (*_WORDS, "input", "output", "Reasoning:", "<think>", "</think>", "<answer>"),
    ),
    "chat": _reader(
        json_lines(CHAT),
        "posts.jsonl",
        (*_WORDS, "messages", "role", "user", "assistant", "system", "Statement: ", "<answer>"),
    ),
    "sharegpt": _reader(
        json_lines(SHAREGPT),
        "posts.jsonl",
        (*_WORDS, "conversations", "from", "gpt", "human", "Question:", "Reasoning:"),
    ),
    "guess": Reader(json_lines(LABELLED), (*_WORDS, ",", "\t", "text", "label"), read_guess),
}
