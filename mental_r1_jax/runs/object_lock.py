"""The lock of a run in a bucket: the object `run.lock`, written under preconditions.

It is created where there is none (generation 0), and its heartbeat replaces the owner's own
generation only. So no two processes can both believe that they hold it, and no rename is needed.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mental_r1_jax.addresses import SCHEME, address_of
from mental_r1_jax.runs.run_lock import LOCK_FILE, hold, parse_lock

# What tensorstore returns as the generation where a precondition did not hold.
_NOT_WRITTEN = b""


@contextlib.contextmanager
def object_lock(folder: Path, wait: Callable[[float], None] = time.sleep) -> Iterator[None]:
    """Hold the lock in the bucket of the run `folder`; of a local run there is nothing to hold.

    Raises:
        UserError: a living process holds it.
    """
    place = address_of(folder)
    if place is None:
        yield
        return
    with hold(_ObjectLock(place), place, wait):
        yield


class _ObjectLock:
    """The lock object of a run."""

    def __init__(self, place: str) -> None:
        import tensorstore

        bucket, _, run = place.removeprefix(SCHEME).partition("/")
        self.name = f"{place}/{LOCK_FILE}"
        opened = tensorstore.KvStore.open({"driver": "gcs", "bucket": bucket, "path": f"{run}/"})
        self._store = opened.result()
        self._seen = self._own = _NOT_WRITTEN

    def create(self, owner: dict[str, Any]) -> bool:
        """Write the lock, unless there is one."""
        found = self._store.read(LOCK_FILE).result()
        if found.state != "missing":
            return False
        return self._write(owner, found.stamp.generation)

    def read(self) -> dict[str, Any] | None:
        """What the lock says; None where there is none, an empty mapping where it is damaged."""
        found = self._store.read(LOCK_FILE).result()
        self._seen = found.stamp.generation
        return None if found.state == "missing" else parse_lock(found.value)

    def retire(self, held: dict[str, Any]) -> None:
        """Remove the lock of a dead process: the generation that was read, and no other."""
        del held
        self._store.write(LOCK_FILE, None, if_equal=self._seen).result()

    def beat(self, owner: dict[str, Any]) -> bool:
        """Replace our lock by one with the next number; False: it is not ours any more."""
        return self._write(owner, self._own)

    def release(self, owner: dict[str, Any]) -> None:
        """Remove our lock."""
        del owner
        self._store.write(LOCK_FILE, None, if_equal=self._own).result()

    def _write(self, owner: dict[str, Any], generation: bytes) -> bool:
        """Write, if the object still has this generation."""
        content = json.dumps(owner).encode()
        stamp = self._store.write(LOCK_FILE, content, if_equal=generation).result()
        if stamp.generation != _NOT_WRITTEN:
            self._own = stamp.generation
            return True
        # Where an answer was lost, and the request made again, what is there is ours.
        ours = self.read() == owner
        self._own = self._seen if ours else self._own
        return ours
