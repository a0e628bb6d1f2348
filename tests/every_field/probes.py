"""Probes: each runs a part of the real program on a recipe and returns what came of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pyarrow.parquet as pq
import pytest

from mental_r1_jax.cli import main
from mental_r1_jax.config import ExperimentConfig
from mental_r1_jax.console import overview
from mental_r1_jax.data import loading
from mental_r1_jax.data.traces import template_completion
from mental_r1_jax.errors import UserError
from mental_r1_jax.jobs import export, sft, train
from mental_r1_jax.opening.devices import open_mesh
from mental_r1_jax.planning.steps import planned_steps
from mental_r1_jax.programs import cache as compilation_cache
from mental_r1_jax.programs.step_programs import abstract_state, as_word
from mental_r1_jax.recipe import dump_config
from mental_r1_jax.release import verify
from mental_r1_jax.rollout import sampler
from mental_r1_jax.runs import training_run
from mental_r1_jax.text.tokenizer import Tokenizer, load_tokenizer
from mental_r1_jax.text.wording import grammar_of
from mental_r1_jax.types import PromptBatch
from tests.every_field import toys
from tests.every_field.lab import Lab
from tests.every_field.loop import toy_run, train_one_step, with_programs


def posts(lab: Lab, config: ExperimentConfig) -> Any:
    """Posts as training and validation see them, and where they were built."""
    train_posts = loading.load_examples(config, "train")
    validation = loading.load_examples(config, "validation")
    built = sorted(path.name for path in lab.tmp.rglob("dataset_info.json"))
    return [
        [
            (name, p.text, p.label, p.question, p.group, p.reasoning)
            for p in (s[i] for i in range(len(s)))
        ]
        for split in (train_posts, validation)
        for name, s in split.items()
    ], built


def problems(lab: Lab, config: ExperimentConfig) -> Any:
    """What `mental-r1 data` reports."""
    checked = loading.check_sets(config.data)
    return [str(p.kind) for one in checked.values() for p in (*one.errors, *one.warnings)]


def set_labels(lab: Lab, config: ExperimentConfig) -> Any:
    """What a set accepts and asks."""
    spec = loading.set_spec(config.data, "Calm")
    return spec.labels, spec.question, spec.positive_labels, problems(lab, config)


def patch_sampler(lab: Lab, tokenizer: Tokenizer, text: str = toys.COMPLETIONS[0]) -> None:
    """Put logits that favour `text`, and noise quick to compile, under the real sampler."""

    def noise(key: Any, prompt_index: Any, group: int, length: int) -> jax.Array:
        shape = (prompt_index.shape[0], group, length)
        return jnp.asarray(np.random.default_rng(2).random(shape), jnp.float32)

    lab.patch.setattr(sampler, "decoder", toys.scripted_decoder(tokenizer, text))
    lab.patch.setattr(sampler, "_uniform_noise", noise)


def one_step(lab: Lab, config: ExperimentConfig) -> dict[str, Any]:
    """One whole step of training: posts, prompts, rewards, the update, files and metrics."""
    session = train_one_step(lab, toy_run(lab, config))
    ((_, metrics),) = session.lines.told
    files = sorted((lab.tmp / "run").rglob("*.parquet"))
    return {
        "params": {name: np.asarray(leaf).tolist() for name, leaf in session.state.params.items()},
        "loss": metrics["loss"],
        "grad_norm": metrics["grad_norm"],
        "reward": metrics["reward"],
        "rewards": {key: metrics[key] for key in metrics if key.startswith("rewards/")},
        "accuracy": metrics["accuracy"],
        "tokens": metrics["tokens/completion"],
        "columns": [pq.read_schema(file).names for file in files],
    }


def objective(lab: Lab, config: ExperimentConfig) -> Any:
    """Loss and gradient norm of one step: what a number of the objective must change."""
    outcome = one_step(lab, config)
    return outcome["loss"], outcome["grad_norm"]


def stage_metrics(lab: Lab, config: ExperimentConfig) -> Any:
    """Names of the metrics of stages that a step of training logs."""
    ((_, metrics),) = train_one_step(lab, toy_run(lab, config)).lines.told
    return sorted(name for name in metrics if "/stage/" in name)


def steered(lab: Lab, config: ExperimentConfig) -> Any:
    """Entropy coefficients and targets after one step; as text, for NaN differs from itself."""
    return repr(jax.device_get(train_one_step(lab, toy_run(lab, config)).state.entropy_control))


def updated_weights(lab: Lab, config: ExperimentConfig) -> Any:
    """Weights after one step."""
    return one_step(lab, config)["params"]


def _asked(lab: Lab, config: ExperimentConfig) -> tuple[PromptBatch, tuple[Any, ...]]:
    """What the sampler is asked for by a step of training. The step ends there."""
    asked: list[tuple[PromptBatch, tuple[Any, ...]]] = []

    def stop(params: Any, prompts: PromptBatch, *randomness: Any) -> Any:
        asked.append((prompts, randomness))
        raise InterruptedError

    with pytest.raises(InterruptedError):
        train_one_step(lab, with_programs(toy_run(lab, config), sample=stop))
    return asked[0]


def asked_prompts(lab: Lab, config: ExperimentConfig) -> Any:
    """Prompts of a step of training."""
    return np.asarray(_asked(lab, config)[0].prompt_ids).tolist()


def asked_completions(lab: Lab, config: ExperimentConfig) -> Any:
    """Shape of the completions that a step of training updates on."""
    run, shapes = toy_run(lab, config), []

    def update(state: Any, batch: Any) -> Any:
        shapes.append(batch.completion_ids.shape)
        return run.programs.update(state, batch)

    train_one_step(lab, with_programs(run, update=update))
    return shapes


def asked_randomness(lab: Lab, config: ExperimentConfig) -> Any:
    """Seed and step that a step of training samples with."""
    return [int(number) for number in _asked(lab, config)[1]]


def reward(lab: Lab, config: ExperimentConfig) -> Any:
    """Mean reward of a step, and mean and spread of its parts."""
    outcome = one_step(lab, config)
    return outcome["reward"], outcome["rewards"]


def accuracy(lab: Lab, config: ExperimentConfig) -> Any:
    """Share of right answers that a step of training logs."""
    return one_step(lab, config)["accuracy"]


def trained_tokens(lab: Lab, config: ExperimentConfig) -> Any:
    """Completion tokens that count in the loss."""
    return one_step(lab, config)["tokens"]


def trained_groups(lab: Lab, config: ExperimentConfig) -> Any:
    """Rounds that a step draws, and groups that its update is given."""
    run, numbers, groups = toy_run(lab, config), [], []

    def sample(params: Any, prompts: Any, seed: Any, number: Any) -> Any:
        numbers.append(int(number))
        return run.programs.sample(params, prompts, seed, number)

    def update(state: Any, batch: Any) -> Any:
        groups.append(int(batch.completion_mask.any((1, 2)).sum()))
        return run.programs.update(state, batch)

    train_one_step(lab, with_programs(run, sample=sample, update=update))
    return numbers, groups


def completion_files(lab: Lab, config: ExperimentConfig) -> Any:
    """Columns of the completion files that one step writes."""
    return one_step(lab, config)["columns"]


def number_of_steps(lab: Lab, config: ExperimentConfig) -> Any:
    """Rollouts of the whole run."""
    return training_run.open_training_run(config).num_steps


def steps_of_the_plan(lab: Lab, config: ExperimentConfig) -> Any:
    """Rollouts that `mental-r1 plan` reckons with, and where the number comes from."""
    return planned_steps(config)


def sampled(lab: Lab, config: ExperimentConfig) -> Any:
    """Completions of the real sampler on scripted logits."""
    real = training_run.open_training_run(config)
    patch_sampler(lab, real.model.tokenizer)
    ids = jnp.zeros((8, 2), jnp.int32)
    prompts = PromptBatch(ids, ids == 0, jnp.arange(8, dtype=jnp.int32))
    completions = real.programs.sample({}, prompts, as_word(0), as_word(1))
    return np.asarray(completions.completion_ids).tolist()


def trained_weights(optimizer: optax.GradientTransformation) -> Any:
    """Toy weights after three updates with gradients that grow; one is a bias."""
    params = {"kernel": jnp.asarray([0.5, -1.0]), "bias": jnp.asarray([0.25])}
    state = optimizer.init(params)
    for size in (1.0, 3.0, 1e-7):
        gradient = jax.tree.map(lambda leaf, s=size: s * jnp.sign(leaf) * (1 + leaf**2), params)
        change, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, change)
    return {name: np.asarray(leaf).tolist() for name, leaf in params.items()}


def optimizer_of_training(lab: Lab, config: ExperimentConfig) -> Any:
    """What the optimizer of `train` does to weights."""
    return trained_weights(training_run.open_training_run(config).optimizer)


def cold_start(lab: Lab, config: ExperimentConfig) -> dict[str, Any]:
    """What `mental-r1 sft` does in four steps; its first update is traced, and none is run."""
    caught: dict[str, Any] = {"rates": []}
    bind = sft.jit_sft_step

    def bind_update(**parts: Any) -> Any:
        def update(state: Any, batch: Any) -> Any:
            if "program" not in caught:
                shapes = abstract_state(parts["decoder"], parts["optimizer"], parts["mesh"])
                caught["program"] = str(jax.make_jaxpr(bind(**parts))(shapes, batch))
                caught["shapes"] = batch.prompt_ids.shape, batch.completion_ids.shape
                caught["ids"] = np.asarray(batch.completion_ids).tolist()
                caught["mesh"] = dict(parts["mesh"].shape)
            return state, {}

        return update

    @contextlib.contextmanager
    def four_steps(config: Any, model: Any, mesh: Any, optimizer: Any, count: int) -> Iterator[Any]:
        caught["optimizer"], caught["num_steps"] = trained_weights(optimizer), count
        yield SimpleNamespace(
            state=SimpleNamespace(weights=None),
            position={},
            log=SimpleNamespace(
                flush=lambda: 0.0,
                defer=lambda record: caught["rates"].append(record.learning_rate),
            ),
            steps=lambda: range(1, 5),
            traced=lambda step: contextlib.nullcontext(),
            validate=lambda *a: None,
            save=lambda *a: None,
        )

    lab.patch.setattr(sft, "jit_sft_step", bind_update)
    lab.patch.setattr(sft, "open_session", four_steps)
    sft.run(config)
    return caught


def traces(lab: Lab, config: ExperimentConfig) -> Any:
    """Traces of the cold start."""
    return [(t.question, t.post, t.completion) for t in sft.collect_traces(config)]


def traces_or_refusal(lab: Lab, config: ExperimentConfig) -> Any:
    """Traces of the cold start, or why there are none."""
    try:
        return traces(lab, config)
    except UserError as error:
        return str(error)


def encoded_traces(lab: Lab, config: ExperimentConfig) -> Any:
    """Tokens of the prompts of the cold start."""
    tokenizer, found = load_tokenizer(config.model.path), sft.collect_traces(config)
    return [prompt.ids for prompt, _ in sft.encode_traces(tokenizer, config, found)]


def wordless_trace(lab: Lab, config: ExperimentConfig) -> Any:
    """A template trace of a post without a word."""
    return template_completion("", "Yes", Random(0), grammar_of(config.text))


def cold_start_shapes(lab: Lab, config: ExperimentConfig) -> Any:
    """Sizes of a batch of the cold start, and number of updates."""
    outcome = cold_start(lab, config)
    return outcome["shapes"], outcome["num_steps"]


def cold_start_order(lab: Lab, config: ExperimentConfig) -> Any:
    """Traces of the first batch of the cold start."""
    return cold_start(lab, config)["ids"]


def cold_start_update(lab: Lab, config: ExperimentConfig) -> Any:
    """The update of the cold start, as JAX would compile it."""
    return cold_start(lab, config)["program"]


def optimizer_of_cold_start(lab: Lab, config: ExperimentConfig) -> Any:
    """What the optimizer of `sft` does to weights, and the rates that are logged."""
    outcome = cold_start(lab, config)
    return outcome["optimizer"], outcome["rates"]


def exported(lab: Lab, config: ExperimentConfig) -> Any:
    """Every file of an export, and whether it was verified."""
    verified: list[Path] = []
    lab.patch.setattr(verify, "verify_export", lambda folder, *a: verified.append(folder))
    lab.run_folder()
    folder = export.run(config)
    files = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    return str(folder.relative_to(lab.tmp)), files, len(verified)


def exported_weights(lab: Lab, config: ExperimentConfig) -> Any:
    """The weight files alone, which quote no recipe."""
    _, files, _ = exported(lab, config)
    return {name: content for name, content in files.items() if name.endswith(".safetensors")}


def exported_gguf(lab: Lab, config: ExperimentConfig) -> Any:
    """Which file for llama.cpp is written; the tokenizer here is none that llama.cpp knows."""
    written: list[Any] = []
    lab.patch.setattr(export, "check_gguf", lambda model: None)
    lab.patch.setattr(
        export, "write_gguf", lambda file, params, model, kind: written.append((file.name, kind))
    )
    lab.run_folder()
    export.run(config)
    return written


def posts_in_a_bucket(lab: Lab, config: ExperimentConfig) -> Any:
    """Whether the recipe may write posts into a bucket."""
    tree = config.model_dump(mode="json")
    tree["run"] |= {"output_dir": "gs://bucket/run", "redact_completions": False}
    try:
        ExperimentConfig.model_validate(tree)
    except ValueError:
        return "refused"
    return "written"


def program_cache(lab: Lab, config: ExperimentConfig) -> Any:
    """JAX's settings after the command line has read the recipe."""
    settings: dict[str, Any] = {"jax_compilation_cache_dir": None}
    fake = SimpleNamespace(
        config=SimpleNamespace(jax_compilation_cache_dir=None, update=settings.__setitem__)
    )
    lab.patch.setattr(compilation_cache, "jax", fake)
    lab.patch.setattr(train, "run", lambda *_, **__: None)
    file = lab.tmp / "recipe.yaml"
    file.write_text(dump_config(config), encoding="utf-8")
    assert main(["train", str(file)]) == 0
    return settings


def mesh(lab: Lab, config: ExperimentConfig) -> Any:
    """How the eight devices of the tests are laid out, and the memory estimate that follows."""
    try:
        shape = dict(open_mesh(config, rows={}).shape)
    except UserError as error:
        return str(error)
    opened = training_run.open_training_run(config)
    return shape, overview.memory_rows(config, opened.model.decoder, opened.mesh)


def mesh_of_cold_start(lab: Lab, config: ExperimentConfig) -> Any:
    """How the devices are laid out in `mental-r1 sft`."""
    try:
        return cold_start(lab, config)["mesh"]
    except UserError as error:
        return str(error)
