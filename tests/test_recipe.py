"""Recipes on disk: YAML with overrides, helpful errors, and a round trip."""

from __future__ import annotations

from pathlib import Path

import pytest

from mental_r1_jax.errors import UserError
from mental_r1_jax.recipe import dump_config, load_config, parse_config

MINIMAL = "model: {path: somewhere}\ndata: {sets: [A]}\nrun: {output_dir: out}\n"


def problem(*overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        parse_config(MINIMAL, overrides, source="test")
    return str(caught.value)


@pytest.mark.parametrize(
    ("override", "suggestion"),
    [
        ("crpo.kl_coeff=0", "crpo.kl_coef"),
        ("rollout.tempurature=1", "rollout.temperature"),
        ("run.num_step=3", "run.num_steps"),
        ("sft.optimizer.lerning_rate=1", "sft.optimizer.learning_rate"),
        ("rolout.top_p=0.5", "rollout"),
    ],
)
def test_an_unknown_key_names_the_nearest_one(override: str, suggestion: str) -> None:
    text = problem(override)
    key = override.split("=")[0]
    named = key if key.split(".")[0] != "rolout" else "rolout"
    assert f"unknown key {named!r}; did you mean {suggestion!r}?" in text


def test_an_unknown_key_of_a_custom_set_names_the_nearest_one() -> None:
    text = problem("data.custom_sets.MINE.labels=[a, b]", "data.custom_sets.MINE.lables=[a]")
    assert "'data.custom_sets.MINE.lables'" in text
    assert "did you mean 'data.custom_sets.MINE.labels'?" in text


def test_yaml_reads_5e_6_as_a_string_and_we_as_a_number() -> None:
    text = MINIMAL + "optimizer: {learning_rate: 5e-6}"
    assert parse_config(text, source="test").optimizer.learning_rate == 5e-6
    changed = parse_config(MINIMAL, ["optimizer.learning_rate=1e-3"], source="test")
    assert changed.optimizer.learning_rate == 1e-3


def test_an_override_wins_and_makes_sections_that_the_recipe_lacks() -> None:
    text = MINIMAL + "crpo: {kl_coef: 0.5, dual_clip: 3}"
    config = parse_config(text, ["crpo.kl_coef=0", "mesh.tensor=2"], source="test")
    assert (config.crpo.kl_coef, config.crpo.dual_clip, config.mesh.tensor) == (0.0, 3.0, 2)


def test_the_later_of_two_overrides_wins() -> None:
    config = parse_config(MINIMAL, ["run.seed=1", "run.seed=2"], source="test")
    assert config.run.seed == 2


def test_an_override_may_hold_an_equals_sign_a_list_or_null() -> None:
    overrides = ["run.wandb_project=a=b", "data.sets=[X, Y]", "rollout.top_k=null"]
    config = parse_config(MINIMAL, overrides, source="test")
    assert config.run.wandb_project == "a=b"
    assert config.data.sets == ("X", "Y")
    assert config.rollout.top_k is None


def test_an_empty_section_in_yaml_means_the_defaults_with_overrides() -> None:
    config = parse_config(MINIMAL + "crpo:\n", ["crpo.kl_coef=0.5"], source="test")
    assert config.crpo.kl_coef == 0.5


@pytest.mark.parametrize("override", ["kl_coef=0", "crpo.kl_coef", "crpo.=1", "=1", ".a=1"])
def test_an_override_of_the_wrong_form_is_quoted(override: str) -> None:
    text = problem(override)
    assert "override not understood" in text
    assert override in text


def test_an_override_below_a_plain_value_is_refused() -> None:
    assert "goes below a plain value" in problem("model.path.name=1")


def test_an_override_that_is_not_yaml_is_refused() -> None:
    assert "is not YAML" in problem("data.sets=[A")


def test_dump_and_load_round_trip(tmp_path: Path) -> None:
    config = parse_config(
        MINIMAL,
        [
            "optimizer.learning_rate=5e-6",
            "data.root=posts",
            'data.custom_sets.MINE={labels: ["Yes", "No"], question: "Ja?\\nOder: ä"}',
            "crpo.stage_entropy_rule=explicit",
            "crpo.stage_entropy_coefs=[-0.1, 0, 0.1, 0.2, 1e-5]",
            "rollout.prompt_length_buckets=[64]",
            "export.checkpoint=7",
        ],
        source="test",
    )
    (tmp_path / "config.yaml").write_text(dump_config(config), encoding="utf-8")
    assert load_config(tmp_path / "config.yaml") == config
    assert load_config(tmp_path) == config  # a run folder is a recipe


def test_the_rule_off_survives_the_round_trip() -> None:
    config = parse_config(MINIMAL, ['crpo.stage_entropy_rule="off"'], source="test")
    assert parse_config(dump_config(config), source="test").crpo.stage_entropy_rule == "off"


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("- a\n- b", "list"),
        ("", "NoneType"),
        ("model: [", "not YAML"),
        ("model: 3\ndata: {sets: [A]}\nrun: {output_dir: out}", "model: "),
    ],
)
def test_a_file_that_is_no_recipe(tmp_path: Path, text: str, part: str) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        load_config(file)
    assert part in str(caught.value)
    assert str(file) in str(caught.value)


