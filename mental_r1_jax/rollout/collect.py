"""One step of experience, from labelled posts to a batch, in three moves around the sampler.

1. `next_prompts`       labelled posts -> chat prompts -> `PromptBatch`, in one of a few lengths.
2. the sampler          `PromptBatch` -> `Completions` (see `sampler.py`).
3. `score_completions`  ids -> text -> parsed stages -> rewards and stage masks, on the host.
4. `assemble_batch`     all of it -> `Batch`, placed on the mesh.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Float, Int

from mental_r1_jax import hosts
from mental_r1_jax.config import CrpoConfig, RolloutConfig
from mental_r1_jax.data.records import Example
from mental_r1_jax.rewards import Reward, score_completion, total_reward
from mental_r1_jax.text.answers import MENDED_KINDS, AnswerReader
from mental_r1_jax.text.prompts import RenderedPrompt, render_prompt
from mental_r1_jax.text.stages import GRAMMAR, Grammar, ParsedCompletion
from mental_r1_jax.text.tokenizer import Tokenizer, byte_spans
from mental_r1_jax.types import Batch, Completions, PromptBatch


@dataclasses.dataclass(frozen=True)
class StepPrompts:
    """The prompts of a step.

    Attributes:
        posts: this process's share of the posts.
        rendered: their chat prompts.
        batch: the prompts of all processes, on the mesh.
    """

    posts: Sequence[Example]
    rendered: Sequence[RenderedPrompt]
    batch: PromptBatch


@dataclasses.dataclass(frozen=True)
class ScoredCompletion:
    """One completion as text: what was sampled, and how it parses."""

    text: str
    parsed: ParsedCompletion
    num_tokens: int
    finished: bool


# Columns of `ScoredGroups.table` before those of the reward functions.
_COLUMNS = ("reward", "num_tokens", "finished", "well_formed", "correct", "mended")


def column(table: Any, name: str) -> Float[np.ndarray, "B G"]:
    """A column of `_COLUMNS` of a score table, which is waited for where it is on the device."""
    values: Float[np.ndarray, "B G"] = np.asarray(table)[..., _COLUMNS.index(name)]
    return values


@dataclasses.dataclass(frozen=True)
class ScoredGroups:
    """Everything that text adds to a rollout, on the host, for this process's prompts.

    Attributes:
        completions: `[B][G]` parsed completions.
        table: all numbers of the completions in one array that processes can exchange: the columns
            `_COLUMNS` (total reward, tokens, whether it ended, whether it is well formed, whether
            its answer is right, `AnswerReader.mended`), then the value of each reward function
            before weighting.
        stage_mask: see `Batch`.
        baseline_rewards: see `Batch`; the completions behind them are in none of the above.
    """

    completions: tuple[tuple[ScoredCompletion, ...], ...]
    table: Float[np.ndarray, "B G K"]
    stage_mask: Bool[np.ndarray, "B G S C"]
    baseline_rewards: Float[np.ndarray, " B"] | None = None

    @property
    def rewards(self) -> Float[np.ndarray, "B G"]:
        """Weighted sums of the reward functions."""
        return np.ascontiguousarray(self.table[..., 0])


def next_prompts(
    posts: Sequence[Example],
    tokenizer: Tokenizer,
    rollout: RolloutConfig,
    mesh: Mesh,
    grammar: Grammar = GRAMMAR,
) -> StepPrompts:
    """Render, pad and place the prompts of a step, in the smallest compiled length that fits all.

    Args:
        posts: this process's share of the step's posts.
        tokenizer: the model's own, with its chat template.
        rollout: the compiled prompt lengths; posts are truncated to the longest.
        mesh: where the prompts go, sharded over the batch axes.
        grammar: the recipe's.
    """
    # Positions of the posts in the global step, the source of their random numbers.
    rows = hosts.local_rows(mesh, rollout.prompts_per_step)
    rendered = render_prompts(tokenizer, posts, rollout.max_prompt_length, grammar)
    padded = pad_prompts(rendered, common_width(rendered, rollout), tokenizer.pad_id, rows)
    return StepPrompts(posts, rendered, hosts.put_batch(mesh, padded))


def render_prompts(
    tokenizer: Tokenizer,
    posts: Sequence[Example],
    max_prompt_length: int,
    grammar: Grammar = GRAMMAR,
) -> list[RenderedPrompt]:
    """The chat prompt of each post; long posts are truncated to `max_prompt_length` tokens."""
    return [render_prompt(tokenizer, p.question, p.text, max_prompt_length, grammar) for p in posts]


def prompt_width(prompts: Sequence[RenderedPrompt], lengths: Sequence[int]) -> int:
    """The smallest of the compiled `lengths` (tokens) that holds the longest prompt."""
    longest = max(len(prompt.ids) for prompt in prompts)
    return min(length for length in lengths if length >= longest)


def common_width(prompts: Sequence[RenderedPrompt], rollout: RolloutConfig) -> int:
    """The compiled prompt length that holds the step's prompts, the same on every process."""
    width = prompt_width(prompts, rollout.prompt_lengths)
    return hosts.largest(width) if len(rollout.prompt_lengths) > 1 else width


