"""Bytes that a program's operations move to and from the main memory of a chip, off its text.

An operation reads its operands and writes its results. What lies in a memory of the core costs
nothing here; of an array that is only sliced, the slices are read; of one that is updated in place,
the update is written, and nothing where a kernel does it, whose text does not tell how much. Sizes
are without the padding of their layout.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mental_r1_jax.planning.hlo import Array, Instruction, Program

MAIN_MEMORY = 0
# Other names of the same array, or of the same array in another memory of the chip.
_RENAMED = {"bitcast", "copy-start", "copy-done", "slice-start", "slice-done", "opt-barrier"}
_SLICES = {"dynamic-slice", "slice", "gather"}
_UPDATE = "dynamic-update-slice"
# Operations that compute nothing: they copy, cast, lay out anew, cut, join or fill.
_MOVING = {
    *("copy", "copy-start", "transpose", "reshape", "convert", "broadcast", "iota", "pad"),
    *("concatenate", "slice", "dynamic-slice", "gather", "reverse", _UPDATE),
}
_SILENT = {"parameter", "constant", "bitcast", "tuple", "get-tuple-element"}


@dataclass(frozen=True)
class Index:
    """Where everything in a program stands.

    Attributes:
        lines: computation -> name -> instruction.
        callers: computation -> (the computation that calls it, the instruction that does).
    """

    lines: Mapping[str, Mapping[str, Instruction]]
    callers: Mapping[str, tuple[str, Instruction]]


def index_program(program: Program) -> Index:
    """Look up instructions by name, and computations by their caller."""
    lines = {name: {x.name: x for x in part} for name, part in program.computations.items()}
    callers: dict[str, tuple[str, Instruction]] = {}
    for name, part in program.computations.items():
        for line in part:
            for called in line.calls:
                callers[called] = (name, line)
    return Index(lines, callers)


def is_carried(index: Index, loops: set[str], computation: str, name: str) -> bool:
    """Whether an array is part of the state with which a turn of one of `loops` begins.

    Args:
        index: of the program.
        loops: names of `while` instructions.
        computation: where the array is used.
        name: of the instruction that returns it.
    """
    line = index.lines[computation].get(name)
    if line is None:
        return False
    if line.opcode in _RENAMED or "ConcatBitcast" in line.rest:
        return is_carried(index, loops, computation, line.operands[0])
    if line.opcode == "get-tuple-element":
        place = int(str(line.attribute("index")))
        return _is_element_carried(index, loops, computation, line.operands[0], place)
    if line.opcode == "parameter" and computation in index.callers:
        where, by = index.callers[computation]
        if by.opcode == "call":
            return is_carried(index, loops, where, by.operands[int(line.literal)])
    return False


def _is_element_carried(
    index: Index, loops: set[str], computation: str, name: str, place: int
) -> bool:
    """The same for an element of a tuple, through the loops inside of the loop."""
    line = index.lines[computation].get(name)
    if line is None:
        return False
    if line.opcode == "tuple":
        return is_carried(index, loops, computation, line.operands[place])
    if line.opcode in ("while", "opt-barrier"):
        return _is_element_carried(index, loops, computation, line.operands[0], place)
    if line.opcode != "parameter" or computation not in index.callers:
        return False
    where, by = index.callers[computation]
    if by.name in loops:
        return True
    if by.opcode == "while":
        return _is_element_carried(index, loops, where, by.operands[0], place)
    return False


def bytes_read(index: Index, computation: str, line: Instruction, position: int) -> int:
    """Bytes of main memory that an operation reads of its operand at `position`."""
    operand = index.lines[computation].get(line.operands[position])
    if operand is None or len(operand.arrays) != 1 or operand.memories[0] != MAIN_MEMORY:
        return 0
    return _touched(index, computation, line, position, operand.arrays[0])


def _touched(index: Index, computation: str, line: Instruction, position: int, whole: Array) -> int:
    """Bytes of the array `whole` that a line reads as its operand at `position`."""
    if line.opcode in _SLICES and position == 0:
        return line.arrays[0].bytes
    if line.opcode == "slice-start":
        return line.arrays[1].bytes
    if line.opcode == _UPDATE and position == 0:
        return 0
    if line.opcode == "bitcast":
        return _users(index, computation, line.name, whole)
    if line.opcode != "fusion":
        return whole.bytes
    called = line.calls[0]
    inside = index.lines[called].values()
    taken = [x for x in inside if x.opcode == "parameter" and x.literal == str(position)]
    return sum(_users(index, called, x.name, whole) for x in taken)


def _users(index: Index, computation: str, name: str, whole: Array) -> int:
    """Bytes of `whole` that the users of `name` read together, at most all of them once."""
    total = 0
    for line in index.lines[computation].values():
        for position, operand in enumerate(line.operands):
            if operand == name:
                total += _touched(index, computation, line, position, whole)
    return min(total, whole.bytes)


def bytes_written(index: Index, computation: str, line: Instruction) -> int:
    """Bytes of main memory that an operation writes, of an update in place those that change."""
    kept = "output_to_operand_aliasing" in line.rest
    total = 0
    for array, memory in _results(index, computation, line):
        if memory == MAIN_MEMORY and not (kept and _is_operand(index, computation, line, array)):
            update = _update_of(index, computation, line, array)
            total += array.bytes if update is None else update
    return total


def _results(index: Index, computation: str, line: Instruction) -> list[tuple[Array, int]]:
    """What an operation returns and the memory it is in; a transfer names its source, too."""
    placed = list(zip(line.arrays, line.memories, strict=True))
    if line.opcode == "copy-start":  # both have one shape, and stand in either order
        operand = index.lines[computation].get(line.operands[0])
        source = operand.memories[0] if operand else MAIN_MEMORY
        return placed[:1] if placed[1][1] == source else placed[1:2]
    if line.opcode.endswith("-start") and len(placed) > 1:
        return placed[1:2]
    return placed


def _is_operand(index: Index, computation: str, line: Instruction, array: Array) -> bool:
    """Whether one of the operands has the shape of `array`, which may then be the same memory."""
    found = (index.lines[computation].get(name) for name in line.operands)
    return any(operand is not None and array in operand.arrays for operand in found)


def _update_of(index: Index, computation: str, line: Instruction, array: Array) -> int | None:
    """Bytes that a line, or what is fused in it, puts into an array like `array`; None: all new."""
    if line.opcode == _UPDATE and line.arrays[0] == array:
        return index.lines[computation][line.operands[1]].arrays[0].bytes
    if line.opcode != "fusion":
        return None
    called = line.calls[0]
    found = (_update_of(index, called, x, array) for x in index.lines[called].values())
    return next((update for update in found if update is not None), None)


def only_moves(index: Index, line: Instruction) -> bool:
    """Whether an operation computes nothing: it copies, casts, lays out anew, cuts or fills."""
    if line.opcode == "fusion":
        inside = [x for x in index.lines[line.calls[0]].values() if x.opcode not in _SILENT]
        return all(only_moves(index, x) for x in inside)
    return line.opcode in _MOVING
