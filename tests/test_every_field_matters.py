"""Every field of a recipe changes what the program does, and this shows where.

`tests/every_field/table.py` gives each field another value and probes: parts of the real program,
run on the recipe before and after. There is a probe for every part that reads the field (training,
validation, evaluation, ...), so the table says who reads what. A part that does not read it leaves
its probe's result alone and fails here; so does a new field without an entry.
"""

from __future__ import annotations

import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pydantic
import pytest

from mental_r1_jax.config import ExperimentConfig
from mental_r1_jax.recipe_problems import _models_in
from mental_r1_jax.release.model_card import METHOD_SECTIONS, OTHER_KEYS, shown_settings
from tests.every_field import programs
from tests.every_field.fields import Field
from tests.every_field.lab import Lab, make_shared
from tests.every_field.table import DRAWN, FIELDS, VOTES


def leaf_fields(section: type[pydantic.BaseModel], prefix: str = "") -> Iterator[str]:
    """Every key of a recipe; those of a custom set under the name that the table uses."""
    for name, field in section.model_fields.items():
        inner = next(_models_in(field.annotation), None)
        if inner is None or typing.get_origin(field.annotation) is tuple:
            yield prefix + name
        elif typing.get_origin(field.annotation) is dict:
            yield from leaf_fields(inner, f"{prefix}{name}.Calm.")
        else:
            yield from leaf_fields(inner, f"{prefix}{name}.")


def test_every_field_has_an_entry() -> None:
    assert sorted(FIELDS) == sorted(leaf_fields(ExperimentConfig))


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What all probes share."""
    return make_shared(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def outcomes() -> dict[str, Any]:
    """Results of probes on recipes that several fields have in common."""
    return {}


def _on_the_card(name: str) -> bool:
    section, key = name.split(".", 1)
    return section in METHOD_SECTIONS or key in OTHER_KEYS.get(section, ())


@pytest.mark.parametrize("name", [*filter(_on_the_card, FIELDS)])
def test_the_model_card_shows_the_field(name: str, shared: Path, tmp_path: Path) -> None:
    entry = FIELDS[name]
    field = entry[0] if isinstance(entry, tuple) else entry
    before, after = (
        shown_settings(run_probe(shared, tmp_path / folder, _recipe, changes))
        for folder, changes in (
            ("before", field.given),
            ("after", {**field.given, name: field.value}),
        )
    )
    assert before.get(name) != after.get(name)
    assert {key for key in before | after if before.get(key) != after.get(key)} == {name}


def _recipe(lab: Lab, config: ExperimentConfig) -> ExperimentConfig:
    return config


def run_probe(
    shared: Path, tmp: Path, probe: Callable[..., Any], changes: Mapping[str, Any]
) -> Any:
    """Run a probe in an empty folder; all stand-ins are taken back afterwards."""
    tmp.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        lab = Lab(shared, tmp, patch)
        return probe(lab, lab.config(changes))


def entries() -> Iterator[Any]:
    """A test for every field and part that reads it."""
    for name, field in FIELDS.items():
        for one in field if isinstance(field, tuple) else (field,):
            yield pytest.param(name, one, id=f"{name}-{one.probe.__name__}")


@pytest.mark.parametrize(("name", "field"), list(entries()))
def test_the_field_changes_what_happens(
    name: str, field: Field, shared: Path, tmp_path: Path, outcomes: dict[str, Any]
) -> None:
    key = f"{field.probe.__name__} {sorted(field.given.items())}"
    if key not in outcomes:
        outcomes[key] = run_probe(shared, tmp_path / "before", field.probe, field.given)
        again = run_probe(shared, tmp_path / "again", field.probe, field.given)
        assert again == outcomes[key], "the probe itself must not vary"
    changes = {**field.given, name: field.value}
    after = run_probe(shared, tmp_path / "after", field.probe, changes)
    assert after != outcomes[key], f"{name}={field.value!r} changed nothing"


@pytest.mark.parametrize(
    "changes",
    [VOTES, *({key: value} for key, value in DRAWN.items()), {"rollout.num_generations": 8}],
    ids=lambda changes: next(iter(changes)),
)
def test_validation_and_verification_are_greedy_whatever_is_sampled_elsewhere(
    changes: Mapping[str, Any], shared: Path, tmp_path: Path
) -> None:
    """One completion of a post, from a program that no key of drawing changes."""
    for probe in (programs.validation_sampler, programs.verification_sampler):
        before, after = (
            run_probe(shared, tmp_path / f"{probe.__name__}{len(keys)}", probe, keys)
            for keys in ({}, changes)
        )
        assert before == after
    loops = run_probe(shared, tmp_path / "loops", programs.loops_of_validation, changes)
    assert loops == [[1, 64]]


def test_evaluation_obeys_the_keys_of_the_decoding_loop(shared: Path, tmp_path: Path) -> None:
    """A cache that doubles from 16 slots, then half of the four votes, then one of them."""
    keys = {
        "evaluate.num_votes": 4,
        "rollout.first_cache_length": 16,
        "rollout.halvings": 2,
    }
    loops = run_probe(shared, tmp_path / "votes", programs.loops_of_evaluation, keys)
    assert loops == [[4, 16], [4, 32], [4, 64], [2, 64], [1, 64]]
    greedy = {**keys, "evaluate.num_votes": 1}
    loops = run_probe(shared, tmp_path / "greedy", programs.loops_of_evaluation, greedy)
    assert loops == [[1, 16], [1, 32], [1, 64]]
