"""Clinical numbers against scikit-learn, published golden values and numbers worked out by hand."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from sklearn import metrics as sk

from mental_r1_jax.evaluation.clinical import LabelFacts, answer_confidence, clinical_document
from mental_r1_jax.evaluation.groups import MOST_GROUPS, SMALLEST_GROUP
from mental_r1_jax.evaluation.metrics import Prediction

DEGREES = ("none", "some", "much", "most")


def prediction(label: str, guess: str | None, row: int = 0, **changes: Any) -> Prediction:
    fields: dict[str, Any] = {
        "set_name": "Made-Up",
        "row": row,
        "label": label,
        "prediction": guess,
        "well_formed": True,
        "truncated": False,
        "num_tokens": 10,
        "answer": guess,
        "stage_entropies": (1.0, 0.8, 0.6, 0.4, 0.2),
        "completion": "c",
        "text": "t",
    }
    return Prediction(**(fields | changes))


def document(predictions: list[Prediction], *facts: Any, samples: int = 50) -> dict[str, Any]:
    found = clinical_document(predictions, LabelFacts(*facts), samples=samples, seed=0)
    return json.loads(json.dumps(found, allow_nan=False))


def values(part: dict[str, Any]) -> dict[str, float]:
    return {key: one["value"] for key, one in part.items()}


def random_answers(seed: int, labels: tuple[str, ...], n: int = 200, unreadable: float = 0.1):
    """Predictions with probabilities that mean something."""
    rng = np.random.default_rng(seed)
    found = []
    for row in range(n):
        p = rng.dirichlet(np.ones(len(labels)))
        guess = None if rng.random() < unreadable else labels[int(p.argmax())]
        label = labels[rng.choice(len(labels), p=p)]
        found.append(
            prediction(label, guess, row, probabilities=dict(zip(labels, p.tolist(), strict=True)))
        )
    return found


def test_rates_by_hand_and_an_unreadable_answer_is_no_call() -> None:
    """Positive: 3 found, 1 missed, 1 unreadable. Negative: 2 called so, 1 called positive."""
    rows = [("Yes", "Yes")] * 3 + [("Yes", "No"), ("Yes", None), ("No", "Yes")] + [("No", "No")] * 2
    found = document([prediction(*row) for row in rows], ("Yes", "No"), ("Yes",))
    assert values(found["clinical"]) == {
        "sensitivity": pytest.approx(3 / 5),
        "specificity": pytest.approx(2 / 3),
        "ppv": pytest.approx(3 / 4),
        "npv": pytest.approx(2 / 3),
        "auroc": None,  # without probabilities there is nothing to rank by
        "auprc": None,
    }
    assert found["calibration"] is found["reliability"] is found["risk_coverage"] is None
    assert found["ordinal"] is found["one_vs_rest"] is found["groups"] is None
    low, high = found["clinical"]["sensitivity"]["interval"]
    assert 0 <= low < 3 / 5 < high <= 1


def test_several_positive_labels_are_one_call() -> None:
    """The wrong degree is still a found post."""
    rows = [("some", "most"), ("much", "none"), ("none", "none"), ("none", "some")]
    found = document([prediction(*row) for row in rows], DEGREES, DEGREES[1:], True)
    shown = values(found["clinical"])
    assert (shown["sensitivity"], shown["specificity"], shown["ppv"], shown["npv"]) == (0.5,) * 4
    assert values(found["one_vs_rest"]["none"])["sensitivity"] == 0.5


def test_graded_and_ordinal_scores_are_the_golden_ones() -> None:
    """Golden: GP 0.6667, GR 0.8333, OE 0.3333, MAE 1.0, kappa 1 - 14/17."""
    truth, guess = [0, 1, 2, 3, 3, 0], [0, 2, 2, 1, 3, 3]
    rows = [prediction(DEGREES[t], DEGREES[g]) for t, g in zip(truth, guess, strict=True)]
    found = values(document(rows, DEGREES, DEGREES[1:], True)["ordinal"])
    assert found["graded_precision"] == pytest.approx(2 / 3)
    assert found["graded_recall"] == pytest.approx(5 / 6)
    assert found["graded_f1"] == pytest.approx(2 * (2 / 3) * (5 / 6) / (2 / 3 + 5 / 6))
    assert found["ordinal_error"] == pytest.approx(1 / 3)
    assert found["mae"] == pytest.approx(1.0)
    assert found["quadratic_weighted_kappa"] == pytest.approx(1 - 14 / 17)


def test_a_label_that_no_post_has_still_lies_between_the_others() -> None:
    """The distance of "some" and "most" is 2 although nothing is "much"."""
    rows = [("none", "some"), ("some", "some"), ("most", "most")]
    found = document([prediction(*row) for row in rows], DEGREES, DEGREES[1:], True)["ordinal"]
    # Expected: true 0, 1 and 3 with 1/3 each; answers 1 with 2/3 and 3 with 1/3.
    expected = ((2 * 1 + 9) + (0 + 4) + (2 * 4 + 0)) / 9
    assert values(found)["quadratic_weighted_kappa"] == pytest.approx(1 - (1 / 3) / expected)


def test_an_unreadable_answer_is_the_farthest_label() -> None:
    """From the mildest 3 steps up, from the third 2 steps down."""
    rows = [prediction("none", None), prediction("much", None)]
    found = values(document(rows, DEGREES, DEGREES[1:], True)["ordinal"])
    assert (found["mae"], found["graded_precision"], found["graded_recall"]) == (2.5, 0.5, 0.5)


def test_areas_equal_sklearn_and_unreadable_posts_are_ranked_wrong() -> None:
    labels = ("Yes", "No")
    shares = [(0.75, "Yes"), (0.25, "No"), (0.75, "No"), (0.5, "Yes"), (0.25, "No"), (0.25, "Yes")]
    rows = [
        prediction(truth, "Yes" if p >= 0.5 else "No", probabilities={"Yes": p, "No": 1 - p})
        for p, truth in shares
    ]
    truth = [truth == "Yes" for _, truth in shares]
    scores = [p for p, _ in shares]
    found = values(document(rows, labels, ("Yes",))["clinical"])
    assert found["auroc"] == pytest.approx(sk.roc_auc_score(truth, scores))
    assert found["auprc"] == pytest.approx(sk.average_precision_score(truth, scores))
    rows += [prediction("Yes", None), prediction("No", None)]
    found = values(document(rows, labels, ("Yes",))["clinical"])
    assert found["auroc"] == pytest.approx(sk.roc_auc_score([*truth, 1, 0], [*scores, 0, 1]))


def test_calibration_by_hand() -> None:
    """Two confidences make two bins: 0.6 with accuracy 1/2, and 0.9 with accuracy 1."""
    facts = [(0.6, True), (0.6, False), (0.9, True), (0.9, True)]
    rows = [
        prediction("Yes" if right else "No", "Yes", probabilities={"Yes": p, "No": 1 - p})
        for p, right in facts
    ]
    found = document(rows, ("Yes", "No"), ("Yes",))
    assert found["reliability"] == [
        {"confidence": pytest.approx(0.6), "accuracy": 0.5, "n": 2},
        {"confidence": pytest.approx(0.9), "accuracy": 1.0, "n": 2},
    ]
    shown = values(found["calibration"])
    assert shown["ece"] == pytest.approx(0.5 * 0.1 + 0.5 * 0.1)
    assert shown["brier"] == pytest.approx((0.16 + 0.36 + 0.01 + 0.01) / 4)
    # The two of 0.9 first, then the two of 0.6, each as half an error.
    curve = found["risk_coverage"]
    assert curve["coverage"] == [0.25, 0.5, 0.75, 1.0]
    assert curve["risk"] == pytest.approx([0, 0, 0.5 / 3, 0.25])
    assert curve["aurc"] == shown["aurc"] == pytest.approx((0.5 / 3 + 0.25) / 4)
    assert curve["accuracy_at_80"] == shown["accuracy_at_80"] == pytest.approx(0.75)  # 4 of 4


def test_bins_are_those_of_sklearn_and_hold_equal_mass() -> None:
    from sklearn.calibration import calibration_curve

    labels = ("Yes", "No")
    rows = random_answers(3, labels, n=500, unreadable=0.0)
    found = document(rows, labels, ("Yes",))["reliability"]
    right = [p.prediction == p.label for p in rows]
    confidence = [max(p.probabilities.values()) for p in rows]
    accuracy, mean = calibration_curve(right, confidence, n_bins=10, strategy="quantile")
    assert [one["confidence"] for one in found] == pytest.approx(list(mean))
    assert [one["accuracy"] for one in found] == pytest.approx(list(accuracy))
    assert {one["n"] for one in found} == {50}


def test_curves_are_thinned_and_do_not_depend_on_the_order_of_posts() -> None:
    rows = random_answers(4, ("Yes", "No"), n=1000)
    rows = [
        prediction(
            p.label,
            p.prediction,
            probabilities=dict.fromkeys(("Yes", "No"), round(p.probabilities["Yes"], 1)),
        )
        for p in rows
    ]
    one, other = (document(posts, ("Yes", "No"), ("Yes",)) for posts in (rows, rows[::-1]))
    assert len(one["risk_coverage"]["coverage"]) == 200
    assert one["risk_coverage"]["coverage"][-1] == 1.0
    assert one["risk_coverage"]["risk"] == pytest.approx(other["risk_coverage"]["risk"])
    assert len(one["reliability"]) == len(other["reliability"])


def test_confidence_is_that_of_the_answer_even_where_another_label_is_likelier() -> None:
    found = answer_confidence(np.array([0, 1, 2]), np.array([[0.4, 0.6], [0.4, 0.6], [0.4, 0.6]]))
    assert found.tolist() == [0.4, 0.6, 0.0]


def test_undefined_numbers_are_none() -> None:
    """One true label only; nothing readable; a single post."""
    for rows in (
        [prediction("No", "No", probabilities={"Yes": 0.2, "No": 0.8})] * 3,
        [prediction("No", None)] * 3,
        [prediction("No", "No")],
    ):
        found = document(rows, ("Yes", "No"), ("Yes",))
        assert found["clinical"]["sensitivity"] == {"value": None, "interval": None}
        assert found["clinical"]["auroc"] == {"value": None, "interval": None}
    same = values(document([prediction("some", "some")] * 3, DEGREES, (), True)["ordinal"])
    assert same["quadratic_weighted_kappa"] is same["spearman"] is None and same["mae"] == 0
    assert document([prediction("some", "some")] * 3, DEGREES, (), True)["clinical"] is None


def test_scorers_differ_by_the_unreadable_answers_alone() -> None:
    """`imhi` takes them for "No": a right answer, and a missed post."""
    rows = [("Yes", "Yes"), ("No", None), ("Yes", None), ("No", "No")]
    found = document([prediction(*row) for row in rows], ("Yes", "No"), ("Yes",))["scorers"]
    assert found["imhi_label"] == "No"
    assert values(found["strict"])["accuracy"] == 0.5
    assert values(found["imhi"])["accuracy"] == 0.75
    truth, read = [1, 0, 1, 0], [1, 0, 0, 0]
    shown = values(found["imhi"])
    assert shown["weighted_f1"] == pytest.approx(sk.f1_score(truth, read, average="weighted"))
    assert shown["macro_f1"] == pytest.approx(sk.f1_score(truth, read, average="macro"))
    assert values(found["difference"])["accuracy"] == 0.25
    assert values(found["difference"])["specificity"] == 0.5
    readable = document([prediction("Yes", "Yes")], ("Yes", "No"), ("Yes",))["scorers"]
    assert readable["difference"]["accuracy"] == {"value": 0.0, "interval": [0.0, 0.0]}


@pytest.mark.parametrize(
    ("facts", "label"),
    [
        (LabelFacts(DEGREES, DEGREES[1:], True), "none"),
        (LabelFacts(("Work", "Other", "Home")), "Other"),
        (LabelFacts(("Work", "Home")), "Work"),
    ],
)
def test_what_imhi_takes_for_class_zero(facts: LabelFacts, label: str) -> None:
    assert facts.labels[facts.fallback()] == label


def test_groups_have_rates_and_a_largest_gap() -> None:
    """Young: 10 of 10 found, 8 of 10 negatives right. Old: 5 of 10 and 10 of 10."""
    calls = {"young": ("Y" * 10, "NNNNNNNNYY"), "old": ("YYYYYNNNNN", "N" * 10)}
    words = {"Y": "Yes", "N": "No"}
    rows = [
        prediction(label, words[call], group=group)
        for group, both in calls.items()
        for label, answers in zip(("Yes", "No"), both, strict=True)
        for call in answers
    ]
    rows += [prediction("Yes", "Yes", group="few")] * (SMALLEST_GROUP - 1)
    found = document(rows, ("Yes", "No"), ("Yes",))["groups"]
    assert list(found["groups"]) == ["old", "young"]
    assert found["not_shown"] == {"groups": 1, "posts": SMALLEST_GROUP - 1}
    assert found["groups"]["old"]["n"] == 20
    assert found["groups"]["old"]["sensitivity"]["value"] == 0.5
    gaps = values(found["gaps"])
    assert gaps["sensitivity"] == gaps["equalised_odds"] == 0.5
    assert gaps["specificity"] == pytest.approx(0.2)
    assert gaps["accuracy"] == pytest.approx(0.9 - 0.75)


def test_names_of_writers_are_not_shown_as_groups() -> None:
    writers = [f"writer {i}" for i in range(MOST_GROUPS + 1)]
    rows = [prediction("Yes", "Yes", group=name) for name in writers] * SMALLEST_GROUP
    found = document(rows, ("Yes", "No"), ("Yes",))["groups"]
    assert found["groups"] == found["gaps"] == {}
    assert found["not_shown"]["groups"] == len(writers)


def test_the_same_seed_gives_the_same_intervals() -> None:
    rows = random_answers(5, DEGREES)
    facts = LabelFacts(DEGREES, DEGREES[1:], True)
    first, second, other = (
        clinical_document(rows, facts, samples=30, seed=seed) for seed in (1, 1, 2)
    )
    assert first == second
    assert first["clinical"] != other["clinical"] and first["calibration"] != other["calibration"]
