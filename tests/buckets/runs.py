"""Commands on runs in the bucket of the stand-in, each in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.buckets.stand_in import BUCKET, Bucket
from tests.chaos.runs import FAST
from tests.hosts.cluster import ROOT

ADDRESS = f"gs://{BUCKET}/runs/first"


def environment(url: str, cache: Path) -> dict[str, str]:
    """What sends both drivers to the stand-in, on a machine with this cache folder."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        "STORAGE_EMULATOR_HOST": url,
        "TENSORSTORE_GCS_HTTP_URL": url,
        "NO_PROXY": "127.0.0.1",
        # It would ask the real service what kind of bucket this is.
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
        "XDG_CACHE_HOME": str(cache),
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONUNBUFFERED": "1",
    } | FAST


def start(module: str, arguments: list[str], url: str, cache: Path) -> subprocess.Popen[str]:
    """A module as a program, as on a machine with this cache folder."""
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        env=os.environ | environment(url, cache),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
    )


def finish(command: subprocess.Popen[str], status: int = 0) -> str:
    """What a program printed; it must end with this status."""
    output, _ = command.communicate(timeout=900)
    assert command.returncode == status, output
    return output


def write_out(bucket: Bucket, address: str, folder: Path) -> Path:
    """What the bucket holds at an address, as a local folder."""
    prefix = address.removeprefix(f"gs://{BUCKET}/") + "/"
    for name in bucket.names(prefix):
        file = folder / name.removeprefix(prefix)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(bucket.objects[name].content)
    return folder
