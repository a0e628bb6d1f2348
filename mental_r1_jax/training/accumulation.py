"""The gradient of a step from its micro-batches: summed on each device first, over copies once.

Copies of the model (mesh axis `data`) compute gradients of their own prompts. Left to the compiler,
they sum them in every micro-batch, because the loop's accumulator is the same on all copies. So the
loop runs in a `jax.shard_map` over `data`, in which every copy adds up its own prompts' gradients,
and one sum over the copies follows. Other mesh axes stay with the compiler inside of it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array

from mental_r1_jax.rl.masking import Metric
from mental_r1_jax.sharding import AutoAxes

Metrics = dict[str, Metric]

# (params, fixed, *inputs of a micro-batch) -> (loss, metrics)
Loss = Callable[..., tuple[Array, Metrics]]

COPIES = "data"


def accumulate_gradient(
    loss_of: Loss, params: Any, fixed: Any, inputs: tuple[Any, ...], micro_batches: int
) -> tuple[Any, Metrics]:
    """Sum the gradient of `loss_of(params, fixed, *inputs)` over interleaved micro-batches.

        gradient = sum_n d loss_of(params, fixed, *inputs[n]) / d params

    One micro-batch is in memory at a time, its gradient is added to the sum, and each metric is
    reduced as its type says. On a mesh of several copies of the model each copy sums its own part
    of every micro-batch, and the copies' sums are added once, in the dtype of `params`; for the
    exceptions see `_copies_sum_once`.

    Args:
        loss_of: returns (loss, metrics) of a micro-batch, or of a part of it. The losses must be
            sums divided by weights of the whole step; then they add up to the step's, however its
            rows are divided.
        params: what the gradient is taken by.
        fixed: other arrays that the loss needs and that are the same on all copies. Large ones
            must come this way: what the loss itself holds belongs to another mesh than the copies'
            own, and cannot be looked up or gathered on it.
        inputs: trees of arrays whose first axis is B.
        micro_batches: divides B.
    """
    if micro_batches == 1:
        return jax.grad(loss_of, has_aux=True)(params, fixed, *inputs)
    rows = jax.tree.leaves(inputs)[0]
    mesh = jax.typeof(rows).sharding.mesh
    if not _copies_sum_once(mesh, len(rows) // micro_batches):
        return _over_micro_batches(loss_of, params, fixed, inputs, micro_batches)
    # A hand-written kernel wants every axis to be in some `shard_map`, those of one device, too.
    of_one = {name for name, size in mesh.shape.items() if size == 1}
    gradient, by_copy = jax.shard_map(
        partial(_of_one_copy, loss_of, micro_batches=micro_batches),
        mesh=mesh,
        in_specs=(PartitionSpec(), PartitionSpec(), PartitionSpec(COPIES)),
        out_specs=(PartitionSpec(), PartitionSpec(COPIES)),
        axis_names={COPIES, *of_one},
        check_vma=False,  # with it, each gradient would be summed over the copies where it is taken
    )(params, fixed, inputs)
    return gradient, {name: metric.reduce() for name, metric in by_copy.items()}


def _copies_sum_once(mesh: Any, rows: int) -> bool:
    """Whether the loop may run on each copy for itself, with micro-batches of so many rows.

    Within a copy there may be `fsdp` or `tensor`, not both: on such meshes XLA's partitioner ended
    the process at the gather of the prompts' last states (a check in `ExpandDeviceGroups`, jax
    0.10.2, with adapters on 2 x 2 x 2 devices). On GPUs there may be neither: cuDNN's calls bring
    rules of their own for being sharded, which have not been tried within a `shard_map` over a part
    of the axes.
    """
    sizes = AutoAxes.of(mesh).sizes
    copies = sizes.get(COPIES, 1)
    gpus = mesh.abstract_device is not None and mesh.abstract_device.platform == "gpu"
    return copies > 1 and rows % copies == 0 and len(sizes) <= (1 if gpus else 2)


def _of_one_copy(
    loss_of: Loss, params: Any, fixed: Any, inputs: tuple[Any, ...], *, micro_batches: int
) -> tuple[Any, Metrics]:
    """Sum over the rows of one copy, then over copies; its metrics get a leading axis of 1.

    Its rows i, i + n, ... are those that it has in the step's micro-batch i, since the batch is
    sharded in contiguous runs.
    """
    gradient, metrics = _over_micro_batches(loss_of, params, fixed, inputs, micro_batches)
    with jax.named_scope("sum_over_copies"):
        gradient = jax.lax.psum(gradient, COPIES)
    return gradient, jax.tree.map(lambda x: x[None], metrics)


def _over_micro_batches(
    loss_of: Loss, params: Any, fixed: Any, inputs: tuple[Any, ...], micro_batches: int
) -> tuple[Any, Metrics]:
    """Run the micro-batches one after the other and add up what they give."""
    gradient_of = jax.grad(loss_of, has_aux=True)

    def add(total: Any, micro: tuple[Any, ...]) -> tuple[Any, Metrics]:
        gradient, metrics = gradient_of(params, fixed, *micro)
        return jax.tree.map(jnp.add, total, gradient), metrics

    zeros = jax.tree.map(jnp.zeros_like, params)
    gradient, stacked = jax.lax.scan(add, zeros, interleave(inputs, micro_batches))
    return gradient, {name: metric.reduce() for name, metric in stacked.items()}


def interleave(tree: Any, micro_batches: int) -> Any:
    """[B, ...] -> [n, B/n, ...] so that micro-batch i holds rows i, i + n, i + 2n, ...

    With rows sharded over devices in contiguous runs, every micro-batch then has an equal share on
    every device and no row moves; the plain reshape would send rows across the mesh.
    """
    return jax.tree.map(
        lambda x: x.reshape(x.shape[0] // micro_batches, micro_batches, *x.shape[1:]).swapaxes(
            0, 1
        ),
        tree,
    )
