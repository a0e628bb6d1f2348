"""One step of experience, in four moves that a reader can follow for a single post.

1. `tokenize_prompts`   labelled posts -> `PromptBatch`, in one of a fixed set of lengths.
2. the sampler          `PromptBatch` -> `Completions` (see `sampler.py`).
3. `score_completions`  ids -> text -> parsed stages -> rewards and stage masks.
4. `assemble_batch`     all of it -> `Batch`, placed on the mesh.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Float, Int

from mental_r1_jax.hosts import put_batch
from mental_r1_jax.rewards import RewardFunction, score_completion, total_reward
from mental_r1_jax.rollout.stage_masks import stage_mask
from mental_r1_jax.text.prompts import RenderedPrompt, render_prompt
from mental_r1_jax.text.stages import GRAMMAR, ParsedCompletion
from mental_r1_jax.text.tokenizer import Tokenizer, byte_spans
from mental_r1_jax.types import Batch, Completions, PromptBatch


@runtime_checkable
class LabelledPost(Protocol):
    """What this module needs of a data example."""

    @property
    def set_name(self) -> str: ...  # noqa: D102
    @property
    def row(self) -> int: ...  # noqa: D102
    @property
    def text(self) -> str: ...  # noqa: D102
    @property
    def label(self) -> str: ...  # noqa: D102
    @property
    def question(self) -> str: ...  # noqa: D102


@dataclasses.dataclass(frozen=True)
class ScoredCompletion:
    """One completion after parsing and scoring; the row of the completions file."""

    text: str
    parsed: ParsedCompletion
    rewards: Mapping[str, float]
    total: float
    num_tokens: int
    finished: bool


@dataclasses.dataclass(frozen=True)
class ScoredGroups:
    """Everything that text adds to a rollout, on the host.

    Attributes:
        completions: `[B][G]` parsed and scored completions.
        rewards: weighted sums of the reward functions.
        stage_mask: see `Batch`.
    """

    completions: tuple[tuple[ScoredCompletion, ...], ...]
    rewards: Float[np.ndarray, "B G"]
    stage_mask: Bool[np.ndarray, "B G S C"]


def render_prompts(
    tokenizer: Tokenizer, posts: Sequence[LabelledPost], max_prompt_length: int
) -> list[RenderedPrompt]:
    """The chat prompt of each post, cut to `max_prompt_length` tokens inside the post."""
    return [render_prompt(tokenizer, p.question, p.text, max_prompt_length) for p in posts]


def prompt_width(prompts: Sequence[RenderedPrompt], lengths: Sequence[int]) -> int:
    """The smallest of the compiled `lengths` (tokens) that holds the longest prompt."""
    longest = max(len(prompt.ids) for prompt in prompts)
    return min(length for length in lengths if length >= longest)


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
        pad_id: fills the places after a prompt.
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
    posts: Sequence[LabelledPost],
    completion_ids: Int[np.ndarray, "B G C"],
    completion_mask: Bool[np.ndarray, "B G C"],
    finished: Bool[np.ndarray, "B G"],
    functions: Sequence[RewardFunction],
) -> ScoredGroups:
    """Decode, parse and score every completion; host work only, no device is touched."""
    num_prompts, group, length = completion_ids.shape
    masks = np.zeros((num_prompts, group, len(GRAMMAR.stages), length), bool)
    rewards = np.zeros((num_prompts, group), np.float32)
    scored: list[tuple[ScoredCompletion, ...]] = []
    for b, post in enumerate(posts):
        row = []
        for g in range(group):
            ids = completion_ids[b, g][completion_mask[b, g]].tolist()
            decoded = tokenizer.decode(ids)
            parsed = GRAMMAR.parse(decoded.text)
            values = score_completion(functions, decoded.text, parsed, post)
            spans = byte_spans(decoded.text, parsed.stage_spans)
            masks[b, g] = stage_mask(decoded.offsets, spans, length)
            rewards[b, g] = total_reward(functions, values)
            row.append(
                ScoredCompletion(
                    text=decoded.text,
                    parsed=parsed,
                    rewards=values,
                    total=float(rewards[b, g]),
                    num_tokens=len(ids),
                    finished=bool(finished[b, g]),
                )
            )
        scored.append(tuple(row))
    return ScoredGroups(completions=tuple(scored), rewards=rewards, stage_mask=masks)


# Columns of `score_table` before those of the reward functions.
_COLUMNS = ("reward", "num_tokens", "finished", "well_formed", "correct")


def score_table(
    groups: ScoredGroups, functions: Sequence[RewardFunction]
) -> Float[np.ndarray, "B G K"]:
    """All numbers of a step's completions in one array, which processes can exchange.

    The K columns are the total reward, tokens, whether it ended, whether it is well formed, whether
    the answer earned a reward, and the value of each function.
    """
    return np.array(
        [
            [
                [c.total, c.num_tokens, c.finished, c.parsed.well_formed]
                + [c.rewards.get("answer", 0.0) > 0]
                + [c.rewards[function.name] for function in functions]
                for c in row
            ]
            for row in groups.completions
        ],
        np.float32,
    )


def reward_metrics(
    table: Float[np.ndarray, "B G K"], functions: Sequence[RewardFunction]
) -> dict[str, float]:
    """Reward and completion statistics of a step, under the keys that TRL uses."""
    columns = np.moveaxis(table.astype(np.float64), -1, 0)
    rewards, lengths, finished, well_formed, correct = columns[: len(_COLUMNS)]
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
    for function, values in zip(functions, columns[len(_COLUMNS) :], strict=True):
        metrics[f"rewards/{function.name}/mean"] = float(values.mean())
        metrics[f"rewards/{function.name}/std"] = float(values.std(ddof=1))
        metrics[f"rewards/{function.name}/weight"] = float(function.weight)
    return metrics


def completion_rows(
    posts: Sequence[LabelledPost],
    prompts: Sequence[RenderedPrompt],
    groups: ScoredGroups,
    advantages: Float[np.ndarray, "B G"],
) -> list[dict[str, Any]]:
    """One row a completion, for the completions file and the console."""
    return [
        {
            "set_name": post.set_name,
            "row": post.row,
            "prompt": prompt.text,
            "completion": completion.text,
            "label": post.label,
            "answer": completion.parsed.answer,
            "reward": completion.total,
            **{f"rewards/{name}": value for name, value in completion.rewards.items()},
            "advantage": float(advantages[b, g]),
            "well_formed": completion.parsed.well_formed,
            "reason": completion.parsed.reason,
            "num_tokens": completion.num_tokens,
            "finished": completion.finished,
        }
        for b, (post, prompt) in enumerate(zip(posts, prompts, strict=True))
        for g, completion in enumerate(groups.completions[b])
    ]


def assemble_batch(
    prompts: PromptBatch,
    completions: Completions,
    groups: ScoredGroups,
    *,
    mesh: Mesh,
    mask_truncated: bool,
) -> Batch:
    """Join device arrays of the rollout with the host's rewards and masks into a `Batch`.

    Args:
        prompts: the step's prompts, on the device.
        completions: the sampler's output, on the device.
        groups: the host's part, of this process's rows.
        mesh: where the host's arrays go, split over prompts.
        mask_truncated: leave completions that hit the length limit out of the loss.
    """
    mask, stages = completions.completion_mask, groups.stage_mask
    if mask_truncated:
        lengths = np.array(
            [[c.num_tokens if c.finished else 0 for c in row] for row in groups.completions]
        )
        # Made on the host: an operation outside a compiled function would be a program of its own.
        counted = np.arange(stages.shape[-1])[None, None] < lengths[..., None]
        mask, stages = put_batch(mesh, counted), stages & counted[:, :, None]
    stages, rewards = put_batch(mesh, (stages, groups.rewards))
    return Batch(
        prompt_ids=prompts.prompt_ids,
        prompt_mask=prompts.prompt_mask,
        completion_ids=completions.completion_ids,
        completion_mask=mask,
        stage_mask=stages,
        rewards=rewards,
        sampler_logprobs=completions.sampler_logprobs,
        decode_logprobs=completions.decode_logprobs,
    )
