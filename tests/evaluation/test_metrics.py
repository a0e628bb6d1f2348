import json

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, f1_score

from mental_r1_jax.evaluation import metrics as m

LABELS = ("low", "middle", "high")


def prediction(label, guess, row=0, **changes):
    fields = {
        "set_name": "Made-Up",
        "row": row,
        "label": label,
        "prediction": guess,
        "well_formed": guess is not None,
        "truncated": False,
        "num_tokens": 10,
        "answer": guess,
        "stage_entropies": (1.0, 0.8, 0.6, 0.4, 0.2),
        "completion": "c",
        "text": "t",
    }
    return m.Prediction(**(fields | changes))


def random_predictions(seed, n=60):
    rng = np.random.default_rng(seed)
    guesses = [*LABELS, None]
    return [prediction(LABELS[rng.integers(3)], guesses[rng.integers(4)], row=i) for i in range(n)]


def score(predictions, labels=LABELS, samples=0):
    return m.set_metrics(predictions, labels, bootstrap_samples=samples, seed=0)


def test_hand_computed_scores():
    """low: TP 1, predicted 2, support 2; middle: TP 1, predicted 1, support 2."""
    predictions = [
        prediction("low", "low", num_tokens=4),
        prediction("low", None, num_tokens=8, truncated=True),
        prediction("middle", "middle", num_tokens=6),
        prediction("middle", "low", num_tokens=6),
    ]
    scores = score(predictions, ("low", "middle"))
    assert scores.weighted_f1 == pytest.approx((2 * (1 / 2) + 2 * (2 / 3)) / 4)
    assert scores.macro_f1 == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert scores.balanced_accuracy == pytest.approx(0.5)
    assert scores.accuracy == 0.5
    assert scores.confusion == ((1, 0, 1), (1, 1, 0))
    assert (scores.well_formed, scores.truncated, scores.unreadable) == (0.75, 0.25, 0.25)
    assert (scores.n, scores.mean_tokens) == (4, 6.0)
    middle = scores.per_class[1]
    assert (middle.precision, middle.recall, middle.support) == (1.0, 0.5, 2)
    assert middle.f1 == pytest.approx(2 / 3)
    assert scores.weighted_f1_interval is None


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_readable_predictions_equal_plain_sklearn(seed):
    predictions = [p for p in random_predictions(seed) if p.prediction is not None]
    truth = [p.label for p in predictions]
    guess = [p.prediction for p in predictions]
    scores = score(predictions)
    assert scores.weighted_f1 == pytest.approx(f1_score(truth, guess, average="weighted"))
    assert scores.macro_f1 == pytest.approx(f1_score(truth, guess, average="macro"))
    assert scores.balanced_accuracy == pytest.approx(balanced_accuracy_score(truth, guess))


def test_unreadable_answers_count_as_wrong():
    """Dropping them would give 1.0 everywhere."""
    scores = score([prediction("low", "low"), prediction("low", None)], ("low", "high"))
    assert scores.accuracy == 0.5
    assert scores.balanced_accuracy == 0.5
    assert scores.weighted_f1 == pytest.approx(2 / 3)  # precision 1, recall 1/2
    assert scores.macro_f1 == pytest.approx(2 / 3)  # "high" occurs nowhere


def test_nothing_readable_scores_zero():
    scores = score([prediction(label, None) for label in LABELS], samples=50)
    assert scores.weighted_f1 == scores.macro_f1 == scores.balanced_accuracy == 0.0
    assert scores.weighted_f1_interval == (0.0, 0.0)


def test_constant_answer_looks_good_only_in_weighted_f1():
    predictions = [prediction("low", "low")] * 8 + [prediction("high", "low")] * 2
    scores = score(predictions)
    assert scores.weighted_f1 == pytest.approx(0.8 * (2 * 0.8 / 1.8))
    assert scores.balanced_accuracy == 0.5
    assert scores.macro_f1 == pytest.approx((2 * 0.8 / 1.8) / 2)


def test_many_labels_for_few_posts_leak_no_warning():
    labels = tuple(f"label {i}" for i in range(30))
    predictions = [prediction(label, label) for label in labels]
    assert score(predictions, labels).weighted_f1 == 1.0


