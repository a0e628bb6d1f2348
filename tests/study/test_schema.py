"""A study file is checked before anything runs, and says what is wrong in one message."""

from __future__ import annotations

from pathlib import Path

import pytest

from mental_r1_jax.errors import UserError
from mental_r1_jax.study.schema import load_study
from tests.study.fakes import STUDY, write_study


def problem(folder: Path, study: str) -> str:
    with pytest.raises(UserError) as caught:
        load_study(write_study(folder, study))
    return str(caught.value)


def test_dotted_names_of_a_method_are_keys_of_the_recipe(tmp_path: Path) -> None:
    study = load_study(write_study(tmp_path), ["run.num_steps=3"])
    assert study.methods["grpo"].keys == {"crpo.stage_entropy_rule": "off"}  # no boolean
    assert study.methods["crpo"].vary == {"crpo.stage_entropy_scale": (0.001, 0.01)}
    assert study.methods["cold"].verb == "none"
    assert study.keys == {"run.num_steps": 3}
    assert study.recipe == tmp_path / "recipe.yaml"


@pytest.mark.parametrize(
    ("old", "new", "part"),
    [
        ("seeds: [0, 1]", "seeds: []", "seeds: "),
        ("seeds: [0, 1]", "seeds: [1, 1]", "named once"),
        ("seeds:", "seedz:", "did you mean 'seeds'"),
        ("baseline: grpo", "baseline: gpro", "expected some of ['cold', 'grpo', 'crpo']"),
        ("baseline: grpo", "baseline: crpo", "may not vary"),
        ("baseline: grpo", "baseline: [grpo, crpo]", "may not vary"),
        ("baseline: grpo", "baseline: [grpo, grpo]", "named once"),
        ("baseline: grpo", "baseline: []", "baseline: "),
        ("{verb: none}", "{verb: fly}", "methods.cold.verb"),
        ("{verb: none}", "{verbb: none}", "did you mean 'methods.cold.verb'"),
        ("{verb: none}", "{match: updates}", "match belongs to verb: sft"),
        ("{verb: none}", "{run.seed: 3}", "methods.cold: run.seed is set by the study"),
        ("  cold:", "  a b/c:", "becomes a folder"),
        ("[0.001, 0.01]", "[]", "methods.crpo.vary"),
        ("output_dir: OUT", "output_dir: gs://b/x", "output_dir: 'gs://b/x' is an address"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, old: str, new: str, part: str) -> None:
    assert old in STUDY
    assert part in problem(tmp_path, STUDY.replace(old, new))


@pytest.mark.parametrize(("text", "part"), [("- 1", "is not a study"), ("a: [", "is not YAML")])
def test_a_file_that_is_no_study(tmp_path: Path, text: str, part: str) -> None:
    assert part in problem(tmp_path, text)
