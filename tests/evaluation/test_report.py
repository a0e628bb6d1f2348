import csv
import dataclasses
import io
import json
import re
from html.parser import HTMLParser

import pytest
from rich.console import Console

from mental_r1_jax.evaluation.metrics import Prediction, metrics_document, set_metrics
from mental_r1_jax.evaluation.report import console_table, write_evaluation

POST = "a made-up post, with a comma"
COMPLETION = 'quotes the "made-up post"</stimulus> \udcff'
SETS = {"Pair-Synthetic": ("Yes", "No"), "Angle-Synthetic": ("<b>mild</b>", "severe & more")}


def predictions_of(name, labels):
    guesses = [labels[0], labels[1], None, labels[0]]
    return [
        Prediction(
            set_name=name,
            row=row,
            label=labels[row % 2],
            prediction=guess,
            well_formed=guess is not None,
            truncated=row == 2,
            num_tokens=20 + row,
            answer=None if guess is None else f"{guess} because of the secret",
            stage_entropies=(1.5, None, 0.75, 0.5, 0.25),
            completion=COMPLETION,
            text=POST,
        )
        for row, guess in enumerate(guesses)
    ]


@pytest.fixture
def evaluation():
    predictions = {name: predictions_of(name, labels) for name, labels in SETS.items()}
    metrics = {
        name: set_metrics(predictions[name], labels, bootstrap_samples=50, seed=0)
        for name, labels in SETS.items()
    }
    return metrics, [p for of_set in predictions.values() for p in of_set]


def write(folder, evaluation, **changes):
    metrics, predictions = evaluation
    options = {"include_text": False, "title": "A <title>", "context": {"model": "x & y"}}
    write_evaluation(folder, metrics, predictions, **(options | changes))


def test_metrics_file_is_the_document(tmp_path, evaluation):
    write(tmp_path / "deep" / "folder", evaluation, checkpoint=300)
    text = (tmp_path / "deep" / "folder" / "metrics.json").read_text()
    assert json.loads(text) == metrics_document(evaluation[0]) | {"checkpoint": 300}


def test_nothing_is_left_behind_and_a_second_evaluation_replaces_the_first(tmp_path, evaluation):
    write(tmp_path, evaluation, title="the old one")
    write(tmp_path, evaluation, title="the new one")
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"metrics.json", "predictions.csv", "report.html"}
    assert "the new one" in (tmp_path / "report.html").read_text()
    assert "the old one" not in (tmp_path / "report.html").read_text()


def test_posts_stay_out_of_every_file_unless_asked(tmp_path, evaluation):
    write(tmp_path, evaluation)
    for path in tmp_path.iterdir():
        text = path.read_text(encoding="utf-8")
        assert "made-up post" not in text
        assert "secret" not in text


def test_predictions_hold_one_line_a_post(tmp_path, evaluation):
    write(tmp_path, evaluation)
    rows = list(csv.DictReader(io.StringIO((tmp_path / "predictions.csv").read_text())))
    assert len(rows) == 8
    assert rows[0]["set_name"] == "Pair-Synthetic"
    assert [row["prediction"] for row in rows[:4]] == ["Yes", "No", "", "Yes"]
    assert [row["correct"] for row in rows[:4]] == ["True", "True", "False", "False"]
    assert rows[0]["entropy_stimulus"] == "1.500000"
    assert rows[0]["entropy_primary_appraisal"] == ""
    assert "text" not in rows[0]


