"""Low-rank adapters: by hand, against the base, against the merged weights, against all weights."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mental_r1_jax.models import decoder
from mental_r1_jax.models.architecture import DecoderConfig, Lora
from mental_r1_jax.models.layer import _project
from mental_r1_jax.models.lora import adapter_rows
from mental_r1_jax.models.peft_format import TARGETS
from mental_r1_jax.sharding import make_mesh, param_shardings
from tests.tiny_decoder import CONFIG, random_batch, random_params
from tests.training.updates import full_logits

ADAPTED = dataclasses.replace(CONFIG, lora=Lora(rank=3, alpha=6.0, targets=TARGETS))


def random_adapters(config: DecoderConfig = ADAPTED, seed: int = 5) -> Any:
    rng = np.random.default_rng(seed)
    draw = lambda leaf: jnp.asarray(0.3 * rng.standard_normal(leaf.shape, "f4"))  # noqa: E731
    return jax.tree.map(draw, decoder.abstract_adapters(config))


def test_rows_are_derived_from_the_rows_of_their_targets():
    rows = {"/".join(row.path): row for row in adapter_rows(ADAPTED)}
    assert len(rows) == 2 * 7
    into_heads, out_of_heads = rows["layers/query/lora_b"], rows["layers/output/lora_a"]
    assert (into_heads.shape, into_heads.axes) == ((3, 4, 4), ("split_rank", "heads", "head_dim"))
    assert (out_of_heads.shape, out_of_heads.num_inputs) == ((4, 4, 3), 2)
    down = rows["layers/down/lora_a"], rows["layers/down/lora_b"]
    assert [row.shape for row in down] == [(24, 3), (3, 16)]
    assert [row.axes for row in down] == [("mlp", "split_rank"), ("rank", "embed")]
    assert down[1].hf_name == "base_model.model.model.layers.{i}.mlp.down_proj.lora_B.weight"
    assert adapter_rows(CONFIG) == ()
    some = dataclasses.replace(CONFIG, lora=Lora(2, 2.0, ("v_proj",)))
    assert {row.path[1] for row in adapter_rows(some)} == {"value"}


def test_both_factors_are_sharded_over_fsdp():
    mesh = make_mesh(1, 2, 2, jax.devices()[:4])
    config = dataclasses.replace(ADAPTED, lora=Lora(4, 4.0, TARGETS))
    for where in jax.tree.leaves(decoder.trained_shardings(config, mesh)):
        assert "fsdp" in where.spec


def test_large_adapters_whose_rank_the_mesh_does_not_divide_are_replicated():
    mesh = make_mesh(1, 8, 1)
    shapes = {"lora_b": jax.ShapeDtypeStruct((40, 3, 16384), jnp.float32)}
    where = param_shardings(mesh, shapes, {"lora_b": ("layers", "split_rank", "mlp")})
    assert where["lora_b"].is_fully_replicated


def test_a_projection_by_hand():
    """y = x W + (6 / 3) (x A) B."""
    rng = np.random.default_rng(0)
    x, w, a, b = (rng.standard_normal(s) for s in ((5, 4), (4, 2, 3), (4, 3), (3, 2, 3)))
    expected = np.einsum("ti,iho->tho", x, w) + 2.0 * np.einsum("ti,ir,rho->tho", x, a, b)
    node = {"kernel": w, "lora_a": a, "lora_b": b}
    weights = {"query": jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), node)}
    ours = _project(weights, ADAPTED, "query", jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)


def test_fresh_adapters_change_no_bit():
    """Of the logits of all sequences, and of the weights that a rollout decodes with."""
    base, batch = jax.tree.map(jnp.asarray, random_params()), random_batch()
    fresh = decoder.init_adapters(ADAPTED, jax.random.key(0))
    query = np.asarray(fresh["layers"]["query"]["lora_a"])
    assert 0.5 < query.std() * np.sqrt(CONFIG.hidden_size) < 1.5
    adapted = decoder.join_weights(base, fresh)
    np.testing.assert_array_equal(
        full_logits(adapted, batch, ADAPTED), full_logits(base, batch, CONFIG)
    )
    decoded, wanted = (
        decoder.decoding_params(weights, config)
        for weights, config in ((adapted, ADAPTED), (base, CONFIG))
    )
    jax.tree.map(np.testing.assert_array_equal, decoded, wanted)


def test_merged_and_unmerged_logits_agree():
    base, batch = jax.tree.map(jnp.asarray, random_params()), random_batch()
    adapted = decoder.join_weights(base, random_adapters())
    merged = decoder.merge_adapters(adapted, ADAPTED)
    assert jax.tree.structure(merged) == jax.tree.structure(base)
    ours, theirs = full_logits(adapted, batch, ADAPTED), full_logits(merged, batch, CONFIG)
    scale = float(jnp.abs(ours).max())
    assert float(jnp.abs(ours - full_logits(base, batch, CONFIG)).max()) > 0.1 * scale
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * max(1.0, scale))


RANK = 24  # the widest kernel has so many inputs
FULL_RANK = dataclasses.replace(CONFIG, lora=Lora(RANK, float(RANK), TARGETS))


def full_rank_adapters() -> Any:
    """A with A A^T = 1, and B = 0."""

    def orthonormal(path: Any, leaf: Any) -> jax.Array:
        if path[-1].key == "lora_b":
            return jnp.zeros(leaf.shape)
        shape = (leaf.shape[0], -1, RANK)
        wide = np.random.default_rng(1).standard_normal(leaf.shape).reshape(shape)
        q = np.linalg.qr(wide.swapaxes(1, 2))[0].swapaxes(1, 2)
        return jnp.asarray(q.reshape(leaf.shape), jnp.float32)

    shapes = decoder.abstract_adapters(FULL_RANK)
    return jax.tree_util.tree_map_with_path(orthonormal, shapes)


def loss_of(weights: Any, config: DecoderConfig) -> jax.Array:
    batch = random_batch()
    stats = decoder.completion_stats(weights, batch, config=config, temperature=1.0, chunk_size=64)
    return -(stats[0] * batch.completion_mask).mean()


def test_a_step_of_full_rank_adapters_is_a_step_of_all_weights():
    """With A A^T = 1, alpha = r and B = 0, gradient descent moves W + A B as it moves W.

    The gradient of B is A^T dW and that of A is zero, so A (B - rate dB) = -rate A A^T dW.
    """
    base, adapters = jax.tree.map(jnp.asarray, random_params()), full_rank_adapters()

    def of_adapters(adapters: Any) -> jax.Array:
        return loss_of(decoder.join_weights(base, adapters), FULL_RANK)

    full = jax.jit(jax.grad(lambda weights: loss_of(weights, CONFIG)))(base)["layers"]
    low = jax.jit(jax.grad(of_adapters))(adapters)["layers"]
    rate = 0.1
    for name, node in low.items():
        assert float(jnp.abs(node["lora_a"]).max()) == 0
        a = np.asarray(adapters["layers"][name]["lora_a"]).reshape(2, -1, RANK)
        b = -rate * np.asarray(node["lora_b"]).reshape(2, RANK, -1)
        wanted = -rate * np.asarray(full[name]["kernel"])
        moved = np.einsum("lnr,lrm->lnm", a, b).reshape(wanted.shape)
        assert np.abs(wanted).max() > 1e-4
        np.testing.assert_allclose(moved, wanted, rtol=0, atol=1e-4 * np.abs(wanted).max())


def test_the_losses_of_full_rank_adapters_follow_those_of_all_weights():
    """Forty steps of one rate, by which the loss falls by a third.

    A moves only as far as B is from zero, so that the curves part by little: by 1.5% of what is
    learned, as measured; 2% are allowed.
    """
    base, rate, steps = jax.tree.map(jnp.asarray, random_params()), 0.05, 40
    adapters = full_rank_adapters()

    def of_kernels(kernels: Any) -> jax.Array:
        layers = {
            name: {**node, "kernel": kernels[name]} if name in kernels else node
            for name, node in base["layers"].items()
        }
        return loss_of({**base, "layers": layers}, CONFIG)

    def of_adapters(adapters: Any) -> jax.Array:
        return loss_of(decoder.join_weights(base, adapters), FULL_RANK)

    def curve(loss: Any, weights: Any) -> np.ndarray:
        both, losses = jax.jit(jax.value_and_grad(loss)), []
        for _ in range(steps):
            value, slope = both(weights)
            losses.append(float(value))
            weights = jax.tree.map(lambda w, d: w - rate * d, weights, slope)
        return np.array(losses)

    kernels = {name: base["layers"][name]["kernel"] for name in adapters["layers"]}
    full, low = curve(of_kernels, kernels), curve(of_adapters, adapters)
    learned = full[0] - full[-1]
    assert learned > 0.3 * full[0] and np.all(np.diff(full) < 0)
    np.testing.assert_allclose(low, full, rtol=0, atol=learned / 50)
