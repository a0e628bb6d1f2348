"""What a run is going to do, printed before anything is compiled."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from jax.sharding import Mesh
from rich.console import Console

from mental_r1_jax.config import CrpoConfig, ExperimentConfig
from mental_r1_jax.console.progress import batch_table, open_console
from mental_r1_jax.data.oddities import only_labels
from mental_r1_jax.data.records import Example
from mental_r1_jax.footprint import GIB, footprint
from mental_r1_jax.models.decoder import DecoderConfig, parameter_count
from mental_r1_jax.recipe import dump_config

# Field of `Footprint` -> how the table calls it.
ARRAYS = {
    "weights": "float32 weights",
    "moments": "optimizer moments",
    "gradients": "gradients",
    "reference": "reference weights",
    "decoding_weights": "weights for decoding",
    "cache": "decoding cache",
    "layer_inputs": "layer inputs kept for the backward pass",
    "logits_chunk": "one chunk of logits",
    "head": "head and its gradient",
    "decoding_head": "logits for decoding",
}


def print_only_labels(console: Console, posts: Mapping[str, Sequence[Example]]) -> None:
    """Say which sets have posts of one label only: they teach nothing, and are scored too well."""
    for name, label in only_labels(posts).items():
        line = f"warning: all {len(posts[name])} posts of {name} are labelled {label!r}"
        console.print(line, markup=False, highlight=False)


def print_overview(
    config: ExperimentConfig,
    model: DecoderConfig,
    mesh: Mesh,
    posts: Mapping[str, Sequence[Example]],
    num_steps: int,
    *,
    resolved: bool,
) -> None:
    """Print the batch arithmetic, and for a dry run the resolved recipe and the memory estimate.

    Args:
        config: the recipe.
        model: the architecture.
        mesh: the devices.
        posts: training posts by set.
        num_steps: rollouts of the whole run.
        resolved: whether recipe and memory are shown, too.
    """
    console = open_console()
    print_only_labels(console, posts)
    if resolved:
        console.print(dump_config(config), markup=False, highlight=False)
        rows = memory_rows(config, model, mesh)
        console.print(batch_table(rows, title="memory a device, estimated"))
    sizes = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    count = sum(map(len, posts.values()))
    head = [
        ("devices", sizes),
        ("parameters", f"{parameter_count(model):,}"),
        ("training posts", f"{count:,} in {len(posts)} sets"),
    ]
    console.print(batch_table([*head, *batch_rows(config, count, num_steps)]))


def batch_rows(config: ExperimentConfig, posts: int, num_steps: int) -> list[tuple[str, str]]:
    """The derived sizes of a step and of a run of `num_steps` rollouts over so many posts."""
    rollout, micro = config.rollout, config.run.micro_batches
    prompts = rollout.prompts_per_step
    completions = prompts * rollout.num_generations
    most_tokens = prompts * rollout.max_prompt_length + completions * rollout.max_completion_length
    return [
        (
            "completions a step",
            f"{prompts} prompts x {rollout.num_generations} = {completions}",
        ),
        ("tokens a step, at most", f"{most_tokens:,} (each prompt counted once)"),
        (
            "micro-batches",
            f"{micro} of {prompts // micro} prompts ({completions // micro} completions)",
        ),
        (
            "steps",
            f"{num_steps} = {num_steps * prompts / posts:.2f} "
            f"epochs, {config.crpo.num_iterations} update(s) each",
        ),
        ("objective", objective(config.crpo)),
        ("policy loss", policy_loss(config.crpo)),
        ("prompt lengths compiled", ", ".join(map(str, rollout.prompt_lengths))),
    ]


def objective(crpo: CrpoConfig) -> str:
    """The choices that change the scale of the loss, by name."""
    kl = "k1 in the reward" if crpo.kl_in == "reward" else crpo.kl_estimator
    return (
        f"{crpo.aggregation} aggregation, rewards scaled by {crpo.scale_rewards}, "
        f"stage entropy {crpo.stage_entropy_rule}, KL {crpo.kl_coef:g} ({kl})"
    )


def policy_loss(crpo: CrpoConfig) -> str:
    """What happens to the ratio, and where: conventions for the interval differ."""
    low, high = 1.0 - crpo.clip_epsilon_low, 1.0 + crpo.clip_epsilon_high
    return f"{crpo.policy_loss}, {crpo.importance_level} ratios in [{low:g}, {high:g}]"


def memory_rows(
    config: ExperimentConfig, model: DecoderConfig, mesh: Mesh
) -> list[tuple[str, str]]:
    """GiB of the large arrays on one device; temporary arrays are not among them."""
    sizes = dataclasses.asdict(footprint(config, model, mesh))
    rows = {label: sizes[name] for name, label in ARRAYS.items()} | {"sum": sum(sizes.values())}
    return [(label, f"{size / GIB:.3f} GiB") for label, size in rows.items()]
