"""Devices: the mesh, and one strict table from logical axes to mesh axes.

The mesh has three axes. `data` holds copies of the model. Over `fsdp` parameters and optimizer
state are sharded, and a layer is gathered when it runs. Over `tensor` heads, feed-forward width and
vocabulary are sharded and stay so. Batches are sharded over `data` and `fsdp` together. Slices of a
TPU that are joined by the data-centre network are the outer part of `data`: little more than
gradients crosses it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float, PyTree, Shaped

from mental_r1_jax.errors import UserError

MESH_AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")

# Logical axis of a parameter -> mesh axis over which it is sharded, or None: replicated.
LOGICAL_RULES: dict[str, str | None] = {
    "layers": None,
    "vocab": "tensor",
    "embed": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "head_dim": None,
    "mlp": "tensor",
    "norm": None,
    # Of the factors of low-rank adapters: beside an axis that `fsdp` shards, and elsewhere.
    "rank": None,
    "split_rank": "fsdp",
}

# Axes that are replicated where the mesh axis does not divide them, even in a large parameter:
# models have few key/value heads, and copies of those are the usual price of a wide `tensor` axis.
# Adapters of a large model are large parameters by their number only, and may be replicated.
MAY_BE_REPLICATED = frozenset({"kv_heads", "rank", "split_rank"})

# Number of elements from which a parameter must be sharded on a mesh that shards parameters.
LARGE_PARAMETER = 1_000_000


def make_mesh(
    data: int | None, fsdp: int, tensor: int, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """Arrange devices as ``data x fsdp x tensor``.

    Args:
        data: number of model copies; None takes as many as the devices allow.
        fsdp: devices over which parameters and optimizer state are sharded.
        tensor: devices over which heads, feed-forward width and vocabulary are sharded.
        devices: all of the process group's devices when None.

    Raises:
        UserError: the product of the sizes is not the number of devices, or a copy of the model
            would lie in two slices.
    """
    devices = jax.devices() if devices is None else list(devices)
    model = fsdp * tensor
    copies = len(devices) // model if data is None else data
    if min(copies, fsdp, tensor) < 1 or copies * model != len(devices):
        raise UserError(
            what="the mesh does not fit the devices",
            expected=f"data * fsdp * tensor = {len(devices)} (the number of devices)",
            got=f"data={data}, fsdp={fsdp}, tensor={tensor}",
            remedy="change the mesh section of the config; data: null takes what is left",
        )
    auto = (AxisType.Auto,) * len(MESH_AXES)
    slices = count_slices(devices)
    if slices == 1:
        # A logical axis may take a part of an axis of the torus: 2 x 8 x 2 on 4 x 8 chips.
        ordered = mesh_utils.create_device_mesh(
            (copies, fsdp, tensor), devices, allow_split_physical_axes=True
        )
        return Mesh(ordered, MESH_AXES, axis_types=auto)
    if copies % slices:
        raise UserError(
            what=f"a copy of the model would lie in more than one of {slices} slices",
            expected=f"mesh.data a multiple of {slices}, so that only gradients leave a slice",
            got=f"data={copies}, fsdp={fsdp}, tensor={tensor}",
            remedy="make mesh.fsdp or mesh.tensor smaller",
        )
    inside, across = (copies // slices, fsdp, tensor), (slices, 1, 1)
    ordered = mesh_utils.create_hybrid_device_mesh(
        inside, across, devices, allow_split_physical_axes=True
    )
    return Mesh(ordered, MESH_AXES, axis_types=auto)


def count_slices(devices: Sequence[jax.Device]) -> int:
    """Slices of a TPU that the devices lie in; 1 where the platform knows no slices."""
    return len({getattr(device, "slice_index", 0) for device in devices})


def logical_to_sharding(mesh: Mesh, logical_axes: Sequence[str | None]) -> NamedSharding:
    """Return the sharding of an array whose dimensions have these logical names.

    Args:
        mesh: from `make_mesh`.
        logical_axes: names of `LOGICAL_RULES`; None: replicated.

    Raises:
        ValueError: a name that `LOGICAL_RULES` does not know, or one mesh axis used twice.
    """
    unknown = [name for name in logical_axes if name is not None and name not in LOGICAL_RULES]
    if unknown:
        raise ValueError(
            f"unknown logical axes {unknown} in {tuple(logical_axes)}: expected names of"
            f" {sorted(LOGICAL_RULES)}; declare new axes in sharding.LOGICAL_RULES"
        )
    spec = [None if name is None else LOGICAL_RULES[name] for name in logical_axes]
    used = [axis for axis in spec if axis is not None]
    if len(set(used)) != len(used):
        raise ValueError(
            f"logical axes {tuple(logical_axes)} shard two dimensions over one mesh axis: {spec};"
            " expected each mesh axis at most once"
        )
    return NamedSharding(mesh, PartitionSpec(*spec))


def param_shardings(
    mesh: Mesh, shapes: PyTree[jax.ShapeDtypeStruct], logical_axes: PyTree[tuple[str, ...]]
) -> PyTree[NamedSharding]:
    """Return the sharding of every parameter.

    A dimension that its mesh axis does not divide is replicated in small parameters, in large ones
    only if it is listed in `MAY_BE_REPLICATED`; elsewhere it is an error.

    Args:
        mesh: from `make_mesh`.
        shapes: the parameters, or anything with their shapes.
        logical_axes: for every parameter the names of its dimensions.

    Raises:
        UserError: lists every large parameter that cannot be sharded, with the reason.
        ValueError: an unknown logical axis.
    """
    problems: list[str] = []

    def fit(path: Any, leaf: Any, axes: tuple[str, ...]) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return _fit(mesh, name, leaf, axes, problems)

    shardings = jax.tree_util.tree_map_with_path(fit, shapes, logical_axes)
    if problems:
        raise UserError(
            what=f"{len(problems)} parameter(s) cannot be sharded over the mesh {dict(mesh.shape)}",
            expected="dimensions that are multiples of their mesh axis",
            got="\n" + "\n".join(f"  - {problem}" for problem in problems),
            remedy="choose mesh.fsdp and mesh.tensor that divide the model's dimensions",
        )
    return shardings


def batch_sharding(mesh: Mesh, ndim: int) -> NamedSharding:
    """Return the sharding of a batch: axis 0 over `data` and `fsdp`, other axes replicated."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES, *(None,) * (ndim - 1)))


