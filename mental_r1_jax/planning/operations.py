"""What a program launches for a token, read off its text.

A launched operation is a fusion, a copy or whatever else the chip runs by itself. Each costs time
even when it moves little, and a roofline of bytes and products does not know it.
"""

from __future__ import annotations

from dataclasses import dataclass

from mental_r1_jax.planning.hlo import Instruction, Program

# Names.
_NOT_LAUNCHED = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional"),
    *("call", "opt-barrier", "after-all", "partition-id", "replica-id", "domain"),
}
# Custom calls that name a buffer, promise something of it, or end one that is counted.
_NOT_LAUNCHED_CALLS = {
    *("AllocateBuffer", "AssumeGatherIndicesInBound", "AsyncCollectiveDone", "ConcatBitcast"),
}
_TRANSFERS = {"copy-start", "slice-start"}
# Turns that the loops of a truncated draw take, by their scope: the search for the threshold
# narrows its bracket two or three times (`rollout/nucleus.py`), and two candidates are mostly
# enough (`rollout/rejection.py`). Their limits are far beyond.
USUAL_TURNS = {"nucleus": 3, "rejection": 1}
_LAYER_SCOPES = ("/attention/", "/feed_forward/")


@dataclass(frozen=True)
class TokenOperations:
    """One turn of the decoding loop on one chip, on average over the loop.

    Attributes:
        layer: operations launched for one layer.
        others: operations launched outside of the layers: embedding, head, draw, records.
    """

    layer: float
    others: float


def token_operations(program: Program, num_layers: int) -> TokenOperations:
    """Count what a turn of the decoding loop launches.

    Args:
        program: a rollout's.
        num_layers: of the decoder.

    Raises:
        ValueError: there is no decoding loop in it.
    """
    sources = {line.name: line.source for part in program.computations.values() for line in part}
    turns: dict[str, int] = {}
    counts = {True: 0.0, False: 0.0}
    for visit in program.visits(_usual_turns):
        line, loops = visit.instruction, visit.loops
        if not loops or not sources[loops[0]].endswith("decode/while"):
            continue
        if visit.fused or not _is_launched(line):
            continue
        turns[loops[0]] = turns.get(loops[0], visit.times)
        counts[any(scope in f"{line.source}/" for scope in _LAYER_SCOPES)] += visit.times
    if not turns:
        raise ValueError("no decoding loop in the program")
    tokens = sum(turns.values())
    return TokenOperations(counts[True] / (num_layers * tokens), counts[False] / tokens)


def _is_launched(line: Instruction) -> bool:
    """Whether an instruction outside of fusions is an operation of its own.

    The second half of an asynchronous one is not: it is counted with the first. Nor is a transfer
    between two memories of the chip, by which weights are fetched ahead and small results put back
    beside the computation; a copy within one memory is.
    """
    if line.opcode == "custom-call":
        target = line.attribute("custom_call_target") or ""
        return target.strip('"') not in _NOT_LAUNCHED_CALLS
    if line.opcode in _TRANSFERS:
        # What is copied and what it becomes, in either order; a number of the transfer follows.
        return line.memories[0] == line.memories[1]
    return line.opcode not in _NOT_LAUNCHED and not line.opcode.endswith("-done")


def _usual_turns(loop: Instruction) -> int | None:
    """Turns of a loop that ends long before its limit; other loops make all their turns."""
    *_, scope, last = ["", *loop.source.split("/")]
    return USUAL_TURNS.get(scope) if last == "while" else None
