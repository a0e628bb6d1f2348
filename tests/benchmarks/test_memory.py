"""The table of peak memory: it runs, and ours has no term in C x V."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import memory

D, CHUNK = 16, 64
LENGTHS, VOCABULARIES = (64, 256), (512, 2048)


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, int, str], int]:
    """(C, V, way) -> bytes, as the script writes them."""
    file = tmp_path_factory.mktemp("memory") / "memory.json"
    sizes = [*("--width", str(D), "--chunk", str(CHUNK), "--json", str(file))]
    lengths, vocabularies = (map(str, sizes) for sizes in (LENGTHS, VOCABULARIES))
    memory.main([*sizes, "--lengths", *lengths, "--vocabularies", *vocabularies])
    rows = json.loads(file.read_text())["planned_bytes"]
    return {
        (row["completion_length"], row["vocabulary"], way): row[way]
        for row in rows
        for way in memory.WAYS
    }


def test_only_the_naive_way_has_a_term_in_length_times_vocabulary(
    planned: dict[tuple[int, int, str], int],
) -> None:
    """f(C, V) = a + b C + c V + e C V: the mixed difference is e times both steps."""
    (short, long), (few, many) = LENGTHS, VOCABULARIES
    logits = 4 * memory.GROUP * (long - short) * (many - few)

    def mixed(way: str) -> int:
        f = {(c, v): planned[c, v, way] for c in LENGTHS for v in VOCABULARIES}
        return f[long, many] - f[long, few] - f[short, many] + f[short, few]

    assert mixed("naive") >= logits
    assert abs(mixed("chunked")) <= logits // 100


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_chunked_memory_is_a_few_arrays_of_known_size(
    planned: dict[tuple[int, int, str], int], length: int, vocabulary: int
) -> None:
    """Two blocks of logits, two arrays like the hidden states, 16 numbers a token, two matrices."""
    tokens = memory.GROUP * length
    bound = 4 * (tokens * (2 * CHUNK + 2 * D + 16) + 2 * D * vocabulary)
    assert planned[length, vocabulary, "chunked"] <= bound


def test_table_shows_both_ways_and_their_ratio() -> None:
    row = {"vocabulary": 8192, "completion_length": 256, "chunked": 2**20, "naive": 5 * 2**21}
    setting = dict.fromkeys(
        ("prompts", "group", "width", "chunk_size", "dtype", "jax", "platform"), 1
    )
    text = memory.table({"setting": setting, "planned_bytes": [row], "measured_bytes": row})
    assert "| 8,192 | 256 | 1 | 10 | 10.0 |" in text
    assert "chunked 1 MiB, naive 10 MiB" in text


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads /proc of Linux")
def test_a_run_takes_what_was_planned() -> None:
    """At V = 16,384 and C = 64 all logits are 32 MiB, far above what a process needs by itself."""
    sizes = (64, 16_384, D, CHUNK)
    logits = 4 * memory.GROUP * sizes[0] * sizes[1]
    assert memory.measured_bytes("naive", *sizes) >= logits
    assert memory.measured_bytes("chunked", *sizes) < logits // 2
