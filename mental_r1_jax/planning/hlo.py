"""Reading a compiled program: its computations, how often each runs, and the arrays in it.

XLA prints the program that one device runs. A loop stands there once, so whatever is counted must
be multiplied by the number of its turns, which the loop's condition tells.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

_BYTES = {
    **{"pred": 1, "s8": 1, "u8": 1, "f8e4m3fn": 1, "f8e5m2": 1, "s16": 2, "u16": 2, "f16": 2},
    **{"bf16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8, "c64": 8, "c128": 16},
}
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")
# The same with its layout, which names the memory where it is not the main one.
_PLACED = re.compile(r"\b[a-z]\w*\[[\d,]*\](?:\{[^{}]*?(?:S\((\d+)\))?\})?")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_LINE = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
_CALLED = re.compile(r"\b(?:calls|to_apply)=%?([\w.\-]+)|\bbranch_computations=\{([^}]*)\}")
# Instructions whose called computation only combines two numbers.
_COMBINING = {
    *("all-reduce", "all-reduce-start", "reduce", "reduce-scatter", "reduce-window"),
    *("scatter", "select-and-scatter", "sort", "map"),
}


@dataclass(frozen=True)
class Array:
    """One array of a program, as large as it is on one device."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Size without the padding of its layout."""
        return math.prod(self.shape) * _BYTES.get(self.dtype, 0)


@dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
        name: unique in the program.
        opcode: `fusion`, `all-gather`, `while` and so on.
        arrays: what it returns; several for a tuple.
        memories: of each the number of the chip's memory that it is in; 0 is the main one.
        operands: names of its inputs.
        rest: everything after the operands.
        literal: what stands between the parentheses, the value of a constant.
    """

    name: str
    opcode: str
    arrays: tuple[Array, ...]
    memories: tuple[int, ...]
    operands: tuple[str, ...]
    rest: str
    literal: str

    def attribute(self, name: str) -> str | None:
        """The value of `name=value`, up to the next comma, or None."""
        found = re.search(rf"\b{name}=%?([^,\s]+)", self.rest)
        return found[1] if found else None

    @property
    def calls(self) -> tuple[str, ...]:
        """Computations that it runs, the body of a loop before its condition."""
        found = ", ".join(one or several for one, several in _CALLED.findall(self.rest))
        loop = (self.attribute("body"), self.attribute("condition"))
        return (*re.findall(r"[\w.\-]+", found), *(name for name in loop if name))

    @property
    def source(self) -> str:
        """Where in our code it comes from: names of scopes and of the operation."""
        found = re.search(r'op_name="([^"]*)"', self.rest)
        return found[1] if found else ""


@dataclass(frozen=True)
class Visit:
    """An instruction at one place in the tree of calls.

    Attributes:
        instruction: the line.
        times: how often it runs in one run of the program.
        loops: the loops around it, outermost first.
        fused: whether it is part of a fusion, so that its result never is a buffer.
        computation: name of the computation that it is in.
    """

    instruction: Instruction
    times: int
    loops: tuple[str, ...]
    fused: bool
    computation: str


# A loop -> its most turns, or None.
TurnLimit = Callable[[Instruction], int | None]


@dataclass(frozen=True)
class Program:
    """A compiled program.

    Attributes:
        computations: name -> its lines.
        entry: name of the computation that runs first.
        aliases: number of outputs that take over the memory of an input.
    """

    computations: dict[str, tuple[Instruction, ...]]
    entry: str
    aliases: int

    def visits(self, most_turns: TurnLimit = lambda loop: None) -> Iterator[Visit]:
        """Every instruction of the program with the number of times it runs.

        Args:
            most_turns: says of a loop how often it turns at most; None: as its condition tells.
        """
        yield from self._visit(self.entry, 1, (), False, most_turns)

    def _visit(
        self, name: str, times: int, loops: tuple[str, ...], fused: bool, most_turns: TurnLimit
    ) -> Iterator[Visit]:
        for line in self.computations[name]:
            yield Visit(line, times, loops, fused, name)
            if line.opcode == "while":
                turns, body = self.turns(name, line), line.attribute("body")
                turns = min(turns, most_turns(line) or turns)
                inside = (*loops, line.name)
                yield from self._visit(str(body), times * turns, inside, fused, most_turns)
                condition, asked = str(line.attribute("condition")), times * (turns + 1)
                yield from self._visit(condition, asked, inside, fused, most_turns)
                continue
            in_fusion = fused or line.opcode == "fusion"
            for called in _called(line):
                yield from self._visit(called, times, loops, in_fusion, most_turns)

    def turns(self, computation: str, loop: Instruction) -> int:
        """Turns of a loop: as the compiler noted, or from its counter; the most it can take.

        Raises:
            ValueError: neither tells.
        """
        noted = re.search(r"known_trip_count\D+(\d+)", loop.rest)
        if noted:
            return int(noted[1])
        index, bound = self._counter(loop)
        start = self._value(computation, loop.operands[0], index)
        return max(0, bound - start)

    def _counter(self, loop: Instruction) -> tuple[int, int]:
        """(place of the counter in the loop's state, value at which the loop ends)."""
        lines = {x.name: x for x in self.computations[str(loop.attribute("condition"))]}
        for line in lines.values():
            if line.opcode != "compare" or "direction=LT" not in line.rest:
                continue
            counter, bound = (lines[name] for name in line.operands)
            if counter.opcode == "get-tuple-element" and bound.opcode == "constant":
                return int(str(counter.attribute("index"))), int(bound.literal)
        raise ValueError(f"loop {loop.name} ({loop.source}): its condition bounds no counter")

    def _value(self, computation: str, name: str, index: int) -> int:
        """The integer at `index` of a loop's initial state: a constant, or an earlier loop's end.

        What is computed at run time counts as 0, so that the loop's length is an upper bound.
        """
        lines = {x.name: x for x in self.computations[computation]}
        state = lines.get(name)
        if state is None or state.opcode != "tuple":
            return 0
        line = lines.get(state.operands[index])
        while line is not None and line.opcode in ("copy", "bitcast"):
            line = lines.get(line.operands[0])
        if line is None:
            return 0
        if line.opcode == "constant":
            return int(line.literal)
        source = lines.get(line.operands[0]) if line.opcode == "get-tuple-element" else None
        if source is not None and source.opcode == "while":
            place, end = self._counter(source)
            return end if place == int(str(line.attribute("index"))) else 0
        return 0


def parse_program(text: str) -> Program:
    """Read the text that XLA prints for a compiled program.

    Raises:
        ValueError: there is no entry computation in it.
    """
    computations: dict[str, tuple[Instruction, ...]] = {}
    entry, name, lines = "", "", list[Instruction]()
    for raw in text.splitlines():
        if found := _HEADER.match(raw):
            name, lines = found[2], []
            entry = name if found[1] else entry
        elif raw.startswith("}"):
            computations[name] = tuple(lines)
        elif found := _LINE.match(raw):
            lines.append(_instruction(found[1], found[2]))
    if not entry:
        raise ValueError("no entry computation in the program's text")
    aliases = re.findall(r"\{[\d, ]*\}: \(\d+, \{[\d, ]*\}", text.lstrip().partition("\n")[0])
    return Program(computations, entry, len(aliases))


def arrays_in(shape: str) -> tuple[Array, ...]:
    """The arrays that a shape names, in order."""
    return tuple(
        Array(dtype, tuple(int(n) for n in dims.split(",") if n))
        for dtype, dims in _ARRAY.findall(re.sub(r"/\*.*?\*/|\{[^{}]*\}", "", shape))
    )


def memories_in(shape: str) -> tuple[int, ...]:
    """The memory of each array that a shape names, in order."""
    found = _PLACED.findall(re.sub(r"/\*.*?\*/", "", shape))
    return tuple(int(number or 0) for number in found)


def _instruction(name: str, text: str) -> Instruction:
    """Take `SHAPE opcode(operands), attributes` apart."""
    end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    shape, text = text[:end], text[end:].lstrip()
    opcode, _, _ = text.partition("(")
    close = _closing(text, len(opcode))
    inside = text[len(opcode) + 1 : close]
    operands = tuple(re.findall(r"%([\w.\-]+)", inside))
    arrays, memories, rest = arrays_in(shape), memories_in(shape), text[close + 1 :]
    return Instruction(name, opcode, arrays, memories, operands, rest, inside.strip())


def _closing(text: str, start: int) -> int:
    """Index of the parenthesis that closes the one at `start`."""
    depth = 0
    for i in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[i], 0)
        if depth == 0:
            return i
    raise ValueError(f"unbalanced parentheses in {text[:80]!r}")


def _called(line: Instruction) -> tuple[str, ...]:
    """Computations that an instruction calls once, other than those that combine two numbers."""
    if line.opcode in _COMBINING:
        return ()
    return line.calls
