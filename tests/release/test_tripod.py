"""The TRIPOD-LLM part of a model card: what it takes from a run, and what that does not know."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from mental_r1_jax.config import ExperimentConfig
from mental_r1_jax.data.benchmarks import BenchmarkSpec
from mental_r1_jax.release.tripod import NOT_REPORTED, RunRecord, tripod_block

SETS = [
    BenchmarkSpec("Levels", "a made-up level", ("[1-2]", "A|B"), None, ordered=True),
    BenchmarkSpec("Plain", "", ("Yes", "No"), None),
]
RECORD = RunRecord(
    model_type="qwen3",
    parameters=596_049_920,
    adapter_parameters=0,
    started_from_run=True,
    counts={
        "train": {"Levels": {"[1-2]": 71, "A|B": 83}, "Plain": {"Yes": 97}},
        "validation": {"Levels": {"[1-2]": 11}, "Plain": {"Yes": 7, "No": 13}},
        "test": {"Levels": {"A|B": 19}, "Plain": {"Yes": 23, "No": 29}},
    },
    supervised=False,
    steps=321,
    seconds=7500.0,
    evaluated_split="test",
)
METRICS = {
    "sets": {
        "Levels": {
            "n": 19,
            "weighted_f1": 0.4321,
            "weighted_f1_interval": [0.3987, 0.4711],
            "clinical": {
                "sensitivity": {"value": 0.8125, "interval": [0.75, 0.875]},
                "auroc": {"value": None, "interval": None},
            },
            "ordinal": {"quadratic_weighted_kappa": {"value": 0.1765, "interval": None}},
            "calibration": {"ece": {"value": 0.0625, "interval": [0.03125, 0.125]}},
        },
        "Plain": {
            **{"n": 52, "weighted_f1": 0.5, "weighted_f1_interval": None},
            **{"clinical": None, "calibration": None},
        },
    }
}


def config(**sections: dict) -> ExperimentConfig:
    recipe = {
        "model": {"path": "/secret/place/cold"},
        "data": {"sets": ["Levels", "Plain"], "root": "/secret/posts"},
        "run": {"output_dir": "/secret/run", "seed": 17},
        "rollout": {"prompts_per_step": 24, "num_generations": 6, "max_completion_length": 389},
    }
    return ExperimentConfig.model_validate(recipe | sections)


def rows(
    record: RunRecord = RECORD, metrics: dict | None = METRICS, **sections: dict
) -> dict[str, str]:
    """What is said, by what it is about."""
    text = tripod_block(config(**sections), record, metrics, SETS, base="org/Base-1B")
    assert "secret" not in text
    found = re.findall(r"^\| \d[\d, -]* \| (.*?) \| (.*) \|$", text, re.MULTILINE)
    assert len(found) == len(dict(found))
    return dict(found)


def test_every_item_of_the_guideline_from_1_to_19_is_answered() -> None:
    text = tripod_block(config(), RECORD, METRICS, SETS, base="org/Base-1B")
    named: set[int] = set()
    given = re.findall(r"^\| (\d[\d, -]*) \|", text, re.MULTILINE)
    firsts = [int(re.split("[,-]", items)[0]) for items in given]
    assert firsts == sorted(firsts)
    for items in given:
        for part in items.split(", "):
            first, _, last = part.partition("-")
            named |= set(range(int(first), int(last or first) + 1))
    assert named == set(range(1, 20))


def test_model_training_and_compute_come_from_the_run() -> None:
    said = rows()
    assert said["model, size"] == "org/Base-1B (qwen3), 596,049,920 parameters"
    training = said["building steps and training"]
    assert training.startswith("reinforcement learning from a run of its own")
    assert "steps done: 321; 24 prompts a step, 6 completions each" in training
    assert said["compute: time"] == "2 h 05 min of training steps, in bfloat16"
    assert said["decoding"] == "greedy, at most 389 tokens, seed 17 (by the recipe)"
    voted = rows(evaluate={"num_votes": 5})
    assert voted["decoding"].startswith("majority of 5 samples")


def test_adapters_and_a_supervised_run() -> None:
    said = rows(replace(RECORD, adapter_parameters=1234, supervised=True, started_from_run=False))
    assert "1,234 of low-rank adapters were trained" in said["model, size"]
    assert said["building steps and training"].startswith("supervised fine-tuning from that model")
    assert "16 examples a step; peak learning rate 0.0001" in said["building steps and training"]
    assert said["alignment: what is rewarded"] == "nothing: supervised on written examples"


def test_what_was_measured_is_there_with_its_intervals() -> None:
    said = rows()
    assert said["performance"] == (
        "Levels: weighted F1 0.432 (0.399 to 0.471); Plain: weighted F1 0.500"
    )
    assert said["clinical and ordinal measures"] == (
        "Levels: sensitivity 0.812 (0.750 to 0.875), quadratic weighted kappa 0.176"
    )
    assert said["uncertainty and calibration"] == "Levels: ECE 0.062 (0.031 to 0.125)"
    held_out = "71 posts of the test split; a text that occurs in several splits is kept in"
    assert said["evaluation data"] == f"{held_out} all of them"
    dropped = rows(data={"sets": ["Plain"], "on_duplicate": "drop"})["evaluation data"]
    assert dropped == f"{held_out} only the most held-out one"
    assert said["groups and fairness"] == NOT_REPORTED


def test_what_the_run_does_not_know_is_not_reported() -> None:
    said = rows(replace(RECORD, steps=None, seconds=None), None)
    assert "steps done: not reported" in said["building steps and training"]
    unknown = {about for about, answer in said.items() if answer == NOT_REPORTED}
    assert {"compute: time", "ethics approval and consent"} <= unknown
    assert "sources of the posts, languages, countries, dates" in unknown
    for about in ("decoding", "evaluation data", "performance", "uncertainty and calibration"):
        assert said[about] == "not evaluated"


def test_how_data_were_handled_is_the_recipes() -> None:
    said = rows(
        data={"sets": ["Levels"], "on_duplicate": "drop", "limit_per_set": 40, "label_noise": 0.25},
        rewards={"answer_weighting": "uniform", "custom": {"my.own:reward": 0.5}},
    )
    handled = said["pre-processing and quality checks"]
    assert "duplicate posts: drop" in handled and "at most 40 training posts" in handled
    assert "a share of 0.25 training posts" in handled
    assert said["missing and imbalanced data"] == "rewards of right answers: uniform"
    assert "my.own:reward" in said["alignment: what is rewarded"]


def test_posts_of_each_split_are_counted_and_labels_cannot_break_the_table() -> None:
    text = tripod_block(config(), RECORD, None, SETS, base="b")
    assert "| **Levels** | 154 | 11 | 19 |" in text
    assert "| Levels: \\[1-2\\] | 71 | 11 | 0 |" in text
    assert "| Levels: A\\|B | 83 | 0 | 19 |" in text
    assert "| Plain: No | 0 | 13 | 29 |" in text
    for table in re.findall(r"(?:^\|.*\n?)+", text, flags=re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1


@pytest.mark.parametrize("groups", [{}, None, {"gender": {"gap": 0.1}}])
def test_groups_are_named_where_an_evaluation_compared_them(groups: dict | None) -> None:
    metrics = {"sets": {"Plain": {"n": 1, "weighted_f1": 0.5, "groups": groups}}}
    said = rows(RECORD, metrics)["groups and fairness"]
    assert said == ("compared in the report of Plain" if groups else NOT_REPORTED)
