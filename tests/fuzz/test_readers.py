"""A few examples of `make fuzz` for every reader, and all that it has ever found."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, find, settings
from hypothesis.errors import NoSuchExample

from tests.fuzz.readers import READERS, attempt, mutations

# What was found, each with a traceback or a wrong answer, and whether it is read now. A last line
# without its end is what a kill leaves, and is left out.
FOUND = {
    "traces": {b"\x80": False},
    "index": {b'{"weight_map": {"a": "\\ud800.safetensors"}}': False},
    "metrics": {b'{"step": 0, "loss": [1]}\n': False, b'{"step": 0}\n' + b"[" * 100_000: True},
}


@pytest.mark.parametrize("name", READERS)
def test_the_sound_file_is_read(name: str, tmp_path: Path) -> None:
    assert attempt(READERS[name], tmp_path, READERS[name].sound)


@pytest.mark.parametrize("name", READERS)
def test_mutations_are_read_or_refused(name: str, tmp_path: Path) -> None:
    reader = READERS[name]
    few = settings(
        max_examples=25,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    # Nothing is looked for: whatever is raised is a fault.
    with pytest.raises(NoSuchExample):
        find(mutations(reader), lambda one: attempt(reader, tmp_path, one) is None, settings=few)


@pytest.mark.parametrize(
    ("name", "content", "is_read"),
    [(name, *one) for name, contents in FOUND.items() for one in contents.items()],
    ids=lambda value: repr(value[:30]) if isinstance(value, bytes) else str(value),
)
def test_what_was_found_stays_mended(
    name: str, content: bytes, is_read: bool, tmp_path: Path
) -> None:
    assert attempt(READERS[name], tmp_path, content) is is_read
