"""Planted faults are found: an ignored stage, a biased reader; and nothing of a post is kept."""

from __future__ import annotations

import json
from collections.abc import Sequence
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from mental_r1_jax.cli import VERBS
from mental_r1_jax.config import TextConfig
from mental_r1_jax.data.records import Example
from mental_r1_jax.evaluation.audit_report import audit_sections, write_audits
from mental_r1_jax.evaluation.clinical import LabelFacts
from mental_r1_jax.evaluation.metrics import Prediction
from mental_r1_jax.prediction import audits
from mental_r1_jax.prediction.audit_groups import ATTRIBUTES, audit_groups, said_by
from mental_r1_jax.prediction.audit_stages import audit_stages
from mental_r1_jax.prediction.label_scores import LabelScorer
from mental_r1_jax.sharding import make_mesh
from mental_r1_jax.text.forced_answer import cut_at_answer
from mental_r1_jax.text.stages import GRAMMAR
from mental_r1_jax.text.tokenizer import wrap_tokenizer
from tests.text.conftest import byte_level

NAMES = [stage.name for stage in GRAMMAR.stages]
WORDS = ("calm", "sad", "glad", "tired")
LABELS = ("Yes", "No")
OPTIONS = {"samples": 20, "seed": 0}


def predictions_of(n: int = 12) -> list[Prediction]:
    """Completions whose stages hold words that differ from post to post."""
    rng = np.random.default_rng(0)
    made = []
    for row in range(n):
        stages = [f"{WORDS[(row + i) % 4]} {row}" for i in range(len(NAMES))]
        label = LABELS[rng.integers(2)]
        made.append(
            Prediction(
                set_name="Made-Up",
                row=row,
                label=label,
                prediction=label,
                well_formed=True,
                truncated=False,
                num_tokens=9,
                answer=label,
                stage_entropies=(None,) * len(NAMES),
                completion=GRAMMAR.render(stages, label),
                text=f"a secret {row}",
            )
        )
    return made


def reader(ignored: int):
    """p(Yes) from all words of the reasoning, but those of one stage."""

    def ask(changed: Sequence[tuple[int, str]]) -> list[tuple[float, float]]:
        found = []
        for _, text in changed:
            spans = GRAMMAR.parse(text).stage_spans
            read = [text[slice(*s)] for i, s in enumerate(spans) if s and i != ignored]
            score = sum(sum(map(ord, part)) * 7919 % 101 - 50 for part in read) + 0.5
            p = 1 / (1 + np.exp(-score / 20))
            found.append((p, 1 - p))
        return found

    return ask


@pytest.mark.parametrize("ignored", range(len(NAMES)))
def test_a_stage_that_is_ignored_has_no_effect_and_the_others_have(ignored: int) -> None:
    found = audit_stages(predictions_of(60), reader(ignored), **OPTIONS)["sets"]["Made-Up"]
    assert list(found["stages"]) == NAMES and found["n"] == 60
    for place, stage in enumerate(NAMES):
        for kind in ("swap", "cut"):
            one = found["stages"][stage][kind]
            assert one["n"] == 60
            if place == ignored:
                assert one["flip_rate"] == {"value": 0.0, "interval": [0.0, 0.0]}
                assert one["p_change"]["value"] == 0.0
            else:
                assert one["p_change"]["value"] > 0.02
                assert one["flip_rate"]["value"] > 0.1 or kind == "cut"
    assert found["stages"][NAMES[-1]]["cut"]["agreement"]["value"] == 1.0


def test_what_is_asked_about_is_the_reasoning_with_one_change() -> None:
    """By hand, for the second stage of two posts."""
    asked: list[tuple[int, str]] = []

    def ask(changed):
        asked.extend(changed)
        return [(0.5, 0.5)] * len(changed)

    predictions = predictions_of(2)
    audit_stages(predictions, ask, **OPTIONS)
    first = predictions[0].completion
    assert (0, first[: first.index("<answer>")]) in asked
    swapped = first.replace("sad 0</primary_appraisal>", "glad 1</primary_appraisal>")
    assert (0, cut_at_answer(swapped)[0]) in asked
    assert (0, "calm 0</stimulus>") in asked and (0, "") in asked
    after = "calm 0</stimulus>\n<primary_appraisal>sad 0</primary_appraisal>"
    assert (0, after) in asked
    # Whole, one swap a stage, and the beginnings: nothing is asked twice.
    assert len(asked) == len(set(asked)) == 2 * (1 + len(NAMES) + len(NAMES) + 1)


def test_a_stage_that_is_missing_everywhere_is_not_defined() -> None:
    """And one that all posts have alike cannot be swapped."""
    both = [
        Prediction(**(vars(p) | {"completion": "tea</stimulus>\n<answer>Yes</answer>"}))
        for p in predictions_of(2)
    ]
    stages = audit_stages(both, reader(9), **OPTIONS)["sets"]["Made-Up"]["stages"]
    assert stages["mental_state"]["cut"]["flip_rate"] == {"value": None, "interval": None}
    assert stages["stimulus"]["cut"]["n"] == 2 and stages["stimulus"]["swap"]["n"] == 0


def posts_of(predictions: Sequence[Prediction]) -> list[Example]:
    return [Example(p.set_name, "test", p.row, p.text, p.label, "Q: ") for p in predictions]


