"""Low-rank adapters (LoRA, Hu et al. 2021, arXiv 2106.09685) beside the matrices of a decoder.

    y = x W + (alpha / r) (x A) B              A: [*inputs, r], normal        B: [r, *outputs], zero

W is frozen, A and B are trained. They stand in the tree beside the kernel they adapt, as `lora_a`
and `lora_b`, and their rows are derived from the kernel's row in `parameters.py`. A tree without
these leaves is the base: whoever wants the adapters off leaves them out.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from mental_r1_jax.models.architecture import DecoderConfig
from mental_r1_jax.models.parameters import (
    Row,
    draw_rows,
    parameter_rows,
    row_tree,
    stacked_shape,
)

LORA_A, LORA_B = "lora_a", "lora_b"


def adapter_rows(config: DecoderConfig) -> tuple[Row, ...]:
    """List A and B of every adapted kernel; none for a decoder without `lora`.

    The rank is replicated, except where no other axis of a factor is sharded over `fsdp`: then its
    rank is, so that moments and gradients of both factors are.
    """
    lora = config.lora
    if lora is None:
        return ()
    rows: list[Row] = []
    for row in parameter_rows(config):
        if not row.stacked or row.path[-1] != "kernel" or target_of(row) not in lora.targets:
            continue
        n, name = row.num_inputs, "base_model.model." + row.hf_name.removesuffix(".weight")
        factors: tuple[tuple[str, Any, Any, Any, str, int], ...] = (
            (LORA_A, (*row.shape[:n], lora.rank), row.axes[:n], "fan_in", "lora_A", n),
            (LORA_B, (lora.rank, *row.shape[n:]), row.axes[n:], "zeros", "lora_B", 1),
        )
        for leaf, shape, axes, initial, part, inputs in factors:
            rank = ("rank" if "embed" in axes else "split_rank",)
            names = (*axes, *rank) if leaf == LORA_A else (*rank, *axes)
            path, hf_name = (*row.path[:-1], leaf), f"{name}.{part}.weight"
            rows.append(Row(path, shape, names, initial, hf_name, "matrix", inputs))
    return tuple(rows)


def target_of(row: Row) -> str:
    """Return what Hugging Face calls the module of a kernel, such as ``q_proj``."""
    return row.hf_name.split(".")[-2]


def abstract_adapters(config: DecoderConfig) -> PyTree[jax.ShapeDtypeStruct]:
    """Return the shapes of the adapters; they are float32."""
    return row_tree(
        adapter_rows(config),
        lambda row: jax.ShapeDtypeStruct(stacked_shape(config, row), jnp.float32),
    )


def adapter_logical_axes(config: DecoderConfig) -> PyTree[tuple[str, ...]]:
    """Return the logical axis names of every adapter, that of the layers included."""
    return row_tree(adapter_rows(config), lambda row: ("layers", *row.axes))


def adapter_count(config: DecoderConfig) -> int:
    """Count the numbers in all adapters."""
    return sum(math.prod(stacked_shape(config, row)) for row in adapter_rows(config))


def init_adapters(config: DecoderConfig, key: Key[Array, ""]) -> PyTree[Array]:
    """Draw float32 adapters: A normal with deviation ``1 / sqrt(inputs)``, B zero.

    With B = 0 the adapted model is the base, bit for bit.
    """
    return draw_rows(config, adapter_rows(config), key)


def join_weights(frozen: PyTree | None, params: PyTree) -> PyTree:
    """Return one tree with the leaves of both; `params` itself where nothing is frozen."""
    if frozen is None:
        return params
    joined = dict(frozen)
    for name, node in params.items():
        joined[name] = join_weights(frozen[name], node) if isinstance(node, dict) else node
    return joined


def low_rank_product(
    node: PyTree[Array], config: DecoderConfig, rows: Float[Array, "tokens N"]
) -> Float[Array, "tokens ..."]:
    """Return ``(alpha / r) (x A) B``, what the adapter of a projection adds to ``x W``."""
    a, b = node[LORA_A].astype(rows.dtype), node[LORA_B].astype(rows.dtype)
    narrow = rows @ a.reshape(rows.shape[-1], -1)
    return jnp.tensordot(narrow * _scale(config), b, axes=1).reshape(len(rows), *b.shape[1:])


def merge_adapters(params: PyTree[Array], config: DecoderConfig) -> PyTree[Array]:
    """Return the decoder's own parameters with ``W + (alpha / r) A B`` for every adapted kernel.

    The sum is float32, the result has the kernel's dtype. A tree without adapters stays as it is.

    Args:
        params: the base with adapters, see `join_weights`.
        config: gives alpha and rank.
    """
    layers = {name: _merged(node, config) for name, node in params["layers"].items()}
    return {**params, "layers": layers}


def _merged(node: PyTree[Array], config: DecoderConfig) -> PyTree[Array]:
    """Merge the adapter of one kernel, stacked over the layers, if it has one."""
    if LORA_A not in node:
        return node
    kernel, a, b = node["kernel"], node[LORA_A], node[LORA_B]
    narrow = a.reshape(len(a), -1, a.shape[-1]) * _scale(config)
    delta = jnp.einsum("lnr,lrm->lnm", narrow, b.reshape(*b.shape[:2], -1)).reshape(kernel.shape)
    merged = (kernel.astype(jnp.float32) + delta).astype(kernel.dtype)
    return {"kernel": merged} | {
        name: leaf for name, leaf in node.items() if name not in ("kernel", LORA_A, LORA_B)
    }


def _scale(config: DecoderConfig) -> float:
    """Return alpha / r."""
    assert config.lora is not None
    return config.lora.alpha / config.lora.rank