def common_length(prompts: Iterable[RenderedPrompt]) -> int:
    """Tokens at the beginning of all `prompts` that are the same.

    At least one token of each prompt stays behind them.
    """
    first, *others = (np.asarray(one.ids, np.int32) for one in prompts)
    length = len(first) - 1
    for own in others:
        length = min(length, len(own) - 1)
        differs = np.flatnonzero(own[:length] != first[:length])
        length = int(differs[0]) if len(differs) else length
    return length


def pad_prompts(
    prompts: Sequence[RenderedPrompt],
    width: int,
    pad_id: int,
    rows: Sequence[int] | np.ndarray | None = None,
) -> PromptBatch:
    """Pad prompts to `width` tokens, as arrays on the host.

    Args:
        prompts: B rendered prompts.
        width: P, from `prompt_width`.
        pad_id: token that fills the places after a prompt.
        rows: positions of the prompts in the global step; from 0 on when None.
    """
    # Any, because the containers say jax.Array: `put_batch` makes these host arrays such.
    ids: Any = np.full((len(prompts), width), pad_id, np.int32)
    mask: Any = np.zeros((len(prompts), width), bool)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt.ids)] = prompt.ids
        mask[row, : len(prompt.ids)] = True
    index: Any = np.asarray(range(len(prompts)) if rows is None else rows, np.int32)
    return PromptBatch(prompt_ids=ids, prompt_mask=mask, prompt_index=index)


def score_completions(
    tokenizer: Tokenizer,
    posts: Sequence[Example],
    completions: Completions,
    functions: Sequence[Reward],
    reader: AnswerReader,
    grammar: Grammar = GRAMMAR,
) -> ScoredGroups:
    """Wait for the completions of this process's posts; decode, parse and score every one.

    Greedy completions beside the groups are scored by the same functions, for their reward alone.

    Args:
        tokenizer: that of the model which sampled; decodes the ids.
        posts: this process's share, in the order of its rows.
        completions: all processes' rows, on the mesh; only our own are read.
        functions: reward functions; none where completions are only read.
        reader: finds the columns "correct" and "mended" of the table.
        grammar: the recipe's.
    """
    wanted = (completions.completion_ids, completions.completion_mask, completions.finished)
    all_ids, mask, finished = map(hosts.fetch_rows, wanted)
    num_prompts, group, length = all_ids.shape
    stages = np.zeros((num_prompts, group, len(grammar.stages), length), bool)
    table = np.zeros((num_prompts, group, len(_COLUMNS) + len(functions)), np.float32)
    scored: list[tuple[ScoredCompletion, ...]] = []
    for b, post in enumerate(posts):
        row = []
        for g in range(group):
            ids = all_ids[b, g][mask[b, g]].tolist()
            decoded = tokenizer.decode(ids)
            parsed = grammar.parse(decoded.text)
            spans = byte_spans(decoded.text, parsed.stage_spans)
            stages[b, g] = stage_mask(decoded.offsets, spans, length)
            values = score_completion(functions, decoded.text, parsed, post, len(ids))
            correct = reader.read(post.set_name, parsed.answer) == post.label
            mended = reader.mended(post.set_name, parsed.answer)
            facts = (len(ids), finished[b, g], parsed.well_formed, correct, mended)
            table[b, g] = (total_reward(functions, values), *facts, *values.values())
            row.append(ScoredCompletion(decoded.text, parsed, len(ids), bool(finished[b, g])))
        scored.append(tuple(row))
    baseline = None
    if completions.greedy is not None:
        greedy = completions.greedy
        alone = score_completions(tokenizer, posts, greedy, functions, reader, grammar)
        baseline = alone.rewards[:, 0]
    return ScoredGroups(tuple(scored), table, stages, baseline)


def stage_mask(
    offsets: Int[np.ndarray, " n_plus_1"],
    byte_spans: Sequence[tuple[int, int] | None],
    length: int,
) -> Bool[np.ndarray, "S {length}"]:
    """Mark the tokens that lie wholly inside each stage's content.

    m[t, i] = 1  iff  start_t <= offset_i  and  offset_{i+1} <= end_t  and the token has bytes.

    Tags, tokens that straddle a tag's edge, and special tokens (no bytes) are outside. Nothing is
    tokenized again: the offsets belong to the sampled ids.

    Args:
        offsets: byte offset of each token and, last, of the end of the text.
        byte_spans: start and end byte of each stage's content, None for a stage that is missing.
        length: C, the padded number of completion tokens.
    """
    starts, ends = offsets[:-1], offsets[1:]
    mask = np.zeros((len(byte_spans), length), bool)
    for stage, span in enumerate(byte_spans):
        if span is not None:
            inside = (starts >= span[0]) & (ends <= span[1]) & (ends > starts)
            mask[stage, : len(starts)] = inside
    return mask


