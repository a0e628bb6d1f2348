"""Compiled programs on disk, so that the second run of a recipe starts in seconds."""

from __future__ import annotations

import os
from pathlib import Path

import jax

from mental_r1_jax.config import RunConfig


def cache_folder(run: RunConfig) -> Path | None:
    """Where compiled programs are kept, or None where the recipe wants none kept."""
    if run.compilation_cache == "auto":
        cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        return Path(cache) / "mental_r1_jax" / "programs"
    return run.compilation_cache


def use_cache(run: RunConfig) -> None:
    """Keep what is compiled from now on; call it before anything is.

    Settings of the user's own (`JAX_COMPILATION_CACHE_DIR`) win. A program is found again by its
    content, the versions of JAX and XLA, and the devices, so an old one is never used wrongly.
    """
    folder = cache_folder(run)
    own = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]  # made at run time
    if folder is None or own is not None:
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    # By default JAX keeps programs that took a second to compile; a start has dozens of small ones.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
