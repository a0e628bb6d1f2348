"""The update: the same on any number of micro-batches and devices, and right where it can be known.

Every compiled step is shared by the tests that can use it; see `compiled`.
"""

from __future__ import annotations

import dataclasses
import functools
import types
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from mental_r1_jax import sharding
from mental_r1_jax.jobs.train import update
from mental_r1_jax.models import decoder
from mental_r1_jax.rl import losses
from mental_r1_jax.rl.losses import Denominators
from mental_r1_jax.training.train_step import (
    TrainState,
    crpo_gradient,
    init_state,
    interleave,
    jit_step,
    policy_logprobs,
    policy_stats,
    sft_step,
    state_shardings,
    train_step,
)
from mental_r1_jax.types import Batch, TraceBatch
from tests.tiny_decoder import (
    COMPLETION,
    CONFIG,
    GROUP,
    NUM_PROMPTS,
    TEMPERATURE,
    random_batch,
    random_params,
    step_config,
)

# Adam divides a gradient by its own size, so rounding in a tiny one comes back at the scale of the
# rate; 2e-4 is 40 times the paper's.
RATE = 2e-4
OPTIMIZER = optax.chain(
    optax.clip_by_global_norm(1.0), optax.adamw(RATE, b2=0.99, weight_decay=0.01)
)


def mesh_of(data: int = 1, fsdp: int = 1, tensor: int = 1) -> jax.sharding.Mesh:
    return sharding.make_mesh(data, fsdp, tensor, jax.devices()[: data * fsdp * tensor])


@functools.cache
def compiled(mesh: tuple[int, ...] = (1,), **changes: Any) -> Any:
    """The jitted update for a mesh and a change of the paper's settings."""
    config = step_config(**changes)
    return jit_step(train_step, config=config, optimizer=OPTIMIZER, mesh=mesh_of(*mesh))


def start(mesh: tuple[int, ...] = (1,)) -> TrainState:
    """The same fresh state, placed on a mesh."""
    where = state_shardings(CONFIG, OPTIMIZER, mesh_of(*mesh))
    return jax.device_put(init_state(jax.tree.map(jnp.asarray, random_params()), OPTIMIZER), where)


def place(batch: Batch, mesh: tuple[int, ...]) -> Batch:
    return jax.tree.map(
        lambda leaf: jax.device_put(leaf, sharding.batch_sharding(mesh_of(*mesh), leaf.ndim)), batch
    )


class Updated(NamedTuple):
    """Host copies of the weights and first moments after two updates, metrics of the second."""

    params: Any
    moments: Any
    metrics: dict[str, float]


def two_updates(batch: Batch, mesh: tuple[int, ...] = (1,), **changes: Any) -> Updated:
    """Two updates on `batch` from the same fresh state."""
    step, state = compiled(mesh, **changes), start(mesh)
    for _ in range(2):
        state, metrics = step(state, place(batch, mesh))
    values = {name: float(metric.value) for name, metric in metrics.items()}
    moments = state.opt_state[1][0].mu
    return Updated(*jax.tree.map(np.asarray, (state.params, moments)), values)


def assert_close(tree: Any, other: Any, atol: float = 1e-6) -> None:
    for (path, ours), theirs in zip(
        jax.tree_util.tree_flatten_with_path(tree)[0], jax.tree.leaves(other), strict=True
    ):
        np.testing.assert_allclose(
            ours, theirs, rtol=0, atol=atol, err_msg=jax.tree_util.keystr(path)
        )


def assert_same(ours: Updated, theirs: Updated) -> None:
    """The update is the same up to float32 rounding."""
    assert_close(ours.params, theirs.params)
    assert_close(ours.moments, theirs.moments, atol=1e-7)  # moments reach 0.1
    assert ours.metrics.keys() == theirs.metrics.keys()
    for name, value in theirs.metrics.items():
        np.testing.assert_allclose(ours.metrics[name], value, rtol=2e-5, atol=1e-6, err_msg=name)


def assert_equal(tree: Any, other: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, tree, other)


@pytest.fixture(scope="module")
def batch() -> Batch:
    return random_batch()


@pytest.fixture(scope="module")
def reference(batch: Batch) -> Updated:
    """Two updates on one device in one micro-batch."""
    return two_updates(batch)


# -- the same update, however it is computed -------------------------------------------------------


@pytest.mark.parametrize(
    ("mesh", "micro_batches"), [((1,), 4), ((8,), 1), ((2, 2, 2), 1), ((2, 2, 1), 2)]
)
def test_micro_batches_and_devices_give_the_same_update(batch, reference, mesh, micro_batches):
    assert_same(two_updates(batch, mesh, micro_batches=micro_batches), reference)


