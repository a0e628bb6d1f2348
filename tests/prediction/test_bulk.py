"""Unlabelled posts in bulk: every row once, whatever the batches and wherever the work went on."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import jax.numpy as jnp
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mental_r1_jax.data.benchmarks import spec_for
from mental_r1_jax.data.unlabelled import UnlabelledPost
from mental_r1_jax.errors import UserError
from mental_r1_jax.prediction import bulk
from mental_r1_jax.prediction.bulk import Asking, Record, answer_posts, columns_of, vote_share
from mental_r1_jax.text.stages import GRAMMAR
from tests.every_field.toys import STAGE_TEXTS
from tests.prediction.conftest import LENGTH

SPEC = spec_for("Stress-Synthetic")
ASKING = Asking(SPEC)


def posts_of(*texts: str) -> list[UnlabelledPost]:
    return [UnlabelledPost(row, text, f"id {row}") for row, text in enumerate(texts)]


def by_row(batches: Iterable[list[Record]]) -> list[Record]:
    return sorted((record for batch in batches for record in batch), key=lambda r: r["row"])


def labelled(row: int, vote: int) -> str:
    """Rows 0, 2, 4, ... are answered by the first label, the others by the second."""
    return GRAMMAR.render(STAGE_TEXTS, SPEC.labels[row % 2])


def test_an_answer_is_told_whole(predictor, script) -> None:
    script(labelled)
    asking = Asking(SPEC, with_id=True, include_text=True)
    ((record,),) = answer_posts(predictor(), {}, posts_of("tea"), asking)
    assert record == {
        "row": 0,
        "id": "id 0",
        "label": SPEC.labels[0],
        "confidence": None,
        "abstained": False,
        "well_formed": True,
        "flags": [],
        "num_tokens": record["num_tokens"],
        "answer": SPEC.labels[0],
        "stage_stimulus": "tea",
        "stage_primary_appraisal": "it is warm",
        "stage_secondary_appraisal": "there is more",
        "stage_reaction": "calm and glad",
        "stage_mental_state": "fine",
        "text": "tea",
    }
    tokenizer = predictor().model.tokenizer
    assert record["num_tokens"] == len(tokenizer.encode(labelled(0, 0))) + 1
    assert list(record) == columns_of(asking)
    assert not {"id", "text"} & set(columns_of(ASKING))


def test_odd_posts_are_flagged_and_none_is_lost(predictor, script) -> None:
    asked = script(labelled)
    long = "post about tea " * 400
    texts = ["", "tea", "  \n", "te\0a", "\0", long, "broken \ud800 tea", "tea", "\ud83d"]
    (empty, *filled) = answer_posts(predictor(), {}, posts_of(*texts), ASKING)
    flags = {record["row"]: record["flags"] for record in empty}
    assert flags == {0: ["empty"], 2: ["empty"], 4: ["empty", "nul"]}
    assert all(r["abstained"] and r["label"] is None and not r["well_formed"] for r in empty)
    records = {record["row"]: record for batch in filled for record in batch}
    assert {row: record["flags"] for row, record in records.items()} == {
        1: [],
        3: ["nul"],
        5: ["post_truncated"],
        6: ["broken_unicode"],
        7: [],
        8: ["broken_unicode"],
    }
    # Equal posts are both answered, each as the row that it is.
    assert {row: record["label"] for row, record in records.items()} == {
        row: SPEC.labels[row % 2] for row in (1, 3, 5, 6, 7, 8)
    }
    assert sorted(row for _, rows, _ in asked.asked for row in set(rows)) == sorted(records)


def test_batches_hold_posts_of_like_length_and_the_last_is_filled(predictor, script) -> None:
    asked = script(labelled)
    short, long = "tea", "post about tea " * 400
    list(
        answer_posts(predictor(batch_size=2), {}, posts_of(long, short, long, short, short), ASKING)
    )
    assert [rows for _, rows, _ in asked.asked] == [[1, 3], [4, 0], [2, 2]]
    for prompts, _, shape in asked.asked:
        assert shape.shared and max(len(one.ids) for one in prompts) <= shape.shared + shape.rest


def test_an_answer_that_does_not_end_or_cannot_be_read(predictor, script) -> None:
    endless = "tea " * (2 * LENGTH)
    script(lambda row, vote: [endless, "<answer>perhaps</answer>", "fine</stimulus>"][row])
    first, second, third = by_row(answer_posts(predictor(), {}, posts_of("a", "b", "c"), ASKING))
    assert first["flags"] == ["answer_truncated"] and first["num_tokens"] == LENGTH
    assert second["answer"] == "perhaps" and second["flags"] == []
    assert third["stage_stimulus"] == "fine" and third["stage_reaction"] is None
    for record in (first, second, third):
        assert record["abstained"] and record["label"] is None and not record["well_formed"]


def test_confidence_is_the_share_of_the_votes_and_a_threshold_abstains(predictor, script) -> None:
    """Of row r, r of the four votes are for the second label and one is unreadable."""
    yes, no = SPEC.labels[:2]

    def votes(row: int, vote: int) -> str:
        answer = "?" if vote == 3 else no if vote < row else yes
        return GRAMMAR.render(STAGE_TEXTS, answer)

    script(votes)
    asking = Asking(SPEC, min_confidence=0.6)
    records = by_row(answer_posts(predictor(num_votes=4), {}, posts_of(*"abcd"), asking))
    told = [(r["label"], r["confidence"], r["abstained"]) for r in records]
    assert told == [(yes, 0.75, False), (yes, 0.5, True), (no, 0.5, True), (no, 0.75, False)]
    assert vote_share([None, None]) is None and vote_share(["Yes"]) is None
    assert vote_share(["Yes", None, "No", "Yes"]) == 0.5


def test_logits_that_are_no_numbers_are_refused(predictor, script, monkeypatch) -> None:
    one = script(labelled)

    def broken(*arguments):
        completions = one(*arguments)
        wrong = completions.decode_logprobs.at[0, 0, 0].set(jnp.nan)
        return dataclasses.replace(completions, decode_logprobs=wrong)

    monkeypatch.setattr(bulk, "ask", broken)
    with pytest.raises(UserError, match="NaN or infinity at 1 of"):
        list(answer_posts(predictor(), {}, posts_of("tea"), ASKING))


@given(
    lengths=st.lists(st.integers(0, 6), min_size=1, max_size=40),
    size=st.integers(1, 5),
    done=st.integers(0, 12),
)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_row_comes_once_and_the_rest_is_the_same_wherever_it_goes_on(
    predictor, script, lengths, size, done
) -> None:
    asked = script(labelled)
    posts = posts_of(*("tea " * length for length in lengths))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bulk, "WINDOW_BATCHES", 3)
        whole = list(answer_posts(predictor(batch_size=size), {}, posts, ASKING))
        shapes = [shape for *_, shape in asked.asked]
        asked.asked.clear()
        rest = list(answer_posts(predictor(batch_size=size), {}, iter(posts), ASKING, done))
    rows = [record["row"] for batch in whole for record in batch]
    assert sorted(rows) == list(range(len(posts)))
    assert max(map(len, whole)) <= max(3 * size, size)
    # No row is further from its place than a window.
    assert all(row // (3 * size) <= place // (3 * size) for place, row in enumerate(rows))
    assert rest == whole[done:]
    # What is run for them is the same, too: other shapes could round otherwise.
    assert [shape for *_, shape in asked.asked] == shapes[len(shapes) - len(asked.asked) :]
    assert len({one.shared for one in shapes}) <= 1  # one for the question, whatever a window has