def batch_shards(mesh: Mesh) -> int:
    """Return how many parts axis 0 of a batch has: mesh.data x mesh.fsdp."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def chip_of(x: jax.Array) -> Any:
    """The kind of device that computes with an array: of its mesh, or without one the default."""
    return jax.typeof(x).sharding.mesh.abstract_device or jax.devices()[0]


def constrain_batch(x: jax.Array) -> jax.Array:
    """Keep activations sharded like the batch they come from, inside a jitted function.

    Left alone, the compiler may shard them like the parameters they met, over the model width, and
    gather the whole batch in every layer. The mesh is that of the jitted function's arguments;
    without one, or where the sizes are no multiples of it, nothing is constrained.
    """
    return _constrain(x, (BATCH_AXES, *(None,) * (x.ndim - 1)))


def constrain_logits(logits: jax.Array) -> jax.Array:
    """Give every device whole rows of the logits `[B, G, V]` of a decoding step.

    They come with the vocabulary sharded over `tensor`, and drawing a token from that takes dozens
    of exchanges. One exchange makes the rows whole: each prompt's completions are sharded over
    `tensor`, or where their number does not divide, every device of the axis draws for all of them.
    """
    mesh = jax.typeof(logits).sharding.mesh
    # Left to itself, the compiler would rather gather the whole head than exchange its products.
    logits = _constrain(logits, (BATCH_AXES, None, "tensor"))
    if "tensor" in mesh.axis_names and logits.shape[1] % mesh.shape["tensor"] == 0:
        return _constrain(logits, (BATCH_AXES, "tensor", None))
    return _constrain(logits, (BATCH_AXES, None, None))


def on_own_rows(
    function: Callable[..., PyTree[jax.Array]], *rows: Float[jax.Array, "B G ..."]
) -> PyTree[Shaped[jax.Array, "B G"]]:
    """Run `function` on every device for the rows that `constrain_logits` gave it.

    It may hold a loop that ends with its last row: each device then ends with its own, where all of
    them would ask each other in every turn.

    Args:
        function: gives one or several numbers a row, which depend on that row alone.
        rows: whole rows of logits or probabilities, and numbers that belong to each.
    """
    mesh = jax.typeof(rows[0]).sharding.mesh
    axes = AutoAxes.of(mesh)
    batch, tensor = axes.of_batch(rows[0].shape[0]), axes.sizes.get("tensor")
    if not axes.sizes or batch is None:
        return function(*rows)
    where = PartitionSpec(
        batch or None, "tensor" if tensor and rows[0].shape[1] % tensor == 0 else None
    )
    # The check cannot follow numbers that start a loop; the tests compare with one device.
    mapped = jax.shard_map(function, mesh=mesh, in_specs=where, out_specs=where, check_vma=False)
    return mapped(*rows)


def constrain_for_decoding(
    params: PyTree[jax.Array], logical_axes: PyTree[tuple[str, ...]]
) -> PyTree[jax.Array]:
    """Gather, once and for a whole rollout, the weights that a decoding loop reads at every token.

    In training a layer's weights are sharded over `fsdp` and gathered when it runs. A decoding loop
    would gather all of them again at every token: the TPU compiler does not move that out of the
    loop by itself. Here they become replicated over `fsdp` and stay sharded over `tensor`.

    Args:
        params: stacked or not, in the dtype of decoding (gathering comes after rounding).
        logical_axes: for every parameter the names of its dimensions.
    """

    def gather(x: jax.Array, names: tuple[str, ...]) -> jax.Array:
        mesh = jax.typeof(x).sharding.mesh
        ways = mesh.shape["tensor"] if "tensor" in mesh.axis_names else 0
        fits = (
            ways and LOGICAL_RULES[name] == "tensor" and size % ways == 0
            for size, name in zip(x.shape, names, strict=True)
        )
        return _constrain(x, tuple("tensor" if fit else None for fit in fits))

    return jax.tree.map(gather, params, logical_axes)


def _constrain(x: jax.Array, spec: tuple[str | tuple[str, ...] | None, ...]) -> jax.Array:
    """Constrain an intermediate array to mesh axes if there is a mesh and they divide its sizes.

    Axes that a `shard_map` around the function has sharded by already are left out.
    """
    mesh = jax.typeof(x).sharding.mesh
    left = set(mesh.axis_names) - set(mesh.manual_axes)
    if not set(MESH_AXES) <= set(mesh.axis_names) or not left:
        return x
    spec = tuple(_without(mesh.manual_axes, axes) for axes in spec)
    for size, axes in zip(x.shape, spec, strict=True):
        names = (axes,) if isinstance(axes, str) else axes or ()
        if size % math.prod(mesh.shape[name] for name in names):
            return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(*spec)))


def _without(
    manual: Collection[str], axes: str | tuple[str, ...] | None
) -> str | tuple[str, ...] | None:
    """Take axes out of what one dimension is sharded over."""
    if isinstance(axes, tuple):
        return tuple(name for name in axes if name not in manual) or None
    return None if axes in manual else axes


@dataclasses.dataclass(frozen=True)
class AutoAxes:
    """The mesh axes that a function may shard by with `jax.shard_map`, and what they divide.

    Those are the axes of type Auto. Axes of other types belong to a `shard_map` around the
    function, which has sharded by them already.

    Attributes:
        sizes: of the axes, by name; axes of one device are left out.
    """

    sizes: Mapping[str, int]

    @classmethod
    def of(cls, mesh: Any) -> AutoAxes:
        """Look at the mesh of an array, which has no axes where there is no mesh."""
        kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
        auto = (name for name, kind in kinds.items() if kind == AxisType.Auto)
        return cls({name: mesh.shape[name] for name in auto if mesh.shape[name] > 1})

    def of_batch(self, rows: int) -> tuple[str, ...] | None:
        """Return the axes for a batch of so many rows; None where they do not divide it."""
        batch = tuple(name for name in BATCH_AXES if name in self.sizes)
        return None if rows % math.prod(self.sizes[name] for name in batch) else batch

    def of_logical(self, name: str, size: int) -> str | None:
        """Return the axis for a dimension of this name and size, if it divides it."""
        axis = LOGICAL_RULES[name]
        fits = axis is not None and axis in self.sizes and size % self.sizes[axis] == 0
        return axis if fits else None


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding of an array of which every device holds a copy."""
    return NamedSharding(mesh, PartitionSpec())