def test_texts_are_written_when_asked_for_even_with_broken_utf8(tmp_path, evaluation):
    write(tmp_path, evaluation, include_text=True)
    text = (tmp_path / "predictions.csv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(io.StringIO(text)))
    assert rows[0]["text"] == POST
    assert rows[0]["completion"] == COMPLETION.replace("\udcff", "?")
    assert rows[0]["answer"] == "Yes because of the secret"
    assert "made-up post" not in (tmp_path / "report.html").read_text()


class Balance(HTMLParser):
    """Checks that every tag that is opened is closed, in order."""

    def __init__(self):
        super().__init__()
        self.open, self.tags = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in ("meta", "circle", "line", "rect"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)


def test_report_is_well_formed_escaped_and_self_contained(tmp_path, evaluation):
    write(tmp_path, evaluation)
    page = (tmp_path / "report.html").read_text()
    parser = Balance()
    parser.feed(page)
    assert parser.open == []
    assert parser.tags.count("svg") == 1 + len(SETS)
    assert not {"script", "link", "img", "iframe"} & set(parser.tags)
    assert not re.search(r"https?://|url\(|@import", page)
    assert "&lt;b&gt;mild&lt;/b&gt;" in page and "<b>" not in page
    assert "A &lt;title&gt;" in page and "x &amp; y" in page
    assert "no diagnosis" in page


def test_report_shows_the_numbers(tmp_path, evaluation):
    write(tmp_path, evaluation)
    page = (tmp_path / "report.html").read_text()
    # Yes: TP 1, predicted 2, support 2; No: TP 1, predicted 1, support 2.
    assert f"{100 * (1 / 2 + 2 / 3) / 2:.1f}" in page
    assert "1.500" in page and "none" in page  # entropy of stage 1, and of the missing stage 2


def test_drawings_say_their_numbers_to_those_who_do_not_see_them(tmp_path, evaluation):
    write(tmp_path, evaluation)
    page = (tmp_path / "report.html").read_text()
    labels = re.findall(r'role="img" aria-label="([^"]+)"', page)
    stages = "stimulus 1.500, primary appraisal none, secondary appraisal 0.750, reaction 0.500"
    assert [stages in label for label in labels] == [False, True, True]


def test_the_interval_of_the_chart_is_in_the_table_too(tmp_path, evaluation):
    write(tmp_path, evaluation)
    page = (tmp_path / "report.html").read_text()
    for one in evaluation[0].values():
        low, high = one.weighted_f1_interval
        assert f"<td>{100 * low:.1f} to {100 * high:.1f}</td>" in page


def test_missing_interval_and_entropies_are_shown_as_missing(tmp_path):
    predictions = predictions_of("Pair-Synthetic", ("Yes", "No"))
    empty = [p.__class__(**(vars(p) | {"stage_entropies": (None,) * 5})) for p in predictions]
    metrics = {"Pair-Synthetic": set_metrics(empty, ("Yes", "No"), bootstrap_samples=0, seed=0)}
    write(tmp_path, (metrics, empty))
    assert 'class="reach"' not in (tmp_path / "report.html").read_text()
    Console(file=io.StringIO()).print(console_table(metrics))


def test_console_table_is_in_percent_and_ends_with_the_average(evaluation):
    buffer = io.StringIO()
    Console(file=buffer, width=140).print(console_table(evaluation[0]))
    lines = [line for line in buffer.getvalue().splitlines() if "Pair" in line or "average" in line]
    assert "58.3" in lines[0] and "75.0" in lines[0]
    assert "58.3" in lines[-1]


def test_other_stages_are_in_every_file_under_their_names(tmp_path):
    names = ("night", "原因", "judgement")
    predictions = [
        dataclasses.replace(p, stage_entropies=(0.5, None, 0.25))
        for p in predictions_of("Pair-Synthetic", SETS["Pair-Synthetic"])
    ]
    metrics = set_metrics(
        predictions, SETS["Pair-Synthetic"], bootstrap_samples=5, seed=0, stages=names
    )
    write(tmp_path, ({"Pair-Synthetic": metrics}, predictions))
    document = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    entropies = document["sets"]["Pair-Synthetic"]["stage_entropies"]
    assert entropies == {"night": 0.5, "原因": None, "judgement": 0.25}
    rows = list(csv.DictReader(io.StringIO((tmp_path / "predictions.csv").read_text("utf-8"))))
    columns = [key for key in rows[0] if key.startswith("entropy_")]
    assert columns == ["entropy_night", "entropy_原因", "entropy_judgement"]
    assert [rows[0][key] for key in columns] == ["0.500000", "", "0.250000"]
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert all(name in page for name in names) and "stimulus" not in page and "five" not in page
    with pytest.raises(ValueError, match="expected 5 stage entropies a prediction, got .3."):
        set_metrics(predictions, SETS["Pair-Synthetic"], bootstrap_samples=5, seed=0)
