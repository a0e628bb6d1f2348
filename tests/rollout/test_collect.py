"""From ids to rewards, masks and a batch, on completions written by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mental_r1_jax import sharding
from mental_r1_jax.data.records import Example
from mental_r1_jax.hosts import put_batch
from mental_r1_jax.rewards import answer_function, format_function, overlong_reward
from mental_r1_jax.rl.losses import crpo_loss, loss_denominators
from mental_r1_jax.rollout.collect import (
    assemble_batch,
    pad_prompts,
    prompt_width,
    render_prompts,
    reward_metrics,
    score_completions,
)
from mental_r1_jax.text.answers import AnswerReader
from mental_r1_jax.text.prompts import RenderedPrompt
from mental_r1_jax.text.stages import GRAMMAR
from mental_r1_jax.text.tokenizer import Tokenizer, wrap_tokenizer
from mental_r1_jax.types import Completions
from tests.text.conftest import byte_level, sentencepiece_bpe
from tests.tiny_decoder import tiny_recipe


def post(set_name: str, label: str) -> Example:
    return Example(
        set_name=set_name,
        split="train",
        row=0,
        text="the rain kept falling and i can not sleep at night",
        label=label,
        question="Does the writer feel tired? Yes or No\nStatement: ",
    )


POSTS = (post("Sleep", "Yes"), post("Rain", "No"))
GOOD = GRAMMAR.render(["rain 🌧️", "it matters", "a walk helps", "tired", "low mood"], "Yes")
TEXTS = (
    (GOOD, GOOD.replace("Yes", "No")),  # right, wrong
    ("<answer>no, never</answer>", "rain </stimulus> then nothing"),  # right by prefix, none
)
WEIGHTS = {("Sleep", "Yes"): 0.5, ("Rain", "No"): 2.0}
LABELS = {"Sleep": ("Yes", "No"), "Rain": ("Yes", "No")}
READER = AnswerReader(LABELS)
FUNCTIONS = (format_function(1.0), answer_function(3.0, WEIGHTS, READER))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return wrap_tokenizer(byte_level())


@pytest.fixture(scope="module")
def completions(tokenizer: Tokenizer) -> Completions:
    """The four texts as ids; all but the last end in EOS, the last one hits the limit."""
    rows = [[tokenizer.encode(text) for text in row] for row in TEXTS]
    eos = tokenizer.eos_ids[0]
    rows = [[ids + [eos] * (ids is not rows[1][1]) for ids in row] for row in rows]
    width = max(len(ids) for row in rows for ids in row) + 3
    shape = (2, 2, width)
    out = Completions(
        completion_ids=np.full(shape, tokenizer.pad_id, np.int32),
        completion_mask=np.zeros(shape, bool),
        sampler_logprobs=np.full(shape, -1.0, np.float32),
        decode_logprobs=np.full(shape, -2.0, np.float32),
        finished=np.array([[True, True], [True, False]]),
    )
    for b, g in np.ndindex(2, 2):
        out.completion_ids[b, g, : len(rows[b][g])] = rows[b][g]
        out.completion_mask[b, g, : len(rows[b][g])] = True
    return out


def on_device(completions: Completions) -> Completions:
    """As the sampler returns them."""
    return jax.tree.map(jnp.asarray, completions)


@pytest.fixture(scope="module")
def groups(tokenizer: Tokenizer, completions: Completions):
    return score_completions(
        tokenizer,
        POSTS,
        on_device(completions),
        FUNCTIONS,
        READER,
    )


def test_prompts_take_the_smallest_length_that_holds_the_longest():
    def prompt(length: int) -> RenderedPrompt:
        return RenderedPrompt(ids=tuple(range(1, length + 1)), text="", truncated=False)

    lengths = (4, 8, 16)
    for longest, width in ((3, 4), (4, 4), (5, 8), (8, 8), (9, 16), (16, 16)):
        prompts = [prompt(2), prompt(longest)]
        assert prompt_width(prompts, lengths) == width
        batch = pad_prompts(prompts, width, 99, rows=[6, 9])
        assert batch.prompt_ids.shape == (2, width)
        np.testing.assert_array_equal(batch.prompt_mask.sum(1), [2, longest])
        assert batch.prompt_ids[0].tolist() == [1, 2] + [99] * (width - 2)
        np.testing.assert_array_equal(batch.prompt_index, [6, 9])
    # A real token that equals the pad stays real.
    batch = pad_prompts([prompt(3)], 4, 2)
    assert batch.prompt_mask[0].tolist() == [True, True, True, False]
    assert batch.prompt_index.tolist() == [0]


def test_prompts_end_in_the_prefill_and_fit(tokenizer: Tokenizer):
    prompts = render_prompts(tokenizer, POSTS, 400)
    assert all(prompt.text.endswith(GRAMMAR.prefill) for prompt in prompts)
    assert all(POSTS[0].text in prompt.text and len(prompt.ids) <= 400 for prompt in prompts)


def test_completions_are_scored_by_hand(groups, completions):
    # format: +-0.5, weight 1; answer: +-w of (set, label), weight 3.
    expected = [[0.5 + 3 * 0.5, 0.5 - 3 * 0.5], [-0.5 + 3 * 2.0, -0.5 - 3 * 2.0]]
    np.testing.assert_allclose(groups.rewards, expected)
    flat = [completion for row in groups.completions for completion in row]
    assert [c.text for c in flat] == [text for row in TEXTS for text in row]
    assert [c.parsed.answer for c in flat] == ["Yes", "No", "no, never", None]
    assert groups.table[..., -2].ravel().tolist() == [0.5, 0.5, -0.5, -0.5]
    assert groups.table[..., -1].ravel().tolist() == [0.5, -0.5, 2.0, -2.0]
    assert [c.num_tokens for c in flat] == completions.completion_mask.sum(-1).ravel().tolist()
    assert [c.finished for c in flat] == [True, True, True, False]


def test_stage_masks_hold_the_text_of_the_stages(tokenizer, groups, completions):
    contents = ["rain 🌧️", "it matters", "a walk helps", "tired", "low mood"]
    for stage, content in enumerate(contents):
        mask = groups.stage_mask[0, 0, stage]
        inside = tokenizer.decode(completions.completion_ids[0, 0][mask]).text
        # Tokens across a tag's edge are left out, so a little may be missing at either end.
        assert inside and inside in content
    assert not groups.stage_mask[1, 0].any()
    assert groups.stage_mask[1, 1, 0].any() and not groups.stage_mask[1, 1, 1:].any()
    assert not (groups.stage_mask & ~completions.completion_mask[:, :, None]).any()


def test_reward_metrics_by_hand(groups, completions):
    metrics = reward_metrics(groups.table, FUNCTIONS)
    lengths = completions.completion_mask.sum(-1).ravel()
    rewards = [2.0, -1.0, 5.5, -6.5]
    expected = {
        "reward": 0.0,
        # Unbiased std of two numbers is their distance / sqrt(2).
        "reward_std": (3 + 12) / 2 / np.sqrt(2),
        "frac_reward_zero_std": 0.0,
        "accuracy": 0.5,
        "well_formed": 0.5,
        "completions/mean_length": lengths.mean(),
        "completions/min_length": lengths.min(),
        "completions/max_length": lengths.max(),
        "completions/clipped_ratio": 0.25,
        "completions/mean_terminated_length": lengths[:3].mean(),
        "rewards/format/mean": 0.0,
        "rewards/format/std": np.sqrt(4 * 0.25 / 3),
        "rewards/format/weight": 1.0,
        "rewards/answer/mean": 0.0,
        "rewards/answer/std": np.sqrt((2 * 0.25 + 2 * 4) / 3),
        "rewards/answer/weight": 3.0,
    }
    assert np.mean(rewards) == expected["reward"]
    assert metrics == pytest.approx(expected)


def test_equal_rewards_in_a_group_are_counted(tokenizer, groups, completions):
    table = groups.table.copy()
    table[..., 0] = [[1, 1], [1, 2]]
    assert reward_metrics(table, FUNCTIONS)["frac_reward_zero_std"] == 0.5
    unfinished = completions.replace(finished=np.zeros((2, 2), bool))
    never = score_completions(tokenizer, POSTS, on_device(unfinished), FUNCTIONS, READER)
    metrics = reward_metrics(never.table, FUNCTIONS)
    assert metrics["completions/mean_terminated_length"] == 0
    assert metrics["completions/clipped_ratio"] == 1


def test_the_overlong_penalty_counts_tokens_not_characters():
    """The same text has two penalties with two tokenizers: each is that of its own tokens."""
    penalties = []
    for one in map(wrap_tokenizer, (byte_level(), sentencepiece_bpe())):
        ids = np.array([[one.encode(GOOD)]], np.int32)
        numbers = np.zeros(ids.shape, np.float32)
        completions = Completions(ids, ids >= 0, numbers, numbers, np.array([[True]]))
        rewards = (overlong_reward(2.0, 1000, 1000),)
        groups = score_completions(one, POSTS[:1], on_device(completions), rewards, READER)
        assert groups.completions[0][0].text.strip() == GOOD
        assert groups.table[0, 0, -1] == np.float32(-ids.size / 1000)
        assert groups.rewards[0, 0] == np.float32(-2 * ids.size / 1000)
        penalties.append(groups.table[0, 0, -1])
    assert penalties[0] != penalties[1]


def test_accuracy_follows_the_recipes_rule_whatever_the_reward_says(tokenizer, completions):
    """It has a column of its own: no reward function is needed, nor asked for its sign."""
    negative = (answer_function(-1.0, WEIGHTS, AnswerReader(LABELS, "exact")),)
    for functions in ((), FUNCTIONS, negative):
        for match, right in (
            ("prefix", [True, False, True, False]),
            ("exact", [True] + 3 * [False]),
        ):
            reader = AnswerReader(LABELS, match)
            scored = score_completions(tokenizer, POSTS, on_device(completions), functions, reader)
            table = scored.table
            assert table[..., 4].ravel().tolist() == right
            assert reward_metrics(table, functions)["accuracy"] == np.mean(right)


def test_a_greedy_completion_is_a_baseline_and_nothing_else(tokenizer, groups, completions):
    """It earns what the same text earns in a group, and stays out of masks, tables and metrics."""
    greedy = jax.tree.map(lambda x: x[::-1, 1:], completions)
    both = on_device(completions.replace(greedy=greedy))
    posts, functions = POSTS, (format_function(1.0), answer_function(3.0, None, READER))
    scored = score_completions(tokenizer, posts, both, functions, READER)
    # The unfinished text has no answer; "No" is wrong for the first post and right for the second.
    np.testing.assert_array_equal(scored.baseline_rewards, [-0.5 - 3, 0.5 + 3])
    alone = score_completions(tokenizer, posts, on_device(completions), functions, READER)
    assert alone.baseline_rewards is None
    np.testing.assert_array_equal(scored.table, alone.table)
    np.testing.assert_array_equal(scored.stage_mask, alone.stage_mask)
    assert scored.completions == alone.completions
    mesh = sharding.make_mesh(2, 1, 1, jax.devices()[:2])
    prompts = put_batch(mesh, pad_prompts(render_prompts(tokenizer, posts, 400), 400, 0))
    batch = assemble_batch(prompts, both, scored, mesh, tiny_recipe().crpo)
    np.testing.assert_array_equal(batch.baseline_rewards, [-3.5, 3.5])
    assert batch.baseline_rewards.sharding == sharding.batch_sharding(mesh, 1)
    assert batch.rewards.shape == (2, 2)


def test_what_lenient_reading_mends_is_counted_by_kind(groups):
    assert not any(name.startswith("answers/") for name in reward_metrics(groups.table, FUNCTIONS))
    table = groups.table.copy()
    table[..., 5] = [[0b00001, 0], [0b10001, 0b00100]]
    metrics = reward_metrics(table, FUNCTIONS)
    kinds = {n.split("/")[-1]: v for n, v in metrics.items() if n.startswith("answers/mended/")}
    assert kinds == {"invisible": 0.5, "unicode": 0, "dashes": 0.25, "quotes": 0, "marks": 0.25}


@pytest.mark.parametrize("mask_truncated", [False, True])
def test_truncated_completions_leave_the_loss_but_not_the_rewards(
    tokenizer, groups, completions, mask_truncated
):
    mesh = sharding.make_mesh(2, 1, 1, jax.devices()[:2])
    prompts = put_batch(mesh, pad_prompts(render_prompts(tokenizer, POSTS, 400), 400, 0))
    crpo = tiny_recipe(mask_truncated_completions=mask_truncated).crpo
    batch = assemble_batch(prompts, put_batch(mesh, completions), groups, mesh, crpo)
    expected = completions.completion_mask.copy()
    if mask_truncated:
        expected[1, 1] = False
    np.testing.assert_array_equal(batch.completion_mask, expected)
    np.testing.assert_array_equal(batch.stage_mask, groups.stage_mask & expected[:, :, None])
    np.testing.assert_array_equal(batch.rewards, groups.rewards)
    assert batch.old_logprobs is None and batch.ref_logprobs is None
    for name in ("completion_mask", "stage_mask", "rewards"):
        assert getattr(batch, name).sharding == sharding.batch_sharding(
            mesh, getattr(batch, name).ndim
        )

    objective = (tiny_recipe(kl_coef=0.0).crpo, 7)

    def loss(logprobs):
        ones = jnp.ones_like(batch.rewards)
        weights = loss_denominators(batch, *objective)
        return crpo_loss(logprobs, 0 * logprobs, batch, ones, weights, *objective)[0]

    gradient = np.asarray(jax.jit(jax.grad(loss))(batch.decode_logprobs))
    assert (gradient[1, 1] == 0).all() == mask_truncated
    np.testing.assert_array_equal(gradient != 0, expected)
