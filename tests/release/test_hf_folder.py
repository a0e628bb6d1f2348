"""Putting an exported folder in place: whole or not at all, and the earlier one until then."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mental_r1_jax.errors import UserError
from mental_r1_jax.opening.model_source import origin_of, public_name
from mental_r1_jax.recipe import parse_config
from mental_r1_jax.release.hf_folder import MARKER, check_target, put_in_place, write_configs


def folder_with(path: Path, **files: str) -> Path:
    path.mkdir(parents=True)
    for name, text in files.items():
        (path / name).write_text(text)
    return path


def test_a_new_export_replaces_the_earlier_one(tmp_path: Path) -> None:
    old = folder_with(tmp_path / "hf", weights="old", only_old="x")
    new = folder_with(tmp_path / ".hf.partial", weights="new")
    put_in_place(new, old)
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]
    assert {path.name: path.read_text() for path in old.iterdir()} == {"weights": "new"}


def test_the_earlier_export_survives_a_failure(tmp_path: Path) -> None:
    old = folder_with(tmp_path / "hf", weights="old")
    with pytest.raises(FileNotFoundError):
        put_in_place(tmp_path / "missing", old)
    (kept,) = tmp_path.rglob("weights")
    assert kept.read_text() == "old"


def test_only_new_empty_or_own_folders_are_written_to(tmp_path: Path) -> None:
    check_target(tmp_path / "new")
    check_target(folder_with(tmp_path / "empty"))
    ours = folder_with(tmp_path / "ours", weights="old")
    (ours / MARKER).write_text("{}")
    check_target(ours)
    foreign = folder_with(tmp_path / "foreign", thesis="years of work")
    with pytest.raises(UserError, match="was not made by"):
        check_target(foreign)
    assert (foreign / "thesis").read_text() == "years of work"


def test_the_card_names_the_model_that_the_first_run_started_from(tmp_path: Path) -> None:
    recipe = "model: {{path: {path}}}\ndata: {{sets: [A]}}\nrun: {{output_dir: out}}\n"
    cold, crpo = tmp_path / "cold", tmp_path / "crpo"
    for run, start in ((cold, "Owner/Name-1B"), (crpo, cold)):
        (run / "base_model").mkdir(parents=True)
        (run / "config.yaml").write_text(recipe.format(path=start))
    assert origin_of(str(crpo)) == origin_of(str(cold)) == "Owner/Name-1B"
    assert public_name("Owner/Name-1B") == "Owner/Name-1B"
    # Of a local folder only its own name gets into the card.
    assert public_name(str(tmp_path / "cold")) == "cold"


def test_a_released_config_does_not_say_where_its_model_lay(tmp_path: Path) -> None:
    written = {"model_type": "qwen3", "_name_or_path": "/home/me/base", "vocab_size": 7}
    (tmp_path / "config.json").write_text(json.dumps(written))
    tokenizer = SimpleNamespace(eos_ids=(1,), pad_id=0)
    model: Any = SimpleNamespace(hf_config=written, tokenizer=tokenizer)
    recipe = "model: {path: m}\ndata: {sets: [A]}\nrun: {output_dir: out}\nexport: {dtype: float32}"
    write_configs(model, tmp_path, parse_config(recipe, source="test"))
    content = json.loads((tmp_path / "config.json").read_text())
    assert content == {"model_type": "qwen3", "vocab_size": 7, "dtype": "float32"}
