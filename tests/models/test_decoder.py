"""The decoder against itself: every path gives the same states, and nothing leaks anywhere."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mental_r1_jax.models import decoder, layer
from mental_r1_jax.models.architecture import Block, layer_blocks
from tests.models.conftest import COMPLETION, CONFIG, GROUP, NUM_PROMPTS, PROMPT, Inputs

# Two float32 paths through two layers; largest difference seen 2.4e-7, at states up to 1.
CLOSE = {"rtol": 0, "atol": 1e-5}


def test_prefill_gives_the_state_that_predicts_the_first_token(params, inputs, hidden) -> None:
    state, _ = jax.jit(decoder.prefill, static_argnums=1)(params, CONFIG, *inputs[:2])
    for g in range(GROUP):
        np.testing.assert_allclose(state, hidden[:, g, 0], **CLOSE)


@pytest.mark.parametrize("first", [1, 3, COMPLETION], ids=["grows_often", "grows", "whole"])
def test_decoding_token_by_token_equals_the_forward_pass(params, inputs, hidden, first) -> None:
    """Whatever length the cache starts with: it is grown when it is full."""
    _, prompt_cache = jax.jit(decoder.prefill, static_argnums=1)(params, CONFIG, *inputs[:2])
    cache = decoder.init_completion_cache(CONFIG, NUM_PROMPTS, GROUP, first)
    weights = jax.jit(decoder.decoding_params, static_argnums=1)(params, CONFIG)
    step = jax.jit(decoder.decode_step, static_argnums=1)
    for i in range(COMPLETION - 1):
        length = cache.values[0].shape[3]
        cache = decoder.grow_completion_cache(cache, length + (2 if i == length else 0))
        state, cache = step(weights, CONFIG, inputs.completion_ids[:, :, i], i, prompt_cache, cache)
        real = np.asarray(inputs.completion_mask[:, :, i])
        np.testing.assert_allclose(np.asarray(state)[real], hidden[:, :, i + 1][real], **CLOSE)


@pytest.mark.parametrize("longest", [PROMPT, 4, 3], ids=lambda n: f"longest_{n}")
def test_prompts_after_a_prefix_are_run_like_whole_ones(
    params, inputs, after_prefix, longest
) -> None:
    """Six tokens of prefix, more than the window of the second layer; rests of 7, 4 and 1.

    The pass is compiled for 2, 4, 6 and 7 tokens; prompts of up to 4, and of up to 3, take 4.
    """
    assert decoder.prefill_widths(PROMPT) == (2, 4, 6, 7)
    forward, run, step = after_prefix
    rest, mask, ids, completion_mask = inputs
    mask = mask & (jnp.arange(PROMPT) < longest)[None]
    prefix = np.random.default_rng(9).integers(0, CONFIG.vocab_size, (1, 6))
    whole = jnp.concatenate([jnp.asarray(prefix.repeat(NUM_PROMPTS, 0)), rest], axis=1)
    whole_mask = jnp.pad(mask, [(0, 0), (6, 0)], constant_values=True)
    expected = np.asarray(forward(params, CONFIG, whole, whole_mask, ids, completion_mask))
    state, prompt_cache = run(params, CONFIG, prefix, rest, mask)
    np.testing.assert_allclose(state, expected[:, 0, 0], **CLOSE)
    cache = decoder.init_completion_cache(CONFIG, NUM_PROMPTS, GROUP, 3)
    weights = decoder.decoding_params(params, CONFIG)
    for i in range(3):
        state, cache = step(weights, CONFIG, ids[:, :, i], i, prompt_cache, cache)
        real = np.asarray(completion_mask[:, :, i])
        np.testing.assert_allclose(np.asarray(state)[real], expected[:, :, i + 1][real], **CLOSE)


@pytest.fixture(scope="module")
def after_prefix():
    """Whole pass, pass after a prefix in widths that are multiples of 2, and step; jitted."""
    functions = decoder.forward, decoder.prefill_after_prefix, decoder.decode_step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoder, "PREFILL_STEP", 2)
        yield tuple(jax.jit(function, static_argnums=1) for function in functions)


def test_padding_columns_and_their_content_change_nothing(params, inputs, hidden) -> None:
    def padded(ids: jax.Array, mask: jax.Array, extra: int) -> tuple[np.ndarray, np.ndarray]:
        """More padding, and another token in all of it."""
        width = [(0, 0)] * (ids.ndim - 1) + [(0, extra)]
        mask = np.pad(np.asarray(mask), width)
        return np.where(mask, np.pad(np.asarray(ids), width), 9), mask

    longer = Inputs(*padded(*inputs[:2], 4), *padded(*inputs[2:], 3))
    run = jax.jit(decoder.forward, static_argnums=1)
    result = run(params, CONFIG, *map(jnp.asarray, longer))[:, :, :COMPLETION]
    real = np.asarray(inputs.completion_mask)
    np.testing.assert_allclose(np.asarray(result)[real], hidden[real], **CLOSE)


def test_permuting_a_group_permutes_its_states(run_forward, params, inputs, hidden) -> None:
    order = np.asarray([3, 0, 4, 1, 2])
    permuted = inputs._replace(
        completion_ids=inputs.completion_ids[:, order],
        completion_mask=inputs.completion_mask[:, order],
    )
    np.testing.assert_allclose(run_forward(params, permuted), hidden[:, order], **CLOSE)


def test_a_completion_of_one_token_needs_only_the_prompt(params, inputs, hidden) -> None:
    short = (inputs.completion_ids[:, :, :1], inputs.completion_mask[:, :, :1])
    result = decoder.forward(params, CONFIG, *inputs[:2], *short)
    np.testing.assert_allclose(result, hidden[:, :, :1], **CLOSE)


def test_gradients_respect_causality_and_the_group(params, inputs) -> None:
    """State i of one completion depends on its tokens before i, and on nothing else's."""
    target = (0, 2, 6)
    inputs = inputs._replace(completion_mask=jnp.ones_like(inputs.completion_mask))

    def state(offsets: jax.Array) -> jax.Array:
        """A scalar of the target state, when token id v stands at its own row of the table."""
        table = params["embedding"][inputs.completion_ids] + offsets
        rows = table.reshape(-1, CONFIG.hidden_size)
        own_ids = jnp.arange(rows.shape[0]).reshape(inputs.completion_ids.shape)
        vocabulary = jnp.concatenate([rows, params["embedding"]])
        changed = {**params, "embedding": vocabulary}
        del changed["unembedding"]
        size = vocabulary.shape[0]
        wide = dataclasses.replace(CONFIG, vocab_size=size, tie_embeddings=True, remat="none")
        prompt_ids = inputs.prompt_ids + rows.shape[0]
        arguments = (prompt_ids, inputs.prompt_mask, own_ids, inputs.completion_mask)
        return jnp.square(decoder.forward(changed, wide, *arguments)[target]).sum()

    shape = (*inputs.completion_ids.shape, CONFIG.hidden_size)
    size = np.abs(np.asarray(jax.jit(jax.grad(state))(jnp.zeros(shape)))).sum(-1)
    assert (size[0, 2, :6] > 0).all()
    size[0, 2, :6] = 0
    assert (size == 0).all()


