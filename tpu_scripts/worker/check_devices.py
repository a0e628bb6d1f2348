"""Check that all devices of all workers are there, and that a sum over all of them is right.

Runs on every worker at the same time, at the end of ../setup.sh; ends with status 1 and one message
where that is not so.
"""

from __future__ import annotations

import argparse
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec


def main() -> int:
    """Join the other workers, count the devices and sum over them; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--devices", type=int, required=True, help="how many there must be")
    expected = parser.parse_args().devices
    join()
    if jax.device_count() != expected:
        print(
            f"error: expected {expected} devices, got {jax.device_count()} "
            f"{jax.devices()[0].device_kind} on {jax.process_count()} worker(s); are --accelerator "
            "and --slices those of the request, and does no other program hold the devices?",
            file=sys.stderr,
        )
        return 1
    total = sum_over_devices()
    if total != expected * (expected + 1) // 2:
        print(f"error: the sum of 1 to {expected} over all devices is {total}", file=sys.stderr)
        return 1
    print(
        f"worker {jax.process_index()} of {jax.process_count()}: {jax.local_device_count()} of "
        f"{jax.device_count()} {jax.devices()[0].device_kind}, sum over all devices is right"
    )
    return 0


def join() -> None:
    """Start the JAX cluster; on Cloud TPU it finds the other workers, and all slices, by itself."""
    jax.distributed.initialize()


def sum_over_devices() -> int:
    """Device i holds i + 1; all of them add up."""
    devices = jax.devices()
    mesh = jax.make_mesh((len(devices),), ("device",), axis_types=(AxisType.Auto,), devices=devices)
    numbers = np.arange(1, len(devices) + 1, dtype=np.int32)
    sharding = NamedSharding(mesh, PartitionSpec("device"))
    array = jax.make_array_from_callback(numbers.shape, sharding, lambda index: numbers[index])
    everywhere = NamedSharding(mesh, PartitionSpec())
    return int(jax.jit(jnp.sum, out_shardings=everywhere)(array))


if __name__ == "__main__":
    sys.exit(main())