def test_the_update_moves_every_weight_matrix(reference):
    before = random_params()
    for (path, old), new in zip(
        jax.tree_util.tree_flatten_with_path(before)[0],
        jax.tree.leaves(reference.params),
        strict=True,
    ):
        assert np.abs(new - old).max() > RATE / 2, jax.tree_util.keystr(path)


def test_padding_changes_nothing(batch, reference):
    def wider(leaf: jax.Array, places: int, fill: Any) -> jax.Array:
        widths = [(0, 0)] * (leaf.ndim - 1) + [(0, places)]
        return jnp.pad(leaf, widths, constant_values=fill)

    garbage = {"completion_ids": 11, "decode_logprobs": 1e4, "sampler_logprobs": jnp.nan}
    garbage |= {"ref_logprobs": -1e4, "prompt_ids": 17}
    padded = Batch(
        **{
            field.name: leaf
            if leaf is None or field.name == "rewards"
            else wider(leaf, 4 if "prompt" in field.name else 5, garbage.get(field.name, False))
            for field in dataclasses.fields(Batch)
            for leaf in [getattr(batch, field.name)]
        }
    )
    assert padded.completion_ids.shape[-1] == COMPLETION + 5
    assert_same(two_updates(padded), reference)


def test_interleaved_micro_batches_take_rows_of_every_device():
    rows = interleave({"x": jnp.arange(8)}, 4)["x"]
    np.testing.assert_array_equal(rows, [[0, 4], [1, 5], [2, 6], [3, 7]])


# -- compilation, donation, placement --------------------------------------------------------------


def test_one_compile_donated_state_and_moments_beside_their_weights(batch):
    mesh = (2, 2, 2)
    step, state = compiled(mesh, micro_batches=1), start(mesh)
    for _ in range(3):
        before = state
        state, _ = step(state, place(batch, mesh))
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before))
    assert step._cache_size() == 1
    assert int(state.num_updates) == 3
    where = jax.tree.map(lambda leaf: leaf.sharding, state.params)
    moments = state.opt_state[1][0]
    for tree in (moments.mu, moments.nu):
        jax.tree.map(
            lambda leaf, place: leaf.sharding == place or pytest.fail(str(place)), tree, where
        )
    kernel = state.params["layers"]["gate"]["kernel"]
    assert kernel.sharding.spec == jax.sharding.PartitionSpec(None, "fsdp", "tensor")
    assert kernel.addressable_shards[0].data.size == kernel.size // 4


# -- what the gradient is --------------------------------------------------------------------------


@jax.jit
def full_logits(params: Any, batch: Batch | TraceBatch) -> jax.Array:
    """Logits over the whole vocabulary; transformers agrees with them, see parity/."""
    hidden = decoder.forward(
        params,
        CONFIG,
        batch.prompt_ids,
        batch.prompt_mask,
        batch.completion_ids,
        batch.completion_mask,
    )
    return decoder.unembed(params, CONFIG, hidden)


def numpy_entropies(params: Any, batch: Batch) -> np.ndarray:
    """Entropies (nats) at every place from full float64 softmaxes."""
    logits = np.asarray(full_logits(params, batch), np.float64) / TEMPERATURE
    probs = np.exp(logits - logits.max(-1, keepdims=True))
    probs /= probs.sum(-1, keepdims=True)
    return -(probs * np.log(probs)).sum(-1)


def test_stage_entropy_trains_the_whole_model(batch):
    """Its gradient is not 0, and agrees with finite differences of a NumPy Hbar."""
    config = step_config(kl_coef=0.0)
    flat = batch.replace(rewards=jnp.zeros_like(batch.rewards), ref_logprobs=None)
    params = jax.tree.map(jnp.asarray, random_params())
    ones = jnp.ones((5,), jnp.float32)
    count = jnp.float32(NUM_PROMPTS * GROUP)
    denominators = Denominators(policy=count, tokens=count, completions=count, stages=count * ones)
    gradient, _ = jax.jit(functools.partial(crpo_gradient, config=config))(
        params, flat, jnp.zeros_like(batch.rewards), denominators
    )
    for path, leaf in jax.tree_util.tree_flatten_with_path(gradient)[0]:
        assert np.abs(leaf).max() > 1e-6, jax.tree_util.keystr(path)

    betas = 0.06 * np.tanh(np.arange(1, 6) - 3.5)
    mask = np.asarray(batch.stage_mask)

    def stage_loss(params: Any) -> float:
        entropies = numpy_entropies(params, flat)[:, :, None]
        means = (entropies * mask).sum(-1) / np.maximum(mask.sum(-1), 1)
        return float((means.mean((0, 1)) * betas).sum())

    norm = float(optax.tree.norm(gradient))
    shift = 3e-3 / norm

    def moved(by: float) -> float:
        return stage_loss(jax.tree.map(lambda p, g: p + by * g, params, gradient))

    # Along the gradient the slope is its norm; the error is that of the third derivative.
    assert (moved(shift) - moved(-shift)) / (2 * shift) == pytest.approx(norm**2, rel=0.01)


