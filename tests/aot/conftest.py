"""Programs compiled for TPUs; the tests here need libtpu and no TPU."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from tests.aot.tiny_step import MODEL, TOPOLOGY, TinyStep, tiny_step


@pytest.fixture(autouse=True, scope="package")
def as_users_have_it() -> Iterator[None]:
    """The suite's full matrix precision is for comparing numbers; TPU kernels refuse it.

    For this package alone: the setting holds in the thread that makes it, and later tests compare
    what two threads compile.
    """
    with jax.default_matmul_precision("default"):
        yield


@pytest.fixture(autouse=True, scope="package")
def no_program_cache() -> Iterator[None]:
    """A cached program is loaded onto its devices when it is read, and there are none here."""
    before = jax.config.jax_enable_compilation_cache
    compilation_cache.reset_cache()
    jax.config.update("jax_enable_compilation_cache", False)
    yield
    jax.config.update("jax_enable_compilation_cache", before)
    compilation_cache.reset_cache()


@pytest.fixture(scope="package")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with nothing but a `config.json`."""
    folder = tmp_path_factory.mktemp("tiny_model")
    (folder / "config.json").write_text(json.dumps(MODEL), encoding="utf-8")
    return folder


@pytest.fixture(scope="package")
def tiny(tiny_model: Path) -> TinyStep:
    """The tiny step on `v5e:2x4`, compiled once; without a reference, whose pass is half of it."""
    return tiny_step(tiny_model, TOPOLOGY, "crpo.kl_coef=0")
