"""What a run is going to do, printed before anything is compiled."""

from __future__ import annotations

from mental_r1_jax.config import CrpoConfig
from mental_r1_jax.jobs.trainer import Trainer
from mental_r1_jax.models.architecture import parameter_count
from mental_r1_jax.recipe import dump_config
from mental_r1_jax.training.progress import batch_table, open_console

_GIB = 2**30


def print_overview(trainer: Trainer, *, resolved: bool) -> None:
    """Print the batch arithmetic, and for a dry run the resolved recipe and the memory estimate."""
    console = open_console()
    if resolved:
        console.print(dump_config(trainer.config), markup=False, highlight=False)
        console.print(batch_table(memory_rows(trainer), title="memory a device, estimated"))
    console.print(batch_table(batch_rows(trainer)))


def batch_rows(trainer: Trainer) -> list[tuple[str, str]]:
    """The derived sizes of a step and of the run."""
    config, mesh = trainer.config, dict(trainer.mesh.shape)
    rollout, micro = config.rollout, config.run.micro_batches
    completions = rollout.prompts_per_step * rollout.num_generations
    posts = sum(map(len, trainer.posts.values()))
    most_tokens = (
        rollout.prompts_per_step * rollout.max_prompt_length
        + completions * rollout.max_completion_length
    )
    return [
        ("devices", " x ".join(f"{axis} {size}" for axis, size in mesh.items())),
        ("parameters", f"{parameter_count(trainer.policy.config):,}"),
        ("training posts", f"{posts:,} in {len(trainer.posts)} sets"),
        (
            "completions a step",
            f"{rollout.prompts_per_step} prompts x {rollout.num_generations} = {completions}",
        ),
        ("tokens a step, at most", f"{most_tokens:,} (each prompt counted once)"),
        (
            "micro-batches",
            f"{micro} of {rollout.prompts_per_step // micro} prompts "
            f"({completions // micro} completions)",
        ),
        (
            "steps",
            f"{trainer.num_steps} = {trainer.num_steps * rollout.prompts_per_step / posts:.2f} "
            f"epochs, {config.crpo.num_iterations} update(s) each",
        ),
        ("objective", objective(config.crpo)),
        ("prompt lengths compiled", ", ".join(map(str, rollout.prompt_lengths))),
    ]


def objective(crpo: CrpoConfig) -> str:
    """The choices that change the scale of the loss, by name."""
    return (
        f"{crpo.aggregation} aggregation, rewards scaled by {crpo.scale_rewards}, "
        f"stage entropy {crpo.stage_entropy_rule}, KL {crpo.kl_coef:g} ({crpo.kl_estimator})"
    )


def memory_rows(trainer: Trainer) -> list[tuple[str, str]]:
    """Bytes of the big arrays on one device, from shapes alone; temporaries are not in it."""
    config, decoder = trainer.config, trainer.policy.config
    rollout = config.rollout
    itemsize = decoder.dtype.itemsize
    model_shards = trainer.mesh.shape["fsdp"] * trainer.mesh.shape["tensor"]
    prompt_shards = trainer.mesh.shape["data"] * trainer.mesh.shape["fsdp"]
    count = parameter_count(decoder) / model_shards
    tokens = rollout.max_prompt_length + rollout.num_generations * rollout.max_completion_length
    cache = (
        rollout.prompts_per_step
        / prompt_shards
        * tokens
        * (2 * decoder.num_layers * decoder.num_kv_heads * decoder.head_dim * itemsize)
    )
    micro_tokens = tokens * rollout.prompts_per_step / prompt_shards / config.run.micro_batches
    logit_rows = (
        rollout.prompts_per_step
        / prompt_shards
        / config.run.micro_batches
        * rollout.num_generations
        * rollout.max_completion_length
    )
    logit_columns = min(config.model.logprob_chunk_size, decoder.vocab_size)
    parts = {
        "float32 weights": 4 * count,
        "AdamW moments": 8 * count,
        "gradients": 4 * count,
        "reference weights": itemsize * count if config.crpo.kl_coef > 0 else 0.0,
        "decoding cache": cache,
        "layer inputs kept for the backward pass": (
            micro_tokens * decoder.hidden_size * itemsize * decoder.num_layers
        ),
        "one chunk of logits": logit_rows * logit_columns * 4.0,
    }
    rows = [(name, f"{size / _GIB:.3f} GiB") for name, size in parts.items()]
    return [*rows, ("sum", f"{sum(parts.values()) / _GIB:.3f} GiB")]