def test_weighted_f1_of_resampled_confusions_equals_sklearn():
    rng = np.random.default_rng(3)
    confusions = rng.integers(0, 4, size=(20, 3, 4))
    ours = m.weighted_f1(confusions)
    for confusion, value in zip(confusions, ours, strict=True):
        cells = [(t, g) for t in range(3) for g in range(4) for _ in range(confusion[t, g])]
        truth, guess = zip(*cells, strict=True)
        expected = f1_score(truth, guess, labels=[0, 1, 2], average="weighted", zero_division=0)
        assert value == pytest.approx(expected)


def test_bootstrap_agrees_with_resampling_the_posts_one_by_one():
    predictions = random_predictions(7, n=80)
    low, high = score(predictions, samples=4000).weighted_f1_interval
    truth = np.array([LABELS.index(p.label) for p in predictions])
    guess = np.array(
        [3 if p.prediction is None else LABELS.index(p.prediction) for p in predictions]
    )
    rng = np.random.default_rng(11)
    values = []
    for _ in range(4000):
        rows = rng.integers(0, 80, size=80)
        confusion = np.zeros((3, 4), int)
        np.add.at(confusion, (truth[rows], guess[rows]), 1)
        values.append(m.weighted_f1(confusion))
    expected = np.percentile(values, [2.5, 97.5])
    # Two independent draws of 4000: the ends of the interval (std 0.05) scatter by some 0.002.
    np.testing.assert_allclose([low, high], expected, atol=0.01)
    assert low < score(predictions).weighted_f1 < high


def test_bootstrap_is_repeatable_and_follows_the_seed():
    confusion = np.array([[10, 5, 1], [3, 8, 0]])
    first = m.bootstrap_interval(confusion, samples=200, seed=4)
    assert first == m.bootstrap_interval(confusion, samples=200, seed=4)
    assert first != m.bootstrap_interval(confusion, samples=200, seed=5)


def test_stage_entropies_average_the_completions_that_have_the_stage():
    predictions = [
        prediction("low", "low", stage_entropies=(1.0, None, 0.5, None, 0.1)),
        prediction("low", "low", stage_entropies=(3.0, 2.0, None, None, 0.3)),
    ]
    assert score(predictions).stage_entropies == (2.0, 2.0, 0.5, None, pytest.approx(0.2))


@pytest.mark.parametrize(
    ("predictions", "message"),
    [
        ([], "got none"),
        ([prediction("low", "LOW")], "LOW"),
        ([prediction("unknown", "low")], "unknown"),
        ([prediction("low", "low"), prediction("low", "low", set_name="Other")], "Other"),
        ([prediction("low", "low", stage_entropies=(1.0,))], "stage entropies"),
    ],
)
def test_meaningless_input_is_refused(predictions, message):
    with pytest.raises(ValueError, match=message):
        score(predictions)


def test_average_is_over_sets_not_over_posts():
    small = score([prediction("low", "low")])
    large = score([prediction("low", "high")] * 9)
    average = m.average_metrics({"small": small, "large": large})
    assert average["accuracy"] == 0.5
    assert average["weighted_f1"] == 0.5
    with pytest.raises(ValueError, match="at least one"):
        m.average_metrics({})


def test_document_has_the_promised_structure():
    scores = score(random_predictions(1), samples=20)
    document = json.loads(json.dumps(m.metrics_document({"Made-Up": scores}), allow_nan=False))
    one = document["sets"]["Made-Up"]
    for name in ("weighted_f1", "macro_f1", "balanced_accuracy", "accuracy", "well_formed"):
        assert one[name] == document["average"][name] == getattr(scores, name)
    assert one["n"] == 60
    assert one["weighted_f1_interval"] == list(scores.weighted_f1_interval)
    assert list(one["per_class"]) == list(LABELS)
    assert one["confusion"]["predicted"] == [*LABELS, "unreadable"]
    assert sum(map(sum, one["confusion"]["counts"])) == 60
    assert one["stage_entropies"]["mental_state"] == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("samples", "winner"),
    [
        (["Yes", "No", "No"], "No"),
        (["Yes", "No", "No", "Yes"], "Yes"),
        (["No", "Yes"], "No"),
        ([None, None, "Yes"], "Yes"),
        ([None, None], None),
        ([], None),
    ],
)
def test_vote(samples, winner):
    assert m.vote(samples) == winner
