"""Rewards against values worked out by hand."""

import math
import sys
import types
from dataclasses import dataclass

import pytest

from mental_r1_jax.errors import UserError
from mental_r1_jax.rewards import (
    RewardError,
    RewardFunction,
    answer_function,
    balanced_weights,
    format_function,
    load_reward_function,
    overlong_reward,
    score_completion,
    soft_overlong,
    total_reward,
)
from mental_r1_jax.text.answers import AnswerReader
from mental_r1_jax.text.stages import GRAMMAR

GOOD = GRAMMAR.render(list("abcde"), "Yes, clearly")
LABELS = {"Rain": ("Yes", "No")}
READER = AnswerReader(LABELS)


@dataclass(frozen=True)
class Example:
    set_name: str = "Rain"
    label: str = "Yes"


def test_format_and_answer_rewards_are_independent():
    form = format_function(1.0)

    def answer(weight, match="prefix"):
        weights = {("Rain", "Yes"): weight, ("Rain", "No"): weight}
        return answer_function(1.0, weights, AnswerReader(LABELS, match))

    def value(function, completion, label):
        parsed = GRAMMAR.parse(completion)
        return function.function(completion, parsed, Example(label=label))

    assert value(form, GOOD, "No") == 0.5
    assert value(form, "<answer>No</answer>", "No") == -0.5
    assert value(answer(1.5), GOOD, "Yes") == 1.5
    assert value(answer(1.5, "exact"), GOOD, "Yes") == -1.5
    assert value(answer(0.25), "<answer>No</answer>", "No") == 0.25
    assert value(answer(0.25), "nothing", "No") == -0.25


RISK = ("Indicator", "Ideation", "Behavior", "Attempt")


@pytest.mark.parametrize(
    ("answer", "label", "value"),
    [
        ("Behavior", "Behavior", 1.5),
        ("behavior, clearly", "Behavior", 1.5),
        ("Attempt", "Behavior", -0.5),  # one of three steps too high
        ("Attempt", "Indicator", -1.5),
        ("Ideation", "Behavior", -1.0),  # one step too low costs twice as much
        ("Indicator", "Attempt", -3.0),
        ("unsure", "Indicator", -3.0),  # never cheaper than a readable answer
    ],
)
def test_ordinal_rewards_by_hand(answer, label, value):
    weights = {("Rain", name): 1.5 for name in RISK}
    reward = answer_function(1.0, weights, AnswerReader({"Rain": RISK}), {"Rain": RISK}, 2.0)
    completion = f"<answer>{answer}</answer>"
    got = reward.function(completion, GRAMMAR.parse(completion), Example(label=label))
    assert got == pytest.approx(value, rel=1e-12)


def test_sets_of_two_labels_and_unordered_sets_are_rewarded_as_before():
    labels = {"Rain": ("No", "Yes"), "Snow": RISK}
    reader = AnswerReader({**labels, "Hail": RISK})
    plain = answer_function(0.7, None, reader)
    ordinal = answer_function(0.7, None, reader, labels, 3.0)
    for set_name, label in (("Rain", "Yes"), ("Rain", "No"), ("Hail", "Ideation")):
        for answer in ("Yes", "No", "Ideation", "Attempt", "unsure"):
            completion = f"<answer>{answer}</answer>"
            post = Example(set_name, label)
            values = [
                one.function(completion, GRAMMAR.parse(completion), post)
                for one in (plain, ordinal)
            ]
            assert values[0] == values[1]


@pytest.mark.parametrize(
    ("tokens", "penalty"),
    [(1, 0), (410, 0), (411, -1 / 102), (461, -0.5), (512, -1), (513, -1), (5000, -1)],
)
def test_soft_overlong_by_hand(tokens, penalty):
    """L = 512 gives c = 102, so the penalty begins after 410 tokens."""
    assert soft_overlong(tokens, 512, 102) == penalty
    assert overlong_reward(1.0, 512).of_tokens(tokens) == penalty


def test_the_cushion_of_the_overlong_penalty_can_be_chosen():
    assert overlong_reward(1.0, 8, 4).of_tokens(6) == -0.5
    assert overlong_reward(1.0, 3).of_tokens(3) == -1  # a fifth of 3 would be none