@pytest.mark.parametrize("remat", ["layers", "elementwise"])
def test_rematerialisation_changes_neither_states_nor_gradients(params, inputs, remat) -> None:
    def loss(params: dict, config: decoder.DecoderConfig) -> jax.Array:
        """A scalar that depends on every state."""
        return jnp.sin(decoder.forward(params, config, *inputs)).sum()

    value_and_grad = jax.jit(jax.value_and_grad(loss), static_argnums=1)
    with_remat = value_and_grad(params, dataclasses.replace(CONFIG, remat=remat))
    without = value_and_grad(params, dataclasses.replace(CONFIG, remat="none"))
    # Gradients reach 300; float32 sums may come in another order.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), with_remat, without
    )
    del with_remat[1]["unembedding"]  # states do not depend on the head
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(with_remat[1]))


def windows_of(blocks: tuple[Block, ...]) -> list[tuple[str, int]]:
    """Each block's pattern, in letters, and its repetitions."""
    return [
        ("".join("f" if facts.window is None else "w" for facts in block.pattern), block.repeats)
        for block in blocks
    ]


@pytest.mark.parametrize(
    ("layers", "blocks"),
    [
        ("f" * 7, [("f", 7)]),
        ("w" * 3, [("w", 3)]),
        ("fffww", [("f", 3), ("w", 2)]),
        ("wf" * 4, [("wf", 4)]),
        ("wwwwwf" * 4 + "ww", [("wwwwwf", 4), ("w", 2)]),
        ("f" + "wwf" * 3, [("fww", 3), ("f", 1)]),
        ("wff", [("w", 1), ("f", 2)]),
    ],
)
def test_layers_form_as_few_blocks_as_possible(layers: str, blocks: list) -> None:
    """The program spells out as many layers as the patterns have runs of a letter."""
    windows = tuple(4 if letter == "w" else None for letter in layers)
    config = dataclasses.replace(CONFIG, num_layers=len(layers), sliding_windows=windows)
    found = windows_of(layer_blocks(config.layer_facts(9)))
    assert found == blocks
    assert "".join(pattern * repeats for pattern, repeats in found) == layers


def test_a_window_that_hides_nothing_is_none() -> None:
    """Among 5 tokens the two most distant ones are 4 apart, which a window of 5 allows."""
    config = dataclasses.replace(CONFIG, sliding_windows=(None, 5))
    assert [facts.window for facts in config.layer_facts(5)] == [None, None]
    assert [facts.window for facts in config.layer_facts(6)] == [None, 5]


