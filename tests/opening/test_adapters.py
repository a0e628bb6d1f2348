"""Which adapters a run starts from, what its reference is, and whether its base is the same."""

from __future__ import annotations

import dataclasses
import json
import shutil
import typing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import optax
import pytest

from mental_r1_jax.config import CrpoConfig, ExperimentConfig, LoraTarget
from mental_r1_jax.errors import UserError
from mental_r1_jax.models import peft_format
from mental_r1_jax.models.tiny import make_tiny_model
from mental_r1_jax.opening.adapters import files_fingerprint
from mental_r1_jax.opening.model_source import (
    check_base_model,
    load_weights,
    open_model,
    open_start_model,
    origin_of,
    save_base_model,
)
from mental_r1_jax.programs.step_programs import abstract_state
from mental_r1_jax.recipe import dump_config
from mental_r1_jax.release.hf_folder import check_format
from mental_r1_jax.runs.training_run import fresh_state, reference_weights
from mental_r1_jax.sharding import make_mesh
from mental_r1_jax.training import checkpoint
from tests.every_field.toys import CORPUS

LORA = {"rank": 2, "alpha": 4, "targets": ["v_proj", "q_proj"]}
OPTIMIZER = optax.adamw(1e-3)


def mesh() -> jax.sharding.Mesh:
    return make_mesh(1, 1, 1, jax.devices()[:1])


