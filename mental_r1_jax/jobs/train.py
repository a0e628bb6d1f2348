"""`mental-r1 train`: CRPO, from labelled posts to checkpoints.

Each step, in the order of the method:

1. the next B labelled posts of the mixed, shuffled sets become chat prompts;
2. `sample_completions`: G completions of each, the prompt prefilled once;
3. `score_completions`: text, stages, rewards and stage masks, on the host;
4. `assemble_batch`, with reference log-probs only where the KL penalty is on;
5. `train_step`: advantages, stage-wise entropy, one AdamW update (or `num_iterations` of them);
6. `run_loop` keeps the books: metrics, validation by weighted F1, checkpoints.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from mental_r1_jax.config import ExperimentConfig
from mental_r1_jax.data.pipeline import make_prompt_iterator
from mental_r1_jax.jobs.overview import print_overview
from mental_r1_jax.jobs.run_loop import run_loop
from mental_r1_jax.jobs.trainer import Trainer, make_trainer, reference_weights
from mental_r1_jax.rl.advantages import group_advantages
from mental_r1_jax.rollout.collect import (
    ScoredGroups,
    assemble_batch,
    completion_rows,
    pad_prompts,
    put_batch,
    render_prompts,
    reward_metrics,
    score_completions,
)
from mental_r1_jax.rollout.sampler import step_key
from mental_r1_jax.training.completions_log import console_table, write_completions
from mental_r1_jax.training.metrics import scalars
from mental_r1_jax.training.progress import Progress
from mental_r1_jax.training.train_step import TrainState
from mental_r1_jax.types import Batch


def run(config: ExperimentConfig, *, dry_run: bool = False) -> None:
    """Train, or resume, the run of `config`; with `dry_run` only print what would be done."""
    trainer = make_trainer(config)
    print_overview(trainer, resolved=dry_run)
    if not dry_run:
        run_loop(
            CrpoWork(trainer),
            config,
            trainer.policy,
            trainer.mesh,
            trainer.optimizer,
            trainer.num_steps,
        )


# So many steps in a row without a single group to learn from are worth a word.
SILENT_STEPS = 5


class CrpoWork:
    """The steps of a CRPO run: holds the stream of posts and the reference weights."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._reference = reference_weights(trainer)
        self._silent_steps = 0
        self._posts = make_prompt_iterator(
            list(trainer.posts.values()),
            batch_size=trainer.config.rollout.prompts_per_step,
            seed=trainer.config.run.seed,
            host_index=jax.process_index(),
            host_count=jax.process_count(),
        )

    def position(self) -> dict[str, Any]:
        """Position in the stream of posts."""
        return dict(self._posts.get_state())

    def seek(self, position: dict[str, Any]) -> None:
        """Continue the stream of posts from a saved position."""
        self._posts.set_state(position)

    def step(
        self, step: int, state: TrainState, progress: Progress
    ) -> tuple[TrainState, dict[str, float]]:
        """One step of the method."""
        trainer = self._trainer
        posts = next(self._posts)
        started = time.perf_counter()
        progress.phase("sampling")
        prompts, batch, groups = collect(trainer, state.params, posts, step)
        sampled = time.perf_counter()
        progress.phase("training")
        state, metrics = update(trainer, state, self._reference, batch)
        ended = time.perf_counter()

        metrics |= reward_metrics(groups, trainer.functions)
        metrics |= {
            "learning_rate": float(
                trainer.schedule((step - 1) * trainer.config.crpo.num_iterations)
            ),
            "prompts/truncated": float(np.mean([prompt.truncated for prompt in prompts])),
            "time/rollout": sampled - started,
            "time/train": ended - sampled,
            "time/step": ended - started,
            "tokens_per_second": metrics["tokens/completion"] / (ended - started),
            "compiled_programs": float(trainer.compiled_programs()),
        }
        rows = completion_rows(posts, prompts, groups, advantages_of(trainer, groups))
        log_completions(trainer, step, rows, progress)
        self._warn_if_silent(metrics, progress)
        return state, metrics

    def _warn_if_silent(self, metrics: Mapping[str, float], progress: Progress) -> None:
        """Say why nothing is learned when all groups have had equal rewards for a while."""
        silent = metrics["frac_reward_zero_std"] == 1.0
        self._silent_steps = self._silent_steps + 1 if silent else 0
        if self._silent_steps == SILENT_STEPS:
            progress.print(
                f"for {SILENT_STEPS} steps all completions of a prompt earned the same, so every "
                "advantage is 0: look at well_formed and at the completions; a model that cannot "
                "write the grammar needs a cold start (mental-r1 sft)"
            )


def collect(
    trainer: Trainer, params: Any, posts: Sequence[Any], step: int
) -> tuple[Sequence[Any], Batch, ScoredGroups]:
    """Sample, parse and score this process's share of a step: (prompts, batch, scored groups)."""
    config, tokenizer = trainer.config, trainer.policy.tokenizer
    prompts = render_prompts(tokenizer, posts, config.rollout.max_prompt_length)
    padded = pad_prompts(
        prompts,
        config.rollout.prompt_lengths,
        tokenizer.pad_id,
        first_index=jax.process_index() * len(posts),
    )
    placed = put_batch(trainer.mesh, padded)
    completions = trainer.sample(params, placed, step_key(config.run.seed, step))
    ids, mask, finished = jax.device_get(
        (completions.completion_ids, completions.completion_mask, completions.finished)
    )
    groups = score_completions(tokenizer, posts, ids, mask, finished, trainer.functions)
    batch = assemble_batch(
        placed,
        completions,
        groups,
        mesh=trainer.mesh,
        mask_truncated=config.crpo.mask_truncated_completions,
    )
    return prompts, batch, groups


def update(
    trainer: Trainer, state: TrainState, reference: Any, batch: Batch
) -> tuple[TrainState, dict[str, float]]:
    """`num_iterations` updates on one batch: (next state, metrics of the last one)."""
    iterations = trainer.config.crpo.num_iterations
    # Both from the same batch: filling one field first would compile a second program.
    ref_logprobs = None if reference is None else trainer.logprobs(reference, batch)
    old_logprobs = trainer.logprobs(state.params, batch) if iterations > 1 else None
    batch = dataclasses.replace(batch, ref_logprobs=ref_logprobs, old_logprobs=old_logprobs)
    skipped = 0.0
    for _ in range(iterations):
        state, device_metrics = trainer.update(state, batch)
        metrics = scalars(device_metrics)
        skipped += metrics["updates/skipped"]
    return state, metrics | {"updates/skipped": skipped}


def advantages_of(trainer: Trainer, groups: ScoredGroups) -> Float[np.ndarray, "B G"]:
    """The advantages that `train_step` computes for itself, for people to read."""
    crpo = trainer.config.crpo
    return np.asarray(
        group_advantages(
            jnp.asarray(groups.rewards), scale=crpo.scale_rewards, baseline=crpo.advantage_baseline
        )
    )


def log_completions(
    trainer: Trainer, step: int, rows: Sequence[Mapping[str, Any]], progress: Progress
) -> None:
    """Every so many steps write all completions, and show the best and the worst one."""
    options = trainer.config.run
    if options.log_completions_every and step % options.log_completions_every == 0:
        write_completions(options.output_dir, step, rows, redact=options.redact_completions)
        progress.print(console_table(rows))
