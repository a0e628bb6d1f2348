"""Switches of the whole suite: strict shapes, strict types, eight virtual CPU devices, no network.

And its memory: what JAX has compiled is dropped whenever it has grown large.

Everything here has to happen before JAX starts a backend and before the package is imported, so
it stands at module level.
"""

from __future__ import annotations

import gc
import importlib.metadata
import os
import resource
from collections.abc import Iterator

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"
# Programs here run for milliseconds and compile for seconds: compile eight times faster.
_FLAGS = ["--xla_backend_optimization_level=0"]
if importlib.metadata.version("jaxlib").startswith("0.10."):
    # Later versions know no such flag, and XLA ends the process at an unknown one.
    _FLAGS.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *_FLAGS])

from pathlib import Path

import hypothesis
import jax
import pytest
from jaxtyping import install_import_hook

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_default_matmul_precision", "highest")

# `mental_r1_jax.types` is left out: JAX also builds those containers of shapes and shardings.
install_import_hook(
    [
        "mental_r1_jax.rl",
        "mental_r1_jax.models",
        "mental_r1_jax.rollout",
        "mental_r1_jax.training",
        "mental_r1_jax.text",
        "mental_r1_jax.data",
        "mental_r1_jax.evaluation",
    ],
    "beartype.beartype",
)

from mental_r1_jax.programs.program import return_free_memory  # behind the hook above

# The same examples on every run; no deadline, because the first example of a test may compile.
hypothesis.settings.register_profile("suite", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("suite")


# Compiled programs are never dropped otherwise: at the end a process would hold five gigabytes.
_ALLOWED_GROWTH = 400 << 20
_held_before = pytest.StashKey[int]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    """Drop compiled programs if the process has grown by much since they were last dropped."""
    yield
    held, stash = _resident_bytes(), item.config.stash
    if held > stash.setdefault(_held_before, held) + _ALLOWED_GROWTH:
        jax.clear_caches()
        gc.collect()
        return_free_memory()
        stash[_held_before] = _resident_bytes()


def _resident_bytes() -> int:
    """Memory of this process; 0, so that nothing is ever dropped, where Linux does not tell."""
    pages = Path("/proc/self/statm")
    if not pages.is_file():
        return 0
    return int(pages.read_text(encoding="ascii").split()[1]) * resource.getpagesize()


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Return the folder of real models and data beside the project, or skip."""
    folder = (Path(__file__).resolve().parents[1] / ".." / "shared").resolve()
    if not folder.is_dir():
        pytest.skip(f"needs the folder of real models and data beside the project: {folder}")
    return folder
