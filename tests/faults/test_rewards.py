"""A reward function that misbehaves is named, with the row; it changes no example."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from mental_r1_jax.data.records import Example
from mental_r1_jax.rewards import RewardError, load_reward_function
from mental_r1_jax.text.stages import GRAMMAR

POST = Example("Calm", "train", 17, "made-up words", "Yes", "Calm?")


def score(path: str, timeout_s: float | None = None) -> float:
    function = load_reward_function(path, timeout_s=timeout_s)
    return function.function("tea", GRAMMAR.parse("tea"), POST)


def hang(completion: str, example: Any) -> float:
    time.sleep(60)
    return 1.0


def leave(completion: str, example: Any) -> float:
    raise SystemExit(0)


def rewrite(completion: str, example: Any) -> float:
    object.__setattr__(example, "label", "No")
    return 1.0


VALUES: dict[str, Any] = {
    "huge": 1e300,
    "just_too_large": 1e6 + 1,
    "negative": -1e7,
    "long_integer": 10**400,
    "nan": float("nan"),
    "nothing": None,
    "text": "many",
    "a_list": [1.0],
}
for _name, _value in VALUES.items():
    globals()[_name] = lambda completion, example, value=_value: value


@pytest.mark.parametrize("name", VALUES)
def test_a_value_out_of_range_is_named_with_function_and_row(name: str) -> None:
    with pytest.raises(RewardError, match=rf"{name}.*row 17 of 'Calm'.*-1e\+06 and 1e\+06"):
        score(f"{__name__}:{name}")


def test_a_reward_cannot_end_the_program_as_if_it_were_done() -> None:
    with pytest.raises(RewardError, match="leave.*row 17.*SystemExit: 0"):
        score(f"{__name__}:leave")


def test_a_reward_gets_a_copy_of_the_example() -> None:
    assert score(f"{__name__}:rewrite") == 1.0
    assert POST.label == "Yes"


def test_a_reward_that_hangs_is_named_in_time() -> None:
    started = time.monotonic()
    with pytest.raises(RewardError, match="hang.*row 17.*timeout_s=0.05.*TimeoutError"):
        score(f"{__name__}:hang", timeout_s=0.05)
    assert time.monotonic() - started < 10
    with pytest.raises(RewardError, match="SystemExit"):
        score(f"{__name__}:leave", timeout_s=5.0)
    assert score(f"{__name__}:rewrite", timeout_s=5.0) == 1.0


MODULES = {
    "syntax error": "def f(completion, example) return 1",
    "raises at import": "1 / 0",
    "ends at import": "import sys; sys.exit(0)",
    "NUL": b"\x00",
    "other arguments": "def f(completion): return 1.0",
    "no arguments": "def f(): return 1.0",
    "keyword needed": "def f(completion, example, *, judge): return 1.0",
    "the program of the system": "from os import system as f",
}


@pytest.mark.parametrize("kind", MODULES)
def test_what_cannot_be_a_reward_is_refused_when_it_is_loaded(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = MODULES[kind]
    name = f"rewards_{list(MODULES).index(kind)}"
    content = source if isinstance(source, bytes) else source.encode()
    (tmp_path / f"{name}.py").write_bytes(content)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(RewardError, match=f"{name}:f.*cannot be loaded"):
        load_reward_function(f"{name}:f")


@pytest.mark.parametrize("path", ["os:system", "builtins:exit", "math:sqrt", "os:environ"])
def test_functions_of_other_uses_are_refused(path: str) -> None:
    with pytest.raises(RewardError, match=f"{path}.*cannot be loaded"):
        load_reward_function(path)
