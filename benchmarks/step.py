"""How fast is one CRPO step? Rollout, reference and update of a real or random model, measured.

    python benchmarks/step.py --model HF_DIR --prompts 4 --group 8 --prompt-len 384 \
        --completion-len 256 --kl-coef 0.01 --steps 8 --json step.json

Each step samples `prompts` x `group` completions of random prompts, decodes, parses and scores
their text on the host, computes reference log-probs (unless the KL coefficient is 0) and makes one
AdamW update: the functions that `mental-r1 train` calls, in its order. No token ends a completion,
so every completion has its full length, unless `--mean-length` asks for a geometric law.

Phases are timed with a wait after each, so the step is their sum and overlap is not credited.
benchmarks/README.md explains the figures.
"""

# ruff: noqa: E402

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import resource
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mental_r1_jax.cli import collect_garbage_rarely, quiet_libraries

collect_garbage_rarely()  # as the command line does, before anything else is imported
quiet_libraries()

import jax
import jaxlib
import numpy as np
from machine import copy_bytes_per_second, matmul_flops_per_second

from mental_r1_jax import hosts
from mental_r1_jax.config import ExperimentConfig
from mental_r1_jax.footprint import cache_token_bytes
from mental_r1_jax.models import decoder
from mental_r1_jax.opening.devices import open_mesh
from mental_r1_jax.opening.model_source import open_start_model
from mental_r1_jax.planning.workload import head_size, layer_matrix_size, matrix_flops
from mental_r1_jax.programs import cache as compilation_cache
from mental_r1_jax.programs.step_programs import as_word, bind_programs, compile_ahead, traces_of
from mental_r1_jax.rewards import RewardFunction
from mental_r1_jax.rollout.collect import assemble_batch, score_completions
from mental_r1_jax.rollout.sampler import sampler_settings
from mental_r1_jax.runs.training_run import TrainingRun, fresh_state, reference_weights
from mental_r1_jax.text.answers import AnswerReader
from mental_r1_jax.training import checkpoint
from mental_r1_jax.training.metrics import scalars
from mental_r1_jax.training.optimizer import learning_rates, make_optimizer, make_schedule
from mental_r1_jax.types import PromptBatch


@dataclasses.dataclass(frozen=True)
class Post:
    """A stand-in for a labelled post; the text plays no part in the work."""

    set_name: str = "benchmark"
    row: int = 0
    text: str = ""
    label: str = "yes"
    question: str = ""


