"""A bucket of its own for each test, and a cache folder of its own."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.buckets.runs import environment
from tests.buckets.stand_in import Bucket, serving


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    if importlib.util.find_spec("gcsfs") is None:
        pytest.skip("needs the extra gcs")
    import fsspec

    with serving() as (url, served):
        for name, value in environment(url, tmp_path / "cache").items():
            if name not in ("PYTHONPATH", "XLA_FLAGS"):
                monkeypatch.setenv(name, value)
        # Instances remember where the service is.
        fsspec.get_filesystem_class("gs").clear_instance_cache()
        yield served