def test_balanced_weights_by_hand():
    # n_d = 40, 10: 1/n = 0.025, 0.1, mean 0.0625 -> w_d = 0.4, 1.6.
    # Rain: 1/n_c = 1/30, 1/10, mean 1/15 -> w_c = 0.5, 1.5.  Snow: 1/5 twice -> 1, 1.
    weights = balanced_weights({"Rain": {"Yes": 30, "No": 10}, "Snow": {"a": 5, "b": 5}})
    expected = {
        ("Rain", "Yes"): math.sqrt(0.2),
        ("Rain", "No"): math.sqrt(0.6),
        ("Snow", "a"): math.sqrt(1.6),
        ("Snow", "b"): math.sqrt(1.6),
    }
    assert weights == pytest.approx(expected, rel=1e-12)


def test_balanced_weights_of_balanced_sets_are_one():
    weights = balanced_weights({"A": {"x": 7, "y": 7}, "B": {"x": 7, "y": 7}})
    assert list(weights.values()) == pytest.approx([1.0] * 4)


def test_labels_without_rows_have_no_weight_and_change_none():
    with_gap = balanced_weights({"A": {"x": 3, "y": 1, "z": 0}})
    assert with_gap == balanced_weights({"A": {"x": 3, "y": 1}})


@pytest.mark.parametrize("counts", [{"A": {}}, {"A": {"x": 0}}, {"A": {"x": 2, "y": -1}}])
def test_balanced_weights_refuse_impossible_counts(counts):
    with pytest.raises(ValueError, match="'A'"):
        balanced_weights(counts)


@pytest.fixture
def user_module(monkeypatch):
    module = types.ModuleType("made_up_rewards")
    module.length = lambda completion, example: len(completion) / 10
    module.stretched = lambda completion, example: completion
    module.nan = lambda completion, example: float("nan")
    module.number = 3
    module.one = lambda completion: 1.0
    monkeypatch.setitem(sys.modules, "made_up_rewards", module)


def test_total_is_the_weighted_sum_by_hand(user_module):
    functions = (
        format_function(2.0),
        answer_function(1.0, {("Rain", "Yes"): 1.5}, READER),
        load_reward_function("made_up_rewards:length", weight=0.1),
    )
    scores = score_completion(functions, GOOD, GRAMMAR.parse(GOOD), Example(), 9)
    length = len(GOOD) / 10
    assert scores == {"format": 0.5, "answer": 1.5, "made_up_rewards:length": length}
    assert total_reward(functions, scores) == pytest.approx(2 * 0.5 + 1.5 + 0.1 * length)


def test_uniform_answer_weight_and_exact_match():
    parsed = GRAMMAR.parse(GOOD)
    assert answer_function(1.0, None, READER).function(GOOD, parsed, Example()) == 1.0
    exact = answer_function(1.0, None, AnswerReader(LABELS, "exact"))
    assert exact.function(GOOD, parsed, Example()) == -1.0


def test_user_function_sees_no_surrogates(user_module, monkeypatch):
    seen = []
    module = sys.modules["made_up_rewards"]
    monkeypatch.setattr(module, "spy", lambda text, _: seen.append(text) or 0, raising=False)
    reward = load_reward_function("made_up_rewards:spy")
    assert reward.function("ab\udce2\udc82", GRAMMAR.parse("ab"), Example()) == 0.0
    assert seen == ["ab\ufffd"]


@pytest.mark.parametrize(
    "path",
    [
        "no_such_module:f",
        "made_up_rewards:gone",
        "made_up_rewards",
        ":f",
        "made_up_rewards:number",
        "made_up_rewards:one",
    ],
)
def test_unloadable_user_function_is_named(user_module, path):
    with pytest.raises(RewardError) as caught:
        load_reward_function(path)
    assert path in str(caught.value)
    assert isinstance(caught.value, UserError)


@pytest.mark.parametrize(("name", "value"), [("nan", "nan"), ("stretched", "'oh'")])
def test_unusable_value_is_named(user_module, name, value):
    reward = load_reward_function(f"made_up_rewards:{name}")
    with pytest.raises(RewardError) as caught:
        score_completion([reward], "oh", GRAMMAR.parse("oh"), Example(), 1)
    assert f"made_up_rewards:{name}" in str(caught.value) and value in str(caught.value)


def test_raising_user_function_is_named(monkeypatch):
    module = types.ModuleType("made_up_rewards")

    def divide(completion, example):
        return 1 / 0

    module.divide = divide
    monkeypatch.setitem(sys.modules, "made_up_rewards", module)
    reward = load_reward_function("made_up_rewards:divide")
    assert isinstance(reward, RewardFunction)
    with pytest.raises(RewardError, match="made_up_rewards:divide.*ZeroDivisionError"):
        score_completion([reward], "", GRAMMAR.parse(""), Example(), 1)
