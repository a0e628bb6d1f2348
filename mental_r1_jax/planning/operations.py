"""What a program launches and moves beside the work of the method, read off its text.

A launched operation is a fusion, a copy or whatever else the chip runs by itself. What it reads and
writes in HBM counts; arrays that the compiler keeps on the chip (VMEM) cost no bandwidth.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from mental_r1_jax.planning.hlo import Instruction, Program, Visit

# Names, or an asynchronous half of something that is counted with its other half or runs beside.
_NOT_LAUNCHED = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional"),
    *("call", "opt-barrier", "after-all", "partition-id", "replica-id", "domain"),
}
# They put numbers elsewhere or in another form, and compute none.
_MOVING = {
    *("copy", "transpose", "reshape", "convert", "concatenate", "pad", "slice", "broadcast"),
    *("dynamic-slice", "dynamic-update-slice", "gather", "reverse", "iota"),
}
_PICKING = ("gather", "dynamic-slice")
# Passes in which the search for the top-p threshold narrows its bracket; see `rollout/nucleus.py`.
SEARCH_TURNS = 2
_LAYER_SCOPES = ("/attention/", "/feed_forward/")


@dataclass(frozen=True)
class TokenOperations:
    """One turn of the decoding loop on one chip, on average over the loop.

    Attributes:
        layer: operations launched for one layer.
        others: operations launched outside of the layers: embedding, head, draw, records.
        layer_bytes: bytes that those of a layer read and write beside weights and caches.
        other_bytes: bytes that the others do.
    """

    layer: float
    others: float
    layer_bytes: float
    other_bytes: float

    def bytes_of_all(self, num_layers: int) -> float:
        """Bytes of a token beside weights and caches."""
        return num_layers * self.layer_bytes + self.other_bytes


@dataclass(frozen=True)
class Moved:
    """Bytes that one run of a program reads from HBM and writes to it.

    Attributes:
        all: of every launched operation.
        only_moving: of those that copy, cast or lay out anew, and compute nothing.
    """

    all: float
    only_moving: float


def token_operations(program: Program, num_layers: int) -> TokenOperations:
    """Count what a turn of the decoding loop launches, and moves beside its own state.

    Weights, caches and what else a turn is given and hands on are the loop's state. What an
    operation writes for another one, and what that reads, is beside it: activations, logits, masks,
    noise, casts and copies. Of a gather only what it picks counts.

    Args:
        program: a rollout's.
        num_layers: of the decoder.

    Raises:
        ValueError: there is no decoding loop in it.
    """
    turns: dict[str, int] = {}
    counts = {True: [0.0, 0.0], False: [0.0, 0.0]}
    reader = _Reader(program)
    for visit in reader.launched():
        if not visit.loops or not reader.is_decoding(visit.loops[0]):
            continue
        line, loop = visit.instruction, visit.loops[0]
        in_layer = any(scope in f"{line.source}/" for scope in _LAYER_SCOPES)
        turns[loop] = turns.get(loop, visit.times)
        counts[in_layer][0] += visit.times
        counts[in_layer][1] += visit.times * reader.moved(line, beside_state=len(visit.loops) == 1)
    if not turns:
        raise ValueError("no decoding loop in the program")
    tokens = sum(turns.values())
    (layer, layer_bytes), (others, other_bytes) = counts[True], counts[False]
    per_layer = num_layers * tokens
    return TokenOperations(
        layer / per_layer, others / tokens, layer_bytes / per_layer, other_bytes / tokens
    )


def moved_bytes(program: Program) -> Moved:
    """Sum what all launched operations move, each as often as it runs."""
    everything = only_moving = 0.0
    reader = _Reader(program)
    for visit in reader.launched():
        size = visit.times * reader.moved(visit.instruction, beside_state=False)
        everything += size
        only_moving += size if reader.only_moves(visit.instruction) else 0.0
    return Moved(everything, only_moving)


class _Reader:
    """Looks up what the lines of a program read and where their results go."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._lines = {line.name: line for lines in program.computations.values() for line in lines}
        self._last = {
            name: set(lines[-1].operands) for name, lines in program.computations.items() if lines
        }
        self._home = {
            line.name: name for name, lines in program.computations.items() for line in lines
        }

    def launched(self) -> Iterator[Visit]:
        """Every launched operation."""
        for visit in self._program.visits(_turns_of_a_search):
            opcode = visit.instruction.opcode
            if not visit.fused and opcode not in _NOT_LAUNCHED and not opcode.endswith("-done"):
                yield visit

    def is_decoding(self, loop: str) -> bool:
        """Whether it is the loop over tokens."""
        return self._lines[loop].source.endswith("decode/while")

    def moved(self, line: Instruction, *, beside_state: bool) -> float:
        """Bytes of HBM that an operation reads and writes; without the state of a loop or with."""
        results = sum(array.bytes for array in line.arrays if not array.on_chip)
        if beside_state and self._is_handed_on(line):
            results = 0
        read = 0
        for place, name in enumerate(line.operands):
            source = self._lines[name]
            if beside_state and self._is_given(source):
                continue
            size = sum(array.bytes for array in source.arrays if not array.on_chip)
            read += min(size, results) if self._picks(line, place) else size
        return float(results + read)

    def only_moves(self, line: Instruction) -> bool:
        """Whether an operation computes nothing."""
        if line.opcode != "fusion":
            return line.opcode in _MOVING
        inside = self._program.computations[str(line.attribute("calls"))]
        return all(each.opcode in _MOVING | _NOT_LAUNCHED for each in inside)

    def _is_given(self, line: Instruction) -> bool:
        """Whether it is a part of what the computation was called with."""
        while line.opcode in ("get-tuple-element", "bitcast", "opt-barrier"):
            line = self._lines[line.operands[0]]
        return line.opcode == "parameter"

    def _is_handed_on(self, line: Instruction) -> bool:
        """Whether its result is a part of what its computation returns."""
        last, home = self._last[self._home[line.name]], self._home[line.name]
        if line.name in last:
            return True
        users = (x for x in self._program.computations[home] if line.name in x.operands)
        renames = ("bitcast", "get-tuple-element")
        return any(user.name in last for user in users if user.opcode in renames)

    def _picks(self, line: Instruction, place: int) -> bool:
        """Whether of an operand only some places are read."""
        if line.opcode in _PICKING:
            return place == 0
        if line.opcode != "fusion":
            return False
        inside = self._program.computations[str(line.attribute("calls"))]
        names = {each.name for each in inside if _is_parameter(each, place)}
        users = [each for each in inside if names & set(each.operands)]
        return bool(users) and all(
            each.opcode in _PICKING and each.operands[0] in names for each in users
        )


def _is_parameter(line: Instruction, place: int) -> bool:
    return line.opcode == "parameter" and line.literal == str(place)


def _turns_of_a_search(loop: Instruction) -> int | None:
    """The search for a threshold ends long before its limit; other loops make all their turns."""
    return SEARCH_TURNS if loop.source.endswith("nucleus/while") else None
