"""Every recipe in configs/ loads, is explained, and its rollout and update fit together.

The models themselves are not needed: shapes follow from the public `config.json` values, and
`jax.eval_shape` runs the real functions without any array.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pydantic
import pytest
import yaml

from mental_r1_jax.config import (
    STAGE_NAMES,
    ColumnMap,
    CustomSet,
    ExperimentConfig,
    LoraConfig,
    SplitShares,
)
from mental_r1_jax.data.benchmarks import BENCHMARKS, SYNTHETIC_SPECS, spec_for
from mental_r1_jax.models import decoder
from mental_r1_jax.models.decoder import DecoderConfig, parameter_count
from mental_r1_jax.models.hf_config import decoder_config_from_hf
from mental_r1_jax.opening.mesh_choice import choose_mesh
from mental_r1_jax.opening.model_source import wanted_adapters
from mental_r1_jax.planning.chips import CHIPS
from mental_r1_jax.planning.known_models import KNOWN_CONFIGS
from mental_r1_jax.planning.topologies import parse_topology
from mental_r1_jax.recipe import load_config
from mental_r1_jax.rollout.sampler import sample_completions, sampler_settings
from mental_r1_jax.study.cells import plan_study
from mental_r1_jax.study.schema import load_study
from mental_r1_jax.training.optimizer import make_optimizer
from mental_r1_jax.training.train_step import init_state, train_step
from mental_r1_jax.types import Batch, PromptBatch

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
STUDIES = sorted(CONFIGS.glob("study_*.yaml"))
RECIPES = sorted(set(CONFIGS.glob("*.yaml")) - set(STUDIES))
# What is compared with the paper's recipe, and the keys of `crpo` in which each differs.
METHODS = {
    "grpo": {"stage_entropy_rule"},
    "rloo": {"stage_entropy_rule", "advantage_baseline", "scale_rewards"},
    "dr_grpo": {"stage_entropy_rule", "scale_rewards", "aggregation"},
    "remax": {"stage_entropy_rule", "advantage_baseline", "scale_rewards"},
    "reinforce_pp": {"stage_entropy_rule", "advantage_baseline", "scale_rewards", "kl_in"},
    "reinforce_pp_baseline": {"stage_entropy_rule", "scale_rewards", "kl_estimator"},
    "stage_target": {"stage_entropy_rule"},
    "gspo": {
        *("stage_entropy_rule", "importance_level", "aggregation"),
        *("clip_epsilon_low", "clip_epsilon_high"),
    },
    "entropy_bonus": {"stage_entropy_rule", "entropy_bonus_coef"},
}

# model.path -> parameters as their model cards state them, in millions
MODELS = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": 135,
    "meta-llama/Llama-3.2-1B-Instruct": 1236,
    "Qwen/Qwen3-0.6B": 596,
    "Qwen/Qwen3-1.7B": 1721,
    "Qwen/Qwen3-8B": 8190,
    "Qwen/Qwen3-32B": 32762,
    "google/gemma-3-270m-it": 268,
    "google/gemma-3-1b-it": 1000,
    "google/gemma-3-4b-it": 3880,  # the text part
    "runs/quickstart/tiny_model": 0.46,
    "runs/chinese_made_up/tiny_model": 0.46,
    "runs/real_posts_cpu/cut": 19.8,
}
# The models that no hub has: benchmarks/cut_model.py makes one, the quickstart all others.
CUT = {
    "runs/real_posts_cpu/cut": KNOWN_CONFIGS["HuggingFaceTB/SmolLM2-135M-Instruct"]
    | {"num_hidden_layers": 4, "vocab_size": 9829}
}
TINY = KNOWN_CONFIGS["Qwen/Qwen3-0.6B"] | {
    **{"vocab_size": 512, "hidden_size": 128, "intermediate_size": 384, "head_dim": 32},
    **{"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2},
}
# What the headers name, beside one device of any kind.
HARDWARE = {
    "qwen3_0p6b_crpo": ("v5e-8", "v6e-8"),
    "qwen3_1p7b_crpo": ("v5e-8", "v6e-8"),
    "llama3p2_1b_crpo": ("v5e-8", "v6e-8"),
    "gemma3_270m_crpo": ("v5e-8", "v6e-8"),
    "gemma3_1b_crpo": ("v5e-8", "v6e-8"),
    "gemma3_4b_lora_crpo": ("v5e-8", "v6e-8"),
    "qwen3_8b_lora_crpo": ("v5e-8", "v6e-8"),
    "qwen3_8b_crpo": ("v5p-32", "v5p-64", "v6e-32", "v5e-64"),
    **{f"qwen3_8b_{name}": ("v5p-32", "v5p-64", "v6e-32", "v5e-64") for name in METHODS},
    "qwen3_32b_crpo": ("v5p-128",),
}
on_every_recipe = pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
# Tracing takes ten seconds a recipe: one of each family, and ReMax, which samples in its own way.
TRACED = ("quickstart", "llama3p2_1b_crpo", "qwen3_8b_crpo", "qwen3_8b_remax")
on_every_recipe_traced = pytest.mark.parametrize(
    "recipe",
    [
        pytest.param(path, id=path.stem, marks=[] if path.stem in TRACED else [pytest.mark.slow])
        for path in RECIPES
    ],
)


def decoder_of(config: ExperimentConfig) -> DecoderConfig:
    """The architecture of the recipe's model, without a file."""
    decoder_config = decoder_config_from_hf(
        (KNOWN_CONFIGS | CUT).get(config.model.path, TINY),
        compute_dtype=config.model.compute_dtype,
        remat=config.model.remat,
    )
    return dataclasses.replace(decoder_config, lora=wanted_adapters(config))