@pytest.mark.parametrize(
    ("windows", "blocks"),
    [
        ((4, None) * 2 + (3,), [("wf", 2), ("w", 1)]),
        ((None, 4, 4) * 2 + (3,), [("fww", 2), ("w", 1)]),
    ],
    ids=["alternating", "a run in the pattern"],
)
@pytest.mark.parametrize("remat", ["layers", pytest.param("none", marks=pytest.mark.slow)])
def test_blocks_change_neither_states_nor_gradients(
    inputs, windows, blocks, remat, monkeypatch
) -> None:
    """A pattern that is scanned twice, and a layer behind it, against one by one."""
    config = dataclasses.replace(
        CONFIG, num_layers=len(windows), sliding_windows=windows, remat=remat
    )
    assert windows_of(layer_blocks(config.layer_facts(99))) == blocks
    params = decoder.init_params(config, jax.random.key(2))

    def results() -> Any:
        def loss(params: dict) -> jax.Array:
            return jnp.sin(decoder.forward(params, config, *inputs)).sum()

        def all_of_it(params: dict) -> Any:
            cache = decoder.prefill(params, config, *inputs[:2])[1]
            return jax.value_and_grad(loss)(params), cache.keys, cache.values

        return jax.jit(all_of_it)(params)

    in_blocks = results()
    monkeypatch.setattr(layer, "layer_blocks", lambda facts: [Block((f,), 1) for f in facts])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
        in_blocks,
        results(),
    )


def test_no_array_repeats_the_prompt_for_each_completion(params, inputs) -> None:
    """Neither forward nor backward holds a [B * G, ...] array or prompt keys with a group axis."""

    def loss(params: dict) -> jax.Array:
        """A scalar that depends on every state."""
        return decoder.forward(params, CONFIG, *inputs).sum()

    widths = {CONFIG.head_dim, CONFIG.hidden_size, CONFIG.intermediate_size}
    shapes = list(_all_shapes(jax.make_jaxpr(jax.grad(loss))(params).jaxpr))
    assert any(GROUP in shape for shape in shapes) and any(PROMPT in shape for shape in shapes)
    for shape in shapes:
        assert NUM_PROMPTS * GROUP not in shape, shape
        assert not ({GROUP, PROMPT} <= set(shape) and widths & set(shape)), shape


def _all_shapes(jaxpr: Any) -> Iterator[tuple[int, ...]]:
    """Shapes of all intermediate arrays, those of inner programs included."""
    for equation in jaxpr.eqns:
        yield from (v.aval.shape for v in equation.outvars if hasattr(v.aval, "shape"))
        for inner in jax.tree.leaves(list(equation.params.values())):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from _all_shapes(inner)


def test_tied_and_untied_heads(params, inputs, hidden) -> None:
    states = jnp.asarray(hidden)
    for tied, matrix in ((True, params["embedding"].T), (False, params["unembedding"])):
        config = dataclasses.replace(CONFIG, tie_embeddings=tied)
        expected = hidden.astype(np.float64) @ np.asarray(matrix, np.float64)
        np.testing.assert_allclose(decoder.unembed(params, config, states), expected, atol=1e-5)
        np.testing.assert_array_equal(decoder.unembed_matrix(params, config), matrix)


def test_bfloat16_computes_in_bfloat16_and_stays_near_float32(params, inputs, hidden) -> None:
    config = dataclasses.replace(CONFIG, compute_dtype="bfloat16")

    @jax.jit
    def run(params: dict) -> tuple[jax.Array, dict]:
        """States, and a gradient: the backward pass has matrix products of its own."""
        result, backward = jax.vjp(lambda p: decoder.forward(p, config, *inputs), params)
        return result, backward(jnp.ones_like(result))[0]

    result, gradients = run(params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    assert result.dtype == jnp.bfloat16
    assert decoder.unembed(params, config, result).dtype == jnp.float32
    assert decoder.unembed_matrix(params, config).dtype == jnp.bfloat16
    cache = decoder.init_completion_cache(config, 1, 1, 2)
    assert {leaf.dtype for leaf in jax.tree.leaves(cache)} == {jnp.dtype("bfloat16")}
    real = np.asarray(inputs.completion_mask)
    difference = np.abs(np.asarray(result, np.float32) - hidden)[real]
    # bfloat16 keeps 8 bits: 0.4% a rounding, some dozen roundings, states of order 0.3; seen 9e-4.
    assert 0 < difference.mean() < 0.01


def test_initial_parameters() -> None:
    fresh = jax.jit(decoder.init_params, static_argnums=0)(CONFIG, jax.random.key(0))
    shapes = decoder.abstract_params(CONFIG)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), fresh) == jax.tree.map(
        lambda x: (x.shape, x.dtype), shapes
    )
    layers = fresh["layers"]
    assert abs(float(layers["gate"]["kernel"].std()) - CONFIG.init_scale) < 0.03
    assert not np.allclose(layers["gate"]["kernel"][0], layers["gate"]["kernel"][1])
    assert (np.asarray(layers["mlp_norm"]["scale"]) == 1).all()
    assert (np.asarray(layers["query"]["bias"]) == 0).all()
    axes = decoder.param_logical_axes(CONFIG)
    assert axes["layers"]["output"]["kernel"] == ("layers", "heads", "head_dim", "embed")
    assert axes["embedding"] == ("vocab", "embed")