def test_a_missing_recipe(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="recipe not found"):
        load_config(tmp_path / "nothing.yaml")
    with pytest.raises(UserError, match="recipe not found"):
        load_config(tmp_path)  # a folder without config.yaml


def test_yes_no_and_off_are_words() -> None:
    config = parse_config(
        MINIMAL,
        [
            "crpo.stage_entropy_rule=off",
            "data.custom_sets.MINE.labels=[Yes, No]",
            "model.remat=none",
        ],
        source="test",
    )
    assert config.crpo.stage_entropy_rule == "off"
    assert config.data.custom_sets["MINE"].labels == ("Yes", "No")
    assert config.model.remat == "none"
    assert parse_config(dump_config(config), source="dump") == config


def write(folder: Path, **recipes: str) -> Path:
    """Write NAME.yaml for each recipe; returns the first one."""
    for name, text in recipes.items():
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    return folder / f"{next(iter(recipes))}.yaml"


def test_values_of_a_recipe_win_over_its_base_and_overrides_over_both(tmp_path: Path) -> None:
    recipe = write(
        tmp_path,
        top="base: middle.yaml\ncrpo: {kl_coef: 0.3}\ndata: {sets: [B, C]}\noptimizer:\n",
        middle="base: low.yaml\ncrpo: {kl_coef: 0.2, dual_clip: 3}\nrun: {seed: 2}\n",
        low=MINIMAL + "crpo: {kl_coef: 0.1, num_iterations: 2}\noptimizer: {beta1: 0.5}\n",
    )
    config = load_config(recipe, ["run.seed=7"])
    assert (config.crpo.kl_coef, config.crpo.dual_clip, config.crpo.num_iterations) == (0.3, 3, 2)
    assert config.data.sets == ("B", "C")  # a list is one value
    assert config.optimizer.beta1 == 0.5  # an empty section says nothing
    assert (config.model.path, str(config.run.output_dir), config.run.seed) == (
        *("somewhere", "out"),
        7,
    )
    assert parse_config(dump_config(config), source="resolved") == config
    assert "\nbase:" not in dump_config(config)


def test_a_base_is_relative_to_the_recipe_that_names_it(tmp_path: Path) -> None:
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    write(tmp_path, low=MINIMAL)
    write(tmp_path / "a", middle="base: ../low.yaml\n")
    recipe = write(inner, top="base: ../middle.yaml\n")
    assert load_config(recipe).model.path == "somewhere"


def test_null_replaces_a_plain_value_of_the_base(tmp_path: Path) -> None:
    recipe = write(
        tmp_path,
        top="base: low.yaml\nrollout: {top_k: null}\n",
        low=MINIMAL + "rollout: {top_k: 3}\n",
    )
    assert load_config(recipe).rollout.top_k is None


@pytest.mark.parametrize(
    ("recipes", "parts"),
    [
        ({"top": "base: none.yaml"}, ("base of", "top.yaml", "none.yaml")),
        ({"top": "base: top.yaml"}, ("circle", "top.yaml -> ")),
        ({"top": "base: a.yaml", "a": "base: top.yaml"}, ("circle", "a.yaml", "top.yaml")),
        ({"top": "base: [a, b]"}, ("not a path", "['a', 'b']")),
        ({"top": "base:"}, ("not a path", "None")),
        ({"top": "base: a.yaml", "a": "- 1"}, ("a.yaml is not a recipe", "list")),
        ({"top": "base: a.yaml", "a": "model: ["}, ("a.yaml is not YAML", "line 1")),
        (
            {f"r{i}": f"base: r{i + 1}.yaml" for i in range(10)} | {"r10": MINIMAL},
            ("one too many", "r8.yaml -> "),
        ),
    ],
)
def test_a_base_that_cannot_be_used_is_one_error(
    tmp_path: Path, recipes: dict[str, str], parts: tuple[str, ...]
) -> None:
    with pytest.raises(UserError) as caught:
        load_config(write(tmp_path, **recipes))
    for part in parts:
        assert part in str(caught.value)


def test_a_wrong_value_is_found_in_the_file_that_wrote_it(tmp_path: Path) -> None:
    low = MINIMAL + "crpo: {kl_coef: -1}\nrollout: {top_p: 2}\noptimizer: {beta1: 0.5}\n"
    recipe = write(tmp_path, top="base: low.yaml\ncrpo: {kl_coeff: 0}\n", low=low)
    with pytest.raises(UserError) as caught:
        load_config(recipe, ["rollout.top_p=3", "optimizer.beta1=4"])
    lines = {line.strip(" -").split(":")[0]: line for line in str(caught.value).splitlines()}
    assert lines["crpo.kl_coef"].endswith(f"(in {tmp_path / 'low.yaml'})")
    unknown = next(line for line in lines.values() if "unknown key 'crpo.kl_coeff'" in line)
    assert unknown.endswith(f"(in {tmp_path / 'top.yaml'})")
    for given in ("rollout.top_p", "optimizer.beta1"):
        assert "(in" not in lines[given]


def test_a_key_of_several_kinds_is_named_without_them() -> None:
    with pytest.raises(UserError) as refused:
        parse_config(MINIMAL, ["sft.traces=gs://bucket/traces.jsonl"], source="test")
    assert "- sft.traces: 'gs://bucket/traces.jsonl' is an address" in refused.value.got
    assert "[" not in refused.value.got
