"""`mental-r1 train`: CRPO, from labelled posts to checkpoints.

Each step, in the order of the method:

1. the next B labelled posts of the mixed, shuffled sets become chat prompts; with
   `rollout.keep_groups` this and the next two points go round until B groups are worth keeping;
2. the device samples G completions of each, the prompt prefilled once, and goes on to the
   log-probs of the reference (only where the KL penalty is on), which need no rewards;
3. the host writes what the last step had to say, then parses and scores the completions;
4. one AdamW update, or `num_iterations` of them, on advantages and stage-wise entropy;
5. validation by weighted F1 and a checkpoint, where they are due.

The device is asked for the next thing before it is done with the last. The host waits once a step
for what the device must know from it, the rewards. Every completion is sampled by the newest
weights.
"""

from __future__ import annotations

import time

from mental_r1_jax import hosts
from mental_r1_jax.config import ExperimentConfig
from mental_r1_jax.console.overview import print_overview
from mental_r1_jax.programs.step_programs import as_word, traces_of
from mental_r1_jax.rollout.collect import assemble_batch, next_prompts, score_completions
from mental_r1_jax.rollout.rounds import (
    Rollout,
    Round,
    add_round,
    number_of_round,
    wants_round,
    without_batch,
)
from mental_r1_jax.runs.session import check_output, open_session
from mental_r1_jax.runs.step_log import RolloutRecord, StepRecord
from mental_r1_jax.runs.training_run import (
    TrainingRun,
    compile_first_step,
    open_posts,
    open_training_run,
    reference_weights,
)
from mental_r1_jax.text.wording import grammar_of


def run(config: ExperimentConfig, *, dry_run: bool = False) -> None:
    """Train, or resume, the run of `config`; with `dry_run` only print what would be done."""
    if not dry_run:
        check_output(config)
    run = open_training_run(config)
    decoder = run.model.decoder
    print_overview(config, decoder, run.mesh, run.posts, run.num_steps, resolved=dry_run)
    if not dry_run:
        train(run)


def train(run: TrainingRun) -> None:
    """Make the steps of a run, from its start model or its newest checkpoint to the last one."""
    config, mesh, tokenizer, programs = run.config, run.mesh, run.model.tokenizer, run.programs
    crpo, seed, grammar = config.crpo, as_word(config.run.seed), grammar_of(config.text)
    posts = open_posts(run)
    compile_first_step(run, posts)
    with open_session(config, run.model, mesh, run.optimizer, run.num_steps, crpo) as session:
        state, log, reference = session.state, session.log, reference_weights(run)
        if session.position is None:
            session.validate(0, state.weights)
        else:
            posts.set_state(session.position)
        for step in session.steps():
            with session.traced(step):
                started, drawn = time.perf_counter(), Rollout()
                while wants_round(drawn, config.rollout):
                    prompts = next_prompts(next(posts), tokenizer, config.rollout, mesh, grammar)
                    number = as_word(number_of_round(step, len(drawn.rounds)))
                    completions = programs.sample(state.weights, prompts.batch, seed, number)
                    traces = traces_of(prompts.batch, completions)
                    of_reference = None
                    if reference is not None:
                        of_reference = programs.score(state.beside_frozen(reference), traces)
                    # With several updates the policy moves away from the one that sampled.
                    several = crpo.num_iterations > 1
                    of_sampler = programs.score(state.weights, traces) if several else None
                    # The last step's metrics are written while the device samples.
                    started = max(started, log.flush())
                    session.progress.phase("sampling")
                    groups = score_completions(
                        *(tokenizer, prompts.posts, completions),
                        *(run.functions, run.reader, grammar),
                    )
                    batch = assemble_batch(
                        prompts.batch, completions, groups, mesh, crpo, of_reference, of_sampler
                    )
                    scored = Round(prompts, groups, hosts.all_rows(mesh, groups.table))
                    drawn = add_round(drawn, scored, batch, config.rollout, programs.join)
                sampled, updates = time.perf_counter(), []
                for _ in range(crpo.num_iterations):
                    state, metrics, advantages = programs.update(state, drawn.batch)
                    updates.append(metrics)
                rollout = RolloutRecord(
                    without_batch(drawn), run.functions, advantages, programs.compiled(), sampled
                )
                rate = run.learning_rates[(step - 1) * crpo.num_iterations]
                log.defer(StepRecord(step, updates, float(rate), started, rollout))
            score = session.validate(step, state.weights)
            session.save(step, state, posts.get_state(), score)
