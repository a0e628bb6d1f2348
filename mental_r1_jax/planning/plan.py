"""The result of planning as data: what is known about a run before it has run; and its JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mental_r1_jax.planning.chips import Chip
from mental_r1_jax.planning.operations import MovedBytes, TokenOperations
from mental_r1_jax.planning.roofline import ASSUMPTIONS, PhaseTime
from mental_r1_jax.planning.workload import Workload


@dataclass(frozen=True)
class PhasePlan:
    """One program of a step.

    Attributes:
        phase: `rollout`, `reference` or `update`.
        parts: bytes of a chip by part while it runs; None where it did not compile.
        needed: bytes that the compiler asked for where they were too many.
        traffic: kind of collective -> {times, ici_bytes, dcn_bytes} of a chip, in one run.
        time: None where it did not compile.
        compile_seconds: how long this machine took to compile it.
        token: of a rollout, what the chip launches and moves for one token.
        moved: bytes that the chip's operations move in one run.
    """

    phase: str
    parts: Mapping[str, float] | None
    needed: float | None
    traffic: Mapping[str, Mapping[str, float]]
    time: PhaseTime | None
    compile_seconds: float
    token: TokenOperations | None = None
    moved: MovedBytes | None = None

    @property
    def peak(self) -> float:
        """Bytes of a chip while the phase runs."""
        return sum(self.parts.values()) if self.parts is not None else float(self.needed or 0.0)


@dataclass(frozen=True)
class Plan:
    """A recipe on a topology.

    Attributes:
        recipe: name of the recipe.
        topology: layout and number of slices, `2 slices of v5p:2x2x4`.
        chip: published figures of each chip.
        work: the step: recipe, model and mesh.
        mesh_reason: why the mesh has these sizes.
        phases: in the order in which a step runs them.
        reshard_bytes: bytes that a chip sends to bring the weights into their decoding layout.
        steps: number of steps of the whole run.
        steps_reason: where that number comes from.
        remedy: the smallest change found with which it fits; empty where it fits.
    """

    recipe: str
    topology: str
    chip: Chip
    work: Workload
    mesh_reason: str
    phases: tuple[PhasePlan, ...]
    reshard_bytes: float
    steps: int
    steps_reason: str
    remedy: str = ""

    @property
    def peak(self) -> float:
        """The most bytes that a chip holds in any phase."""
        return max(phase.peak for phase in self.phases)

    @property
    def fits(self) -> bool:
        """Whether every program compiled, and none needs more than a chip has."""
        return self.peak <= self.chip.memory and all(p.parts is not None for p in self.phases)

    @property
    def bound(self) -> float:
        """Seconds that a step takes at least."""
        return sum(phase.time.bound for phase in self.phases if phase.time)

    @property
    def expected(self) -> float:
        """Seconds that a step will take by the assumptions."""
        return sum(phase.time.expected for phase in self.phases if phase.time)

    @property
    def further_round(self) -> float:
        """Seconds, as expected, that a step takes longer for each round after the first one."""
        drawn = (phase.time for phase in self.phases if phase.phase != "update")
        return sum(time.expected for time in drawn if time)

    @property
    def hours(self) -> float:
        """Of the whole run, as expected; with one round a step."""
        return self.steps * self.expected / 3600

    @property
    def chip_hours(self) -> float:
        """Hours times chips, which is what is paid for."""
        return self.hours * self.work.devices

    def per_hour(self, count: int) -> float | None:
        """What is done `count` times a step, an hour; None where no time is known."""
        return 3600 * count / self.expected if self.expected else None

    def as_json(self) -> dict[str, Any]:
        """Everything, with the derived figures, as plain values."""
        phases = [
            dataclasses.asdict(phase)
            | {
                "peak_bytes": phase.peak,
                "bound_seconds": phase.time and phase.time.bound,
                "expected_seconds": phase.time and phase.time.expected,
            }
            for phase in self.phases
        ]
        return {
            "recipe": self.recipe,
            "topology": self.topology,
            "chips": self.work.devices,
            "chip": dataclasses.asdict(self.chip),
            "mesh": dict(self.work.mesh),
            "mesh_reason": self.mesh_reason,
            "fits": self.fits,
            "remedy": self.remedy,
            "peak_bytes": self.peak,
            "phases": phases,
            "reshard_bytes": self.reshard_bytes,
            "step_bound_seconds": self.bound,
            "step_expected_seconds": self.expected,
            "prompts_per_hour": self.per_hour(self.work.config.rollout.prompts_per_step),
            "completion_tokens_per_hour": self.per_hour(self.work.completion_tokens),
            "further_round_expected_seconds": self.further_round,
            "steps": self.steps,
            "steps_reason": self.steps_reason,
            "hours": self.hours,
            "chip_hours": self.chip_hours,
            "compile_seconds": sum(phase.compile_seconds for phase in self.phases),
            "assumptions": list(ASSUMPTIONS),
        }
