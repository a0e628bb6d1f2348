"""Compiled programs are kept between processes, unless the recipe or the user says otherwise."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mental_r1_jax.config import RunConfig
from mental_r1_jax.programs.cache import cache_folder

# Compiles one small program as the command line would, and prints hits and misses of the cache.
PROCESS = """
import json, sys
from mental_r1_jax.programs.cache import use_cache
from mental_r1_jax.config import RunConfig
use_cache(RunConfig(**json.loads(sys.argv[1])))
import jax
events = []
jax.monitoring.register_event_listener(lambda event, **_: events.append(event.split("/")[-1]))
jax.jit(lambda x: x + 1)(1.0)
print(events.count("cache_hits"), events.count("cache_misses"))
"""


def hits_and_misses(cache: str, **environment: str) -> tuple[int, int]:
    """Start a process that compiles one program."""
    options = f'{{"output_dir": "unused", "compilation_cache": {cache}}}'
    settings = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_COMP", "JAX_PERS"))}
    done = subprocess.run(
        [sys.executable, "-c", PROCESS, options],
        env=settings | environment,
        check=True,
        capture_output=True,
        text=True,
    )
    hits, misses = done.stdout.split()
    return int(hits), int(misses)


def test_the_second_process_compiles_nothing(tmp_path: Path) -> None:
    folder = f'"{tmp_path / "programs"}"'
    assert hits_and_misses(folder) == (0, 1)
    assert hits_and_misses(folder) == (1, 0)
    # The user's own setting wins, and its folder is empty.
    own = str(tmp_path / "own")
    assert hits_and_misses(folder, JAX_COMPILATION_CACHE_DIR=own)[0] == 0


def test_nothing_is_kept_where_nothing_should_be(tmp_path: Path) -> None:
    cache = {"XDG_CACHE_HOME": str(tmp_path), "HOME": str(tmp_path)}
    assert hits_and_misses("null", **cache) == (0, 0)
    assert list(tmp_path.iterdir()) == []


def test_by_default_programs_are_kept_in_the_users_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunConfig(output_dir=tmp_path / "run")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder(run) == tmp_path / "mental_r1_jax" / "programs"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder(run) == tmp_path / ".cache" / "mental_r1_jax" / "programs"
