"""Processes: which rows of a batch this one holds, and how all of them come to the same numbers.

A batch is sharded over the mesh, so every process holds the rows of its own devices. It reads,
samples and scores those rows and no others. What all must know (scores, the longest prompt,
a request to stop) is exchanged here; with one process every exchange is the identity.
"""

from __future__ import annotations

import contextlib
import functools
import os
import pickle
import re
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from mental_r1_jax import sharding
from mental_r1_jax.errors import UserError, mistake_of_surroundings

# Seconds without a sign of life after which a process counts as dead, and the others end.
DEAD_AFTER_SECONDS = 50

# How XLA begins the words of an error of devices and of exchanges between them.
_DEVICE_ERROR = re.compile("(UNKNOWN|INTERNAL|UNAVAILABLE|ABORTED|CANCELLED|DEADLINE_EXCEEDED): ")

# All three, or none.
VARIABLES = ("MENTAL_R1_COORDINATOR", "MENTAL_R1_NUM_PROCESSES", "MENTAL_R1_PROCESS_ID")


@contextlib.contextmanager
def joined(*, stops_between_steps: bool) -> Iterator[None]:
    """Run the body as one of the processes of this run, which may be the only one.

    An error of one process ends all of them: it ends at once, where the ordinary way out would wait
    for the others, who wait for it in the middle of a step.

    Args:
        stops_between_steps: SIGTERM is left to `multihost_utils.reached_preemption_sync_point`, on
            which the body calls; otherwise it ends the process, as usual.
    """
    join(stops_between_steps=stops_between_steps)
    try:
        yield
    except Exception as error:
        if jax.process_count() == 1:
            raise
        if mistake := _mistake(error):
            print(f"error: {mistake}", file=sys.stderr, flush=True)
            os._exit(2)
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


def _mistake(error: Exception) -> UserError | None:
    """What to say of an error that is no fault of the program; None for others."""
    if isinstance(error, UserError):
        return error
    # An exchange that another process has left fails with a plain ValueError, and Orbax waits in
    # vain for it where a checkpoint is to be committed.
    of_devices = isinstance(error, ValueError) and _DEVICE_ERROR.match(str(error))
    if of_devices or isinstance(error, jax.errors.JaxRuntimeError | TimeoutError):
        return _lost(error)
    return mistake_of_surroundings(error)


def _lost(error: Exception) -> UserError:
    """What to say when devices fail, which with several processes is mostly another one's end."""
    reason = str(error).strip().splitlines()
    return UserError(
        what=f"process {jax.process_index()} of {jax.process_count()} cannot go on",
        expected="all processes to be there until the end",
        got=reason[0] if reason else type(error).__name__,
        remedy="look for the one that ended first and why; the same command on all resumes",
    )


def join(*, stops_between_steps: bool) -> None:
    """Join the other processes of this run, if there are any; call it before any device is used.

    From then on only the first process writes to standard output; all may write errors.

    Raises:
        UserError: only some of `VARIABLES` are set, or to no sensible values.
    """
    arguments = cluster_arguments(os.environ)
    if arguments is None:
        return
    jax.config.update("jax_enable_preemption_service", stops_between_steps)
    jax.distributed.initialize(heartbeat_timeout_seconds=DEAD_AFTER_SECONDS, **arguments)
    index, count = jax.process_index(), jax.process_count()
    if count > 1:
        print(f"process {index} of {count}, {jax.local_device_count()} devices", flush=True)
    if index > 0:
        # Progress, tables and reports are the same everywhere; one copy is enough.
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  until the end


def cluster_arguments(environment: Mapping[str, str]) -> dict[str, Any] | None:
    """Arguments of `jax.distributed.initialize`, or None where this process is alone.

    In this order: our own `VARIABLES`; Slurm with several tasks; a TPU whose workers are listed in
    the environment, as on GKE; a Cloud TPU VM, where JAX asks the metadata server. Where JAX finds
    everything by itself there are no arguments.

    Raises:
        UserError: see `join`.
    """
    if any(name in environment for name in VARIABLES):
        return _plain_arguments(environment)
    if int(environment.get("SLURM_NTASKS", 1)) > 1 and "SLURM_PROCID" in environment:
        return {}
    if environment.get("JAX_PLATFORMS") == "cpu":
        return None
    workers = environment.get("TPU_PROCESS_ADDRESSES", environment.get("TPU_WORKER_HOSTNAMES"))
    if workers is not None:
        # Notebook services list the one machine that they have.
        several = "," in workers or int(environment.get("MEGASCALE_NUM_SLICES", 1)) > 1
        return {} if several else None
    # JAX sets this variable when it is imported on a machine without TPU.
    return None if "TPU_SKIP_MDS_QUERY" in environment else {}


