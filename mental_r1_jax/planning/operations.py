"""What a program launches, and the bytes that it moves beside the method's own, off its text.

A launched operation is a fusion, a copy or whatever else the chip runs by itself. Each costs time
even when it moves little, and a roofline of weights, caches and products does not know it.
"""

from __future__ import annotations

from dataclasses import dataclass

from mental_r1_jax.planning.hlo import Instruction, Program, Visit
from mental_r1_jax.planning.moved import (
    Index,
    bytes_read,
    bytes_written,
    index_program,
    is_carried,
    only_moves,
)

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

    The bytes are those moved to and from the main memory beside weights, caches and whatever else
    the loop carries from token to token: logits, states, casts, copies, masks.

    Attributes:
        layer: operations launched for one layer.
        others: operations launched outside of the layers: embedding, head, draw, records.
        layer_bytes: moved for one layer.
        other_bytes: moved outside of the layers.
    """

    layer: float
    others: float
    layer_bytes: float
    other_bytes: float


@dataclass(frozen=True)
class MovedBytes:
    """Bytes that all operations of a program move to and from the main memory of one chip.

    Attributes:
        all: in one run of the program.
        only_moved: of these, by operations that compute nothing: copies, casts, transpositions,
            cuts and fills. They are neither reading of weights nor work on activations or
            gradients.
    """

    all: float
    only_moved: float


def token_operations(program: Program, num_layers: int) -> TokenOperations:
    """Count what a turn of the decoding loop launches, and moves beside what the loop carries.

    Args:
        program: a rollout's.
        num_layers: of the decoder.

    Raises:
        ValueError: there is no decoding loop in it.
    """
    index = index_program(program)
    sources = {line.name: line.source for part in program.computations.values() for line in part}
    turns: dict[str, int] = {}
    counts, moved = {True: 0.0, False: 0.0}, {True: 0.0, False: 0.0}
    for visit in program.visits(_usual_turns):
        line, loops = visit.instruction, visit.loops
        if not loops or not sources[loops[0]].endswith("decode/while") or visit.fused:
            continue
        # A transfer is the compiler's own and has no scope; it belongs to what it moves.
        scope = f"{line.source or sources.get(next(iter(line.operands), ''), '')}/"
        in_layer = any(part in scope for part in _LAYER_SCOPES)
        if _is_launched(line):
            turns[loops[0]] = turns.get(loops[0], visit.times)
            counts[in_layer] += visit.times
        moved[in_layer] += visit.times * _bytes(index, visit, {loops[0]})
    if not turns:
        raise ValueError("no decoding loop in the program")
    tokens = sum(turns.values())
    return TokenOperations(
        layer=counts[True] / (num_layers * tokens),
        others=counts[False] / tokens,
        layer_bytes=moved[True] / (num_layers * tokens),
        other_bytes=moved[False] / tokens,
    )


def moved_bytes(program: Program) -> MovedBytes:
    """Add up what all operations of a program move, and what those move that compute nothing."""
    index = index_program(program)
    everything, only_moved = 0.0, 0.0
    for visit in program.visits(_usual_turns):
        if visit.fused:
            continue
        size = visit.times * _bytes(index, visit, set())
        everything += size
        if _is_launched(visit.instruction) and only_moves(index, visit.instruction):
            only_moved += size
    return MovedBytes(everything, only_moved)


def _bytes(index: Index, visit: Visit, loops: set[str]) -> int:
    """Bytes that an operation moves, without reading what `loops` carry."""
    line, computation = visit.instruction, visit.computation
    if not _is_launched(line) and line.opcode not in _TRANSFERS:
        return 0
    read = sum(
        bytes_read(index, computation, line, position)
        for position, operand in enumerate(line.operands)
        if not is_carried(index, loops, computation, operand)
    )
    return read + bytes_written(index, computation, line)


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
