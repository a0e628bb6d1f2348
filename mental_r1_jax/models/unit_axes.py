"""Arrays without their axes of length 1, which cost time in XLA for CPU.

Such axes are those of a single prompt, of a group of one completion or of a single head. Reshaping
them away moves no number, on no device and no mesh.
"""

from __future__ import annotations

from jaxtyping import Array, Shaped


def without_unit_axes(x: Shaped[Array, "*axes"], kept: int) -> Shaped[Array, "..."]:
    """Reshape `x` so that of its axes only the last `kept` may have length 1."""
    leading = x.shape[: x.ndim - kept]
    return x.reshape(*(n for n in leading if n != 1), *x.shape[x.ndim - kept :])
