"""The reading room: who is chosen, what is shown, what is marked, and what is never obeyed."""

from __future__ import annotations

import dataclasses
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from mental_r1_jax.config import STAGE_NAMES, EvaluateConfig
from mental_r1_jax.evaluation.kept_batches import KeptBatches
from mental_r1_jax.evaluation.metrics import Prediction, set_metrics
from mental_r1_jax.evaluation.reading_room import choose, reading_room
from mental_r1_jax.evaluation.report import write_evaluation
from tests.evaluation.completions import answered, packed

TEXTS = ["tea is cold", "it may matter", "a friend", "calm then sad", "a low mood"]
POST = "nobody wrote <this>"


def mood(row: int, last: float, *, right: bool = True, name: str = "Mood") -> Prediction:
    entropies = [1.5, 1.0, 0.8, 0.5, last]
    return answered(name, row, "Calm", "Calm" if right else "Low", TEXTS, entropies, POST)


class Page(HTMLParser):
    """The elements of a page: (tag, attributes, text inside)."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[list] = []
        self.all: list[tuple[str, dict, list[str]]] = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        element = (tag, dict(attrs), [])
        self.open.append(element)
        self.all.append(element)

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        for element in self.open:
            element[2].append(data)

    def texts(self, tag: str, kind: str = "") -> list[str]:
        found = [e for e in self.all if e[0] == tag and kind in (e[1].get("class") or "")]
        return ["".join(text) for _, _, text in found]


def room(predictions: list[Prediction], number: int = 4, include_text: bool = False) -> Page:
    html = reading_room(predictions, number=number, stages=STAGE_NAMES, include_text=include_text)
    return Page(html)


def test_the_most_and_the_least_certain_are_chosen_by_the_last_stage() -> None:
    many = [mood(row, last) for row, last in enumerate((0.5, 0.1, 0.9, 0.1, 0.3, 0.7))]
    chosen = [(one.prediction.row, one.rank) for one in choose(many, 4)]
    certain, uncertain = "most certain", "least certain"
    assert chosen == [(1, certain), (3, certain), (5, uncertain), (2, uncertain)]
    assert [one.prediction.row for one in choose(many, 3)] == [1, 3, 2]
    assert [one.prediction.row for one in choose(many, 1)] == [1]
    assert [one.prediction.row for one in choose(many, 99)] == [1, 3, 4, 0, 5, 2]
    assert choose(many, 0) == [] and choose([], 4) == []


def test_a_completion_without_the_last_stage_only_fills_up() -> None:
    without = [
        dataclasses.replace(mood(row, 0.0), stage_entropies=(1.0, None, None, None, None))
        for row in (7, 6)
    ]
    with_it = [mood(0, 0.2), mood(1, 0.4)]
    ranks = [(one.prediction.row, one.rank) for one in choose([*without, *with_it], 3)]
    assert ranks == [(0, "most certain"), (1, "most certain"), (6, "no last stage")]
    assert [one.prediction.row for one in choose([*without, *with_it], 2)] == [0, 1]


def test_right_and_wrong_answers_of_every_set_are_shown() -> None:
    page = room([mood(0, 0.1), mood(1, 0.2, right=False), mood(2, 0.3, name="Other")], 2)
    assert page.texts("h3") == ["Mood", "Other"]
    assert page.texts("h4") == [*["Right answers", "Wrong answers"], "Right answers"] + [
        "Wrong answers: none"
    ]
    assert page.texts("summary") == [
        "most certain: row 0, label Calm, answer Calm, last stage 0.10 nats",
        "most certain: row 1, label Calm, answer Low, last stage 0.20 nats",
        "most certain: row 2, label Calm, answer Calm, last stage 0.30 nats",
    ]
    assert [e[1].get("open", "no") for e in page.all if e[0] == "details"] == [None, "no", "no"]


def test_every_stage_has_its_name_mean_and_text() -> None:
    page = room([mood(0, 0.2)])
    expected = [
        f"{name.replace('_', ' ')} mean {mean:.2f} nats, {len(text.split())} tokens"
        for name, mean, text in zip(STAGE_NAMES, (1.5, 1.0, 0.8, 0.5, 0.2), TEXTS, strict=True)
    ]
    assert page.texts("h5") == [*expected, "answer 1 token"]
    shown = page.texts("p", "tokens")
    assert [text for text in shown if "<" not in text] == [*TEXTS, "Calm"]
    # Nothing is left out: all paragraphs together are the completion.
    assert "".join(shown) == mood(0, 0.2).completion.replace("\ufffd", "")


def test_tokens_are_shaded_by_their_entropy_and_named() -> None:
    page = room([mood(0, 0.2)])
    spans = {"".join(e[2]): e[1] for e in page.all if e[0] == "span" and "title" in e[1]}
    assert spans["tea"] == {"class": "e4", "title": "1.50"}
    assert spans[" friend"] == {"class": "e3", "title": "0.80"}
    assert spans[" low"] == {"class": "e1", "title": "0.20"}
    assert spans["Calm"] == {"title": "0.00"}
    assert "Least certain: tea 1.50; is 1.50; cold 1.50" in page.texts("p", "soft")
    assert "No token of 0.1 nats or more." in page.texts("p", "soft")


def test_malformed_text_is_shown_once_and_whole() -> None:
    """Stages that overlap, a token over a stage's edge, an end in the middle of a character."""
    tokens = [b"ab", b"c<x", b">d", b"e\xf0\x9f"]
    text = b"".join(tokens).decode("utf-8", "surrogateescape")
    record = packed(tokens, [0.2, 0.5, 0.0, 3.0], [(0, 3), (2, 8), None, None, None])
    odd = dataclasses.replace(
        mood(0, 0.2), completion=text, tokens=record, stage_entropies=(1.0, 2.0, None, None, None),
        well_formed=False,
    )  # fmt: skip
    page = room([odd])
    assert page.texts("p", "tokens") == ["abc", "<x>de", "\ufffd\ufffd"]
    assert [text for text in page.texts("p", "soft") if "certain:" in text] == [
        "Least certain: c<x 0.50; ab 0.20",
        "Least certain: e\ufffd\ufffd 3.00; c<x 0.50",
        "Least certain: e\ufffd\ufffd 3.00",
    ]
    spans = [("".join(e[2]), e[1].get("class")) for e in page.all if e[0] == "span"]
    assert spans[6:] == [
        ("ab", "e1"), ("c", "e2"), ("<x", "e2"), (">d", None), ("e", "e5"), ("\ufffd\ufffd", "e5"),
    ]  # fmt: skip
    assert "least certain" not in "".join(page.texts("summary"))