def reward_metrics(
    table: Float[np.ndarray, "B G K"], functions: Sequence[Reward]
) -> dict[str, float]:
    """Reward and completion statistics of a step, under the keys that TRL uses.

    `answers/mended/KIND` are there where answers were mended: the share in which that kind was.

    Args:
        table: of all processes' completions, see `ScoredGroups`.
        functions: the reward functions, in the order of the table's last columns.
    """
    columns = np.moveaxis(table.astype(np.float64), -1, 0)
    rewards, lengths, finished, well_formed, correct, mended = columns[: len(_COLUMNS)]
    within = rewards.std(axis=1, ddof=1)
    ended = lengths[finished > 0]
    metrics: dict[str, float] = {
        "reward": float(rewards.mean()),
        "reward_std": float(within.mean()),
        "frac_reward_zero_std": float((within < 1e-6).mean()),
        "accuracy": float(correct.mean()),
        "well_formed": float(well_formed.mean()),
        "completions/mean_length": float(lengths.mean()),
        "completions/min_length": float(lengths.min()),
        "completions/max_length": float(lengths.max()),
        "completions/clipped_ratio": float(1.0 - finished.mean()),
        "completions/mean_terminated_length": float(ended.mean()) if ended.size else 0.0,
    }
    for bit, kind in enumerate(MENDED_KINDS if mended.any() else ()):
        metrics[f"answers/mended/{kind}"] = float((mended.astype(int) >> bit & 1).mean())
    for function, values in zip(functions, columns[len(_COLUMNS) :], strict=True):
        metrics[f"rewards/{function.name}/mean"] = float(values.mean())
        metrics[f"rewards/{function.name}/std"] = float(values.std(ddof=1))
        metrics[f"rewards/{function.name}/weight"] = float(function.weight)
    return metrics


def completion_rows(
    prompts: StepPrompts,
    groups: ScoredGroups,
    functions: Sequence[Reward],
    advantages: Float[np.ndarray, "B G"],
) -> list[dict[str, Any]]:
    """One row a completion, for the completions file and the console.

    An advantage of NaN, of a group that was not trained on, becomes None.
    """
    names = [f"rewards/{function.name}" for function in functions]
    return [
        {
            "set_name": post.set_name,
            "row": post.row,
            "prompt": prompt.text,
            "completion": completion.text,
            "label": post.label,
            "answer": completion.parsed.answer,
            "reward": float(groups.table[b, g, 0]),
            **dict(zip(names, groups.table[b, g, len(_COLUMNS) :].tolist(), strict=True)),
            "advantage": None if np.isnan(advantages[b, g]) else float(advantages[b, g]),
            "well_formed": completion.parsed.well_formed,
            "reason": completion.parsed.reason,
            "num_tokens": completion.num_tokens,
            "finished": completion.finished,
        }
        for b, (post, prompt) in enumerate(zip(prompts.posts, prompts.rendered, strict=True))
        for g, completion in enumerate(groups.completions[b])
    ]


def assemble_batch(
    prompts: PromptBatch,
    completions: Completions,
    groups: ScoredGroups,
    mesh: Mesh,
    crpo: CrpoConfig,
    ref_logprobs: jax.Array | None = None,
    old_logprobs: jax.Array | None = None,
) -> Batch:
    """Join device arrays of the rollout with the host's rewards and masks into a `Batch`.

    Args:
        prompts: the step's prompts, on the device.
        completions: the sampler's output, on the device.
        groups: the host's part, of this process's rows.
        mesh: where the host's arrays go, sharded over prompts.
        crpo: whether completions that hit the length limit are left out of the loss.
        ref_logprobs: of the completions under the reference, [B, G, C], nats; None without KL.
        old_logprobs: the same under the policy that sampled; None with one update a rollout.
    """
    mask, stages = completions.completion_mask, groups.stage_mask
    if crpo.mask_truncated_completions:
        lengths = np.array(
            [[c.num_tokens if c.finished else 0 for c in row] for row in groups.completions]
        )
        # Made on the host: an operation outside a compiled function would be a program of its own.
        counted = np.arange(stages.shape[-1])[None, None] < lengths[..., None]
        mask, stages = hosts.put_batch(mesh, counted), stages & counted[:, :, None]
    placed = hosts.put_batch(mesh, (stages, groups.rewards, groups.baseline_rewards))
    stages, rewards, baseline = placed
    return Batch(
        prompt_ids=prompts.prompt_ids,
        prompt_mask=prompts.prompt_mask,
        completion_ids=completions.completion_ids,
        completion_mask=mask,
        stage_mask=stages,
        rewards=rewards,
        sampler_logprobs=completions.sampler_logprobs,
        decode_logprobs=completions.decode_logprobs,
        old_logprobs=old_logprobs,
        ref_logprobs=ref_logprobs,
        baseline_rewards=baseline,
    )
