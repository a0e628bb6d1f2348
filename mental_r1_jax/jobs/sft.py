"""`mental-r1 sft`: a supervised cold start, so that small models can write the grammar at all.

1. Traces come from a JSONL file, or from templates over the labelled training posts.
2. Each becomes a prompt with a completion that ends in EOS; the order is shuffled by seed.
3. Updates minimise the mean negative log-likelihood of the completion tokens.
4. Validation by weighted F1; the run folder is a start model for `mental-r1 train`.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import optax
from jax.sharding import Mesh

from mental_r1_jax import hosts
from mental_r1_jax.config import ExperimentConfig
from mental_r1_jax.data.loading import load_examples, set_spec
from mental_r1_jax.data.traces import Trace, read_traces, template_traces
from mental_r1_jax.errors import UserError
from mental_r1_jax.jobs.policy import Policy, open_mesh, open_policy
from mental_r1_jax.jobs.run_loop import Metrics, run_loop
from mental_r1_jax.jobs.trainer import step_config
from mental_r1_jax.rollout.collect import pad_prompts, prompt_width, put_batch
from mental_r1_jax.text.prompts import RenderedPrompt, render_prompt
from mental_r1_jax.training.metrics import scalars
from mental_r1_jax.training.optimizer import learning_rates, make_optimizer, make_schedule
from mental_r1_jax.training.progress import Progress
from mental_r1_jax.training.train_step import TrainState, jit_step, sft_step
from mental_r1_jax.types import TraceBatch


def run(config: ExperimentConfig) -> None:
    """Train on traces, or resume; the run folder is laid out as that of `train`."""
    per_update = config.sft.batch_size // config.run.micro_batches
    policy = open_policy(config.model.path, config)
    mesh = open_mesh(
        config,
        rows={
            "sft.batch_size / run.micro_batches": per_update,
            "evaluate.batch_size": config.evaluate.batch_size,
        },
        model=policy.config,
    )
    traces = encode_traces(policy, config, collect_traces(config))
    print(f"cold start: {len(traces)} traces, {config.sft.num_steps} updates")
    optimizer = make_optimizer(config.sft.optimizer, config.sft.num_steps)
    work = SftWork(config, policy, mesh, optimizer, traces)
    run_loop(work, config, policy, mesh, optimizer, config.sft.num_steps)


class SftWork:
    """The updates of a cold start; trace order and position follow from the step number."""

    def __init__(
        self,
        config: ExperimentConfig,
        policy: Policy,
        mesh: Mesh,
        optimizer: optax.GradientTransformation,
        traces: Sequence[tuple[RenderedPrompt, list[int]]],
    ) -> None:
        self._config, self._policy, self._mesh, self._traces = config, policy, mesh, traces
        self._rows = hosts.local_rows(mesh, config.sft.batch_size)
        schedule = make_schedule(config.sft.optimizer, config.sft.num_steps)
        self._rates = learning_rates(schedule, config.sft.num_steps)
        self._trained = 0.0
        self._update = jit_step(
            sft_step, config=step_config(config, policy), optimizer=optimizer, mesh=mesh
        )

    def position(self) -> dict[str, Any]:
        """Nothing beyond the step number."""
        return {}

    def seek(self, position: dict[str, Any]) -> None:
        """Nothing to do: every batch is a function of its step number."""

    def step(
        self, step: int, state: TrainState, progress: Progress, meanwhile: Callable[[], None]
    ) -> tuple[TrainState, Metrics]:
        """One update on the batch of this step; see `Work.step`."""
        progress.phase("training")
        called = time.perf_counter()
        batch = trace_batch(self._config, self._policy, self._traces, step, self._rows)
        state, device_metrics = self._update(state, put_batch(self._mesh, batch))
        meanwhile()
        started = max(called, self._trained)

        def metrics() -> dict[str, float]:
            numbers = scalars(device_metrics)
            self._trained = time.perf_counter()
            return numbers | {
                "learning_rate": float(self._rates[step - 1]),
                "time/step": self._trained - started,
            }

        return state, metrics


def collect_traces(config: ExperimentConfig) -> list[Trace]:
    """Traces of the recipe: the user's file, or templates over the training posts."""
    if config.sft.traces is not None:
        return read_traces(config.sft.traces)
    return template_traces(
        load_examples(config, "train"),
        {name: set_spec(config.data, name).labels for name in config.data.sets},
        per_set=config.sft.traces_per_set,
        label_noise=config.sft.label_noise,
        seed=config.run.seed,
    )


def encode_traces(
    policy: Policy, config: ExperimentConfig, traces: Sequence[Trace]
) -> list[tuple[RenderedPrompt, list[int]]]:
    """Prompt and completion ids of each trace, the completion ending in EOS.

    Raises:
        UserError: completions that do not fit into `rollout.max_completion_length`.
    """
    tokenizer, rollout = policy.tokenizer, config.rollout
    own_eos = tokenizer.hf.eos_token_id
    eos = tokenizer.eos_ids[0] if own_eos is None else own_eos
    encoded = [
        (
            render_prompt(tokenizer, trace.question, trace.post, rollout.max_prompt_length),
            [*tokenizer.encode(trace.completion), eos],
        )
        for trace in traces
    ]
    longest, limit = max(len(ids) for _, ids in encoded), rollout.max_completion_length
    if longest > limit:
        raise UserError(
            what="traces do not fit into rollout.max_completion_length",
            expected=f"at most {limit} tokens, EOS included",
            got=f"{sum(len(ids) > limit for _, ids in encoded)} longer ones, up to {longest}",
            remedy=f"set rollout.max_completion_length to {longest} or more, or shorten them",
        )
    return encoded


def trace_batch(
    config: ExperimentConfig,
    policy: Policy,
    traces: Sequence[tuple[RenderedPrompt, list[int]]],
    step: int,
    places: Sequence[int] | np.ndarray,
) -> TraceBatch:
    """The traces of `step` (from 1), in an order that depends on (seed, epoch) alone.

    Args:
        config: the recipe.
        policy: its tokenizer.
        traces: all of them.
        step: number of the update.
        places: rows of the batch to return, from 0 to `sft.batch_size` - 1.
    """
    batch, pad_id = config.sft.batch_size, policy.tokenizer.pad_id
    everywhere = [
        shuffled_row(len(traces), config.run.seed, (step - 1) * batch + place)
        for place in range(batch)
    ]
    # Every process knows all traces, so all come to the same width.
    width = prompt_width([traces[row][0] for row in everywhere], config.rollout.prompt_lengths)
    rows = [everywhere[place] for place in places]
    size = len(rows)
    prompts = pad_prompts([traces[row][0] for row in rows], width, pad_id)
    # Any, because the containers say jax.Array: `put_batch` makes these host arrays such.
    ids: Any = np.full((size, 1, config.rollout.max_completion_length), pad_id, np.int32)
    lengths = np.array([len(traces[row][1]) for row in rows])
    for place, row in enumerate(rows):
        ids[place, 0, : lengths[place]] = traces[row][1]
    mask: Any = np.arange(ids.shape[-1])[None, None, :] < lengths[:, None, None]
    return TraceBatch(prompts.prompt_ids, prompts.prompt_mask, ids, mask)


def shuffled_row(count: int, seed: int, position: int) -> int:
    """Row at `position` of the endless order: one permutation of `count` rows an epoch."""
    epoch, place = divmod(position, count)
    return int(_permutation(count, seed, epoch)[place])


@functools.lru_cache(maxsize=2)
def _permutation(count: int, seed: int, epoch: int) -> np.ndarray:
    """The order of one epoch."""
    return np.random.default_rng([seed, epoch]).permutation(count)
