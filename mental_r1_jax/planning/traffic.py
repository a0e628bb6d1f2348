"""The collectives of a compiled program: what travels between chips, how often, over which network.

Bytes are those that one chip sends, by the ring algorithms: (n - 1)/n of the whole array for an
all-gather, a reduce-scatter or an all-to-all over n chips, twice that for an all-reduce. Where a
group of chips spans several slices, the part inside a slice goes first, and only a chip's share of
the result crosses the data-centre network (DCN); everything else goes over the links between
neighbours (ICI).
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from mental_r1_jax.planning.hlo import Instruction, Program

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_STARTS = ("all-gather-start", "collective-permute-start")


@dataclass(frozen=True)
class Collective:
    """One exchange, as often as it happens in one run of the program.

    Attributes:
        kind: one of `KINDS`.
        array_bytes: size of the whole array (gathered, or before it is scattered).
        times: how often it happens.
        loops: number of loops around it.
        group: chips that take part in one exchange.
        ici_bytes: bytes that a chip sends over ICI each time.
        dcn_bytes: bytes that a chip sends over the data-centre network each time.
        source: where in our code it comes from.
    """

    kind: str
    array_bytes: int
    times: int
    loops: int
    group: int
    ici_bytes: float
    dcn_bytes: float
    source: str


def collectives(program: Program, num_devices: int, num_slices: int = 1) -> list[Collective]:
    """Find every collective of a program.

    The TPU compiler may spread one collective over a chain of fusions that overlap it with other
    work, in and outside of a loop; each link names the whole. A chain counts once, as often as its
    rarest link runs; other collectives count once in each loop.

    Args:
        program: what each device runs.
        num_devices: number of devices that run it together.
        num_slices: number of slices; each has a run of consecutive device numbers.
    """
    found: dict[tuple[str, tuple[str, ...]], Collective] = {}
    for visit in program.visits():
        line = visit.instruction
        if between := _between_slices(line, num_slices):
            found[line.name, visit.loops] = dataclasses.replace(
                between, times=visit.times, loops=len(visit.loops)
            )
            continue
        kind = line.opcode.removesuffix("-start")
        if kind not in KINDS:
            continue
        groups = device_groups(line.rest, num_devices)
        size = sum(array.bytes for array in _results(line))
        if _scattered(program, line) and kind == "all-reduce":
            kind = "reduce-scatter"
        elif kind == "reduce-scatter":
            size *= groups.shape[1]
        ici, dcn = _sent(kind, size, groups, num_devices // num_slices)
        this = Collective(
            kind, size, visit.times, len(visit.loops), groups.shape[1], ici, dcn, line.source
        )
        key: tuple[str, tuple[str, ...]] = line.name, visit.loops
        if "chain_id=" in line.rest:
            # Links have names of their own, and all that `shard_map` makes the same channel.
            key = f"{line.attribute('channel_id')} {kind} {size} {line.source}", ()
        found[key] = min(found.get(key, this), this, key=lambda each: each.times)
    return [each for each in found.values() if each.times and each.group > 1]


def by_kind(found: Iterable[Collective]) -> dict[str, dict[str, float]]:
    """Sum over one run: kind -> {times, ici_bytes, dcn_bytes} of one chip."""
    table: dict[str, dict[str, float]] = {}
    for each in found:
        row = table.setdefault(each.kind, {"times": 0, "ici_bytes": 0.0, "dcn_bytes": 0.0})
        row["times"] += each.times
        row["ici_bytes"] += each.times * each.ici_bytes
        row["dcn_bytes"] += each.times * each.dcn_bytes
    return {kind: table[kind] for kind in KINDS if kind in table}


def device_groups(attributes: str, num_devices: int) -> np.ndarray:
    """Read which devices exchange with each other, in any of the ways that XLA writes it.

    Returns:
        One row a group; of a permutation, one row for each pair that differs, or a single device.

    Raises:
        ValueError: an unknown way.
    """
    everyone = np.arange(num_devices)[None]
    if pairs := re.search(r"source_target_pairs=\{([{}\d,]*)\}", attributes):
        numbers = np.array(re.findall(r"\{(\d+),(\d+)\}", pairs[1]), int).reshape(-1, 2)
        moved = numbers[numbers[:, 0] != numbers[:, 1]]
        return moved if len(moved) else everyone[:, :1]
    if found := re.search(
        r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\((.*?)\))?\s*\{([^}]*)\}", attributes
    ):
        sizes = [int(n) for n in re.findall(r"=(\d+)", found[1])]
        devices = _iota(found[2]) if found[2] else np.arange(math.prod(sizes))
        names = re.findall(r"'([^']+)'=", found[1])
        return _mesh_groups(devices.reshape(sizes), names, found[3])
    if found := re.search(r"replica_groups=\[([\d,]+)\]<=(\S+)", attributes):
        return _iota(found[2]).reshape(_numbers(found[1]))
    if found := re.search(r"replica_groups=\{((?:\{[\d,]+\},?)*)\}", attributes):
        rows = re.findall(r"\{([\d,]+)\}", found[1])
        return np.array([_numbers(row) for row in rows]) if rows else everyone
    raise ValueError(f"cannot read the groups of devices in {attributes[:200]!r}")


def _mesh_groups(devices: np.ndarray, axes: list[str], over: str) -> np.ndarray:
    """Groups over named axes of a mesh, `'a':(2)4` standing for the part of size 4 after 2."""
    names, shape = list(axes), list(devices.shape)
    for name, before, size in re.findall(r"'([^']+)':\((\d+)\)(\d+)", over):
        at = names.index(name)
        after = shape[at] // (int(before) * int(size))
        names[at : at + 1] = [f"{name} before", f"{name}:({before}){size}", f"{name} after"]
        shape[at : at + 1] = [int(before), int(size), after]
    wanted = re.findall(r"'([^']+)'(:\(\d+\)\d+)?", over)
    last = [names.index(name + part) for name, part in wanted]
    first = [i for i in range(len(names)) if i not in last]
    order = devices.reshape(shape).transpose(first + last)
    return order.reshape(-1, math.prod(shape[i] for i in last))


def _iota(text: str) -> np.ndarray:
    """`[2,4]T(1,0)`: the numbers from 0 on in that shape, transposed so."""
    found = re.match(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
    if found is None:
        raise ValueError(f"cannot read the order of devices in {text[:200]!r}")
    numbers = np.arange(math.prod(_numbers(found[1]))).reshape(_numbers(found[1]))
    return numbers.transpose(_numbers(found[2])) if found[2] else numbers


def _numbers(text: str) -> list[int]:
    """`2,4` -> [2, 4]."""
    return [int(n) for n in text.split(",")]


def _results(line: Instruction) -> tuple:
    """The arrays that a collective leaves behind; a started one also returns its inputs."""
    if line.opcode not in _STARTS:
        return line.arrays
    return line.arrays[len(line.operands) : 2 * len(line.operands)]


def _scattered(program: Program, line: Instruction) -> bool:
    """Whether an all-reduce is the first half of a fused reduce-scatter."""
    return any(
        lines[-1].opcode != line.opcode and line in lines and "reduce-scatter" in name
        for name, lines in program.computations.items()
    )


def _between_slices(line: Instruction, num_slices: int) -> Collective | None:
    """The exchange over DCN that a `send` to the host stands for, or None.

    The TPU compiler makes three of a collective over several slices: a part inside each slice, an
    exchange of a chip's share through the hosts (`megascale`), and another part inside the slice.
    """
    found = re.search(r'_xla_megascale_transfer_type="(\w+)"', line.rest)
    if line.opcode != "send" or found is None:
        return None
    size = line.arrays[0].bytes
    kind, share = {
        "ALL_REDUCE": ("all-reduce", 2 * (num_slices - 1) / num_slices),
        "ALL_GATHER": ("all-gather", num_slices - 1.0),
        "REDUCE_SCATTER": ("reduce-scatter", (num_slices - 1) / num_slices),
        "ALL_TO_ALL": ("all-to-all", (num_slices - 1) / num_slices),
        "ONE_TO_ONE": ("collective-permute", 1.0),
    }[found[1]]
    return Collective(kind, size, 0, 0, num_slices, 0.0, size * share, line.source)


def _sent(kind: str, size: int, groups: np.ndarray, slice_size: int) -> tuple[float, float]:
    """Bytes that one chip sends over ICI and over DCN, see the module's text."""
    slices = groups // slice_size
    if kind == "collective-permute":
        crosses = bool((slices[:, 0] != slices[:, -1]).any())
        return (0.0, float(size)) if crosses else (float(size), 0.0)
    parts = max(len(set(row)) for row in slices.tolist())
    inside = groups.shape[1] // parts
    rounds = 2 if kind == "all-reduce" else 1
    ici = rounds * size * (inside - 1) / inside
    dcn = rounds * size / inside * (parts - 1) / parts
    return ici, dcn
