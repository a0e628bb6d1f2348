"""p(label): how likely each label of a set is as the answer to one reasoning.

    log p(label) = sum of log p(token) over the tokens of the label and of the closing answer tag,
                   given the prompt, the reasoning and the opening answer tag,
    p            = softmax of that over the labels of the set.

The tokens are those of `ForcedAnswer.endings`; tokens that all labels share cancel. The
distribution is the model's own: temperature 1, neither top-p nor top-k. The shared part is run
once, as the prompt of a batch whose group axis is the labels: the scoring program of training does
the rest.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Float

from mental_r1_jax import hosts, sharding
from mental_r1_jax.config import ExperimentConfig
from mental_r1_jax.errors import UserError
from mental_r1_jax.models import decoder as network
from mental_r1_jax.opening.model_source import ModelSource
from mental_r1_jax.text.forced_answer import ForcedAnswer
from mental_r1_jax.types import TraceBatch

# Tokens beyond prompt and completion that the tags of a forced answer may take.
_TAGS = 32
_ENDING_STEP, _WIDTH_STEP = 8, 64


@dataclasses.dataclass(frozen=True)
class Reasoning:
    """What labels are scored on: a prompt, and a completion cut at its answer."""

    prompt: tuple[int, ...]
    answer: ForcedAnswer


@dataclasses.dataclass(frozen=True)
class LabelScorer:
    """A compiled scoring program and the shapes that it is called with; see `make_label_scorer`.

    Attributes:
        logprobs: `(params, traces) -> [B, L, T]`, nats.
        mesh: where the weights live.
        widths: lengths of the shared part that are compiled, ascending.
        pad_id: token that fills up short rows.
    """

    logprobs: Callable[..., Any]
    mesh: Mesh
    widths: tuple[int, ...]
    pad_id: int

    def probabilities(
        self, params: Any, asked: Sequence[Reasoning], num_labels: int
    ) -> list[tuple[float, ...]]:
        """p(label) for every label of each reasoning, in order; of this process's rows of a batch.

        Every process must call this with its `local_rows` of one batch.

        Args:
            params: weights on the mesh.
            asked: at least one.
            num_labels: L, at least the number of labels of every reasoning.

        Raises:
            UserError: the model's logits are no numbers.
        """
        longest = hosts.largest(max(len(one.prompt) + len(one.answer.shared) for one in asked))
        ending = hosts.largest(max(len(e) for one in asked for e in one.answer.endings))
        width = min((w for w in self.widths if w >= longest), default=_up(longest, _WIDTH_STEP))
        traces = self._traces(asked, width, (num_labels, _up(ending, _ENDING_STEP)))
        found = hosts.fetch_rows(self.logprobs(params, hosts.put_batch(self.mesh, traces)))
        mask = np.asarray(traces.completion_mask)
        refuse_non_finite(found, mask)
        sums = np.where(mask, found, 0.0).astype(np.float64).sum(axis=-1)
        return [
            _softmax(row[: len(one.answer.endings)]) for row, one in zip(sums, asked, strict=True)
        ]

    def _traces(self, asked: Sequence[Reasoning], width: int, group: tuple[int, int]) -> TraceBatch:
        """Padded arrays on the host: shared parts [B, width], endings [B, L, T]."""
        # Any, because the containers say jax.Array: `put_batch` makes these host arrays such.
        shared: Any = np.full((len(asked), width), self.pad_id, np.int32)
        endings: Any = np.full((len(asked), *group), self.pad_id, np.int32)
        shared_mask: Any = np.zeros(shared.shape, bool)
        ending_mask: Any = np.zeros(endings.shape, bool)
        for row, one in enumerate(asked):
            ids = (*one.prompt, *one.answer.shared)
            shared[row, : len(ids)], shared_mask[row, : len(ids)] = ids, True
            for label, ending in enumerate(one.answer.endings):
                endings[row, label, : len(ending)] = ending
                ending_mask[row, label, : len(ending)] = True
        return TraceBatch(shared, shared_mask, endings, ending_mask)


def all_probabilities(
    scorer: LabelScorer,
    params: Any,
    asked: Sequence[Reasoning],
    *,
    batch_size: int,
    num_labels: int,
) -> list[tuple[float, ...]]:
    """`LabelScorer.probabilities` of any number of reasonings, in order, on every process.

    Args:
        asked: the same on every process.
        batch_size: reasonings run at the same time.
        num_labels: see `LabelScorer.probabilities`.
    """
    # Those of like length share a batch, so that short ones run in a small compiled shape.
    order = sorted(
        range(len(asked)), key=lambda i: len(asked[i].prompt) + len(asked[i].answer.shared)
    )
    found: dict[int, tuple[float, ...]] = {}
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        batch += batch[-1:] * (batch_size - len(batch))
        rows = [batch[place] for place in hosts.local_rows(scorer.mesh, len(batch))]
        answers = scorer.probabilities(params, [asked[row] for row in rows], num_labels)
        found |= dict(zip(rows, answers, strict=True))
    return hosts.all_items(found.items())


def make_label_scorer(model: ModelSource, config: ExperimentConfig, mesh: Mesh) -> LabelScorer:
    """Bind everything static; the program compiles at its first call, once for each shape."""

    def logprobs(params: Any, traces: TraceBatch) -> jax.Array:
        return network.completion_stats(
            params,
            traces,
            config=model.decoder,
            temperature=1.0,
            chunk_size=config.model.logprob_chunk_size,
        )[0]

    more = config.rollout.max_completion_length + _TAGS
    return LabelScorer(
        jax.jit(logprobs, out_shardings=sharding.batch_sharding(mesh, 3)),
        mesh,
        tuple(length + more for length in config.rollout.prompt_lengths),
        model.tokenizer.pad_id,
    )


def refuse_non_finite(
    measured: Float[np.ndarray, "B votes C"], mask: Bool[np.ndarray, "B votes C"]
) -> None:
    """Refuse answers of a model whose logits overflow or are NaN: the tokens mean nothing.

    Args:
        measured: entropy or log-prob of each token, nats; finite exactly where its logits are.
        mask: which tokens are real.

    Raises:
        UserError: the number of a real token is none.
    """
    wrong = int((~np.isfinite(measured[mask])).sum())
    if wrong:
        raise UserError(
            what="the model computes logits that are no numbers",
            expected="finite logits for every token of every answer",
            got=f"NaN or infinity at {wrong} of {int(mask.sum())} tokens of a batch",
            remedy="its weights are broken, or too large for model.compute_dtype: evaluate an "
            "earlier checkpoint, or try model.compute_dtype=float32",
        )


def _softmax(sums: Float[np.ndarray, " L"]) -> tuple[float, ...]:
    weights = np.exp(sums - sums.max())
    return tuple(float(p) for p in weights / weights.sum())


def _up(size: int, step: int) -> int:
    """The smallest multiple of `step` that is not below `size`."""
    return -(-size // step) * step