def test_markup_and_signs_that_turn_or_hide_text_are_shown_not_obeyed() -> None:
    texts = [
        *("<script>alert(1)</script>", "a\u202eb", "c\x00\x1b[2J"),
        *("شكرا\u200cلك &amp;", "\u200b\u2028"),
    ]
    html = reading_room(
        [answered("<b>", 0, "<i>", "<u>", texts, [0.0] * 5)],
        number=1, stages=STAGE_NAMES, include_text=False,
    )  # fmt: skip
    assert not re.search(r"<(script|b|i|u)>", html)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u2028\u202e]", html)
    shown = Page(html).texts("p", "tokens")
    assert shown[0] == "<script>alert(1)</script>" and "شكرا\u200cلك &amp;" in shown
    assert "a⟨U+202E⟩b" in shown and "c⟨U+0000⟩⟨U+001B⟩[2J" in shown
    assert "⟨U+200B⟩⟨U+2028⟩" in shown
    assert all(
        e[1].get("dir") == "auto" for e in Page(html).all if e[1].get("lang") == "" and e[0] == "p"
    )


def test_posts_are_shown_only_on_request() -> None:
    assert POST not in "".join(room([mood(0, 0.1)]).texts("details"))
    page = room([mood(0, 0.1)], include_text=True)
    assert page.texts("h5")[-1] == "The post" and page.texts("p", "tokens")[-1] == POST


def written(folder: Path, **changes) -> Path:
    predictions = [mood(0, 0.1), mood(1, 0.2, right=False)]
    metrics = {"Mood": set_metrics(predictions, ("Calm", "Low"), bootstrap_samples=0, seed=0)}
    options = {"include_text": False, "title": "t", "context": {}}
    write_evaluation(folder, metrics, predictions, **(options | changes))
    return folder / "report.html"


def test_a_report_with_a_reading_room_is_for_its_owner_only(tmp_path: Path) -> None:
    plain = written(tmp_path)
    assert "tea is cold" not in plain.read_text() and "Reading room" not in plain.read_text()
    assert plain.stat().st_mode & 0o777 != 0o600
    shown = written(tmp_path, shown_answers=1)
    assert "Reading room" in shown.read_text() and shown.stat().st_mode & 0o777 == 0o600
    assert not re.search(r"https?://|url\(|@import|<script", shown.read_text())


@pytest.mark.parametrize(
    ("keys", "number"),
    [({}, 0), ({"include_text": True}, 4), ({"reading_room": 2}, 2)]
    + [({"reading_room": 0, "include_text": True}, 0)],
)
def test_no_completion_is_shown_unless_asked_for(keys: dict, number: int) -> None:
    assert EvaluateConfig(**keys).shown_answers == number


def test_predictions_without_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="not kept"):
        room([dataclasses.replace(mood(0, 0.1), tokens=None)])


def test_a_resumed_evaluation_shows_the_same_room(tmp_path: Path) -> None:
    predictions = [mood(0, 0.1), mood(1, 0.2, right=False)]
    keep = KeptBatches(tmp_path, "a")
    keep.write("f" * 64, predictions)
    again = keep.read("f" * 64, predictions)
    assert again == predictions
    options = {"number": 2, "stages": STAGE_NAMES, "include_text": True}
    assert reading_room(again, **options) == reading_room(predictions, **options)
