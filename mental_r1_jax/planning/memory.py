"""Where the memory of a chip goes in each phase of a step.

The sums are the compiler's: what a program is given, what it returns and what it needs besides.
Their parts are named by the sizes of the arrays that must be among them (`footprint.py`).
"""

from __future__ import annotations

from typing import Any

from mental_r1_jax.footprint import Footprint

PARTS = (
    *("parameters", "optimizer", "reference", "batch", "gradients", "activations"),
    *("decoding weights", "cache", "head", "temporaries", "code"),
)


def phase_parts(phase: str, stats: Any, held: Footprint) -> dict[str, float]:
    """Bytes of one chip while a phase runs, by part; they add up to its peak.

    Weights, moments and reference are there all the time, whether this program reads them or not.
    Of its temporary arrays, those are named whose sizes follow from the shapes.

    Args:
        phase: `rollout`, `reference` or `update`.
        stats: the compiler's figures for that phase, from `Compiled.memory_analysis`.
        held: sizes of the arrays that we know.
    """
    own = {
        "rollout": held.weights,
        # Under adapters the frozen weights are the reference; gradients are of the adapters alone.
        "reference": held.reference or held.weights - held.gradients or held.weights,
        "update": held.weights + held.moments,
    }[phase]
    new_outputs = stats.output_size_in_bytes - stats.alias_size_in_bytes
    parts = dict.fromkeys(PARTS, 0.0) | {
        "parameters": held.weights,
        "optimizer": held.moments,
        "reference": held.reference,
        "batch": max(0.0, stats.argument_size_in_bytes - own) + new_outputs,
        "code": stats.generated_code_size_in_bytes,
    }
    known = {
        "rollout": {
            "decoding weights": held.decoding_weights,
            "cache": held.cache,
            "head": held.decoding_head,
        },
        "reference": {},
        "update": {
            "gradients": held.gradients,
            "activations": held.layer_inputs,
            "head": held.head + held.logits_chunk,
        },
    }[phase]
    rest = stats.temp_size_in_bytes
    for name, size in known.items():
        parts[name] = min(size, rest)
        rest -= parts[name]
    return parts | {"temporaries": rest}
