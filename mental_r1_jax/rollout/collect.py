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

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Float, Int

from mental_r1_jax import sharding
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


def pad_prompts(
    prompts: Sequence[RenderedPrompt], lengths: Sequence[int], pad_id: int, first_index: int = 0
) -> PromptBatch:
    """Pad prompts to the smallest of the compiled `lengths` that holds the longest of them.

    Args:
        prompts: B rendered prompts.
        lengths: the fixed set of prompt lengths, in tokens.
        pad_id: fills the places after a prompt.
        first_index: position of the first prompt in the global step.
    """
    longest = max(len(prompt.ids) for prompt in prompts)
    width = min(length for length in lengths if length >= longest)
    # Any, because the containers say jax.Array: `put_batch` makes these host arrays such.
    ids: Any = np.full((len(prompts), width), pad_id, np.int32)
    mask: Any = np.zeros((len(prompts), width), bool)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt.ids)] = prompt.ids
        mask[row, : len(prompt.ids)] = True
    index: Any = first_index + np.arange(len(prompts), dtype=np.int32)
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


def reward_metrics(groups: ScoredGroups, functions: Sequence[RewardFunction]) -> dict[str, float]:
    """Reward and completion statistics of a step, under the keys that TRL uses."""
    flat = [completion for row in groups.completions for completion in row]
    lengths = np.array([completion.num_tokens for completion in flat], np.float64)
    finished = np.array([completion.finished for completion in flat])
    within = groups.rewards.std(axis=1, ddof=1)
    metrics: dict[str, float] = {
        "reward": float(groups.rewards.mean()),
        "reward_std": float(within.mean()),
        "frac_reward_zero_std": float((within < 1e-6).mean()),
        "accuracy": float(np.mean([c.rewards.get("answer", 0.0) > 0 for c in flat])),
        "well_formed": float(np.mean([c.parsed.well_formed for c in flat])),
        "completions/mean_length": float(lengths.mean()),
        "completions/min_length": float(lengths.min()),
        "completions/max_length": float(lengths.max()),
        "completions/clipped_ratio": float(1.0 - finished.mean()),
        "completions/mean_terminated_length": (
            float(lengths[finished].mean()) if finished.any() else 0.0
        ),
    }
    for function in functions:
        values = np.array([completion.rewards[function.name] for completion in flat])
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
        groups: the host's part.
        mesh: where the host's arrays go, split over prompts.
        mask_truncated: leave completions that hit the length limit out of the loss.
    """
    mask, stages = completions.completion_mask, groups.stage_mask
    if mask_truncated:
        finished = np.array([[c.finished for c in row] for row in groups.completions])
        mask = mask & put_batch(mesh, finished)[..., None]
        stages = stages & finished[..., None, None]
    return Batch(
        prompt_ids=prompts.prompt_ids,
        prompt_mask=prompts.prompt_mask,
        completion_ids=completions.completion_ids,
        completion_mask=mask,
        stage_mask=put_batch(mesh, stages),
        rewards=put_batch(mesh, groups.rewards),
        sampler_logprobs=completions.sampler_logprobs,
        decode_logprobs=completions.decode_logprobs,
    )


def put_batch(mesh: Mesh, tree: Any) -> Any:
    """Make global arrays, split over prompts, of this process's rows of `tree`."""
    return jax.tree.map(
        lambda leaf: jax.make_array_from_process_local_data(
            sharding.batch_sharding(mesh, leaf.ndim), leaf
        ),
        tree,
    )