def test_zero_stage_coefficients_are_grpo_bit_for_bit(batch, monkeypatch):
    off = {"stage_entropy_coefs": (0.0,) * 5}
    with_masks = two_updates(batch, **off)
    without = two_updates(batch.replace(stage_mask=jnp.zeros_like(batch.stage_mask)), **off)
    assert_equal(with_masks[:2], without[:2])
    assert with_masks.metrics["loss/stage_entropy"] == 0
    # GRPO: the objective with the stage term cut out of the program.
    monkeypatch.setattr(losses, "_stage_term", lambda *_: (jnp.float32(0), {}))
    step = jit_step(train_step, config=step_config(**off), optimizer=OPTIMIZER, mesh=mesh_of())
    state = start()
    for _ in range(2):
        state, _ = step(state, batch)
    assert_equal(with_masks.params, jax.tree.map(np.asarray, state.params))


def test_stage_coefficients_change_the_update(batch, reference):
    grpo = two_updates(batch, stage_entropy_coefs=(0.0,) * 5)
    assert np.abs(grpo.moments["embedding"] - reference.moments["embedding"]).max() > 1e-5


def test_later_tokens_do_not_reach_the_log_prob_of_an_earlier_one():
    rng = np.random.default_rng(3)
    ids = rng.permutation(CONFIG.vocab_size)[: 4 + COMPLETION].astype(np.int32)
    one = random_batch()
    one = one.replace(
        prompt_ids=jnp.asarray(ids[None, :4]),
        prompt_mask=jnp.ones((1, 4), bool),
        completion_ids=jnp.asarray(ids[None, None, 4:]),
        completion_mask=jnp.ones((1, 1, COMPLETION), bool),
    )
    params = jax.tree.map(jnp.asarray, random_params())

    @jax.jit
    def input_gradient(embedding: jax.Array, place: jax.Array) -> jax.Array:
        def logprob(embedding: jax.Array) -> jax.Array:
            logprobs, _ = policy_stats(
                params | {"embedding": embedding},
                one,
                config=CONFIG,
                temperature=TEMPERATURE,
                chunk_size=3,
            )
            return logprobs[0, 0, place]

        return jax.grad(logprob)(embedding)

    for place in (0, 3, COMPLETION - 1):
        by_token = np.abs(input_gradient(params["embedding"], place)).sum(-1)[ids]
        # The head is untied, so a token's row is touched through the input alone.
        assert (by_token[: 4 + place] > 0).all()
        assert (by_token[4 + place :] == 0).all()


# -- updates that must not happen, and several an rollout ------------------------------------------


def test_kl_without_reference_logprobs_is_a_clear_error(batch):
    with pytest.raises(ValueError, match=r"kl_coef=0\.01 expected batch\.ref_logprobs"):
        compiled()(start(), batch.replace(ref_logprobs=None))


@pytest.mark.parametrize("bad", ["reward", "reference"])
def test_a_gradient_that_is_not_finite_is_skipped_and_counted(batch, reference, bad):
    step, state = compiled(), start()
    if bad == "reward":
        broken = batch.replace(rewards=batch.rewards.at[2, 1].set(jnp.inf))
    else:
        place = (0, 0, 0)
        assert bool(batch.completion_mask[place])
        broken = batch.replace(ref_logprobs=batch.ref_logprobs.at[place].set(jnp.nan))
    before = jax.tree.map(np.asarray, (state.params, state.opt_state))
    state, metrics = step(state, place_all(broken))
    assert float(metrics["updates/skipped"].value) == 1
    assert int(state.num_updates) == 1
    assert_equal(before, jax.tree.map(np.asarray, (state.params, state.opt_state)))
    for _ in range(2):
        state, metrics = step(state, place_all(batch))
    assert float(metrics["updates/skipped"].value) == 0
    assert_equal(jax.tree.map(np.asarray, state.params), reference.params)


def place_all(batch: Batch) -> Batch:
    return place(batch, (1,))


