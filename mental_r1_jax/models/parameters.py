"""The parameters of a decoder, one row each; shapes, initial values and file names come from it.

The tree has nested dictionaries with the rows' paths. Parameters below `layers` are stacked over
the layers: their arrays have a leading axis L that a row does not mention.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Key, PyTree

from mental_r1_jax.models.architecture import DecoderConfig
from mental_r1_jax.models.families import FAMILIES


@dataclass(frozen=True)
class Row:
    """One parameter.

    Attributes:
        path: of the tree, such as ``("layers", "query", "kernel")``.
        shape: without the layer axis.
        axes: logical names of the axes of `shape`, see `sharding.LOGICAL_RULES`.
        initial: `normal` with `DecoderConfig.init_scale`, `fan_in` (normal with deviation
            ``1 / sqrt(inputs)``), `ones` or `zeros`.
        hf_name: of the tensor in a Hugging Face file; `{i}` is the layer.
        layout: how that tensor is shaped. `same`: like ours; `vector`: all our axes joined;
            `matrix`: ours is `[*inputs, *outputs]`, theirs `[outputs, inputs]`.
        num_inputs: leading input axes of a `matrix`.
    """

    path: tuple[str, ...]
    shape: tuple[int, ...]
    axes: tuple[str, ...]
    initial: Literal["normal", "fan_in", "ones", "zeros"]
    hf_name: str
    layout: Literal["same", "vector", "matrix"]
    num_inputs: int = 1

    @property
    def stacked(self) -> bool:
        """Whether there is one such parameter a layer."""
        return self.path[0] == "layers"


def parameter_rows(config: DecoderConfig) -> tuple[Row, ...]:
    """List the parameters that a decoder of this architecture has, in the order of its files."""
    return tuple(_rows(config))


def _rows(c: DecoderConfig) -> Iterator[Row]:
    """Yield embedding, projections, biases, norms and head; see `parameter_rows`."""
    sizes = {
        **{"vocab": c.vocab_size, "embed": c.hidden_size, "norm": c.hidden_size},
        **{"heads": c.num_heads, "kv_heads": c.num_kv_heads, "head_dim": c.head_dim},
        **{"mlp": c.intermediate_size},
    }
    names = FAMILIES[c.family].hf_names

    def row(
        path: str,
        axes: tuple[str, ...],
        initial: Literal["normal", "ones", "zeros"],
        layout: Literal["same", "vector", "matrix"] = "same",
        num_inputs: int = 1,
    ) -> Row:
        *groups, leaf = parts = tuple(path.split("/"))
        hf_name = names[(groups or parts)[-1]] + (".bias" if leaf == "bias" else ".weight")
        shape = tuple(sizes[axis] for axis in axes)
        return Row(parts, shape, axes, initial, hf_name, layout, num_inputs)

    heads, kv_heads = ("heads", "head_dim"), ("kv_heads", "head_dim")
    projections: tuple[tuple[str, tuple[str, ...], tuple[str, ...], bool], ...] = (
        ("query", ("embed",), heads, c.qkv_bias),
        ("key", ("embed",), kv_heads, c.qkv_bias),
        ("value", ("embed",), kv_heads, c.qkv_bias),
        ("output", heads, ("embed",), c.output_bias),
        ("gate", ("embed",), ("mlp",), c.mlp_bias),
        ("up", ("embed",), ("mlp",), c.mlp_bias),
        ("down", ("mlp",), ("embed",), c.mlp_bias),
    )
    yield row("embedding", ("vocab", "embed"), "normal")
    for name, inputs, outputs, _ in projections:
        yield row(f"layers/{name}/kernel", (*inputs, *outputs), "normal", "matrix", len(inputs))
    for name, _, outputs, biased in projections:
        if biased:
            yield row(f"layers/{name}/bias", outputs, "zeros", "vector")
    neutral: Literal["ones", "zeros"] = "zeros" if c.norm_offset == 1 else "ones"
    yield row("layers/attention_norm/scale", ("norm",), neutral)
    yield row("layers/mlp_norm/scale", ("norm",), neutral)
    if c.post_norms:
        yield row("layers/attention_post_norm/scale", ("norm",), neutral)
        yield row("layers/mlp_post_norm/scale", ("norm",), neutral)
    if c.qk_norm:
        yield row("layers/query_norm/scale", ("head_dim",), neutral)
        yield row("layers/key_norm/scale", ("head_dim",), neutral)
    yield row("final_norm/scale", ("norm",), neutral)
    if not c.tie_embeddings:
        yield row("unembedding", ("embed", "vocab"), "normal", "matrix")


def stacked_shape(config: DecoderConfig, row: Row) -> tuple[int, ...]:
    """Return the shape of a parameter's array, with the layer axis."""
    return (config.num_layers, *row.shape) if row.stacked else row.shape


