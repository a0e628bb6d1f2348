"""Probes: each runs a part of the real program on a recipe and returns what came of it."""

from __future__ import annotations

import dataclasses
import functools
import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pyarrow.parquet as pq
import pytest
from jax.sharding import Mesh
from rich.console import Console

from mental_r1_jax import compilation_cache
from mental_r1_jax.cli import main
from mental_r1_jax.config import ExperimentConfig
from mental_r1_jax.data import loading
from mental_r1_jax.errors import UserError
from mental_r1_jax.jobs import evaluate, export, overview, predict, sft, train, trainer, verify
from mental_r1_jax.jobs.compiled import Programs, as_word
from mental_r1_jax.jobs.policy import open_mesh, open_policy
from mental_r1_jax.models import decoder
from mental_r1_jax.recipe import dump_config
from mental_r1_jax.rollout import sampler
from mental_r1_jax.sharding import make_mesh
from mental_r1_jax.text.tokenizer import Tokenizer
from mental_r1_jax.training import train_step as updates
from mental_r1_jax.training.progress import Progress
from mental_r1_jax.types import Batch, PromptBatch
from tests.every_field import toys
from tests.every_field.lab import Lab


def posts(lab: Lab, config: ExperimentConfig) -> Any:
    """Posts as training and validation see them, and where they were built."""
    train_posts = loading.load_examples(config, "train")
    validation = loading.load_examples(config, "validation")
    built = sorted(path.name for path in lab.tmp.rglob("dataset_info.json"))
    return [
        [(name, p.text, p.label, p.question) for p in (s[i] for i in range(len(s)))]
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
    return spec.labels, spec.question, problems(lab, config)


def opened_model(lab: Lab, config: ExperimentConfig) -> Any:
    """The architecture that training would open."""
    return trainer.make_trainer(config).policy.config.intermediate_size


def program(lab: Lab, config: ExperimentConfig) -> Any:
    """The real update with the real decoder, as JAX would compile it."""
    policy = open_policy(config.model.path, config)
    step = trainer.step_config(config, policy)
    optimizer = optax.sgd(1.0)
    shape = jax.ShapeDtypeStruct
    b, g, c = 8, 2, 4
    tokens = shape((b, g, c), jnp.float32)
    batch = Batch(
        prompt_ids=shape((b, 3), jnp.int32),
        prompt_mask=shape((b, 3), bool),
        completion_ids=shape((b, g, c), jnp.int32),
        completion_mask=shape((b, g, c), bool),
        stage_mask=shape((b, g, 5, c), bool),
        rewards=shape((b, g), jnp.float32),
        sampler_logprobs=tokens,
        decode_logprobs=tokens,
        ref_logprobs=tokens,
    )
    state = jax.eval_shape(
        functools.partial(updates.init_state, optimizer=optimizer),
        decoder.abstract_params(policy.config),
    )
    run = functools.partial(updates.train_step, config=step, optimizer=optimizer)
    return str(jax.make_jaxpr(run)(state, batch))


def make_toy_trainer(lab: Lab, config: ExperimentConfig) -> tuple[Any, toys.ToySampler]:
    """The real trainer of the recipe, with the toy policy for a network."""
    lab.patch.setattr(updates, "policy_stats", toys.toy_stats)
    lab.patch.setattr(trainer, "load_weights", lambda *a, **k: {})
    real = trainer.make_trainer(config)
    sample = toys.ToySampler(real)
    step = trainer.step_config(config, real.policy)
    first = params0(real)
    update = functools.partial(updates.train_step, config=step, optimizer=real.optimizer)
    return dataclasses.replace(
        real,
        mesh=one_device(),
        programs=Programs(
            sample=toys.Counted(sample),
            logprobs=toys.Counted(lambda params, traces: toys.toy_old_logprobs(first, traces)),
            update=toys.Counted(update),
        ),
    ), sample


def one_device() -> Mesh:
    """A mesh of one: toy arrays are too small for eight, and would only be slower to compile."""
    return make_mesh(1, 1, 1, jax.devices()[:1])


def patch_sampler(lab: Lab, tokenizer: Tokenizer) -> None:
    """Put scripted logits, and noise that is quick to compile, under the real sampler."""

    def noise(key: Any, prompt_index: Any, group: int, length: int) -> jax.Array:
        shape = (prompt_index.shape[0], group, length)
        return jnp.asarray(np.random.default_rng(2).random(shape), jnp.float32)

    lab.patch.setattr(sampler, "decoder", toys.scripted_decoder(tokenizer))
    lab.patch.setattr(sampler, "_uniform_noise", noise)


def params0(real: Any) -> Any:
    """The toy policy's first weights."""
    return toys.toy_params(real.policy.tokenizer)


def one_step(lab: Lab, config: ExperimentConfig) -> dict[str, Any]:
    """One whole step of training: posts, prompts, rewards, the update, files and what is shown."""
    toy, _ = make_toy_trainer(lab, config)
    shown = io.StringIO()
    state = updates.init_state(params0(toy), toy.optimizer)
    with Progress(1, console=Console(file=shown, width=200)) as progress:
        state, read = train.CrpoWork(toy).step(1, state, progress, lambda: None)
        metrics = read()
    files = sorted((lab.tmp / "run").rglob("*.parquet"))
    return {
        "params": {name: np.asarray(leaf).tolist() for name, leaf in state.params.items()},
        "loss": metrics["loss"],
        "grad_norm": metrics["grad_norm"],
        "reward": metrics["reward"],
        "rewards": {key: metrics[key] for key in metrics if key.startswith("rewards/")},
        "tokens": metrics["tokens/completion"],
        "columns": [pq.read_schema(file).names for file in files],
        "num_steps": toy.num_steps,
    }


def objective(lab: Lab, config: ExperimentConfig) -> Any:
    """Loss and gradient norm of one step: what a number of the objective must change."""
    outcome = one_step(lab, config)
    return outcome["loss"], outcome["grad_norm"]


def updated_weights(lab: Lab, config: ExperimentConfig) -> Any:
    """Weights after one step."""
    return one_step(lab, config)["params"]


def decoding_loops(lab: Lab, config: ExperimentConfig) -> Any:
    """Rows and cache of every loop that the compiled sampler has."""
    policy = open_policy(config.model.path, config)
    sampling = trainer.sampling_config(config, policy)
    weights = decoder.abstract_params(policy.config)
    words = jax.ShapeDtypeStruct((8, 16), jnp.int32)
    prompts = PromptBatch(
        prompt_ids=words,
        prompt_mask=words.update(dtype=bool),
        prompt_index=words.update(shape=(8,)),
    )
    sample = functools.partial(sampler.sample_completions, config=policy.config, sampling=sampling)
    lowered = jax.make_jaxpr(sample)(weights, prompts, jax.eval_shape(lambda: jax.random.key(0)))
    loops = [eqn for eqn in lowered.jaxpr.eqns if eqn.primitive.name == "while"]
    return [sorted({str(v.aval) for v in loop.outvars}) for loop in loops]


def asked_prompts(lab: Lab, config: ExperimentConfig) -> Any:
    """What the sampler is asked for: prompts, seed and step. The step ends there."""
    toy, sample = make_toy_trainer(lab, config)

    def stop(params: Any, prompts: PromptBatch, *randomness: Any) -> Any:
        sample.prompts, sample.randomness = prompts, randomness
        raise InterruptedError

    programs = dataclasses.replace(toy.programs, sample=stop)
    work = train.CrpoWork(dataclasses.replace(toy, programs=programs))
    state = updates.init_state(params0(toy), toy.optimizer)
    with pytest.raises(InterruptedError), Progress(1, console=Console(file=io.StringIO())) as shown:
        work.step(1, state, shown, lambda: None)
    assert sample.prompts is not None
    return (
        np.asarray(sample.prompts.prompt_ids).tolist(),
        [int(number) for number in sample.randomness],
    )


def reward(lab: Lab, config: ExperimentConfig) -> Any:
    """Mean reward of a step, and mean and spread of its parts."""
    outcome = one_step(lab, config)
    return outcome["reward"], outcome["rewards"]


def trained_tokens(lab: Lab, config: ExperimentConfig) -> Any:
    """Completion tokens that count in the loss."""
    return one_step(lab, config)["tokens"]


def completion_files(lab: Lab, config: ExperimentConfig) -> Any:
    """Columns of the completion files that one step writes."""
    return one_step(lab, config)["columns"]


def number_of_steps(lab: Lab, config: ExperimentConfig) -> Any:
    """Rollouts of the whole run."""
    return trainer.make_trainer(config).num_steps


def sampled(lab: Lab, config: ExperimentConfig) -> Any:
    """Completions of the real sampler on scripted logits."""
    real = trainer.make_trainer(config)
    patch_sampler(lab, real.policy.tokenizer)
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
    return trained_weights(trainer.make_trainer(config).optimizer)


def cold_start(lab: Lab, config: ExperimentConfig) -> dict[str, Any]:
    """What `mental-r1 sft` hands to the loop: traces, batches, updates, optimizer."""
    caught: dict[str, Any] = {}

    def catch(
        work: Any, config: Any, policy: Any, mesh: Any, optimizer: Any, num_steps: int
    ) -> None:
        batch = sft.trace_batch(config, policy, work._traces, 1, range(config.sft.batch_size))
        caught["optimizer"] = trained_weights(optimizer)
        caught["num_steps"] = num_steps
        caught["batch"] = np.asarray(batch.completion_ids).shape
        caught["rates"] = work._rates[:4].tolist()

    lab.patch.setattr(sft, "run_loop", catch)
    sft.run(config)
    traces = [(t.question, t.post, t.completion) for t in sft.collect_traces(config)]
    return caught | {"traces": traces}


def traces(lab: Lab, config: ExperimentConfig) -> Any:
    """Traces of the cold start."""
    return cold_start(lab, config)["traces"]


def cold_start_batch(lab: Lab, config: ExperimentConfig) -> Any:
    """Size of a batch of the cold start, and number of updates."""
    outcome = cold_start(lab, config)
    return outcome["batch"], outcome["num_steps"]


def optimizer_of_cold_start(lab: Lab, config: ExperimentConfig) -> Any:
    """What the optimizer of `sft` does to weights, and the rate that is logged."""
    outcome = cold_start(lab, config)
    return outcome["optimizer"], outcome["rates"]


def evaluated(lab: Lab, config: ExperimentConfig) -> Any:
    """Every file of an evaluation, the model that was opened, and the shapes that were run."""
    shapes: list[tuple[int, ...]] = []

    def stats(params: Any, batch: Any, **options: Any) -> Any:
        shapes.append(tuple(batch.completion_ids.shape))
        return toys.toy_stats(params, batch, **options)

    tokenizer = open_policy(config.model.path, config).tokenizer
    patch_sampler(lab, tokenizer)
    lab.patch.setattr(evaluate, "open_mesh", lambda *a, **k: one_device())
    lab.patch.setattr(predict, "policy_stats", stats)
    lab.patch.setattr(evaluate, "load_weights", lambda *a, **k: {})
    lab.run_folder()
    folder = evaluate.run(config)
    document = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    predictions = (folder / "predictions.csv").read_text(encoding="utf-8")
    opened = open_policy(config.evaluate.model or str(config.run.output_dir), config).config
    return str(folder.relative_to(lab.tmp)), document, predictions, shapes, opened.intermediate_size


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
    return shape, overview.memory_rows(trainer.make_trainer(config))