class CompileLog:
    """Counts the programs that XLA compiles from now on, and their seconds."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def _listen(self, event: str, duration: float, **_: Any) -> None:
        if event.endswith("backend_compile_duration"):
            self.seconds.append(duration)


def recipe(options: argparse.Namespace) -> ExperimentConfig:
    """The recipe of a step as the command line describes it; everything else is the default."""
    return ExperimentConfig.model_validate(
        {
            "model": {
                "path": str(options.model),
                "compute_dtype": options.dtype,
                "remat": options.remat,
                "decode_kernel": options.decode_kernel,
                "logprob_chunk_size": options.chunk,
                "lora": {"rank": options.lora, "alpha": 2 * options.lora} if options.lora else None,
            },
            "data": {"sets": ["benchmark"]},
            "rollout": {
                "prompts_per_step": options.prompts,
                "num_generations": options.group,
                "max_prompt_length": options.prompt_len,
                "max_completion_length": options.completion_len,
                "temperature": options.temperature,
                "top_p": options.top_p,
                "first_cache_length": options.first_cache_length,
                "halvings": options.halvings,
            },
            "crpo": {"kl_coef": options.kl_coef},
            "optimizer": {"learning_rate": 1e-4, "schedule": "constant"},
            "evaluate": {"batch_size": options.prompts},
            "mesh": {"fsdp": options.fsdp, "tensor": options.tensor},
            "run": {
                "output_dir": "unused",
                "num_steps": 1,
                "micro_batches": options.micro_batches,
                "compilation_cache": options.compilation_cache,
            },
        }
    )


def open_run(options: argparse.Namespace) -> TrainingRun:
    """What `mental-r1 train` would open, with random prompts in place of posts."""
    config = recipe(options)
    model = open_start_model(config)
    mesh = open_mesh(config, rows={"--prompts": options.prompts}, model=model.decoder)
    settings = sampler_settings(
        config,
        "train",
        eos_ids=end_ids(model.decoder, options.mean_length),
        pad_id=model.tokenizer.pad_id,
    )
    optimizer = make_optimizer(config.optimizer, 1)
    # The share of a letter: cheap, and different within a group, so that there is a gradient.
    reward = RewardFunction("letter", 1.0, lambda text, *_: text.count("a") / (len(text) + 1))
    return TrainingRun(
        config=config,
        model=model,
        mesh=mesh,
        posts={},
        functions=(reward,),
        reader=AnswerReader({Post.set_name: (Post.label,)}),
        num_steps=1,
        optimizer=optimizer,
        learning_rates=learning_rates(make_schedule(config.optimizer, 1), 1),
        programs=bind_programs(config, model.decoder, settings, optimizer, mesh),
    )


def end_ids(config: decoder.DecoderConfig, mean_length: float | None) -> tuple[int, ...]:
    """Tokens that end a completion: none, or so many that lengths are geometric.

    A random model draws every token with nearly the same probability, so V / mean tokens of the
    vocabulary end a completion after `mean_length` tokens on average.
    """
    if mean_length is None:
        return ()
    return tuple(range(max(1, round(config.vocab_size / mean_length))))


def random_prompts(run: TrainingRun, step: int) -> PromptBatch:
    """Prompts of random tokens, all of the full length, on the mesh."""
    rollout = run.config.rollout
    shape = (rollout.prompts_per_step, rollout.max_prompt_length)
    rng = np.random.default_rng(step)
    ids: Any = rng.integers(0, run.model.decoder.vocab_size, shape, dtype=np.int32)
    mask: Any = np.ones(shape, bool)
    index: Any = np.arange(shape[0], dtype=np.int32)
    prompts = PromptBatch(prompt_ids=ids, prompt_mask=mask, prompt_index=index)
    placed: PromptBatch = hosts.put_batch(run.mesh, prompts)
    return placed


def one_step(
    run: TrainingRun, step: int, state: Any, reference: Any
) -> tuple[Any, dict[str, float], int]:
    """One whole step: (next state, seconds by phase and of the whole, completion tokens).

    The host parses and scores while the device computes the reference, as in training.
    """
    config, mesh, programs = run.config, run.mesh, run.programs
    posts = [Post()] * config.rollout.prompts_per_step
    start = time.perf_counter()
    prompts = random_prompts(run, step)
    seed = as_word(config.run.seed)
    completions = programs.sample(state.weights, prompts, seed, as_word(step))
    traces = traces_of(prompts, completions)
    of_reference = None
    if reference is not None:
        of_reference = programs.score(state.beside_frozen(reference), traces)
    jax.block_until_ready(completions)
    sampled = time.perf_counter()
    groups = score_completions(run.model.tokenizer, posts, completions, run.functions, run.reader)
    batch = assemble_batch(prompts, completions, groups, mesh, config.crpo, of_reference)
    jax.block_until_ready(batch)
    scored = time.perf_counter()
    state, metrics, _ = programs.update(state, batch)
    tokens = scalars(metrics)["tokens/completion"]
    jax.block_until_ready(state)
    end = time.perf_counter()
    seconds = {
        "rollout": sampled - start,
        "reference": scored - sampled,
        "train": end - scored,
        "step": end - start,
    }
    return state, seconds, int(tokens)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run the steps and return every figure."""
    load, compiles = os.getloadavg()[0], CompileLog()
    run = open_run(options)
    config, model, mesh = run.config, run.model, run.mesh
    compilation_cache.use_cache(config.run)
    compile_ahead(run.programs, config, model.decoder, run.optimizer, mesh, options.prompt_len)
    state = fresh_state(model, run.optimizer, mesh, config.crpo)
    reference = reference_weights(run)
    times: list[dict[str, float]] = []
    tokens: list[int] = []
    state, _, _ = one_step(run, 0, state, reference)
    first_step, compiled = process_age(), len(compiles.seconds)
    for step in range(1, options.steps + 1):
        state, seconds, completion_tokens = one_step(run, step, state, reference)
        times.append(seconds)
        tokens.append(completion_tokens)
    peak = peak_bytes()  # before the rates are measured, which takes memory of its own
    report = {
        "setting": {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()},
        "machine": machine() | {"load_average_before": load},
        "parameters": matrices(model.decoder),
        "seconds": {name: summary([t[name] for t in times]) for name in times[0]},
        "completion_tokens": statistics.median(tokens),
        "first_step_seconds": first_step,
        "compile_seconds": sum(compiles.seconds),
        "compiles_in_first_step": compiled,
        "compiles_after": len(compiles.seconds) - compiled,
        "peak_memory_bytes": peak,
        **({"checkpoint_bytes": checkpoint_bytes(state)} if options.checkpoint else {}),
    }
    return report | rates(options, model.decoder, report)


