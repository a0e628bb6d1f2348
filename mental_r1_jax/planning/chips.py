"""What the chips can do, as their makers publish it.

Sources: https://docs.cloud.google.com/tpu/docs/v5e, /v5p and /v6e for rates and bandwidths (the
page of v6e gives no data-centre figure; its machines have 4 x 200 Gbit/s for 8 chips). Usable
memory is what the TPU compiler itself says when a program does not fit.
"""

from __future__ import annotations

from dataclasses import dataclass

from mental_r1_jax.footprint import GIB


@dataclass(frozen=True)
class Chip:
    """One chip.

    Attributes:
        name: what people call the chip.
        flops: bfloat16 matrix rate, operations a second.
        memory: bytes of HBM that a program can use.
        memory_bandwidth: bytes a second between HBM and the cores.
        ici_bandwidth: bytes a second that a chip sends to its neighbours, all links together.
        ici_axes: axes of the torus that the links lie on.
        dcn_bandwidth: bytes a second that a chip sends into the data-centre network: its share of
            its machine's network cards.
    """

    name: str
    flops: float
    memory: float
    memory_bandwidth: float
    ici_bandwidth: float
    ici_axes: int
    dcn_bandwidth: float

    @property
    def ring_bandwidth(self) -> float:
        """Bytes a second that a chip sends along one axis of the torus, in both directions."""
        return self.ici_bandwidth / self.ici_axes


# The documented ICI figures count both directions of every link: half of them is what is sent.
CHIPS = {
    "v5e": Chip("TPU v5e", 197e12, 15.75 * GIB, 819e9, 400e9 / 2, 2, 25e9 / 8),
    "v5p": Chip("TPU v5p", 459e12, 95.74 * GIB, 2765e9, 1200e9 / 2, 3, 50e9 / 8),
    "v6e": Chip("TPU v6e", 918e12, 31.25 * GIB, 1638e9, 800e9 / 2, 2, 100e9 / 8),
}