def _plain_arguments(environment: Mapping[str, str]) -> dict[str, Any]:
    """Arguments from our own variables."""
    values = {name: environment.get(name, "") for name in VARIABLES}
    address, count, index = values.values()
    numbers = count.isdecimal() and index.isdecimal() and int(index) < int(count)
    if not numbers or not address.rpartition(":")[2].isdecimal():
        raise UserError(
            what="the variables that join processes do not fit together",
            expected=f"{VARIABLES[0]}=HOST:PORT of the first process, and {VARIABLES[2]} from 0 to "
            f"{VARIABLES[1]} - 1, on every process",
            got=", ".join(f"{name}={value}" for name, value in values.items()),
            remedy="set all three, or none for a run of one process",
        )
    return {
        "coordinator_address": address,
        "num_processes": int(count),
        "process_id": int(index),
        # Nothing is left to be found out, so JAX need not look around.
        "cluster_detection_method": "deactivate",
    }


def is_first() -> bool:
    """Whether this process is the one that writes files and talks to the user."""
    return jax.process_index() == 0


def wait_for_all(what: str) -> None:
    """Return when every process has come to this point, named `what`."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def local_rows(mesh: Mesh, total: int) -> np.ndarray:
    """Rows of a batch of `total` that this process's devices hold, ascending, [b].

    They need not follow each other: a mesh is laid out for the wires between the chips, not for
    the order of the hosts.
    """
    where = sharding.batch_sharding(mesh, 1).addressable_devices_indices_map((total,))
    rows = np.arange(total)
    return np.unique(np.concatenate([rows[index] for index in where.values() if index is not None]))


def put_batch(mesh: Mesh, tree: Any) -> Any:
    """Make global arrays, sharded over axis 0, from this process's `local_rows` of `tree`."""
    shards = sharding.batch_shards(mesh)
    held = len(local_rows(mesh, shards))

    def place(leaf: np.ndarray) -> jax.Array:
        total = leaf.shape[0] * shards // held
        rows = local_rows(mesh, total)

        def shard(index: Any) -> np.ndarray:
            start, stop, _ = index[0].indices(total)
            first = int(np.searchsorted(rows, start))
            return leaf[first : first + stop - start]

        return jax.make_array_from_callback(
            (total, *leaf.shape[1:]), sharding.batch_sharding(mesh, leaf.ndim), shard
        )

    return jax.tree.map(place, tree)


def fetch_rows(array: jax.Array) -> np.ndarray:
    """This process's rows of an array that is sharded over axis 0 alone; waits for it.

    Devices that hold the same rows give them once.
    """
    shards = {
        shard.index[0].indices(array.shape[0])[0]: shard for shard in array.addressable_shards
    }
    for shard in shards.values():
        shard.data.copy_to_host_async()
    return np.concatenate([np.asarray(shards[start].data) for start in sorted(shards)])


def all_rows(mesh: Mesh, local: np.ndarray) -> np.ndarray | jax.Array:
    """The rows of all processes, on every process; with several, a device array under way."""
    if jax.process_count() == 1:
        return local
    return _replicate(mesh)(put_batch(mesh, local))


@functools.lru_cache(maxsize=4)
def _replicate(mesh: Mesh) -> Any:
    """Compiled once a mesh: gather an array to every device."""
    return jax.jit(lambda array: array, out_shardings=sharding.replicated(mesh))


def largest(value: int) -> int:
    """The largest `value` of all processes; every process must call this, and all wait."""
    if jax.process_count() == 1:
        return value
    return int(multihost_utils.process_allgather(np.array([value], np.int32)).max())


def all_items(items: Iterable[tuple[int, Any]]) -> list[Any]:
    """Numbered items of all processes, in the order of their numbers, on every process; all wait.

    Items with one number are the same thing, held by several processes, and come once.
    """
    own = list(items)
    if jax.process_count() > 1:
        encoded = np.frombuffer(pickle.dumps(own), np.uint8)
        size = largest(len(encoded))
        # Sizes are rounded up to a power of two, so that few programs are compiled.
        padded = np.zeros(1 << max(0, size - 1).bit_length(), np.uint8)
        padded[: len(encoded)] = encoded
        gathered = multihost_utils.process_allgather(padded)
        own = [item for one in gathered for item in pickle.loads(one.tobytes())]
    return [item for _, item in sorted(dict(own).items())]