def parameter_tree(config: DecoderConfig, value: Callable[[Row], Any]) -> PyTree:
    """Return the tree of parameters with ``value(row)`` at every leaf."""
    return row_tree(parameter_rows(config), value)


def row_tree(rows: Iterable[Row], value: Callable[[Row], Any]) -> PyTree:
    """Return the tree of these rows with ``value(row)`` at every leaf."""
    tree: dict[str, Any] = {}
    for row in rows:
        node = tree
        for key in row.path[:-1]:
            node = node.setdefault(key, {})
        node[row.path[-1]] = value(row)
    return tree


def abstract_params(config: DecoderConfig) -> PyTree[jax.ShapeDtypeStruct]:
    """Return the shapes and dtypes of the parameters; nothing is allocated."""
    return parameter_tree(
        config, lambda row: jax.ShapeDtypeStruct(stacked_shape(config, row), jnp.float32)
    )


def param_logical_axes(config: DecoderConfig) -> PyTree[tuple[str, ...]]:
    """Return the logical axis names of every parameter, that of the layers included."""
    return parameter_tree(config, lambda row: ("layers",) * row.stacked + row.axes)


def parameter_count(config: DecoderConfig) -> int:
    """Count the numbers in all parameters."""
    return sum(math.prod(stacked_shape(config, row)) for row in parameter_rows(config))


def init_params(config: DecoderConfig, key: Key[Array, ""]) -> PyTree[Array]:
    """Draw random float32 parameters: normal with `config.init_scale`, neutral norms, biases 0."""
    return draw_rows(config, parameter_rows(config), key)


def draw_rows(config: DecoderConfig, rows: tuple[Row, ...], key: Key[Array, ""]) -> PyTree[Array]:
    """Draw float32 initial values of these rows."""
    return dict(_Declaration(config, rows).init(key)["params"])


def _initializer(config: DecoderConfig, row: Row) -> Any:
    """Return what draws the initial value of a parameter."""
    deviations = {
        "normal": config.init_scale,
        "fan_in": math.prod(row.shape[: row.num_inputs]) ** -0.5,
    }
    if row.initial in deviations:
        return nn.initializers.normal(deviations[row.initial])
    return {"ones": nn.initializers.ones, "zeros": nn.initializers.zeros}[row.initial]


class _Declaration(nn.Module):
    """Declares rows as Flax parameters, to draw their initial values.

    Flax derives the key of a parameter from its path and, below `layers`, from the layer. So the
    values of one parameter do not depend on which others a family has.

    Attributes:
        config: gives the scale, and the number of layers.
        rows: those below one node of the tree.
        depth: how far below the root that node is; 0 is the root.
    """

    config: DecoderConfig
    rows: tuple[Row, ...]
    depth: int = 0

    @nn.compact
    def __call__(self) -> None:
        """Declare the parameters of this node, then those of the nodes below."""
        for name in dict.fromkeys(row.path[self.depth] for row in self.rows):
            rows = tuple(row for row in self.rows if row.path[self.depth] == name)
            if len(rows[0].path) == self.depth + 1:
                self.param(name, _initializer(self.config, rows[0]), rows[0].shape, jnp.float32)
                continue
            child = _Declaration(self.config, rows, self.depth + 1, name=name)
            if name != "layers":
                child()
                continue
            nn.scan(
                lambda layer, carry: (layer(), None),
                variable_axes={"params": 0},
                split_rngs={"params": True},
                length=self.config.num_layers,
            )(child, None)
