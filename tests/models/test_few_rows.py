"""Products with the matrix on the left: the same numbers, only where they pay, and left so."""

from __future__ import annotations

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, NamedSharding, PartitionSpec

from mental_r1_jax.models import decoder, few_rows
from mental_r1_jax.models.layer import OUTPUTS_FIRST
from mental_r1_jax.models.unit_axes import without_unit_axes
from tests.models.conftest import COMPLETION, CONFIG, GROUP, NUM_PROMPTS

ROWS = NUM_PROMPTS * GROUP


@pytest.mark.parametrize(("shape", "num_inputs"), [((5, 7), 1), ((6, 2, 3), 1), ((2, 3, 5), 2)])
def test_the_product_is_that_of_the_kernel(shape: tuple[int, ...], num_inputs: int) -> None:
    """Integers, so that float32 sums are exact: equal to NumPy's tensordot to the bit."""
    draw = np.random.default_rng(0)
    kernel = draw.integers(-9, 9, shape).astype(np.float32)
    inputs = shape[:num_inputs]
    x = draw.integers(-9, 9, (4, *inputs)).astype(np.float32)
    matrix = few_rows.outputs_first(jnp.asarray(kernel), num_inputs)
    product = few_rows.few_rows_product(jnp.asarray(x.reshape(4, -1)), matrix)
    np.testing.assert_array_equal(product, np.tensordot(x, kernel, num_inputs))


def _left_operands(compiled_text: str) -> list[str]:
    """Shapes of the left operands of all products, as the optimised program has them."""
    shapes = dict(re.findall(r"%([\w.\-]+) = (\w+\[[\d,]*\])", compiled_text))
    return [shapes[name] for name in re.findall(r" dot\(%([\w.\-]+),", compiled_text)]


def test_the_compiler_leaves_the_matrix_on_the_left() -> None:
    """Of a plain product the rows are the left operand, so the check can tell."""
    shapes = (4, 48), (96, 48), (48, 96)
    rows, matrix, kernel = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)
    turned = jax.jit(few_rows.few_rows_product).lower(rows, matrix).compile().as_text()
    plain = jax.jit(jnp.matmul).lower(rows, kernel).compile().as_text()
    assert _left_operands(turned) == ["f32[96,48]"]
    assert _left_operands(plain) == ["f32[4,48]"]


def test_decoding_few_rows_gives_the_states_of_decoding_many(params, inputs) -> None:
    """Two float32 sums in another order; largest difference seen 2.1e-7, at states up to 1."""
    _, prompt_cache = decoder.prefill(params, CONFIG, *inputs[:2])
    found = []
    for num_rows in (ROWS, None):
        cache = decoder.init_completion_cache(CONFIG, NUM_PROMPTS, GROUP, COMPLETION)
        weights = decoder.decoding_params(params, CONFIG, num_rows)
        for i in range(3):
            ids = inputs.completion_ids[:, :, i]
            state, cache = decoder.decode_step(weights, CONFIG, ids, i, prompt_cache, cache)
        found.append(np.asarray(state))
    np.testing.assert_allclose(*found, rtol=0, atol=1e-5)


def _kernels(params, config, num_rows: int | None) -> set[str]:
    """What the projections of the layers hold, by name."""
    layers = decoder.decoding_params(params, config, num_rows)["layers"]
    projections = ("query", "key", "value", "output", "gate_up", "down")
    return {key for layer in layers for name in projections for key in layer[name]} - {"bias"}


def test_matrices_are_turned_for_few_rows_in_float32_on_cpus_alone(params) -> None:
    few, bfloat16 = few_rows.MOST_ROWS, dataclasses.replace(CONFIG, compute_dtype="bfloat16")
    assert _kernels(params, CONFIG, few) == {OUTPUTS_FIRST}
    assert _kernels(params, CONFIG, few + 1) == {"kernel"}
    assert _kernels(params, CONFIG, 1) == {"kernel"}
    assert _kernels(params, CONFIG, None) == {"kernel"}
    assert _kernels(params, bfloat16, few) == {"kernel"}


@pytest.mark.parametrize("platform", ["tpu", "gpu", "cpu"])
def test_the_chip_is_that_of_the_mesh(platform: str) -> None:
    device = AbstractDevice(device_kind="any", num_cores=None, platform=platform)
    mesh = AbstractMesh((1,), ("data",), (AxisType.Auto,), abstract_device=device)
    where = NamedSharding(mesh, PartitionSpec())
    matrix = jax.ShapeDtypeStruct((96, 48), jnp.float32, sharding=where)
    takes: list[bool] = []
    ask = functools.partial(few_rows.takes_few_rows, dtype=jnp.dtype("float32"), num_rows=8)
    jax.eval_shape(lambda x: takes.append(ask(x)), matrix)
    assert takes == [platform == "cpu"]


@pytest.mark.parametrize(
    ("shape", "kept", "expected"),
    [
        ((1, 8, 1, 5), 1, (8, 5)),
        ((1, 1, 1), 1, (1,)),
        ((2, 1, 1, 3, 1), 2, (2, 3, 1)),
        ((4, 3), 2, (4, 3)),
        ((1, 5, 0, 3), 1, (5, 0, 3)),
    ],
)
def test_only_leading_axes_of_length_one_go(shape, kept, expected) -> None:
    x = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    found = without_unit_axes(jnp.asarray(x), kept)
    np.testing.assert_array_equal(found, x.reshape(expected))