def matrices(config: decoder.DecoderConfig) -> dict[str, int]:
    """Numbers in the matrices that multiply every token, and in the one of completion tokens."""
    return {"layers": layer_matrix_size(config), "head": head_size(config)}


def rates(
    options: argparse.Namespace, config: decoder.DecoderConfig, report: Mapping[str, Any]
) -> dict[str, Any]:
    """Throughputs, and utilisation against the machine's measured rates.

    Training FLOPs are ``6 N`` a token that is run, a forward and two backward products with the N
    numbers of the matrices; prompt tokens count once a group, and not at all in the head. Attention
    is left out. Decoding must read the matrices and the filled part of the cache for every token.
    """
    seconds = {name: value["median"] for name, value in report["seconds"].items()}
    completion = report["completion_tokens"]
    prompt = options.prompts * options.prompt_len
    flops = 3 * matrix_flops(config, prompt + completion, completion)
    simple = 3 * matrix_flops(config, prompt + completion, prompt + completion)
    dtype = config.dtype
    matmul = matmul_flops_per_second(dtype) * len(jax.devices())
    copy = copy_bytes_per_second() * len(jax.devices())
    slot, turns = cache_token_bytes(config), options.completion_len
    weights = sum(report["parameters"].values()) * dtype.itemsize
    moved = turns * (weights + prompt * slot)
    moved += slot * completion * (completion / (options.prompts * options.group) + 1) / 2
    return {
        "tokens_per_second": {
            "step": completion / seconds["step"],
            "rollout": completion / seconds["rollout"],
            "train": (prompt + completion) / seconds["train"],
        },
        "measured_matmul_flops_per_second": matmul,
        "measured_copy_bytes_per_second": copy,
        "train_flops_per_second": flops / seconds["train"],
        "model_flops_utilisation": flops / seconds["train"] / matmul,
        "model_flops_utilisation_6N_all_tokens": simple / seconds["train"] / matmul,
        "decode_bytes_per_second": moved / seconds["rollout"],
        "decode_bandwidth_utilisation": moved / seconds["rollout"] / copy,
    }


def summary(values: Sequence[float]) -> dict[str, float]:
    """Median and minimum of some seconds."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def process_age() -> float:
    """Seconds since this process started, the interpreter and all imports included (Linux)."""
    fields = Path("/proc/self/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    started = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return float(Path("/proc/uptime").read_text(encoding="ascii").split()[0]) - started


def peak_bytes() -> int:
    """Peak memory: of the process on CPU, of the fullest device elsewhere."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    on_device = max(stat.get("peak_bytes_in_use", 0) for stat in stats)
    return on_device or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def checkpoint_bytes(state: Any) -> int:
    """Size of the files of a checkpoint of `state`, on this machine's disk."""
    with tempfile.TemporaryDirectory() as folder:
        with checkpoint.open_checkpoints(Path(folder)) as manager:
            checkpoint.save(manager, 1, state, {})
        return sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())


