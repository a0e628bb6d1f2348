"""The sampler on a tiny decoder: the right distribution, noise, masks, shapes and early stop."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mental_r1_jax import sharding
from mental_r1_jax.config import STAGE_NAMES
from mental_r1_jax.hosts import put_batch
from mental_r1_jax.models import decoder
from mental_r1_jax.rl.losses import crpo_loss, loss_denominators
from mental_r1_jax.rollout import sampler
from mental_r1_jax.rollout.sampler import SamplerSettings, sample_completions, step_key
from mental_r1_jax.types import Batch, Completions, PromptBatch
from tests.rollout.settings import make_settings, with_rollout
from tests.tiny_decoder import (
    COMPLETION,
    CONFIG,
    GROUP,
    NUM_PROMPTS,
    TEMPERATURE,
    random_params,
    random_prompts,
    tiny_recipe,
)

PAD = 7
SETTINGS = make_settings(
    num_generations=GROUP,
    max_completion_length=COMPLETION,
    temperature=TEMPERATURE,
    top_p=1.0,
    top_k=None,
    sampler_logprobs=True,
    eos_ids=(0, 1, 2, 3, 4, 5, 6, PAD, *range(40, 60)),
    pad_id=PAD,
)


@functools.cache
def compiled(settings: SamplerSettings = SETTINGS) -> Any:
    return jax.jit(functools.partial(sample_completions, config=CONFIG, settings=settings))


@pytest.fixture(scope="module")
def params() -> Any:
    return jax.tree.map(jnp.asarray, random_params())


@pytest.fixture(scope="module")
def prompts() -> PromptBatch:
    return jax.tree.map(jnp.asarray, random_prompts())


@pytest.fixture(scope="module")
def completions(params, prompts) -> Completions:
    """Completions of step 1; roughly one draw in five ends one."""
    return jax.tree.map(np.asarray, compiled()(params, prompts, step_key(0, 1)))


def as_batch(prompts: PromptBatch, completions: Completions) -> Batch:
    group = completions.finished.shape
    return Batch(
        prompt_ids=prompts.prompt_ids,
        prompt_mask=prompts.prompt_mask,
        completion_ids=jnp.asarray(completions.completion_ids),
        completion_mask=jnp.asarray(completions.completion_mask),
        stage_mask=jnp.zeros(
            (*group, len(STAGE_NAMES), completions.completion_ids.shape[-1]), bool
        ),
        rewards=jnp.asarray(np.random.default_rng(0).standard_normal(group), jnp.float32),
        sampler_logprobs=jnp.asarray(completions.sampler_logprobs),
        decode_logprobs=jnp.asarray(completions.decode_logprobs),
    )


@functools.partial(jax.jit, static_argnames="temperature")
def stats_at(params: Any, batch: Batch, *, temperature: float) -> tuple[jax.Array, jax.Array]:
    return decoder.completion_stats(
        params, batch, config=CONFIG, temperature=temperature, chunk_size=3
    )


def logprobs_at(params: Any, batch: Batch, *, temperature: float) -> jax.Array:
    return stats_at(params, batch, temperature=temperature)[0]


def training_logprobs(params: Any, prompts: PromptBatch, completions: Completions) -> np.ndarray:
    return np.asarray(logprobs_at(params, as_batch(prompts, completions), temperature=TEMPERATURE))


def test_decode_logprobs_are_the_training_pass_s_at_the_sampling_temperature(
    params, prompts, completions
):
    recomputed = training_logprobs(params, prompts, completions)
    mask = completions.completion_mask
    assert (~mask).any() and mask.all(-1).any() and mask.sum(-1).min() == 1
    # Nothing is truncated, so the three agree. 2e-5 nats is about 20 float32 roundings of the
    # largest log-probability (near 8 nats).
    np.testing.assert_allclose(completions.decode_logprobs[mask], recomputed[mask], atol=2e-5)
    np.testing.assert_array_equal(completions.sampler_logprobs, completions.decode_logprobs)
    assert (completions.decode_logprobs[~mask] == 0).all()
    # The untempered distribution would be far away.
    untempered = logprobs_at(params, as_batch(prompts, completions), temperature=1.0)
    assert np.abs(np.asarray(untempered) - recomputed)[mask].max() > 0.1


@pytest.mark.parametrize("greedy", [False, True], ids=["votes", "greedy"])
def test_entropies_of_the_loop_are_those_of_the_training_pass(params, prompts, greedy):
    """At the temperature of sampling, also where the likeliest token is taken."""
    settings = dataclasses.replace(SETTINGS, greedy=greedy, entropies=True)
    found = compiled(settings)(params, prompts, step_key(0, 1))
    expected = stats_at(params, as_batch(prompts, found), temperature=TEMPERATURE)[1]
    mask = np.asarray(found.completion_mask)
    measured = np.asarray(found.entropies)
    # 2e-5 nats is about 40 float32 roundings of the largest entropy (ln 149 = 5).
    np.testing.assert_allclose(measured[mask], np.asarray(expected)[mask], atol=2e-5)
    assert measured[mask].std() > 0.1 and (measured[~mask] == 0).all() and (~mask).any()


def test_entropies_change_nothing_else(params, prompts, completions):
    measured = compiled(dataclasses.replace(SETTINGS, entropies=True))
    found = measured(params, prompts, step_key(0, 1))
    np.testing.assert_array_equal(found.completion_ids, completions.completion_ids)
    np.testing.assert_array_equal(found.completion_mask, completions.completion_mask)
    assert completions.entropies is None


@pytest.mark.parametrize("devices", [1, 8])
def test_prompts_with_a_common_beginning_continue_as_whole_ones_do(params, devices):
    """The rests have 1 to 6 tokens; the eight devices hold a copy of the beginning each."""
    settings, begin = dataclasses.replace(SETTINGS, entropies=True), 5
    rest = random_prompts()
    prefix = np.random.default_rng(5).integers(0, CONFIG.vocab_size, (1, begin)).astype(np.int32)
    whole = rest.replace(
        prompt_ids=np.concatenate([prefix.repeat(NUM_PROMPTS, 0), rest.prompt_ids], axis=1),
        prompt_mask=np.pad(rest.prompt_mask, [(0, 0), (begin, 0)], constant_values=True),
    )
    sample = compiled(settings)
    expected = sample(params, jax.tree.map(jnp.asarray, whole), step_key(0, 1))
    mesh = sharding.make_mesh(devices, 1, 1, jax.devices()[:devices])
    shared = put_batch(mesh, rest.replace(prefix_ids=prefix.repeat(devices, 0)))
    found = sample(jax.device_put(params, sharding.replicated(mesh)), shared, step_key(0, 1))
    assert len(found.completion_ids.sharding.device_set) == devices
    for name in ("completion_ids", "completion_mask", "finished"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    # As between one and eight devices: two orders of the same sums in float32.
    for name in ("sampler_logprobs", "decode_logprobs", "entropies"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), atol=2e-5)


def test_log_probs_of_the_sampler_that_nobody_reads_are_not_there(params, prompts, completions):
    without = dataclasses.replace(SETTINGS, sampler_logprobs=False)
    found = compiled(without)(params, prompts, step_key(0, 1))
    assert found.sampler_logprobs is None
    np.testing.assert_array_equal(found.completion_ids, completions.completion_ids)
    np.testing.assert_array_equal(found.decode_logprobs, completions.decode_logprobs)


def test_eight_devices_draw_from_the_nucleus_what_one_draws(params, prompts):
    """Nearly every row of so flat a distribution rejects a candidate at one of its tokens."""
    settings = with_rollout(dataclasses.replace(SETTINGS, sampler_logprobs=False), top_p=0.8)
    expected = compiled(settings)(params, prompts, step_key(0, 1))
    mesh = sharding.make_mesh(8, 1, 1, jax.devices()[:8])
    found = compiled(settings)(
        jax.device_put(params, sharding.replicated(mesh)),
        put_batch(mesh, random_prompts()),
        step_key(0, 1),
    )
    assert len(found.completion_ids.sharding.device_set) == 8
    for name in ("completion_ids", "completion_mask", "finished"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    plain = compiled(with_rollout(settings, top_p=1.0))(params, prompts, step_key(0, 1))
    assert (np.asarray(plain.completion_ids) != np.asarray(found.completion_ids)).any()


def test_truncated_sampling_differs_by_the_log_of_the_kept_mass(params, prompts):
    top_p = 0.7
    sampled = compiled(with_rollout(SETTINGS, top_p=top_p))(params, prompts, step_key(0, 1))
    mask = np.asarray(sampled.completion_mask)
    difference = np.asarray(sampled.sampler_logprobs - sampled.decode_logprobs)[mask]
    # -log(kept mass); the kept mass is between top_p and 1.
    assert difference.min() >= -1e-6 and difference.max() <= -np.log(top_p) + 1e-6
    assert difference.max() > 0.1
    recomputed = training_logprobs(params, prompts, sampled)
    np.testing.assert_allclose(
        np.asarray(sampled.decode_logprobs)[mask], recomputed[mask], atol=2e-5
    )


def test_steps_differ_and_the_same_seed_and_step_repeat(params, prompts, completions):
    def ids(seed: int, step: int) -> np.ndarray:
        return np.asarray(compiled()(params, prompts, step_key(seed, step)).completion_ids)

    np.testing.assert_array_equal(ids(0, 1), completions.completion_ids)
    assert (ids(0, 2)[:, :, 0] != completions.completion_ids[:, :, 0]).mean() > 0.5
    assert (ids(1, 1)[:, :, 0] != completions.completion_ids[:, :, 0]).mean() > 0.5


def test_completions_of_one_prompt_differ_from_each_other_and_between_equal_prompts(params):
    prompts = random_prompts()
    same = prompts.replace(
        prompt_ids=np.repeat(prompts.prompt_ids[:1], NUM_PROMPTS, 0),
        prompt_mask=np.repeat(prompts.prompt_mask[:1], NUM_PROMPTS, 0),
    )
    out = compiled()(params, jax.tree.map(jnp.asarray, same), step_key(0, 1))
    first = np.asarray(out.completion_ids)[:, :, 0].ravel()
    # 24 independent draws of the same distribution.
    assert len(set(first.tolist())) > 8


def test_noise_is_uniform_and_a_function_of_prompt_completion_and_position():
    noise = np.asarray(sampler._uniform_noise(step_key(3, 1), jnp.arange(40), 10, 50))
    assert 0 <= noise.min() and noise.max() < 1
    counts = np.histogram(noise, bins=20, range=(0, 1))[0]
    assert ((counts - 1000) ** 2 / 1000).sum() < 19 + 5 * np.sqrt(2 * 19)
    assert len(np.unique(noise)) > 0.99 * noise.size
    # Neighbours along every axis are uncorrelated (standard error 1 / sqrt(20000)).
    for axis in range(3):
        a, b = (
            np.take(noise, range(*r), axis)
            for r in ((0, -1 % noise.shape[axis]), (1, noise.shape[axis]))
        )
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 5 / np.sqrt(a.size)
    part = sampler._uniform_noise(step_key(3, 1), jnp.array([17]), 4, 9)
    np.testing.assert_array_equal(np.asarray(part)[0], noise[17, :4, :9])


def test_a_prompt_alone_draws_what_it_draws_in_a_batch_on_one_or_eight_devices(
    params, prompts, completions
):
    alone = jax.tree.map(lambda leaf: leaf[3:4], prompts)
    ours = compiled()(params, alone, step_key(0, 1))
    np.testing.assert_array_equal(ours.completion_ids[0], completions.completion_ids[3])
    mesh = sharding.make_mesh(8, 1, 1)
    everywhere = jax.device_put(params, sharding.replicated(mesh))
    spread = compiled()(everywhere, put_batch(mesh, random_prompts()), step_key(0, 1))
    assert len(spread.completion_ids.sharding.device_set) == 8
    for name in ("completion_ids", "completion_mask", "finished"):
        np.testing.assert_array_equal(getattr(spread, name), getattr(completions, name))
    np.testing.assert_allclose(spread.decode_logprobs, completions.decode_logprobs, atol=1e-5)


def expected_lengths(ids: np.ndarray, eos_ids: tuple[int, ...]) -> np.ndarray:
    """Tokens up to and including the first EOS, by a plain loop."""
    lengths = np.full(ids.shape[:2], ids.shape[2])
    for b, g in np.ndindex(*ids.shape[:2]):
        for i, token in enumerate(ids[b, g].tolist()):
            if token in eos_ids:
                lengths[b, g] = i + 1
                break
    return lengths


def test_masks_come_from_lengths_and_the_limit_leaves_a_completion_unfinished(completions):
    lengths = expected_lengths(completions.completion_ids, SETTINGS.eos_ids)
    np.testing.assert_array_equal(
        completions.completion_mask, np.arange(COMPLETION) < lengths[..., None]
    )
    last = np.take_along_axis(completions.completion_ids, lengths[..., None] - 1, -1)[..., 0]
    np.testing.assert_array_equal(completions.finished, np.isin(last, SETTINGS.eos_ids))
    assert (~completions.finished).any()  # some hit the limit
    assert (lengths[~completions.finished] == COMPLETION).all()
    assert (completions.completion_ids[~completions.completion_mask] == PAD).all()


def test_an_eos_in_the_last_place_is_finished(params, prompts, completions):
    # The limit cuts exactly after a completion's EOS.
    lengths = completions.completion_mask.sum(-1)
    b, g = np.argwhere(completions.finished & (lengths > 1) & (lengths < COMPLETION))[0]
    limit = int(lengths[b, g])
    short = compiled(with_rollout(SETTINGS, max_completion_length=limit))
    out = short(params, prompts, step_key(0, 1))
    assert bool(out.finished[b, g])
    np.testing.assert_array_equal(
        out.completion_ids[b, g], completions.completion_ids[b, g, :limit]
    )


def test_eos_is_in_ids_and_mask_and_has_a_gradient(params, prompts, completions):
    batch = as_batch(prompts, completions)
    lengths = np.asarray(batch.completion_mask.sum(-1))
    objective = (tiny_recipe(kl_coef=0.0).crpo, COMPLETION)
    advantages = jnp.ones_like(batch.rewards)

    def loss(logprobs):
        denominators = loss_denominators(batch, *objective)
        entropies = jnp.zeros_like(logprobs)
        return crpo_loss(logprobs, entropies, batch, advantages, denominators, *objective)[0]

    gradient = np.asarray(jax.jit(jax.grad(loss))(batch.decode_logprobs))
    at_end = np.take_along_axis(gradient, lengths[..., None] - 1, -1)[..., 0]
    # -A / number of tokens, at the EOS as at every other sampled token.
    np.testing.assert_allclose(at_end, -1 / lengths.sum(), rtol=1e-6)
    np.testing.assert_allclose(
        gradient, -1.0 * completions.completion_mask / lengths.sum(), rtol=1e-6
    )


def test_pad_equal_to_eos_and_a_sampled_pad_stay_real_tokens(params, prompts, completions):
    ends_in_pad = completions.finished & (
        np.take_along_axis(
            completions.completion_ids, completions.completion_mask.sum(-1)[..., None] - 1, -1
        )[..., 0]
        == PAD
    )
    assert (
        PAD in SETTINGS.eos_ids
        and (completions.completion_ids[completions.completion_mask] == PAD).sum()
        == ends_in_pad.sum()
    )
    # With a pad that is no EOS, and is a token that this step samples in mid-completion:
    eos = tuple(i for i in SETTINGS.eos_ids if i != PAD)
    inner = completions.completion_ids[:, :, :-1][completions.completion_mask[:, :, 1:]]
    pad = int(np.bincount(inner).argmax())
    out = compiled(dataclasses.replace(SETTINGS, eos_ids=eos, pad_id=pad))(
        params, prompts, step_key(0, 1)
    )
    ids, mask = np.asarray(out.completion_ids), np.asarray(out.completion_mask)
    assert ((ids == pad) & mask).any()
    # Lengths end at the first EOS among the sampled tokens, wherever pads were sampled.
    np.testing.assert_array_equal(
        mask, np.arange(COMPLETION) < expected_lengths(ids, eos)[..., None]
    )
    assert (np.asarray(out.decode_logprobs)[mask & (ids == pad)] < 0).all()


def test_an_immediate_eos_is_a_finished_completion_of_one_token(params, prompts, monkeypatch):
    """And the loop stops there: decoding steps are counted on the host."""
    steps = []
    plain = sampler.decoder.decode_step

    def counting(*args: Any) -> Any:
        jax.debug.callback(lambda index: steps.append(int(index)), args[3])
        return plain(*args)

    monkeypatch.setattr(sampler.decoder, "decode_step", counting)
    all_end = dataclasses.replace(SETTINGS, eos_ids=tuple(range(CONFIG.vocab_size)))
    out = jax.jit(functools.partial(sample_completions, config=CONFIG, settings=all_end))(
        params, prompts, step_key(0, 1)
    )
    jax.effects_barrier()
    assert steps == [0]
    assert np.asarray(out.finished).all()
    np.testing.assert_array_equal(out.completion_mask.sum(-1), 1)
    assert (np.asarray(out.completion_ids)[:, :, 1:] == PAD).all()


def test_two_prompt_lengths_are_two_programs(params, prompts):
    short = dataclasses.replace(with_rollout(SETTINGS, max_completion_length=2), num_completions=1)
    sample = jax.jit(functools.partial(sample_completions, config=CONFIG, settings=short))
    longer = prompts.replace(
        prompt_ids=jnp.pad(prompts.prompt_ids, [(0, 0), (0, 4)]),
        prompt_mask=jnp.pad(prompts.prompt_mask, [(0, 0), (0, 4)]),
    )
    outputs = []
    for step in range(3):
        for batch in (prompts, longer):
            outputs.append(sample(params, batch, step_key(0, step)).completion_ids)
    assert sample._cache_size() == 2
    # The longer shape is padding only, so it draws the same.
    np.testing.assert_array_equal(outputs[0], outputs[1])


def test_random_numbers_are_one_a_token_not_a_vocabulary_of_noise(prompts):
    jaxpr = jax.make_jaxpr(functools.partial(sample_completions, config=CONFIG, settings=SETTINGS))(
        jax.tree.map(jnp.asarray, random_params()), prompts, step_key(0, 1)
    )
    sizes = [
        max(int(np.prod(out.aval.shape)) for out in equation.outvars)
        for equation in all_equations(jaxpr.jaxpr)
        if "random_bits" in equation.primitive.name or "threefry" in equation.primitive.name
    ]
    assert sizes and max(sizes) == NUM_PROMPTS * GROUP * COMPLETION


def all_equations(jaxpr: Any) -> list[Any]:
    """Equations of a jaxpr and of every jaxpr inside it."""
    found = []
    for equation in jaxpr.eqns:
        found.append(equation)
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else [value]:
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    found += all_equations(inner)
    return found
