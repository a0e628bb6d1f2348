"""How much memory does the gradient of log-probs and entropies take, chunked and naively?

    python benchmarks/memory.py [--json memory.json] [--measure]

For completion lengths C and vocabularies V it compiles the gradient of `token_stats` and of the
naive way (all logits, `log_softmax`, automatic differentiation), and prints what the compiler plans
for intermediate arrays. Hidden states, matrix and their gradients are the same for both and not
counted. Nothing of that size is allocated, so it runs anywhere. `--measure` also runs both at the
smallest setting in fresh processes and reads what they really took (Linux).
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from mental_r1_jax.models.head import token_stats

LENGTHS = (256, 512, 1024, 2048, 4096, 8192)
VOCABULARIES = (8_192, 32_768, 151_936)
PROMPTS, GROUP = 1, 8
WAYS = ("chunked", "naive")

Stats = tuple[jax.Array, jax.Array]


def chunked(chunk_size: int) -> Callable[..., Stats]:
    """The library's way."""

    def stats(hidden: jax.Array, matrix: jax.Array, targets: jax.Array) -> Stats:
        return token_stats(hidden, targets, matrix, temperature=1.0, chunk_size=chunk_size)

    return stats


def naive(hidden: jax.Array, matrix: jax.Array, targets: jax.Array) -> Stats:
    """All logits at once."""
    logp = jax.nn.log_softmax(hidden @ matrix, axis=-1)
    logprobs = jnp.take_along_axis(logp, targets[..., None], axis=-1)[..., 0]
    return logprobs, -jnp.sum(jnp.exp(logp) * logp, axis=-1)


def compile_gradient(
    way: str, length: int, vocabulary: int, width: int, chunk_size: int
) -> jax.stages.Compiled:
    """Compile the gradient by hidden states [B, G, C, D] and matrix [D, V], all float32."""
    stats = naive if way == "naive" else chunked(chunk_size)

    def loss(
        hidden: jax.Array, matrix: jax.Array, targets: jax.Array, weights: jax.Array
    ) -> jax.Array:
        logprobs, entropies = stats(hidden, matrix, targets)
        return jnp.vdot(weights, logprobs) + jnp.vdot(weights, entropies)

    tokens = (PROMPTS, GROUP, length)
    shapes = [
        jax.ShapeDtypeStruct((*tokens, width), jnp.float32),
        jax.ShapeDtypeStruct((width, vocabulary), jnp.float32),
        jax.ShapeDtypeStruct(tokens, jnp.int32),
        jax.ShapeDtypeStruct(tokens, jnp.float32),
    ]
    return jax.jit(jax.grad(loss, argnums=(0, 1))).lower(*shapes).compile()


def planned_bytes(way: str, length: int, vocabulary: int, width: int, chunk_size: int) -> int:
    """Bytes of intermediate arrays at the planned peak."""
    compiled = compile_gradient(way, length, vocabulary, width, chunk_size)
    return int(compiled.memory_analysis().temp_size_in_bytes)


def measured_bytes(way: str, length: int, vocabulary: int, width: int, chunk_size: int) -> int:
    """Bytes by which running once raised the resident memory of a fresh process, outputs in it."""
    sizes = [str(n) for n in (length, vocabulary, width, chunk_size)]
    command = [sys.executable, __file__, "--run-once", way, *sizes]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(done.stdout)


def run_once(way: str, length: int, vocabulary: int, width: int, chunk_size: int) -> int:
    """Run the gradient in this process; return the growth of its resident memory at the peak."""
    compiled = compile_gradient(way, length, vocabulary, width, chunk_size)
    arrays = [jnp.ones(x.shape, x.dtype) for x in jax.tree.leaves(compiled.in_avals)]
    jax.block_until_ready(arrays)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts anew
    before = _status_bytes("VmRSS")
    jax.block_until_ready(compiled(*arrays))
    return _status_bytes("VmHWM") - before


def _status_bytes(field: str) -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    found = re.search(rf"{field}:\s+(\d+) kB", status)
    if found is None:
        raise SystemExit(f"memory.py: expected {field} in /proc/self/status; --measure needs Linux")
    return 1024 * int(found[1])


def report(options: argparse.Namespace) -> dict[str, Any]:
    """Fill the table for all settings, and measure the smallest one if asked."""
    fixed = (options.width, options.chunk)
    rows = []
    for vocabulary in options.vocabularies:
        for length in options.lengths:
            planned = {way: planned_bytes(way, length, vocabulary, *fixed) for way in WAYS}
            rows.append({"vocabulary": vocabulary, "completion_length": length, **planned})
    result: dict[str, Any] = {
        "setting": {
            "prompts": PROMPTS,
            "group": GROUP,
            "width": options.width,
            "chunk_size": options.chunk,
            "dtype": "float32",
            "jax": jax.__version__,
            "platform": jax.default_backend(),
        },
        "planned_bytes": rows,
    }
    if options.measure:
        smallest = (min(options.lengths), min(options.vocabularies))
        result["measured_bytes"] = {
            "completion_length": smallest[0],
            "vocabulary": smallest[1],
            **{way: measured_bytes(way, *smallest, *fixed) for way in WAYS},
        }
    return result


def table(result: dict[str, Any]) -> str:
    """Render `report` in Markdown, in MiB."""
    setting = result["setting"]
    lines = [
        "Intermediate arrays (MiB) of the gradient of log-probs and entropies,"
        f" B={setting['prompts']}, G={setting['group']}, D={setting['width']},"
        f" {setting['dtype']}, chunk_size {setting['chunk_size']},"
        f" planned by jax {setting['jax']} for {setting['platform']}.",
        "",
        "| V | C | chunked | naive | naive / chunked |",
        "|--:|--:|--:|--:|--:|",
    ]
    for row in result["planned_bytes"]:
        ours, theirs = (row[way] / 2**20 for way in WAYS)
        lines.append(
            f"| {row['vocabulary']:,} | {row['completion_length']:,} | {ours:,.0f} | {theirs:,.0f}"
            f" | {theirs / ours:.1f} |"
        )
    if "measured_bytes" in result:
        row = result["measured_bytes"]
        ours, theirs = (row[way] / 2**20 for way in WAYS)
        lines += [
            "",
            f"Measured growth of a process, gradients included, at V={row['vocabulary']:,},"
            f" C={row['completion_length']:,}: chunked {ours:,.0f} MiB, naive {theirs:,.0f} MiB.",
        ]
    return "\n".join(lines)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Memory of log-probs and entropies.")
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS, help="C, tokens")
    parser.add_argument("--vocabularies", type=int, nargs="+", default=VOCABULARIES, help="V")
    parser.add_argument("--width", type=int, default=1024, help="D, model width")
    parser.add_argument("--chunk", type=int, default=512, help="vocabulary entries a logits chunk")
    parser.add_argument("--measure", action="store_true", help="also run the smallest setting")
    parser.add_argument("--json", type=Path, help="where to write all figures, in bytes")
    parser.add_argument("--run-once", nargs=5, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Compile, print and write."""
    options = parse(arguments)
    if options.run_once:
        way, *sizes = options.run_once
        print(run_once(way, *(int(size) for size in sizes)))
        return
    result = report(options)
    print(table(result))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
