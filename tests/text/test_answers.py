"""One reader of answers: cases written by hand, and what rewards read before, on the eight sets."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mental_r1_jax.data.benchmarks import BENCHMARKS
from mental_r1_jax.rewards import answer_function
from mental_r1_jax.text.answers import MENDED_KINDS, AnswerReader, read_answer
from mental_r1_jax.text.stages import GRAMMAR
from tests.test_rewards import Example

DEPRESSION = ("Not depressed", "Moderately depressed", "Severely depressed")
LONELINESS = ("[1-2]", "[2-3]", "[3-4]", "[4-5]")
GRADES = ("Mild", "Mild-moderate", "C", "C++", "Don't know")


@pytest.mark.parametrize(
    ("answer", "label", "prefix", "exact"),
    [
        ("Yes", "Yes", True, True),
        ("yES", "Yes", True, True),
        ("Yes.", "Yes", True, False),
        ("Yes and No", "Yes", True, False),
        ("Yesterday", "Yes", False, False),
        ("Yes_", "Yes", False, False),
        ("Yesé", "Yes", False, False),
        ("Yes2", "Yes", False, False),
        ("No", "Yes", False, False),
        ("The answer is Yes", "Yes", False, False),
        ("", "Yes", False, False),
        (None, "Yes", False, False),
        ("not depressed", "Not depressed", True, True),
        ("Not depressed at all", "Not depressed", True, False),
        ("Not", "Not depressed", False, False),
        ("[1-2]", "[1-2]", True, True),
        ("[1-2] (low)", "[1-2]", True, False),
        ("1-2", "[1-2]", False, False),
        ("1", "[1-2]", False, False),  # the brackets are text, not a pattern
        ("[1-2]3", "[1-2]", False, False),
        ("是。", "是", True, False),
        ("是的", "是", False, False),
        ("نعم، بوضوح", "نعم", True, False),
        ("कम।", "कम", True, False),
        ("कमी", "कम", False, False),  # a vowel sign makes another word of it
    ],
)
def test_prefix_and_exact(answer, label, prefix, exact):
    assert (read_answer(answer, [label]) == label) is prefix
    assert (read_answer(answer, [label], "prefix") == label) is prefix
    assert (read_answer(answer, [label], "exact") == label) is exact


@given(st.text(), st.text(min_size=1))
def test_exact_implies_prefix(answer, label):
    for text in (answer, label, label.swapcase(), label + answer):
        assert read_answer(text, [label], "exact") is None or read_answer(text, [label]) == label
    assert read_answer(label, [label], "exact") == label


def test_the_longest_label_wins():
    assert read_answer("moderately depressed.", DEPRESSION) == "Moderately depressed"
    assert read_answer("[3-4]", LONELINESS) == "[3-4]"
    assert read_answer("Self harm, past", ("Self", "Self harm", "No")) == "Self harm"
    assert read_answer("Self-care", ("Self", "Self harm", "No")) == "Self"
    assert read_answer("unsure", DEPRESSION) is None
    assert read_answer(None, DEPRESSION) is None
    assert read_answer("Yes.", ("Yes", "No"), "exact") is None
    for answer in ("C++", "Mild-moderate"):
        for match in ("prefix", "exact", "lenient"):
            assert read_answer(answer, GRADES, match) == answer
    assert read_answer("C", GRADES) == "C" and read_answer("Mild, moderate", GRADES) == "Mild"


@pytest.mark.parametrize("answer", ["C++", "C", "c++ of course", "Mild-moderate", "mild", "?"])
@pytest.mark.parametrize("match", ["prefix", "exact", "lenient"])
def test_training_pays_for_what_evaluation_counts_as_right(answer, match):
    reader = AnswerReader({"Grades": GRADES}, match)
    reward = answer_function(1.0, None, reader)
    parsed = GRAMMAR.parse(f"<answer>{answer}</answer>")
    paid = [
        label for label in GRADES if reward.function("", parsed, Example("Grades", label)) == 1.0
    ]
    assert paid == [label for label in [reader.read("Grades", answer)] if label is not None]


@given(st.data())
def test_on_the_papers_sets_rewards_are_what_they_were(data):
    """The rule that rewards had: the gold label begins the answer, or is it."""
    labels = data.draw(st.sampled_from([spec.labels for spec in BENCHMARKS.values()]))
    rest = st.sampled_from(["", ".", " ", "-", "+", "s", "_", ", clearly", " or ", "é", "[", "]"])
    parts = data.draw(st.lists(st.sampled_from(labels) | rest, min_size=1, max_size=4))
    answer = "".join(parts).strip()
    for match, end in (("prefix", r"(?!\w)"), ("exact", r"\Z")):
        for label in labels:
            was = re.match(re.escape(label) + end, answer, re.IGNORECASE) is not None
            assert (read_answer(answer, labels, match) == label) is was


@pytest.mark.parametrize(
    ("answer", "label", "kinds"),
    [
        ("Mild\u200b-moderate", "Mild-moderate", {"invisible"}),
        ("\ufeffMild", "Mild", {"invisible"}),
        ("Ｍild", "Mild", {"unicode"}),
        ("Don't\u00a0know", "Don't know", {"unicode"}),
        ("Mild\u2013moderate", "Mild-moderate", {"dashes"}),
        ("\u201cC++\u201d", "C++", {"quotes"}),
        ("Don\u2019t know", "Don't know", {"quotes"}),
        ("**Mild**, I think", "Mild", {"marks"}),
        ("_C_", "C", {"marks"}),
        ("# C++", "C++", {"marks"}),
        ("<b>Mild</b>", "Mild", {"marks"}),
        ("**Mild\u2011moderate**", "Mild-moderate", {"unicode", "dashes", "marks"}),
        ('"Mild"', "Mild", {"quotes"}),
        ("mild", "Mild", set()),
        ("Mildly", None, set()),
        ("**", None, set()),
    ],
)
def test_lenient_reads_past_typography_and_says_past_which(answer, label, kinds):
    reader = AnswerReader({"Grades": GRADES}, "lenient")
    assert reader.read("Grades", answer) == label
    bits = reader.mended("Grades", answer)
    assert {kind for i, kind in enumerate(MENDED_KINDS) if bits >> i & 1} == kinds
    assert AnswerReader({"Grades": GRADES}).mended("Grades", answer) == 0


@given(st.text(max_size=30), st.sampled_from(GRADES))
def test_lenient_reads_whatever_prefix_reads(rest, label):
    """Total, and a plain label is read whatever follows; a sign in the rest may lengthen it."""
    plain = label + ", " + rest
    assert read_answer(plain, GRADES, "lenient") == read_answer(plain, GRADES) == label
    read_answer(rest, GRADES, "lenient")


def test_labels_that_differ_only_in_typography_keep_their_own_answers():
    labels = ("A-B", "A\u2013B", "C#", "C*", "C")
    for label in labels:
        assert read_answer(label, labels, "lenient") == label