def _fit(
    mesh: Mesh, name: str, leaf: Any, axes: Sequence[str], problems: list[str]
) -> NamedSharding:
    """Sharding of one parameter; what cannot be sharded but must be goes to `problems`."""
    shape = tuple(leaf.shape)
    if len(axes) != len(shape):
        raise ValueError(f"{name}: {len(axes)} logical axes {tuple(axes)} for shape {shape}")
    wanted = logical_to_sharding(mesh, axes).spec
    large = math.prod(shape) >= LARGE_PARAMETER
    spec: list[str | None] = []
    for size, axis, logical in zip(shape, wanted, axes, strict=True):
        fits = axis is None or size % mesh.shape[axis] == 0
        spec.append(axis if fits else None)
        if not fits and large and logical not in MAY_BE_REPLICATED:
            expected = f"a multiple of {axis}={mesh.shape[axis]}"
            problems.append(f"{name} {shape}: {logical}={size} is not {expected}")
    ways = math.prod(mesh.shape[axis] for axis in spec if axis is not None)
    adapter = not {"rank", "split_rank"}.isdisjoint(axes)
    if large and ways == 1 and mesh.shape["fsdp"] * mesh.shape["tensor"] > 1 and not adapter:
        problems.append(f"{name} {shape}: {math.prod(shape):,} elements, and no axis shards it")
    return NamedSharding(mesh, PartitionSpec(*spec))
