"""`mental-r1 train`: CRPO, from labelled posts to checkpoints.

Each step, in the order of the method:

1. the next B labelled posts of the mixed, shuffled sets become chat prompts;
2. `begin_rollout`: the device samples G completions of each, the prompt prefilled once, and goes on
   to the reference log-probs (only where the KL penalty is on), which need no rewards;
3. `score_completions`: text, stages, rewards and stage masks, on the host meanwhile;
4. `update`: advantages, stage-wise entropy, one AdamW update (or `num_iterations` of them);
5. `run_loop` keeps the books: metrics, validation by weighted F1, checkpoints.

The device is asked for the next thing before it is done with the last. The host waits once a step
for what the device must know from it, the rewards; the metrics of a step are read while the device
samples for the next one, and completions are written while it trains. Every completion is still
sampled by the newest weights.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from mental_r1_jax import hosts
from mental_r1_jax.config import ExperimentConfig
from mental_r1_jax.data.pipeline import make_prompt_iterator
from mental_r1_jax.jobs.compiled import Wait, as_word, compile_in_background, no_wait, trace_batch
from mental_r1_jax.jobs.overview import print_overview
from mental_r1_jax.jobs.programs import step_programs
from mental_r1_jax.jobs.run_loop import Metrics, run_loop
from mental_r1_jax.jobs.trainer import Trainer, make_trainer, reference_weights
from mental_r1_jax.rl.advantages import group_advantages
from mental_r1_jax.rollout.collect import (
    ScoredGroups,
    assemble_batch,
    completion_rows,
    pad_prompts,
    prompt_width,
    put_batch,
    render_prompts,
    reward_metrics,
    score_completions,
    score_table,
)
from mental_r1_jax.text.prompts import RenderedPrompt
from mental_r1_jax.training.completions_log import console_table, write_completions
from mental_r1_jax.training.metrics import scalars
from mental_r1_jax.training.optimizer import learning_rates
from mental_r1_jax.training.progress import Progress
from mental_r1_jax.training.train_step import TrainState
from mental_r1_jax.types import Batch, Completions, PromptBatch


def run(config: ExperimentConfig, *, dry_run: bool = False) -> None:
    """Train, or resume, the run of `config`; with `dry_run` only print what would be done."""
    trainer = make_trainer(config)
    print_overview(trainer, resolved=dry_run)
    if not dry_run:
        run_loop(
            CrpoWork(trainer, ahead=True),
            config,
            trainer.policy,
            trainer.mesh,
            trainer.optimizer,
            trainer.num_steps,
        )


# So many steps in a row without a single group to learn from are worth a word.
SILENT_STEPS = 5


def compile_ahead(trainer: Trainer, width: int) -> Wait:
    """Start compiling the programs of a step with prompts of `width` tokens, see `compiled`.

    In the order in which the step calls them, so that the device works on the first ones while the
    update, which takes longest, is compiled.
    """
    num_updates = trainer.num_steps * trainer.config.crpo.num_iterations

    def calls() -> list[tuple[Any, tuple[Any, ...]]]:
        programs = step_programs(
            trainer.config,
            trainer.policy,
            trainer.mesh,
            num_updates,
            bound=trainer.programs,
            width=width,
        )
        return [(program.function, program.arguments) for program in programs]

    return compile_in_background(calls)


class CrpoWork:
    """The steps of a CRPO run: holds the stream of posts and the reference weights."""

    def __init__(self, trainer: Trainer, *, ahead: bool = False) -> None:
        """Open posts and reference; with `ahead`, start compiling the first step meanwhile."""
        rollout, self._trainer = trainer.config.rollout, trainer
        self._rows = hosts.local_rows(trainer.mesh, rollout.prompts_per_step)
        self._posts = make_prompt_iterator(
            list(trainer.posts.values()),
            batch_size=rollout.prompts_per_step,
            seed=trainer.config.run.seed,
            rows=self._rows,
        )
        self._wait_for_programs: Wait = no_wait
        if ahead:
            # A resumed run may begin with shorter prompts than this; then that step compiles.
            start = self._posts.get_state()
            width = self._width(self._render(next(self._posts)))
            self._posts.set_state(start)
            self._wait_for_programs = compile_ahead(trainer, width)
        self._reference = reference_weights(trainer)
        self._rates = learning_rates(
            trainer.schedule, trainer.num_steps * trainer.config.crpo.num_iterations
        )
        self._silent_steps = 0
        self._trained = 0.0

    def position(self) -> dict[str, Any]:
        """Position in the stream of posts."""
        return dict(self._posts.get_state())

    def seek(self, position: dict[str, Any]) -> None:
        """Continue the stream of posts from a saved position."""
        self._posts.set_state(position)

    def step(
        self, step: int, state: TrainState, progress: Progress, meanwhile: Callable[[], None]
    ) -> tuple[TrainState, Metrics]:
        """One step of the method; see `Work.step`."""
        trainer = self._trainer
        started = time.perf_counter()
        posts = next(self._posts)
        prompts = self._render(posts)
        padded = pad_prompts(
            prompts, self._width(prompts), trainer.policy.tokenizer.pad_id, self._rows
        )
        rollout = begin_rollout(
            trainer, state.params, self._reference, padded, step, self._wait_for_programs
        )
        meanwhile()
        started = max(started, self._trained)
        progress.phase("sampling")
        groups, batch = finish_rollout(trainer, rollout, posts)
        sampled = time.perf_counter()
        progress.phase("training")
        table = hosts.all_rows(trainer.mesh, score_table(groups, trainer.functions))
        state, device_metrics = update(trainer, state, batch, self._wait_for_programs)
        log_completions(trainer, step, (posts, prompts, groups), table, progress)
        truncated = float(np.mean([prompt.truncated for prompt in prompts]))

        def metrics() -> dict[str, float]:
            numbers, scores = scalars_of_updates(device_metrics), np.asarray(table)
            self._trained = time.perf_counter()
            numbers |= reward_metrics(scores, trainer.functions)
            self._warn_if_silent(numbers, progress)
            return numbers | {
                "learning_rate": float(self._rates[(step - 1) * len(device_metrics)]),
                "prompts/truncated": truncated,
                "time/rollout": sampled - started,
                "time/train": self._trained - sampled,
                "time/step": self._trained - started,
                "tokens_per_second": numbers["tokens/completion"] / (self._trained - started),
                "compiled_programs": float(trainer.programs.compiled()),
            }

        return state, metrics

    def _render(self, posts: Sequence[Any]) -> list[RenderedPrompt]:
        """Prompts of posts."""
        longest = self._trainer.config.rollout.max_prompt_length
        return render_prompts(self._trainer.policy.tokenizer, posts, longest)

    def _width(self, prompts: Sequence[RenderedPrompt]) -> int:
        """The compiled prompt length that holds the step's prompts, the same on every process."""
        lengths = self._trainer.config.rollout.prompt_lengths
        width = prompt_width(prompts, lengths)
        return hosts.largest(width) if len(lengths) > 1 else width

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


