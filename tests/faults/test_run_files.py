"""Files of a run folder that are torn, no text, a list or a folder: one error that names them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mental_r1_jax.errors import UserError
from mental_r1_jax.models.hf_config import read_hf_config
from mental_r1_jax.recipe import load_config
from mental_r1_jax.training.metrics import truncate_after

CONTENTS = {
    "not UTF-8": b'{"step": 1, "loss": \xff\xfe}\n',
    "torn": b'{"step": 1, "lo\n{"step": 2}\n',
    "a list": b"[1, 2]\n",
    "a word": b"null\n",
    "a step that is no number": b'{"step": Infinity}\n',
    "lists in lists": b"[" * 100_000 + b"\n",
    "a folder": None,
}
READERS: dict[str, Callable[[Path], object]] = {
    "metrics.jsonl": lambda run: truncate_after(run / "metrics.jsonl", 5),
    "config.yaml": lambda run: load_config(run),
    "config.json": lambda run: read_hf_config(run),
}


# Of `config.json` the fields are checked elsewhere; lists in lists take YAML seconds.
ELSEWHERE = {("config.json", "a step that is no number"), ("config.yaml", "lists in lists")}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (name, content)
        for name in READERS
        for content in CONTENTS
        if (name, content) not in ELSEWHERE
    ],
)
def test_a_damaged_file_of_a_run_is_named(tmp_path: Path, name: str, content: str) -> None:
    written = CONTENTS[content]
    if written is None:
        (tmp_path / name).mkdir()
    else:
        (tmp_path / name).write_bytes(written)
    with pytest.raises(UserError) as refused:
        READERS[name](tmp_path)
    assert name in str(refused.value) or str(tmp_path) in str(refused.value)
    if written is not None:
        assert (tmp_path / name).read_bytes() == written