def shape(*sizes: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, dtype)


@on_every_recipe
def test_it_opens_with_purpose_command_hardware_duration_and_expectation(recipe: Path) -> None:
    lines = recipe.read_text(encoding="utf-8").splitlines()
    header = lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))]
    for topic in ("Purpose", "Command", "Hardware", "Duration", "Expected"):
        assert any(line.startswith(f"# {topic}:") for line in header), topic


@on_every_recipe
def test_its_sets_are_known_and_its_folder_is_its_own(recipe: Path) -> None:
    config = load_config(recipe)
    for name in config.data.sets:
        spec = spec_for(name, config.data.custom_sets)
        assert spec.question is not None
        assert (name in SYNTHETIC_SPECS) == (recipe.stem == "quickstart")
    assert config.run.output_dir == Path("runs") / recipe.stem
    assert set(config.data.custom_sets) <= set(config.data.sets) - set(BENCHMARKS)


@on_every_recipe
def test_its_batches_divide_over_its_mesh(recipe: Path) -> None:
    """On one device, and on the slices that its header names, whose memory chooses the mesh."""
    config = load_config(recipe)
    model = decoder_of(config)
    for kind in HARDWARE.get(recipe.stem, ()):
        slice_ = parse_topology(kind)
        text = recipe.read_text(encoding="utf-8")
        assert kind in text or "# Hardware:  as qwen3_8b_crpo.yaml." in text
        choice = choose_mesh(
            model,
            slice_.chips,
            CHIPS[slice_.generation].memory,
            config.optimizer,
            fsdp=config.mesh.fsdp,
            tensor=config.mesh.tensor,
        )
        shards = slice_.chips // choice.tensor
        assert shards % choice.fsdp == 0
        assert config.rollout.prompts_per_step % (shards * config.run.micro_batches) == 0
        assert config.evaluate.batch_size % shards == 0


@on_every_recipe_traced
def test_its_update_abstract_evaluates(recipe: Path) -> None:
    config = load_config(recipe)
    model = decoder_of(config)
    millions = MODELS[config.model.path]
    assert parameter_count(model) == pytest.approx(millions * 1e6, rel=0.02)

    rollout = config.rollout
    b, g, p, c = (
        rollout.prompts_per_step,
        rollout.num_generations,
        rollout.max_prompt_length,
        rollout.max_completion_length,
    )
    tokens = shape(b, g, c)
    batch = Batch(
        prompt_ids=shape(b, p, dtype=jnp.int32),
        prompt_mask=shape(b, p, dtype=bool),
        completion_ids=shape(b, g, c, dtype=jnp.int32),
        completion_mask=shape(b, g, c, dtype=bool),
        stage_mask=shape(b, g, len(STAGE_NAMES), c, dtype=bool),
        rewards=shape(b, g),
        sampler_logprobs=tokens,
        decode_logprobs=tokens,
        old_logprobs=tokens if config.crpo.num_iterations > 1 else None,
        ref_logprobs=tokens if config.crpo.kl_coef > 0 else None,
        baseline_rewards=shape(b) if config.crpo.advantage_baseline == "greedy" else None,
    )
    optimizer = make_optimizer(config.optimizer, 10)
    frozen = None if model.lora is None else decoder.abstract_params(model)
    create = functools.partial(init_state, optimizer=optimizer, crpo=config.crpo)
    state = jax.eval_shape(create, decoder.abstract_trained(model), frozen=frozen)
    step = functools.partial(train_step, config=config, decoder=model, optimizer=optimizer)
    after, metrics, advantages = jax.eval_shape(step, state, batch)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    for old, new in zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True):
        assert (old.shape, old.dtype) == (new.shape, new.dtype)
    assert {"loss", "grad_norm", "entropy/stage/stimulus"} <= set(metrics)
    assert advantages.shape == (b, g)