def stub_trainer(num_iterations: int, step: Any) -> Any:
    """As much of a `Trainer` as `jobs.train.update` uses."""
    logprobs = functools.partial(
        policy_logprobs, config=CONFIG, temperature=TEMPERATURE, chunk_size=3
    )
    crpo = types.SimpleNamespace(num_iterations=num_iterations)
    return types.SimpleNamespace(
        config=types.SimpleNamespace(crpo=crpo), logprobs=jax.jit(logprobs), update=step
    )


def test_two_iterations_use_the_log_probs_of_the_policy_that_sampled(batch):
    trainer = stub_trainer(2, compiled())
    frozen = jax.tree.map(lambda leaf: 1.1 * leaf, random_params())
    state, metrics = update(trainer, start(), frozen, batch.replace(ref_logprobs=None))
    assert int(state.num_updates) == 2
    assert metrics["updates/skipped"] == 0
    # By hand: both updates see the log-probs from before the first one.
    by_hand = start()
    old = trainer.logprobs(by_hand.params, batch)
    full = batch.replace(old_logprobs=old, ref_logprobs=trainer.logprobs(frozen, batch))
    for iteration in range(2):
        by_hand, expected = compiled()(by_hand, full)
        ratio = float(expected["importance_ratio/max"].value)
        assert (ratio == pytest.approx(1, abs=1e-5)) == (iteration == 0)
    assert_equal(jax.tree.map(np.asarray, state.params), jax.tree.map(np.asarray, by_hand.params))
    assert metrics["importance_ratio/max"] == ratio


def test_one_iteration_without_kl_asks_for_no_log_probs(batch):
    def never(*_: Any) -> None:
        raise AssertionError("log-probs were computed")

    trainer = stub_trainer(1, compiled(kl_coef=0.0))
    trainer.logprobs = never
    _, metrics = update(trainer, start(), None, batch.replace(ref_logprobs=None))
    assert "kl" not in metrics and metrics["loss/kl"] == 0
    assert metrics["importance_ratio/max"] == metrics["importance_ratio/min"] == 1


# -- metrics and the cold start --------------------------------------------------------------------


def test_metrics_of_the_step(batch):
    metrics = compiled()(start(), batch)[1]
    values = {name: float(metric.value) for name, metric in metrics.items()}
    mask = np.asarray(batch.completion_mask)
    assert values["tokens/completion"] == mask.sum()
    assert values["tokens/prompt"] == np.asarray(batch.prompt_mask).sum()
    rewards = np.asarray(batch.rewards, np.float64)
    std = rewards.std(1, ddof=1, keepdims=True)
    advantages = (rewards - rewards.mean(1, keepdims=True)) / (std + 1e-4)
    assert values["advantages/abs_mean"] == pytest.approx(np.abs(advantages).mean(), rel=1e-5)
    params = jax.tree.map(jnp.asarray, random_params())
    logprobs = np.asarray(stub_trainer(1, None).logprobs(params, batch))
    drift = np.abs(logprobs - np.asarray(batch.decode_logprobs))[mask]
    assert values["sampler_drift/max"] == pytest.approx(drift.max(), rel=1e-5)
    assert values["entropy"] == pytest.approx(numpy_entropies(params, batch)[mask].mean(), rel=1e-5)
    parts = ("policy", "kl", "stage_entropy", "entropy_bonus")
    assert values["loss"] == pytest.approx(sum(values[f"loss/{part}"] for part in parts), abs=1e-6)


def test_sft_loss_is_pytorchs_cross_entropy(batch):
    traces = TraceBatch(
        prompt_ids=batch.prompt_ids,
        prompt_mask=batch.prompt_mask,
        completion_ids=batch.completion_ids[:, :1],
        completion_mask=batch.completion_mask[:, :1],
    )
    params = jax.tree.map(jnp.asarray, random_params())
    config = step_config(micro_batches=2)
    step = jit_step(sft_step, config=config, optimizer=OPTIMIZER, mesh=mesh_of())
    _, metrics = step(start(), traces)
    logits = torch.from_numpy(np.array(full_logits(params, traces)))
    mask = np.asarray(traces.completion_mask)
    targets = np.where(mask, np.asarray(traces.completion_ids), -100)
    expected = torch.nn.functional.cross_entropy(
        logits.reshape(-1, CONFIG.vocab_size), torch.from_numpy(targets).reshape(-1).long()
    )
    # At temperature 1, though the recipe samples at another one.
    assert float(metrics["loss"].value) == pytest.approx(float(expected), rel=1e-5)
