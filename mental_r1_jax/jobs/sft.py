"""`mental-r1 sft`: a supervised cold start, so that small models can write the grammar at all.

1. Traces come from a JSONL file, from the reasoning that came with the labelled training posts, or
   from templates over them.
2. Each becomes a prompt with a completion that ends in EOS; the order is shuffled by seed.
3. Updates minimise the mean negative log-likelihood of the completion tokens.
4. Validation by weighted F1; the run folder is a start model for `mental-r1 train`.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence

import numpy as np

from mental_r1_jax import hosts, sharding
from mental_r1_jax.config import ExperimentConfig
from mental_r1_jax.data.loading import load_examples, set_spec
from mental_r1_jax.data.traces import Trace, read_traces, row_traces, template_traces
from mental_r1_jax.errors import UserError
from mental_r1_jax.opening.devices import open_mesh
from mental_r1_jax.opening.model_source import open_start_model
from mental_r1_jax.rollout.trace_batches import EncodedTrace, TraceLayout
from mental_r1_jax.runs.session import check_output, open_session
from mental_r1_jax.runs.step_log import StepRecord
from mental_r1_jax.text.prompts import render_prompt
from mental_r1_jax.text.tokenizer import Tokenizer
from mental_r1_jax.text.wording import grammar_of
from mental_r1_jax.training.optimizer import learning_rates, make_optimizer, make_schedule
from mental_r1_jax.training.train_step import jit_sft_step


def run(config: ExperimentConfig) -> None:
    """Train on traces, or resume; the run folder is laid out as that of `train`."""
    check_output(config)
    sft = config.sft
    model = open_start_model(config)
    mesh = open_mesh(
        config,
        rows={
            "sft.batch_size / run.micro_batches": sft.batch_size // config.run.micro_batches,
            "evaluate.batch_size": config.evaluate.batch_size,
        },
        model=model.decoder,
    )
    traces = encode_traces(model.tokenizer, config, collect_traces(config))
    print(f"cold start: {len(traces)} traces, {sft.num_steps} updates")
    optimizer = make_optimizer(sft.optimizer, sft.num_steps)
    rates = learning_rates(make_schedule(sft.optimizer, sft.num_steps), sft.num_steps)
    groups = sharding.batch_shards(mesh) * config.run.micro_batches
    layout = TraceLayout.of(traces, config.rollout.prompt_lengths, groups)
    own = hosts.local_rows(mesh, groups)
    update = jit_sft_step(config=config, decoder=model.decoder, optimizer=optimizer, mesh=mesh)
    with open_session(config, model, mesh, optimizer, sft.num_steps) as session:
        state, log = session.state, session.log
        if session.position is None:
            session.validate(0, state.weights)
        for step in session.steps():
            with session.traced(step):
                asked = time.perf_counter()
                rows = rows_of_step(len(traces), sft.batch_size, config.run.seed, step)
                batch = layout.batch(traces, rows, own, model.tokenizer.pad_id)
                state, metrics = update(state, hosts.put_batch(mesh, batch))
                # The last step's metrics are written while the device trains.
                started = max(asked, log.flush())
                log.defer(StepRecord(step, [metrics], float(rates[step - 1]), started))
            score = session.validate(step, state.weights)
            session.save(step, state, {}, score)


def collect_traces(config: ExperimentConfig) -> list[Trace]:
    """Traces of the recipe: the user's file, the posts' own reasoning, or templates over them."""
    if config.sft.traces == "rows":
        return row_traces(
            load_examples(config, "train"),
            per_set=config.sft.traces_per_set,
            free_reasoning=config.sft.free_reasoning,
            seed=config.run.seed,
            grammar=grammar_of(config.text),
        )
    if config.sft.traces is not None:
        return read_traces(config.sft.traces, grammar_of(config.text))
    return template_traces(
        load_examples(config, "train"),
        {name: set_spec(config.data, name).labels for name in config.data.sets},
        per_set=config.sft.traces_per_set,
        label_noise=config.sft.label_noise,
        seed=config.run.seed,
        grammar=grammar_of(config.text),
    )


def encode_traces(
    tokenizer: Tokenizer, config: ExperimentConfig, traces: Sequence[Trace]
) -> list[EncodedTrace]:
    """Prompt and completion ids of each trace, the completion ending in EOS.

    Raises:
        UserError: completions that do not fit into `rollout.max_completion_length`.
    """
    rollout, grammar = config.rollout, grammar_of(config.text)
    own_eos = tokenizer.hf.eos_token_id
    eos = tokenizer.eos_ids[0] if own_eos is None else own_eos
    encoded = [
        (
            render_prompt(
                tokenizer, trace.question, trace.post, rollout.max_prompt_length, grammar
            ),
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


def rows_of_step(count: int, batch: int, seed: int, step: int) -> list[int]:
    """Which of `count` traces `step` (from 1) learns: the order depends on (seed, epoch) alone."""
    first = (step - 1) * batch
    return [shuffled_row(count, seed, first + place) for place in range(batch)]


def shuffled_row(count: int, seed: int, position: int) -> int:
    """Row at `position` of the endless order: one permutation of `count` rows an epoch."""
    epoch, place = divmod(position, count)
    return int(_permutation(count, seed, epoch)[place])


@functools.lru_cache(maxsize=2)
def _permutation(count: int, seed: int, epoch: int) -> np.ndarray:
    """The order of one epoch."""
    return np.random.default_rng([seed, epoch]).permutation(count)
