"""`make fuzz`: every reader for FUZZ_SECONDS with mutated and random files.

    python -m tests.fuzz --seconds 3600 csv recipe

Prints how many examples each reader was given, and how many of these it read. Ends with status 1,
and the smallest example found, where anything else than `UserError` was raised. Such an example
belongs into `test_readers.py`, with the mended reader.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import hypothesis
from hypothesis import given, settings

from tests.fuzz.readers import READERS, Reader, attempt, mutations

_AT_ONCE = 1000


def main() -> int:
    """Try the readers in turn; returns the exit status."""
    parser = argparse.ArgumentParser(prog="make fuzz", description=__doc__.split("\n\n")[0])
    parser.add_argument("names", nargs="*", help=f"readers, of {', '.join(READERS)} (all)")
    parser.add_argument("--seconds", type=float, default=3600, help="for each reader (an hour)")
    parser.add_argument("--seed", type=int, default=0, help="of the first examples")
    options = parser.parse_args()
    if unknown := set(options.names) - set(READERS):
        parser.error(f"no such readers: {', '.join(sorted(unknown))}")
    faults = 0
    for name in options.names or READERS:
        faults += not fuzz(name, READERS[name], options.seconds, options.seed)
    return 1 if faults else 0


def fuzz(name: str, reader: Reader, seconds: float, seed: int) -> bool:
    """Whether a reader stood the examples of so many seconds; says what it was given."""
    started = time.monotonic()
    counts = {"given": 0, "read": 0}
    slowest = 0.0
    with tempfile.TemporaryDirectory() as folder:

        def try_one(content: bytes) -> None:
            nonlocal slowest
            begun = time.process_time()
            counts["given"] += 1
            counts["read"] += attempt(reader, Path(folder), content)
            slowest = max(slowest, time.process_time() - begun)

        sound = True
        while sound and time.monotonic() - started < seconds:
            examples = settings(max_examples=_AT_ONCE, deadline=None, database=None)
            quiet = settings(
                examples, suppress_health_check=list(hypothesis.HealthCheck), print_blob=False
            )
            try:
                hypothesis.seed(seed)(quiet(given(mutations(reader))(try_one)))()
            except Exception as error:
                sound = False
                print(f"{name}: {type(error).__name__}: {error}", flush=True)
                print("".join(getattr(error, "__notes__", [])), flush=True)
                import traceback

                traceback.print_exc()
            seed += 1
    print(
        f"{name}: {counts['given']} examples in {time.monotonic() - started:.0f} s, of which "
        f"{counts['read']} were read; the slowest took {slowest:.2f} s; "
        f"{'no fault' if sound else 'A FAULT'}",
        flush=True,
    )
    return sound


if __name__ == "__main__":
    sys.exit(main())