def recipe(path: Any, lora: Any = LORA, **sections: Any) -> ExperimentConfig:
    model = {"path": str(path), "compute_dtype": "float32", "lora": lora}
    run = {"output_dir": "unused", "num_steps": 1}
    return ExperimentConfig.model_validate(
        {"model": model, "data": {"sets": ["Stress-Synthetic"]}, "run": run, **sections}
    )


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A model; a run that trains it whole, one that trains adapters on it, one on the first run."""
    root = tmp_path_factory.mktemp("adapters")
    sizes = {"vocab_size": 512, "hidden_size": 16, "intermediate_size": 24, "num_layers": 1}
    make_tiny_model(root / "tiny", CORPUS, **sizes)
    for name, config in {
        "full": recipe(root / "tiny", None),
        "lora": recipe(root / "tiny"),
        "on_full": recipe(root / "full"),
    }.items():
        write_run(root / name, config)
    return root


def write_run(folder: Path, config: ExperimentConfig) -> None:
    """A run folder with one checkpoint, in which everything that is trained has moved by one."""
    model = open_start_model(config)
    state = fresh_state(model, OPTIMIZER, mesh(), seed=3)
    state = dataclasses.replace(state, params=jax.tree.map(lambda x: x + 1.0, state.params))
    folder.mkdir()
    (folder / "config.yaml").write_text(dump_config(config))
    save_base_model(model, folder)
    with checkpoint.open_checkpoints(folder / "checkpoints") as manager:
        checkpoint.save(manager, 5, state, {}, None)
        manager.wait_until_finished()


def leaves(tree: Any) -> dict[str, np.ndarray]:
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in flat}


def validated(run: Path, model: Any, params: Any, scores: dict[int, float]) -> None:
    """Checkpoints of a run, scored by validation, whose weights lie off `params` by their step."""
    with checkpoint.open_checkpoints(run / "checkpoints", keep=5) as manager:
        for step, score in scores.items():
            moved = jax.tree.map(lambda x, step=step: x + step, params)
            state = dataclasses.replace(fresh_state(model, OPTIMIZER, mesh(), seed=3), params=moved)
            checkpoint.save(manager, step, state, {}, score)


def test_a_run_is_gone_on_with_from_its_best_checkpoint(places: Path, tmp_path: Path) -> None:
    # A cold start that `run.patience` ended: its newest weights are not the ones it is known for.
    shutil.copytree(places / "full", tmp_path / "cold", ignore=shutil.ignore_patterns("5"))
    model = open_start_model(recipe(places / "tiny", None))
    before = leaves(load_weights(model, mesh()))
    scores = {1: 0.5, 2: 0.75, 3: 0.625}
    validated(tmp_path / "cold", model, load_weights(model, mesh()), scores)
    going_on = recipe(tmp_path / "cold", None)
    start = open_start_model(going_on)
    for tree in (fresh_state(start, OPTIMIZER, mesh()).params, reference_of(going_on)):
        for name, leaf in leaves(tree).items():
            np.testing.assert_array_equal(leaf, before[name] + np.float32(2))
    # Adapters on it freeze the same weights, and name the step they belong to.
    under = open_start_model(recipe(tmp_path / "cold"))
    assert under.base is not None and under.base.step == 2
    frozen = leaves(fresh_state(under, OPTIMIZER, mesh()).frozen)
    for name, leaf in frozen.items():
        np.testing.assert_array_equal(leaf, before[name] + np.float32(2))


def reference_of(config: ExperimentConfig) -> Any:
    run: Any = SimpleNamespace(config=config, model=open_start_model(config), mesh=mesh())
    return reference_weights(run)


def test_a_whole_model_gets_fresh_adapters_and_is_the_reference(places: Path) -> None:
    config = recipe(places / "tiny")
    model = open_start_model(config)
    assert model.base is not None and not model.continues
    assert model.decoder.lora == peft_format.Lora(2, 4.0, ("q_proj", "v_proj"))
    state = fresh_state(model, OPTIMIZER, mesh(), CrpoConfig(), seed=1)
    trained = leaves(state.params)
    assert len(trained) == 4 and all("lora" in name for name in trained)
    # Neither moments nor a gradient for anything else.
    moments = leaves(state.opt_state[0].mu)
    assert moments.keys() == trained.keys()
    # The reference is the frozen base itself: the same buffers, no second copy.
    reference = state.beside_frozen(reference_of(config))
    assert leaves(reference).keys() == leaves(state.frozen).keys()
    assert reference["embedding"] is state.frozen["embedding"]
    base = leaves(load_weights(open_model(str(places / "tiny"), config), mesh()))
    for name, leaf in leaves(state.frozen).items():
        np.testing.assert_array_equal(leaf, base[name])
    other = leaves(fresh_state(model, OPTIMIZER, mesh(), CrpoConfig(), seed=2).params)
    name = "['layers']['query']['lora_a']"
    assert not np.array_equal(other[name], trained[name])
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), state)
    abstract = abstract_state(model.decoder, OPTIMIZER, mesh(), CrpoConfig())
    assert shapes == jax.tree.map(lambda x: (x.shape, x.dtype), abstract)


def test_the_adapters_of_a_run_go_on_and_the_reference_is_that_cold_start(places: Path) -> None:
    config = recipe(places / "lora")
    model = open_start_model(config)
    assert model.continues and model.base is not None and model.base.folder == places / "tiny"
    state = fresh_state(model, OPTIMIZER, mesh())
    query = leaves(state.params)["['layers']['query']['lora_b']"]
    np.testing.assert_array_equal(query, np.ones_like(query))  # B = 0, moved by one
    reference = leaves(reference_of(config))
    assert reference.keys() == leaves(state.params).keys()
    for name, leaf in leaves(state.params).items():
        np.testing.assert_array_equal(leaf, reference[name])
    # Other verbs find the same weights, whatever the recipe says about adapters.
    read = leaves(load_weights(open_model(str(places / "lora"), recipe("x", None)), mesh()))
    assert read.keys() == leaves(state.weights).keys()
    assert origin_of(str(places / "lora")) == str(places / "tiny")


def test_adapters_on_a_run_that_trained_all_weights_remember_its_step(places: Path) -> None:
    base = open_model(str(places / "on_full"), recipe("x", None)).base
    assert base is not None and (base.run_folder, base.step) == (places / "full", 5)
    config = recipe(places / "on_full", export={"format": "peft"})
    with pytest.raises(UserError, match="cannot be exported as a PEFT folder"):
        check_format(open_model(str(places / "on_full"), config), config)
    with pytest.raises(UserError, match="trained all weights"):
        check_format(open_model(str(places / "full"), config), config)


@pytest.mark.parametrize(
    ("start", "lora"),
    [
        ("lora", None),
        ("lora", {**LORA, "rank": 3}),
        ("lora", {**LORA, "alpha": 5}),
        ("lora", {**LORA, "targets": ["q_proj"]}),
        ("tiny", {**LORA, "base": "elsewhere"}),
    ],
)
def test_other_combinations_are_refused(places: Path, start: str, lora: Any) -> None:
    with pytest.raises(UserError, match="are not those of the recipe"):
        open_start_model(recipe(places / start, lora))


def test_another_model_in_the_place_of_the_base_is_refused(places: Path, tmp_path: Path) -> None:
    for name in ("tiny", "lora"):
        shutil.copytree(places / name, tmp_path / name)
    record = tmp_path / "lora/base_model/adapter_config.json"
    content = json.loads(record.read_text())
    content["base_model_name_or_path"] = str(tmp_path / "tiny")
    record.write_text(json.dumps(content))
    config = recipe(tmp_path / "tiny")
    check_base_model(open_start_model(config), tmp_path / "lora")
    weights = tmp_path / "tiny/model.safetensors"
    changed = bytearray(weights.read_bytes())
    changed[-2] ^= 1
    weights.write_bytes(changed)
    with pytest.raises(UserError, match="is not the model that the adapters"):
        open_model(str(tmp_path / "lora"), config)
    # So is resuming a run in whose folder the other one is recorded.
    with pytest.raises(UserError, match="is not the model that the adapters"):
        check_base_model(open_start_model(config), tmp_path / "lora")
    # Where the base has moved to, the recipe can say.
    moved = recipe("x", {**LORA, "base": str(places / "tiny")})
    found = open_model(str(tmp_path / "lora"), moved).base
    assert found is not None and found.folder == places / "tiny"


def test_a_peft_folder_is_a_start_model_and_opens_like_any_other(
    places: Path, tmp_path: Path
) -> None:
    state = fresh_state(open_start_model(recipe(places / "lora")), OPTIMIZER, mesh())
    lora = peft_format.Lora(2, 4.0, ("q_proj", "v_proj"))
    decoder = dataclasses.replace(open_model(str(places / "tiny"), recipe("x")).decoder, lora=lora)
    peft_format.write_peft_config(tmp_path, lora, str(places / "tiny"))
    peft_format.save_adapters(state.params, decoder, tmp_path)
    model = open_start_model(recipe(tmp_path))
    assert model.continues and model.peft_folder == tmp_path
    found = leaves(load_weights(model, mesh()))
    for name, leaf in leaves(state.weights).items():
        np.testing.assert_array_equal(leaf, found[name])
    assert origin_of(str(tmp_path)) == str(places / "tiny")


def test_a_restored_state_has_adapters_alone_until_the_base_is_read(places: Path) -> None:
    model = open_start_model(recipe(places / "tiny"))
    abstract = abstract_state(model.decoder, OPTIMIZER, mesh())
    with checkpoint.open_checkpoints(places / "lora/checkpoints", read_only=True) as manager:
        restored = checkpoint.restore(manager, abstract)
    assert restored is not None and restored[1].frozen is None
    assert set(restored[1].params) == {"layers"}


def test_recipes_and_peft_folders_know_the_same_targets() -> None:
    assert typing.get_args(LoraTarget) == peft_format.TARGETS


def test_the_fingerprint_sees_every_file_and_changes_anywhere(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    files = [tmp_path / "a", tmp_path / "b"]
    for file in files:
        file.write_bytes(rng.bytes(3_000_000))
    whole = files_fingerprint(files)
    assert whole == files_fingerprint(files) and whole != files_fingerprint(files[:1])
    # Another training changes every number; a tenth of a file is as good as all of it.
    content = bytearray(files[1].read_bytes())
    content[1_500_000:1_800_000] = rng.bytes(300_000)
    files[1].write_bytes(content)
    assert files_fingerprint(files) != whole
