"""Specs of the sets: names, labels, questions, and the errors of wrong ones."""

from __future__ import annotations

import pytest

from mental_r1_jax.config import CustomSet
from mental_r1_jax.data.benchmarks import (
    BENCHMARKS,
    SYNTHETIC_SPECS,
    BenchmarkSpec,
    spec_for,
)
from mental_r1_jax.errors import UserError

YES_NO = ("Yes", "No")

# The paper's table, typed in again.
PAPER = {
    "DATD": YES_NO,
    "RSD": ("Indicator", "Ideation", "Behavior", "Attempt"),
    "DepSeverity": ("Minimum", "Mild", "Moderate", "Severe"),
    "LT-EDI": ("Not depressed", "Moderately depressed", "Severely depressed"),
    "SDCNL": YES_NO,
    "Dreaddit": YES_NO,
    "FIG": YES_NO,
    "LID": ("[1-2]", "[2-3]", "[3-4]", "[4-5]"),
}


def test_benchmarks_are_the_papers_eight() -> None:
    assert {name: spec.labels for name, spec in BENCHMARKS.items()} == PAPER
    dev = {name for name, spec in BENCHMARKS.items() if spec.validation_file == "dev"}
    assert dev == {"FIG", "LID", "LT-EDI"}


def test_levels_are_ordered_and_kinds_are_not() -> None:
    specs = {**BENCHMARKS, **SYNTHETIC_SPECS}
    ordered = {name for name, spec in specs.items() if spec.ordered}
    synthetic = {"Depression-Synthetic", "Risk-Synthetic"}
    assert ordered == {"RSD", "DepSeverity", "LT-EDI", "LID"} | synthetic
    custom = {"Mine": CustomSet(labels=("low", "middle", "high"), ordered=True)}
    assert spec_for("Mine", custom).ordered


def test_positive_labels_are_yes_or_any_risk() -> None:
    """The paper's table, typed in: "No" and the mildest label are what remains."""
    assert {name: spec.positive_labels for name, spec in BENCHMARKS.items()} == {
        **dict.fromkeys(("DATD", "SDCNL", "Dreaddit", "FIG"), ("Yes",)),
        "RSD": ("Ideation", "Behavior", "Attempt"),
        "DepSeverity": ("Mild", "Moderate", "Severe"),
        "LT-EDI": ("Moderately depressed", "Severely depressed"),
        "LID": ("[2-3]", "[3-4]", "[4-5]"),
    }
    assert SYNTHETIC_SPECS["Stressor-Synthetic"].positive_labels == ()
    low = ("low", "middle", "high")
    custom = {
        "Kinds": CustomSet(labels=low),
        "Levels": CustomSet(labels=low, ordered=True),
        "Named": CustomSet(labels=low, ordered=True, positive_labels=("high",)),
    }
    got = {name: spec_for(name, custom).positive_labels for name in custom}
    assert got == {"Kinds": (), "Levels": ("middle", "high"), "Named": ("high",)}


@pytest.mark.parametrize("positive", [("yes",), ("Yes", "Yes"), ("Yes", "No")])
def test_positive_labels_part_the_labels(positive: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match="do not part its labels"):
        BenchmarkSpec("X", "", YES_NO, "Q", positive_labels=positive)


@pytest.mark.parametrize("spec", [*BENCHMARKS.values(), *SYNTHETIC_SPECS.values()])
def test_question_lists_every_label_and_ends_open(spec: BenchmarkSpec) -> None:
    assert spec.question is not None
    assert spec.question.endswith("\nStatement: ")
    lines = spec.question.splitlines()
    assert [line for line in lines if line.startswith("* ")] == [f"* {x}" for x in spec.labels]


def test_synthetic_sets_say_so_and_cover_2_3_4_and_9_classes() -> None:
    assert all(name.endswith("-Synthetic") for name in SYNTHETIC_SPECS)
    assert sorted(len(spec.labels) for spec in SYNTHETIC_SPECS.values()) == [2, 3, 4, 9]


def test_custom_set_from_the_recipe() -> None:
    custom = {
        "Mine": CustomSet(labels=("A", "B"), question="Which one?", validation_file="dev"),
        "Bare": CustomSet(labels=("A", "B")),
        "Whole": CustomSet(labels=("A", "B"), question="A or B?\nStatement: "),
        "RSD": CustomSet(labels=("Low", "High")),
    }
    mine = spec_for("Mine", custom)
    assert mine.validation_file == "dev"
    assert mine.question is not None
    assert mine.question.startswith("Which one?\n")
    assert mine.question.endswith("\n* A\n* B\nStatement: ")
    assert spec_for("Bare", custom).question is None
    assert spec_for("Whole", custom).question == "A or B?\nStatement: "
    assert spec_for("RSD", custom).labels == ("Low", "High")
    assert spec_for("RSD").labels == PAPER["RSD"]


def test_unknown_set_names_the_nearest() -> None:
    with pytest.raises(UserError, match="Did you mean 'Dreaddit'"):
        spec_for("Dreadit")


@pytest.mark.parametrize("labels", [("Yes",), ("Yes", "yes"), ("Yes", ""), ("Yes", " No")])
def test_labels_that_an_answer_could_confuse_are_refused(labels: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match="cannot be told apart"):
        BenchmarkSpec("X", "", labels, "Q")


def test_labels_that_only_look_alike_are_accepted() -> None:
    labels = ("Work", "Workload", "[1-2]", "[1-3]", "Not", "Not depressed", "C", "C++")
    assert BenchmarkSpec("X", "", labels, "Q").labels == labels


@pytest.mark.parametrize("name", ["", "../up", "a b", ".hidden", "a/b"])
def test_names_that_are_no_folder_names_are_refused(name: str) -> None:
    with pytest.raises(UserError, match="folder name"):
        BenchmarkSpec(name, "", YES_NO, "Q")
