"""The grammar: parser against checkers written independently here, and against the renderer."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mental_r1_jax.config import STAGE_NAMES
from mental_r1_jax.rewards import format_function
from mental_r1_jax.text.stages import GRAMMAR, STAGES, Grammar, Stage

TAGS = [f"<{slash}{n}>" for n in ("think", *STAGE_NAMES, "answer") for slash in ("", "/")]
ORDER = ["<think>"]
for _name in STAGE_NAMES:
    ORDER += [f"<{_name}>", f"</{_name}>"]
ORDER += ["</think>", "<answer>", "</answer>"]
WELL_FORMED = [
    *["a", "</stimulus>", "\n", "<primary_appraisal>", "b", "</primary_appraisal>", ""],
    *["<secondary_appraisal>", "c", "</secondary_appraisal>", " ", "<reaction>", "d"],
    *["</reaction>", "", "<mental_state>", "e", "</mental_state>", "\n", "</think>", "\n"],
    *["<answer>", " Yes ", "</answer>", ""],
]

any_text = st.text(st.characters())  # surrogates included
filler = st.one_of(st.sampled_from(["", " ", "\n", "a", "b c", "<", ">", "</", "é", "\udcff"]))
scrambled = st.lists(st.one_of(st.sampled_from(TAGS), filler), max_size=40).map("".join)


@st.composite
def nearly_well_formed(draw):
    """A well-formed completion after up to three edits of its pieces."""
    pieces = list(WELL_FORMED)
    for _ in range(draw(st.integers(0, 3))):
        i, j = (draw(st.integers(0, len(pieces) - 1)) for _ in range(2))
        edit = draw(st.sampled_from(["drop", "repeat", "swap", "blank", "insert"]))
        if edit == "swap":
            pieces[i], pieces[j] = pieces[j], pieces[i]
        elif edit == "insert":
            pieces.insert(i, draw(st.one_of(st.sampled_from(TAGS), filler)))
        else:
            pieces[i] = {"drop": "", "repeat": pieces[i] * 2, "blank": " "}[edit]
    return "".join(pieces)


any_completion = st.one_of(any_text, scrambled, nearly_well_formed())
content = st.text(min_size=1).filter(lambda t: t.strip() and not any(tag in t for tag in TAGS))


def is_well_formed(completion):
    """One scan from left to right, with neither counting nor regular expressions."""
    text = "<think>\n<stimulus>" + completion
    seen, contents, i, last = [], [], 0, 0
    while i < len(text):
        tag = next((tag for tag in TAGS if text.startswith(tag, i)), None)
        if tag is None:
            i += 1
            continue
        seen.append(tag)
        contents.append(text[last:i])
        i += len(tag)
        last = i
    held = [contents[k] for k in range(1, len(seen)) if seen[k] == seen[k - 1].replace("<", "</")]
    return seen == ORDER and len(held) == 6 and all(not text.isspace() and text for text in held)


def spans_by_regex(completion):
    """The span rule, told once more."""
    spans = []
    for name in STAGE_NAMES:
        opening = re.search(f"<{name}>", completion)
        closing = re.search(f"</{name}>", completion)
        start = opening.end() if opening else 0 if name == "stimulus" else None
        found = start is not None and closing is not None and start <= closing.start()
        spans.append((start, closing.start()) if found else None)
    return tuple(spans)


@settings(max_examples=600, deadline=None)
@given(any_completion)
def test_parse_is_total_and_agrees_with_independent_checkers(completion):
    parsed = GRAMMAR.parse(completion)
    assert parsed.well_formed == is_well_formed(completion)
    assert parsed.well_formed == (parsed.reason is None)
    reward = format_function(1.0).function(completion, parsed, None)
    assert reward == (0.5 if is_well_formed(completion) else -0.5)
    assert parsed.stage_spans == spans_by_regex(completion)
    answer = re.search("<answer>(.*?)</answer>", completion, re.DOTALL)
    assert parsed.answer == (answer[1].strip() if answer else None)
    for span in parsed.stage_spans:
        assert span is None or 0 <= span[0] <= span[1] <= len(completion)
    if parsed.well_formed:
        assert None not in parsed.stage_spans and parsed.answer


@settings(max_examples=200, deadline=None)
@given(st.lists(content, min_size=5, max_size=5), content)
def test_parse_inverts_render(contents, answer):
    completion = GRAMMAR.render(contents, answer)
    parsed = GRAMMAR.parse(completion)
    assert parsed.well_formed and parsed.reason is None
    assert [completion[start:end] for start, end in parsed.stage_spans] == contents
    assert parsed.answer == answer.strip()


def test_nearly_well_formed_texts_reach_both_verdicts():
    assert GRAMMAR.parse("".join(WELL_FORMED)).well_formed
    assert is_well_formed("".join(WELL_FORMED))
    assert not GRAMMAR.parse("".join(WELL_FORMED[:-2])).well_formed


def test_skeleton_and_prefill_follow_the_grammar():
    assert GRAMMAR.prefill == "<think>\n<stimulus>"
    skeleton = GRAMMAR.skeleton()
    assert skeleton.startswith(GRAMMAR.prefill)
    completion = skeleton.removeprefix(GRAMMAR.prefill)
    parsed = GRAMMAR.parse(completion)
    assert parsed.well_formed
    assert [completion[a:b] for a, b in parsed.stage_spans] == [s.description for s in STAGES]
    assert parsed.answer == "LABEL"


def test_layout_is_fixed():
    assert GRAMMAR.render(list("abcde"), "No") == (
        "a</stimulus>\n<primary_appraisal>b</primary_appraisal>\n"
        "<secondary_appraisal>c</secondary_appraisal>\n<reaction>d</reaction>\n"
        "<mental_state>e</mental_state>\n</think>\n<answer>No</answer>"
    )


def test_another_grammar_changes_everything_derived_from_it():
    grammar = Grammar(stages=(Stage("look", "see"), Stage("say", "tell")))
    assert grammar.prefill == "<think>\n<look>"
    completion = grammar.render(["x", "y"], "z")
    assert completion == "x</look>\n<say>y</say>\n</think>\n<answer>z</answer>"
    assert grammar.parse(completion).well_formed
    assert not GRAMMAR.parse(completion).well_formed


@pytest.mark.parametrize(
    ("completion", "first_span"),
    [
        ("a rainy day</stimulus>", (0, 11)),  # opened by the prefill
        ("</stimulus>", (0, 0)),
        ("ab<stimulus>cd</stimulus>", (12, 14)),  # opened again: the first opening tag counts
        ("ab</stimulus><stimulus>cd</stimulus>", None),  # opening stands after the first closing
        ("never closed", None),
    ],
)
def test_span_of_the_prefilled_stage(completion, first_span):
    assert GRAMMAR.parse(completion).stage_spans[0] == first_span


def test_spans_of_malformed_text_may_overlap():
    spans = GRAMMAR.parse("<reaction>a<mental_state>b</reaction>c</mental_state>").stage_spans
    assert spans[3:] == ((10, 26), (25, 38))
    assert spans[:3] == (None, None, None)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("</think>", "", "</think> is missing"),
        ("</think>", "</think></think>", "</think> stands 2 times"),
        ("a</stim", "<stimulus>a</stim", "<stimulus> stands 2 times"),
        ("a</stim", "<think>a</stim", "<think> stands 2 times"),
        (">b<", "> \n\t<", "<primary_appraisal> is empty"),
        ("a</stim", "</stim", "<stimulus> is empty"),
        (" Yes ", " ", "<answer> is empty"),
        ("\n<primary_appraisal>b</primary_appraisal>", "", "<primary_appraisal> is missing"),
        ("<answer> Yes </answer>", "", "<answer> is missing"),
        (">b<", ">b<reaction>d</reaction><", "<reaction> stands 2 times"),
    ],
)
def test_reason_names_the_first_fault(old, new, reason):
    completion = "".join(WELL_FORMED)
    assert old in completion
    parsed = GRAMMAR.parse(completion.replace(old, new))
    assert not parsed.well_formed and parsed.reason == reason


def test_order_is_checked():
    a, b = "<reaction>d</reaction>", "<mental_state>e</mental_state>"
    completion = "".join(WELL_FORMED)
    parsed = GRAMMAR.parse(completion.replace(a, "#").replace(b, a).replace("#", b))
    assert parsed.reason == "<mental_state> stands before </reaction>"
    parsed = GRAMMAR.parse("<answer>Yes</answer>" + completion.split("<answer>")[0])
    assert parsed.reason == "<answer> stands before </think>"
    assert parsed.answer == "Yes"  # an answer is read even where the format does not hold


def test_first_answer_counts_and_may_be_empty():
    assert GRAMMAR.parse("</answer><answer> No.\n</answer><answer>Yes</answer>").answer == "No."
    assert GRAMMAR.parse("<answer> </answer>").answer == ""
    assert GRAMMAR.parse("<answer>No").answer is None


@pytest.mark.parametrize(
    ("contents", "answer"),
    [(["a"] * 4, "Yes"), ([*"abcd", " "], "Yes"), ([*"abcd", "</think>"], "Yes"), ([*"abcde"], "")],
)
def test_render_refuses_what_it_cannot_give_back(contents, answer):
    with pytest.raises(ValueError, match="stages|well-formed"):
        GRAMMAR.render(contents, answer)