def answers(biased: Sequence[str] = ()):
    """The true label, but never "Yes" to a writer of whom a biased reader thinks little."""

    def answer(posts: Sequence[Example]) -> list[Prediction]:
        blank = vars(predictions_of(1)[0])
        return [
            Prediction(
                **blank
                | {
                    "row": post.row,
                    "label": post.label,
                    "text": post.text,
                    "prediction": "No"
                    if any(post.text.startswith(f"As a {word}, ") for word in biased)
                    else post.label,
                }
            )
            for post in posts
        ]

    return answer


def group_audit(biased: Sequence[str]):
    predictions = predictions_of(40)
    posts = posts_of(predictions)
    facts = {"Made-Up": LabelFacts(LABELS, ("Yes",))}
    return audit_groups(posts, predictions, facts, answers(biased), **OPTIONS)["sets"]["Made-Up"]


def test_a_biased_reader_is_found_where_it_is_biased() -> None:
    found = group_audit(["woman"])
    positive = np.mean([p.label == "Yes" for p in predictions_of(40)])
    gender = found["gender"]
    assert gender["values"]["woman"]["flip_rate"]["value"] == pytest.approx(positive)
    assert gender["values"]["woman"]["sensitivity"]["value"] == 0.0
    assert gender["values"]["man"]["flip_rate"] == {"value": 0.0, "interval": [0.0, 0.0]}
    assert gender["gaps"]["equalised_odds"] == {"value": 1.0, "interval": [1.0, 1.0]}
    assert gender["gaps"]["specificity"]["value"] == 0.0
    for attribute in ATTRIBUTES.keys() - {"gender"}:
        assert found[attribute]["gaps"]["equalised_odds"]["value"] == 0.0


def test_the_beginning_is_an_english_sentence() -> None:
    post = posts_of(predictions_of(1))[0]
    assert said_by(post, "older person").text == "As an older person, a secret 0"
    assert said_by(post, "Muslim").text == "As a Muslim, a secret 0"
    assert len({v for values in ATTRIBUTES.values() for v in values}) == sum(
        map(len, ATTRIBUTES.values())
    )


def test_files_and_report_hold_numbers_and_nothing_of_a_post(tmp_path) -> None:
    predictions = predictions_of()
    documents = {
        "stages": audit_stages(predictions, reader(1), **OPTIONS),
        "groups": audit_groups(
            posts_of(predictions),
            predictions,
            {"Made-Up": LabelFacts(LABELS, ("Yes",))},
            answers(["man"]),
            **OPTIONS,
        ),
    }
    for name in ("audit_memory.json", "comparison.csv", "notes.txt"):
        (tmp_path / name).write_text("of an earlier evaluation")
    write_audits(tmp_path, documents)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"audit_stages.json", "audit_groups.json", "notes.txt"}
    assert json.loads((tmp_path / "audit_stages.json").read_text()) == documents["stages"]
    page = "".join(audit_sections(documents))
    for text in (page, *(path.read_text() for path in tmp_path.glob("*.json"))):
        assert "secret" not in text and not any(f"{word} 1" in text for word in WORDS)
    assert "primary appraisal" in page and "equalised odds" in page and "100.0" in page


def test_the_command_offers_the_audits_that_there_are() -> None:
    offered = VERBS["evaluate"].options["--audit"]
    assert offered["choices"] == list(audits.AUDITS)


def test_the_audit_of_stages_runs_on_tokens() -> None:
    """A model in tokens that goes by the third stage alone: the whole way but the network."""
    chatml, third = wrap_tokenizer(byte_level()), NAMES[2]

    def logprobs(params, traces):
        found = np.zeros(traces.completion_ids.shape, np.float32)
        for row, (ids, mask) in enumerate(
            zip(np.asarray(traces.prompt_ids), np.asarray(traces.prompt_mask), strict=True)
        ):
            text = chatml.decode(ids[mask].tolist()).text.rpartition("assistant\n")[2]
            content = text.partition(f"<{third}>")[2].partition("<")[0]
            found[row, 0, 0] = sum(map(ord, content)) % 7
        return jax.numpy.asarray(found)

    mesh = make_mesh(1, 1, 1, jax.devices()[:1])
    config = SimpleNamespace(
        evaluate=SimpleNamespace(batch_size=5, bootstrap_samples=5),
        rollout=SimpleNamespace(max_prompt_length=1500),
        run=SimpleNamespace(seed=0),
        text=TextConfig(),
    )
    scorer = LabelScorer(logprobs, mesh, (2000,), chatml.pad_id)
    predictor = SimpleNamespace(
        config=config, labels=scorer, mesh=mesh, model=SimpleNamespace(tokenizer=chatml)
    )
    predictions = predictions_of(4)
    facts = {"Made-Up": LabelFacts(LABELS, ("Yes",))}
    done = audits.Evaluated(predictor, {}, posts_of(predictions), predictions, facts)
    found = audits.run_audits(["stages"], done)["stages"]["sets"]["Made-Up"]["stages"]
    for name in NAMES:
        moved = [found[name][kind]["p_change"]["value"] for kind in ("swap", "cut")]
        assert all(m > 0.01 for m in moved) if name == third else moved == [0.0, 0.0]
