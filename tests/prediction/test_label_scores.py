"""p(label) of a tiny decoder against one plain run of the whole text for each label."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from mental_r1_jax.config import RolloutConfig
from mental_r1_jax.errors import UserError
from mental_r1_jax.models import decoder
from mental_r1_jax.prediction.label_scores import LabelScorer, Reasoning, make_label_scorer
from mental_r1_jax.sharding import make_mesh
from mental_r1_jax.text.forced_answer import ForcedAnswer
from tests.tiny_decoder import CONFIG, random_params, tiny_recipe

ASKED = (
    Reasoning((5, 6, 7), ForcedAnswer((8, 9), ((1, 2, 3), (1, 4), (140,)))),
    Reasoning((5,), ForcedAnswer((10, 11, 12, 13), ((20, 21), (22,)))),
)


@pytest.fixture(scope="module")
def mesh() -> Mesh:
    return make_mesh(1, 1, 1, jax.devices()[:1])


@pytest.fixture(scope="module")
def scorer(mesh: Mesh) -> LabelScorer:
    recipe = tiny_recipe().model_copy(update={"rollout": RolloutConfig(max_prompt_length=8)})
    plain = recipe.model.model_copy(update={"compute_dtype": "float32"})
    model = SimpleNamespace(decoder=CONFIG, tokenizer=SimpleNamespace(pad_id=0))
    made = make_label_scorer(model, recipe.model_copy(update={"model": plain}), mesh)
    return dataclasses.replace(made, widths=(16,))


@jax.jit
def all_logits(params, ids: jax.Array, mask: jax.Array) -> jax.Array:
    """Logits after every token but the last, by a plain run: a prompt of one token, no group."""
    hidden = decoder.forward(
        params, CONFIG, ids[:, :1], mask[:, :1], ids[:, None, 1:], mask[:, None, 1:]
    )
    return decoder.unembed(params, CONFIG, hidden)[0, 0]


def plain_sum(params, before: tuple[int, ...], ending: tuple[int, ...]) -> float:
    """Sum of log-probs of `ending` by the logits of the whole sequence, at temperature 1."""
    ids = np.zeros((1, 10), np.int32)
    ids[0, : len(before) + len(ending)] = (*before, *ending)
    mask = np.arange(10)[None] < len(before) + len(ending)
    logits = np.asarray(all_logits(params, ids, mask))
    logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    places = range(len(before) - 1, len(before) + len(ending) - 1)
    return float(sum(logprobs[i, ids[0, i + 1]] for i in places))


def test_probabilities_equal_plain_runs_of_every_label(scorer: LabelScorer) -> None:
    params = jax.tree.map(jax.numpy.asarray, random_params())
    sums = [
        [plain_sum(params, one.prompt + one.answer.shared, e) for e in one.answer.endings]
        for one in ASKED
    ]
    found = scorer.probabilities(params, ASKED, num_labels=3)
    for row, expected in zip(found, sums, strict=True):
        weights = np.exp(expected)
        # Two ways to compute the same in float32.
        np.testing.assert_allclose(row, weights / weights.sum(), rtol=1e-4)
    assert [len(row) for row in found] == [3, 2]


def test_a_reasoning_longer_than_all_widths_has_one_of_its_own(mesh: Mesh) -> None:
    """Shapes are few: a width that is there, else a multiple of 64; endings in steps of 8."""
    shapes = []

    def logprobs(params, traces):
        shapes.append((traces.prompt_ids.shape, traces.completion_ids.shape))
        return jax.numpy.where(traces.completion_mask, -1.0, np.nan)

    scorer = LabelScorer(logprobs, mesh, widths=(4, 6), pad_id=0)
    for length in (3, 5, 7):
        asked = Reasoning((1,) * length, ForcedAnswer((), ((1,) * 9, (2,) * 10)))
        ((first, second),) = scorer.probabilities({}, [asked], 4)
        assert first / second == pytest.approx(np.e)  # one token of -1 less
    assert shapes == [((1, width), (1, 4, 16)) for width in (4, 6, 64)]


def test_logits_that_are_no_numbers_are_refused(mesh: Mesh) -> None:
    def logprobs(params, traces):
        return jax.numpy.full(traces.completion_ids.shape, np.nan)

    with pytest.raises(UserError, match="no numbers"):
        LabelScorer(logprobs, mesh, (16,), 0).probabilities({}, ASKED, 3)
