"""What of a run folder works in a bucket as it is: the table of docs/buckets.md.

    pip install gcsfs gcp-storage-emulator
    python benchmarks/bucket.py

Everything happens on loopback: the emulator holds the bucket in memory, and no cloud is asked.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable
from typing import Any


def start_emulator() -> Any:
    """An emulator of Google Cloud Storage with the bucket `bucket`, known to both drivers."""
    from gcp_storage_emulator.server import create_server

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    # Before the drivers are imported: gcsfs for files and folders, tensorstore for arrays.
    for name in ("STORAGE_EMULATOR_HOST", "TENSORSTORE_GCS_HTTP_URL"):
        os.environ[name] = f"http://127.0.0.1:{port}"
    os.environ["NO_PROXY"] = "127.0.0.1"
    server = create_server("127.0.0.1", port, in_memory=True, default_bucket="bucket")
    server.start()
    logging.disable(logging.WARNING)  # no credentials, said at every request
    return server


def attempt(name: str, act: Callable[[], Any]) -> None:
    """Print what `act` returns, or the error that it ends with, and how long it took."""
    started = time.monotonic()
    try:
        result = str(act())
    except Exception as error:
        result = f"{type(error).__name__}: {error}"
    print(f"| {name} | {result[:160]} | {time.monotonic() - started:.1f} s |", flush=True)


def files(root: Any) -> None:
    """What `runs/` and `training/metrics.py` do with text files."""

    def append() -> str:
        with (root / "text").open("a") as stream:
            stream.write("more")
        return (root / "text").read_text()

    attempt("mkdir, then exists", lambda: (root.mkdir(parents=True), root.exists())[1])
    attempt("write `text`", lambda: (root / "text").write_text("first line, "))
    attempt("append `more`, then read", append)
    attempt("rename", lambda: (root / "text").rename(root / "other"))


def locks() -> None:
    """Create a file only if it is absent, twice: the second time must fail."""
    import fsspec
    import tensorstore

    bucket = tensorstore.KvStore.open({"driver": "gcs", "bucket": "bucket"}).result()
    missing = bucket.read("a").result().stamp.generation
    attempt("tensorstore creates", lambda: bucket.write("a", b"1", if_equal=missing).result())
    attempt("again", lambda: bucket.write("a", b"2", if_equal=missing).result())
    attempt("what is there", lambda: bucket.read("a").result().value)
    store = fsspec.filesystem("gs")
    create = {"mode": "create"}
    attempt("gcsfs creates", lambda: bool(store.pipe_file("bucket/b", b"1", **create)))
    attempt("again", lambda: bool(store.pipe_file("bucket/b", b"2", **create)))


def checkpoints(folder: Any) -> None:
    """Save, find, compare and restore steps by our own functions, and damage one."""
    import jax
    import jax.numpy as jnp
    import orbax.checkpoint as ocp

    from mental_r1_jax.training import checkpoint, damage, manifest

    params = {"w": jnp.arange(1000.0).reshape(10, 100), "b": jnp.ones(7)}

    def save() -> list[str]:
        with checkpoint.open_checkpoints(folder, keep=2) as manager:
            for step in (1, 2, 3):
                items = ocp.args.Composite(
                    params=ocp.args.StandardSave(params),
                    optimizer=ocp.args.StandardSave({"m": jnp.zeros(5)}),
                    progress=ocp.args.JsonSave({"step": step}),
                )
                manager.save(step, args=items, metrics={"weighted_f1": 0.1 * step})
        return sorted(path.name for path in folder.iterdir())

    def restore() -> str:
        here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        shapes = checkpoint.abstract_like(params, jax.tree.map(lambda _: here, params))
        item = ocp.args.StandardRestore(shapes)
        read = checkpoint._read(folder / "3", params=item)["params"]
        return f"equal: {all(bool((read[name] == params[name]).all()) for name in params)}"

    def set_aside() -> list[int]:
        file = folder / "3" / "params" / "_METADATA"
        file.write_bytes(b"x" + file.read_bytes()[1:])
        return damage.sound_steps(folder)

    attempt("save three steps, keep two", save)
    attempt("find the sound ones", lambda: damage.sound_steps(folder))
    attempt("problems", lambda: manifest.problems(folder / "3", 3, thorough=True))
    attempt("restore", restore)
    attempt("damage one, and set it aside", set_aside)


def main() -> None:
    """Print the table."""
    server = start_emulator()
    from etils import epath

    root = epath.Path("gs://bucket/runs/first")
    print("| what | came of it | took |\n|---|---|---|")
    files(root)
    locks()
    checkpoints(root / "checkpoints")
    server.stop()


if __name__ == "__main__":
    main()