def machine() -> dict[str, Any]:
    """Where the figures come from."""
    return {
        "devices": len(jax.devices()),
        "device_kind": jax.devices()[0].device_kind,
        "cpu_cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
    }


def table(report: Mapping[str, Any]) -> str:
    """The figures for people."""
    rows = [
        f"{name:10} {value['median']:9.3f} s median {value['min']:9.3f} s min"
        for name, value in report["seconds"].items()
    ]
    per_second = report["tokens_per_second"]
    rows += [f"{name:10} {value:9.0f} tokens/s" for name, value in per_second.items()]
    rows += [
        f"first step {report['first_step_seconds']:9.1f} s from the start of the process",
        f"compiles   {report['compiles_in_first_step']:9d} in step 1, {report['compiles_after']} "
        f"later; {report['compile_seconds']:.1f} s",
        f"memory     {report['peak_memory_bytes'] / 2**20:9.0f} MiB peak",
        f"training   {report['train_flops_per_second'] / 1e9:9.1f} GFLOP/s, "
        f"{report['model_flops_utilisation']:.0%} of the measured "
        f"{report['measured_matmul_flops_per_second'] / 1e9:.0f}",
        f"decoding   {report['decode_bytes_per_second'] / 1e9:9.1f} GB/s, "
        f"{report['decode_bandwidth_utilisation']:.0%} of the measured "
        f"{report['measured_copy_bytes_per_second'] / 1e9:.1f}",
    ]
    if "checkpoint_bytes" in report:
        rows.append(f"checkpoint {report['checkpoint_bytes'] / 1e6:9.1f} MB")
    return "\n".join(rows)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Measure one CRPO step.")
    parser.add_argument("--model", type=Path, required=True, help="Hugging Face folder")
    parser.add_argument("--prompts", type=int, default=4, help="B, prompts a step")
    parser.add_argument("--group", type=int, default=8, help="G, completions of a prompt")
    parser.add_argument("--prompt-len", type=int, default=384, help="P, tokens")
    parser.add_argument("--completion-len", type=int, default=256, help="C, tokens")
    parser.add_argument("--mean-length", type=float, help="geometric completion lengths, tokens")
    parser.add_argument("--kl-coef", type=float, default=0.01, help="0: no reference policy")
    parser.add_argument("--temperature", type=float, default=0.85, help="of sampling")
    parser.add_argument("--top-p", type=float, default=0.95, help="nucleus share")
    parser.add_argument("--steps", type=int, default=8, help="measured steps, after the first")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--decode-kernel", action="store_true", help="on TPUs, see docs/tpu.md")
    parser.add_argument("--remat", default="layers", choices=("layers", "elementwise", "none"))
    parser.add_argument("--chunk", type=int, default=512, help="vocabulary entries a logits chunk")
    parser.add_argument("--lora", type=int, default=0, help="rank of adapters; 0: all weights")
    parser.add_argument("--checkpoint", action="store_true", help="save one, for its size")
    parser.add_argument("--first-cache-length", type=int, default=256, help="tokens")
    parser.add_argument("--halvings", type=int, default=0, help="of groups as completions end")
    parser.add_argument("--micro-batches", type=int, default=1)
    parser.add_argument("--compilation-cache", type=Path, help="keep compiled programs here")
    parser.add_argument("--fsdp", type=int, default=1)
    parser.add_argument("--tensor", type=int, default=1)
    parser.add_argument("--json", type=Path, help="where to write all figures")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and write."""
    options = parse(arguments)
    report = measure(options)
    print(table(report))
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
