"""How long a step takes at the chips' published rates: a bound, and an expectation.

The bound lets computing, memory and network overlap perfectly at their published rates. The
expectation takes the shares of those rates that well-tuned programs of this kind reach, and hides
no communication.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mental_r1_jax.planning.chips import Chip
from mental_r1_jax.planning.traffic import Collective
from mental_r1_jax.planning.workload import Workload, phase_flops, phase_memory_traffic

MATRIX_SHARE = 0.5
MEMORY_SHARE = 0.7
NETWORK_SHARE = 0.8
ICI_LATENCY = 2e-6
DCN_LATENCY = 100e-6

ASSUMPTIONS = (
    "every prompt and every completion has its greatest length, so times are upper ends",
    f"expected: {MATRIX_SHARE:.0%} of the matrix rate, {MEMORY_SHARE:.0%} of the memory bandwidth, "
    f"{NETWORK_SHARE:.0%} of the network's, no communication hidden behind computing",
    "a collective uses one axis of the ICI torus, in both directions, and starts in "
    f"{ICI_LATENCY * 1e6:.0f} us ({DCN_LATENCY * 1e6:.0f} us over DCN)",
    "parsing and rewards on the host, evaluation, checkpoints and compiling are not in it",
)


@dataclass(frozen=True)
class PhaseTime:
    """Seconds of one phase of a step, on one chip.

    Attributes:
        model_flops: operations that the method needs, over all chips.
        compute: of the matrix unit at its full rate, with what is computed twice.
        memory: seconds that HBM takes at its full bandwidth.
        ici: seconds that the links between neighbours take.
        dcn: seconds that the data-centre network takes.
        latency: seconds that starting the collectives takes.
    """

    model_flops: float
    compute: float
    memory: float
    ici: float
    dcn: float
    latency: float

    @property
    def bound(self) -> float:
        """The least that the phase can take."""
        return max(self.compute, self.memory, self.ici, self.dcn)

    @property
    def expected(self) -> float:
        """What it will take if the assumed shares are reached."""
        busy = max(self.compute / MATRIX_SHARE, self.memory / MEMORY_SHARE)
        return busy + (self.ici + self.dcn) / NETWORK_SHARE + self.latency


def phase_time(
    phase: str, work: Workload, chip: Chip, found: Sequence[Collective], beside: float = 0.0
) -> PhaseTime:
    """Time of all runs of one phase's program in a step.

    Args:
        phase: `rollout`, `reference` or `update`.
        work: sizes of the step.
        chip: published rates of each of the devices.
        found: collectives of one run of the program.
        beside: bytes that a device moves in one run beside those of the method.
    """
    needed, done = phase_flops(work)[phase]
    runs = work.runs[phase]
    return PhaseTime(
        model_flops=needed,
        compute=done / work.devices / chip.flops,
        memory=(phase_memory_traffic(work)[phase] + runs * beside) / chip.memory_bandwidth,
        ici=runs * sum(c.times * c.ici_bytes for c in found) / chip.ring_bandwidth,
        dcn=runs * sum(c.times * c.dcn_bytes for c in found) / chip.dcn_bandwidth,
        latency=runs * sum(c.times * (DCN_LATENCY if c.dcn_bytes else ICI_LATENCY) for c in found),
    )
