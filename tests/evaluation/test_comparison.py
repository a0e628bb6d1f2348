"""Two evaluations compared: the numbers by hand, the pairing, and refusals of what cannot pair."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binom

from mental_r1_jax.cli import main
from mental_r1_jax.errors import UserError
from mental_r1_jax.evaluation.clinical import LabelFacts, clinical_document
from mental_r1_jax.evaluation.comparison import check_same_posts, compare, flips
from mental_r1_jax.evaluation.finished import FinishedSet, evaluation_folder, read_evaluation
from mental_r1_jax.evaluation.metrics import set_metrics
from mental_r1_jax.evaluation.report import write_evaluation
from tests.evaluation.test_clinical import prediction

LABELS = ("=Yes", "No")  # a spreadsheet would take the first for a formula
POST = "a made-up post about tea"


def write(folder: Path, guesses: list[str | None], truth: list[str] | None = None, text=POST):
    """An evaluation of one set on disk."""
    truth = truth or ["=Yes", "No"] * (len(guesses) // 2)
    rows = [
        prediction(label, guess, row, text=text)
        for row, (label, guess) in enumerate(zip(truth, guesses, strict=True))
    ]
    metrics = {"Made-Up": set_metrics(rows, LABELS, bootstrap_samples=5, seed=0)}
    facts = LabelFacts(LABELS, ("=Yes",))
    further = {"Made-Up": clinical_document(rows, facts, samples=5, seed=0)}
    options = {"include_text": False, "title": "t", "context": {}, "further": further}
    write_evaluation(folder, metrics, rows, **options)
    return folder


FIRST = ["=Yes", "No", "=Yes", "No", "=Yes", None]
SECOND = ["=Yes", "=Yes", "No", "No", None, "No"]


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    found = read_evaluation(write(tmp_path, FIRST))["Made-Up"]
    assert found.labels == LABELS and found.positive == ("=Yes",)
    assert found.answers[0] == ("=Yes", "=Yes") and found.answers[5] == ("No", None)


def test_differences_and_mcnemar_by_hand(tmp_path: Path) -> None:
    """First: 5 of 6 right; second: 3 of 6. Alone right: rows 1, 2, 4 against row 5."""
    one, other = (
        read_evaluation(write(tmp_path / name, guesses))
        for name, guesses in (("a", FIRST), ("b", SECOND))
    )
    found = compare(one, other, samples=200, seed=0)["sets"]["Made-Up"]
    scores = found["scores"]
    assert scores["accuracy"]["first"]["value"] == pytest.approx(5 / 6)
    assert scores["accuracy"]["difference"]["value"] == pytest.approx(2 / 6)
    assert scores["sensitivity"]["difference"]["value"] == pytest.approx(1 - 1 / 3)
    assert found["mcnemar"]["only_first_right"] == 3
    assert found["mcnemar"]["only_second_right"] == 1
    assert found["mcnemar"]["p_value"] == pytest.approx(2 * binom.cdf(1, 4, 0.5))
    assert [(flip.row, flip.first, flip.second) for flip in flips(one, other)] == [
        (1, "No", "=Yes"),
        (2, "=Yes", "No"),
        (4, "=Yes", None),
        (5, None, "No"),
    ]
    assert found["flips"] == 4


def finished(answers: list[tuple[str, str | None]], posts: str | None = None) -> FinishedSet:
    return FinishedSet(LABELS, ("=Yes",), dict(enumerate(answers)), posts)


def test_an_evaluation_does_not_differ_from_itself() -> None:
    one = {"Made-Up": finished([("=Yes", "No"), ("No", "No"), ("No", None)])}
    found = compare(one, one, samples=50, seed=0)
    shown = found["sets"]["Made-Up"]
    assert shown["scores"]["weighted_f1"]["difference"] == {"value": 0.0, "interval": [0.0, 0.0]}
    assert shown["mcnemar"]["p_value"] == 1.0 and flips(one, one) == []
    assert found["average_difference"]["accuracy"]["value"] == 0.0


def test_the_bootstrap_is_paired() -> None:
    """Accuracies scatter by 0.05; the second is right wherever the first is, and on 5% more."""
    rng = np.random.default_rng(0)
    right = rng.random(200) < 0.5
    more = right | (np.arange(200) % 20 == 0)
    sides = [
        {"Made-Up": finished([("No", "No" if r else "=Yes") for r in side])}
        for side in (more, right)
    ]
    found = compare(*sides, samples=500, seed=0)["sets"]["Made-Up"]["scores"]["accuracy"]
    low, high = found["difference"]["interval"]
    gain = (more & ~right).mean()
    assert 0 < low < gain < high < gain + 3 * np.sqrt(gain / 200)
    alone = found["first"]["interval"]
    assert alone[1] - alone[0] > 2 * (high - low)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"Other": finished([("No", "No")])}, "the same sets"),
        ({"Made-Up": FinishedSet(("Yes", "No"), (), {0: ("No", "No")}, None)}, "labels"),
        ({"Made-Up": finished([("No", "No")] * 2)}, "1 rows"),
        ({"Made-Up": finished([("=Yes", "No")])}, "true labels"),
        ({"Made-Up": finished([("No", "No")], "two")}, "other texts"),
    ],
)
def test_other_posts_are_refused(other: dict[str, FinishedSet], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_same_posts({"Made-Up": finished([("No", "No")], "one")}, other)


def test_the_command_compares_two_folders_and_shows_no_post(tmp_path: Path, capsys) -> None:
    first = write(tmp_path / "a" / "evaluation" / "test", FIRST)
    second = write(tmp_path / "b", SECOND)
    assert main(["evaluate", str(tmp_path / "a"), "--against", str(second)]) == 0
    shown = capsys.readouterr().out
    assert "posts that flipped: 4" in shown and "unreadable" in shown
    lines = (first / "comparison.csv").read_text(encoding="utf-8").splitlines()
    rows = list(csv.DictReader(lines))
    assert [row["row"] for row in rows] == ["1", "2", "4", "5"]
    assert rows[1] == {
        "set_name": "Made-Up",
        "row": "2",
        "label": "'=Yes",
        "first": "'=Yes",
        "second": "No",
    }
    document = json.loads((first / "comparison.json").read_text(encoding="utf-8"))
    assert document["second"] == str(second)
    page = (first / "comparison.html").read_text(encoding="utf-8")
    assert "33.3" in page and "=Yes" in page
    for path in first.glob("comparison.*"):
        assert POST not in path.read_text(encoding="utf-8")
        assert path.stat().st_mode & 0o777 == 0o600


def test_mistakes_of_the_command(tmp_path: Path, capsys) -> None:
    first = write(tmp_path / "a", FIRST)
    other = write(tmp_path / "b", SECOND, text="another post")
    (tmp_path / "run").mkdir()
    write(tmp_path / "several" / "evaluation" / "test", FIRST)
    write(tmp_path / "several" / "evaluation" / "validation", FIRST)
    for second, keys, message in (
        (other, [], "other texts in the set"),
        (tmp_path / "run", [], "mental-r1 evaluate RUN"),
        (tmp_path / "several", [], "name one of them"),
        (other, ["evaluate.split=test"], "leave them out"),
    ):
        assert main(["evaluate", str(first), *keys, "--against", str(second)]) == 2
        assert message in capsys.readouterr().err
    assert evaluation_folder(first) == first


@pytest.mark.parametrize("name", ["metrics.json", "predictions.csv"])
def test_a_damaged_evaluation_is_one_message(name: str, tmp_path: Path) -> None:
    file = write(tmp_path, FIRST) / name
    for content in (b"", b"\xff{", b"set_name,row\nMade-Up,x\n", b"[1]"):
        file.write_bytes(content)
        with pytest.raises(UserError, match="cannot be read"):
            read_evaluation(tmp_path)
