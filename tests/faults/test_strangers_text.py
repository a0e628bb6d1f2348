"""Names, labels and posts of strangers: what a terminal, a card and a spreadsheet get of them."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table
from rich.text import Text

from mental_r1_jax import cli
from mental_r1_jax.console.progress import open_console
from mental_r1_jax.data.checked_sets import check_set
from mental_r1_jax.data.tfds_builder import build_set, open_set
from mental_r1_jax.errors import visible
from mental_r1_jax.evaluation.metrics import Prediction, set_metrics
from mental_r1_jax.evaluation.report import write_evaluation
from mental_r1_jax.private_files import write_private
from mental_r1_jax.release.markdown import plain
from mental_r1_jax.training.completions_log import write_completions
from tests.data.folders import MOOD, write_set
from tests.training.test_completions_log import row

EVIL = "a\x1b[2Jb\x9bc\x00\u202ed"
SHOWN = r"a\x1b[2Jb\x9bc\x00\u202ed"


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


@pytest.fixture(autouse=True)
def usual_umask():
    """Files are readable by everybody unless somebody takes care."""
    before = os.umask(0o022)
    yield
    os.umask(before)


@given(st.text())
def test_visible_text_has_no_control_characters_and_else_is_unchanged(text: str) -> None:
    shown = visible(text)
    assert not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in shown if c not in "\n\t")
    if text.isprintable():
        assert shown == text


def test_the_console_writes_control_characters_out(capsys: pytest.CaptureFixture[str]) -> None:
    console = open_console()
    table = Table(title=Text(EVIL))
    table.add_column(Text(EVIL))
    table.add_row(Text(EVIL), "[bold]plain[/bold]")
    for shown in (EVIL, Text(EVIL), table):
        console.print(shown, markup=False)
    output = capsys.readouterr().out
    assert "\x1b" not in output and "\x9b" not in output and "\u202e" not in output
    assert output.count(SHOWN) >= 2


def test_an_error_writes_them_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", str(tmp_path / "no\x1b]0;title\x07.yaml")]) == 2
    message = capsys.readouterr().err
    assert "\x1b" not in message and r"\x1b]0;title\x07" in message


def test_the_card_writes_them_out() -> None:
    assert plain("Calm\x1b[31m|x") == r"Calm\x1b\[31m\|x"


FORMULAS = ["=1+1", "+1+cmd", "-1+cmd", "@SUM(A1)", "\t=1", "\r=1", ' =HYPERLINK("x")', "＝1"]


def test_cells_that_a_spreadsheet_would_compute_begin_with_an_apostrophe(tmp_path: Path) -> None:
    plain = ["Calm", "[1-2]", "-1", "+2.5", "a=b", ""]
    texts = FORMULAS + plain
    predictions = [
        Prediction("S", i, "Yes", "No", True, False, 3, text, (None,) * 5, text, text)
        for i, text in enumerate(texts)
    ]
    metrics = {"S": set_metrics(predictions, ("Yes", "No"), bootstrap_samples=0, seed=0)}
    folder = tmp_path / "deep" / "evaluation"
    write_evaluation(folder, metrics, predictions, include_text=True, title="t", context={})
    content = (folder / "predictions.csv").read_bytes().decode("utf-8")
    rows = list(csv.DictReader(io.StringIO(content, newline="")))
    assert [r["text"] for r in rows] == [*("'" + text for text in FORMULAS), *plain]
    assert [r["answer"] for r in rows] == [r["text"] for r in rows]
    assert mode(folder) == 0o700 and mode(folder / "predictions.csv") == 0o600


def test_a_folder_that_exists_keeps_its_mode(tmp_path: Path) -> None:
    write_completions(tmp_path, 1, [row()])
    assert mode(tmp_path / "completions") == 0o700
    assert mode(tmp_path / "completions" / "step_000001.parquet") == 0o600
    (tmp_path / "completions").chmod(0o750)
    write_completions(tmp_path, 2, [row()])
    assert mode(tmp_path / "completions") == 0o750


def test_built_sets_are_for_their_owner_only(tmp_path: Path) -> None:
    write_set(tmp_path / "csv")
    folder = build_set(check_set(tmp_path / "csv", MOOD), tmp_path / "tfds")
    assert mode(tmp_path / "tfds") == mode(folder) == 0o700
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files and {mode(path) for path in files} == {0o600}
    assert len(open_set(folder, "test")) == 6


def test_a_private_file_is_replaced_whole_and_never_open_to_others(tmp_path: Path) -> None:
    file = tmp_path / "posts"
    file.write_bytes(b"old")
    (tmp_path / "posts.tmp").write_bytes(b"left by a process that was killed")
    write_private(file, b"new")
    assert file.read_bytes() == b"new" and mode(file) == 0o600
    assert list(tmp_path.iterdir()) == [file]
