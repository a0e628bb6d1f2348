"""How the output head is cut over the mesh, and the few places where devices meet.

Tokens are cut over the batch axes and the vocabulary over `tensor`. Each device works alone on its
own tokens and its own part of the vocabulary; what it must share it shares once, at the end.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AxisType, PartitionSpec
from jaxtyping import Array, Float

from mental_r1_jax.sharding import BATCH_AXES, LOGICAL_RULES


@dataclasses.dataclass(frozen=True)
class HeadCut:
    """The mesh axes that cut an output head's arrays; without a mesh, none.

    The methods that take local arrays are for functions under `run`. They do nothing where nothing
    is cut, so that those functions read the same with and without a mesh.

    Attributes:
        mesh: of the arrays.
        batch: axes that cut the first axis of arrays with tokens in front.
        vocabulary: axis that cuts V, or None.
        model: axis that cuts D of the matrix where it is stored, and of its gradient, or None.
    """

    mesh: Any
    batch: tuple[str, ...]
    vocabulary: str | None
    model: str | None

    @classmethod
    def of(cls, hidden: Float[Array, "*tokens D"], matrix: Float[Array, "D V"]) -> HeadCut:
        """Look at the mesh of `hidden`; an axis that does not divide a size does not cut it."""
        mesh = jax.typeof(hidden).sharding.mesh
        # Axes of other types belong to a function around this one, which has cut by them already.
        sizes = {
            name: mesh.shape[name]
            for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True)
            if kind == AxisType.Auto and mesh.shape[name] > 1
        }
        batch = tuple(name for name in BATCH_AXES if name in sizes)
        if hidden.ndim == 1 or hidden.shape[0] % math.prod(sizes[name] for name in batch):
            batch = ()

        def fits(axis: str | None, size: int) -> str | None:
            return axis if axis in sizes and size % sizes[axis] == 0 else None

        width, vocabulary = matrix.shape
        model = fits(LOGICAL_RULES["embed"], width)
        return cls(
            mesh=mesh,
            batch=batch,
            vocabulary=fits(LOGICAL_RULES["vocab"], vocabulary),
            model=model if model in batch else None,
        )

    @property
    def tokens(self) -> PartitionSpec:
        """Of arrays with tokens in front."""
        return PartitionSpec(self.batch or None)

    @property
    def matrix(self) -> PartitionSpec:
        """Of the matrix [D, V] in use: D whole, because every token needs all of it."""
        return PartitionSpec(None, self.vocabulary)

    @property
    def matrix_gradient(self) -> PartitionSpec:
        """Of the matrix' gradient [D, V]: cut as the matrix is stored."""
        return PartitionSpec(self.model, self.vocabulary)

    def run(
        self,
        function: Callable[..., tuple[Array, ...]],
        arrays: tuple[Array, ...],
        *,
        in_specs: tuple[PartitionSpec, ...],
        out_specs: tuple[PartitionSpec, ...],
    ) -> tuple[Array, ...]:
        """Run `function` on every device's part of `arrays`, plainly where nothing is cut."""
        if not self.batch and self.vocabulary is None:
            return function(*arrays)
        # The check cannot follow zeros that start a loop; the tests compare with one device.
        mapped = jax.shard_map(
            function, mesh=self.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
        )
        return mapped(*arrays)

    def first_entry(self, local_size: int) -> Array | int:
        """Vocabulary id of the first entry of this device's part, `local_size` entries long."""
        if self.vocabulary is None:
            return 0
        return jax.lax.axis_index(self.vocabulary) * local_size

    def max_over_vocabulary(self, x: Array) -> Array:
        """Largest value among the parts of the vocabulary."""
        return x if self.vocabulary is None else jax.lax.pmax(x, self.vocabulary)

    def sum_over_vocabulary(self, x: Array) -> Array:
        """Sum over the parts of the vocabulary."""
        return x if self.vocabulary is None else jax.lax.psum(x, self.vocabulary)

    def sum_over_tokens(self, gradient: Float[Array, "D v"]) -> Float[Array, "d v"]:
        """Sum over all devices' tokens; of a stored matrix' gradient each keeps its own part."""
        if self.model is not None:
            gradient = jax.lax.psum_scatter(gradient, self.model, scatter_dimension=0, tiled=True)
            # The TPU compiler moves sums of gradients out of the loop over micro-batches, and fails
            # on this one (a check in while_loop_all_reduce_code_motion): it must not see it.
            gradient = jax.lax.optimization_barrier(gradient)
        copies = tuple(axis for axis in self.batch if axis != self.model)
        return jax.lax.psum(gradient, copies) if copies else gradient