@on_every_recipe_traced
def test_its_rollout_abstract_evaluates(recipe: Path) -> None:
    config = load_config(recipe)
    model, rollout = decoder_of(config), config.rollout
    b, p = rollout.prompts_per_step, rollout.max_prompt_length
    prompts = PromptBatch(
        prompt_ids=shape(b, p, dtype=jnp.int32),
        prompt_mask=shape(b, p, dtype=bool),
        prompt_index=shape(b, dtype=jnp.int32),
    )
    settings = sampler_settings(config, "train", eos_ids=(2,), pad_id=0)
    sample = functools.partial(sample_completions, config=model, settings=settings)
    key = jax.eval_shape(jax.random.key, 0)
    completions = jax.eval_shape(sample, decoder.abstract_params(model), prompts, key)
    expected = (b, rollout.num_generations, rollout.max_completion_length)
    assert completions.completion_ids.shape == expected
    assert completions.finished.shape == expected[:2]


@pytest.mark.parametrize("name", METHODS)
def test_a_method_differs_from_the_papers_recipe_in_its_own_keys_only(name: str) -> None:
    ours = load_config(CONFIGS / "qwen3_8b_crpo.yaml").model_dump()
    theirs = load_config(CONFIGS / f"qwen3_8b_{name}.yaml").model_dump()
    assert {k for k, v in theirs["crpo"].items() if v != ours["crpo"][k]} == METHODS[name]
    assert theirs["crpo"]["stage_entropy_rule"] == ("target" if name == "stage_target" else "off")
    for changed in (ours, theirs):
        changed.pop("crpo")
        changed["run"].pop("output_dir")
    assert ours == theirs


@pytest.mark.parametrize("file", STUDIES, ids=lambda path: path.stem)
def test_a_study_has_its_folder_and_cells_that_fit_its_recipe(file: Path) -> None:
    study = load_study(file)
    assert study.output_dir == Path("runs") / file.stem
    plan = plan_study(study)
    assert len({cell.name for cell in plan.cells}) == len(plan.cells)
    first = {t.config.model.path for t in plan.tasks.values() if t.kind == "cold start"}
    later = {t.config.model.path for t in plan.tasks.values() if t.kind == "sft sft"}
    assert first and all("cold_starts" in path for path in later)
    if study.start_model == "tiny":
        assert all("start_models" in path for path in first)
    else:
        assert first == {load_config(CONFIGS / study.recipe).model.path}


def explained() -> dict[str, tuple[str, str]]:
    """Key -> (default, explanation) of the tables in configs/README.md."""
    keys: dict[str, tuple[str, str]] = {}
    section = ""
    for line in (CONFIGS / "README.md").read_text(encoding="utf-8").splitlines():
        if heading := re.fullmatch(r"## ([\w.]+)", line):
            section = heading[1]
        elif row := re.fullmatch(r"\| `(\w+)` \| (.+?) \| (.+) \|", line):
            keys[f"{section}.{row[1]}"] = (row[2].strip("`"), row[3])
    return keys


def fields(model: type[pydantic.BaseModel], prefix: str) -> dict[str, Any]:
    """Key -> pydantic field, of a section."""
    return {
        f"{prefix}.{name}": field
        for name, field in model.model_fields.items()
        if not (
            inspect.isclass(field.annotation) and issubclass(field.annotation, pydantic.BaseModel)
        )
    }


def test_the_readme_explains_every_key_with_its_default() -> None:
    expected = fields(CustomSet, "data.custom_sets.NAME")
    for name, section in ExperimentConfig.model_fields.items():
        expected |= fields(section.annotation, name)
    expected |= fields(ColumnMap, "data.custom_sets.NAME.columns")
    expected |= fields(SplitShares, "data.custom_sets.NAME.split")
    expected |= fields(LoraConfig, "model.lora")
    keys = explained()
    assert keys.keys() == expected.keys()
    for key, field in expected.items():
        default, text = keys[key]
        assert len(text) >= 8, key
        if field.is_required():
            assert default == "required", key
        else:
            value = json.loads(json.dumps(field.default))  # tuples become lists, as in YAML
            read = yaml.safe_load(default)
            assert (float(read) if isinstance(value, float) else read) == value, key


def test_the_readme_names_every_recipe() -> None:
    text = (CONFIGS / "README.md").read_text(encoding="utf-8")
    there = {file.stem for file in (*RECIPES, *STUDIES)}
    assert set(re.findall(r"^\| `(\w+)\.yaml`", text, re.MULTILINE)) == there