@dataclasses.dataclass(frozen=True)
class Rollout:
    """What the device has been asked for, and may not have done yet.

    Attributes:
        prompts: of the step.
        completions: of the prompts.
        ref_logprobs: of the completions under the reference, or None where the KL penalty is off.
        old_logprobs: under the policy that sampled, or None with one update a rollout.
    """

    prompts: PromptBatch
    completions: Completions
    ref_logprobs: jax.Array | None
    old_logprobs: jax.Array | None


def begin_rollout(
    trainer: Trainer,
    params: Any,
    reference: Any,
    prompts: PromptBatch,
    step: int,
    wait: Wait = no_wait,
) -> Rollout:
    """Ask the device for all of a step that comes before the rewards, and do not wait for it.

    `wait` is for programs that are being compiled: the device samples while the others are.
    """
    programs = trainer.programs
    placed = put_batch(trainer.mesh, prompts)
    seed = as_word(trainer.config.run.seed)
    wait(programs.sample)
    completions = programs.sample(params, placed, seed, as_word(step))
    traces = trace_batch(placed, completions)
    moves = trainer.config.crpo.num_iterations > 1
    wait(programs.logprobs)
    return Rollout(
        prompts=placed,
        completions=completions,
        ref_logprobs=None if reference is None else programs.logprobs(reference, traces),
        old_logprobs=programs.logprobs(params, traces) if moves else None,
    )


def finish_rollout(
    trainer: Trainer, rollout: Rollout, posts: Sequence[Any]
) -> tuple[ScoredGroups, Batch]:
    """Wait for the completions, parse and score this process's share: (scored groups, batch)."""
    completions = rollout.completions
    wanted = (completions.completion_ids, completions.completion_mask, completions.finished)
    ids, mask, finished = map(hosts.fetch_rows, wanted)
    tokenizer = trainer.policy.tokenizer
    groups = score_completions(tokenizer, posts, ids, mask, finished, trainer.functions)
    batch = assemble_batch(
        rollout.prompts,
        completions,
        groups,
        mesh=trainer.mesh,
        mask_truncated=trainer.config.crpo.mask_truncated_completions,
    )
    return groups, dataclasses.replace(
        batch, ref_logprobs=rollout.ref_logprobs, old_logprobs=rollout.old_logprobs
    )


def update(
    trainer: Trainer, state: TrainState, batch: Batch, wait: Wait = no_wait
) -> tuple[TrainState, list[dict[str, Any]]]:
    """Ask for `num_iterations` updates on one batch: (next state, metrics of each)."""
    device_metrics = []
    wait(trainer.programs.update)
    for _ in range(trainer.config.crpo.num_iterations):
        state, of_update = trainer.programs.update(state, batch)
        device_metrics.append(of_update)
    return state, device_metrics


def scalars_of_updates(device_metrics: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Metrics of the last update, with the skipped ones of all; waits for the device."""
    numbers = [scalars(of_update) for of_update in device_metrics]
    return numbers[-1] | {"updates/skipped": sum(one["updates/skipped"] for one in numbers)}


def advantages_of(trainer: Trainer, rewards: Float[np.ndarray, "B G"]) -> Float[np.ndarray, "B G"]:
    """The advantages that `train_step` computes for itself, for people to read."""
    crpo = trainer.config.crpo
    return group_advantages(rewards, scale=crpo.scale_rewards, baseline=crpo.advantage_baseline)


def log_completions(
    trainer: Trainer,
    step: int,
    scored: tuple[Sequence[Any], Sequence[RenderedPrompt], ScoredGroups],
    table: Any,
    progress: Progress,
) -> None:
    """Every so many steps write all completions, and show the best and the worst one."""
    options = trainer.config.run
    if not options.log_completions_every or step % options.log_completions_every:
        return
    advantages = advantages_of(trainer, np.asarray(table)[..., 0])
    rows = hosts.local_rows(trainer.mesh, len(advantages))
    own = completion_rows(*scored, advantages[rows])
    places = (rows[:, None] * advantages.shape[1] + np.arange(advantages.shape[1])[None]).ravel()
    everything = hosts.all_items(zip(places.tolist(), own, strict=True))
    if hosts.is_first():
        write_completions(options.output_dir, step, everything, redact=options.redact_completions)
        progress.print(console_table(everything))
