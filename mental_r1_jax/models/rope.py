"""Rotary positions: frequencies, their changes for long contexts, and the rotation itself."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


@dataclass(frozen=True)
class RopeScaling:
    """Change of the rotary frequencies of a model trained for long contexts.

    Attributes:
        kind: `linear` divides every frequency by `factor`; `llama3` divides only the slow ones and
            blends in between (the Llama 3.1 rule).
        factor: by how much the slow frequencies are divided.
        low_freq_factor: wavelengths above `original_length / low_freq_factor` are divided in full.
        high_freq_factor: wavelengths below `original_length / high_freq_factor` stay as they are.
        original_length: context length (tokens) before the extension.
    """

    kind: Literal["linear", "llama3"]
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_length: int = 8192


def rope_frequencies(head_dim: int, theta: float, scaling: RopeScaling | None) -> np.ndarray:
    """Return the rotary frequencies ``f_j = theta ** (-2j / h)``, radians a token, float32 [h/2].

    Under `llama3` scaling with wavelength ``w = 2 pi / f`` and original length ``N``:
    ``f`` where ``w < N / high``, ``f / factor`` where ``w > N / low``, and between them the blend
    ``(1 - s) f / factor + s f`` with ``s = (N / w - low) / (high - low)``.

    Source: RoFormer (arXiv 2104.09864); Llama 3 herd of models (arXiv 2407.21783).
    """
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    frequencies = (1.0 / np.float32(theta) ** exponents).astype(np.float32)
    if scaling is None:
        return frequencies
    if scaling.kind == "linear":
        return frequencies / np.float32(scaling.factor)
    turns = scaling.original_length * frequencies / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    smooth = np.clip((turns - low) / (high - low), 0.0, 1.0)
    scaled = (1 - smooth) * frequencies / scaling.factor + smooth * frequencies
    return scaled.astype(np.float32)


def rotate(
    x: Float[Array, "*tokens heads h"], positions: Int[Array, "*#tokens"], frequencies: np.ndarray
) -> Float[Array, "*tokens heads h"]:
    """Rotate each pair ``(x_j, x_{j + h/2})`` by ``position * f_j`` radians, in float32."""
    angles = positions[..., None].astype(jnp.float32) * frequencies.reshape(
        (1,) * positions.ndim + (-1,)
    )
    cos, sin = jnp.cos(angles)[..., None, :], jnp.sin(angles)[..., None, :]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)


def rotation_factors(
    positions: Int[Array, " B"], frequencies: np.ndarray
) -> tuple[Float[Array, "B h"], Float[Array, "B h"]]:
    """Return c and s with which ``rotate(x) = c x + s x'``, x' being x with halves exchanged."""
    angles = positions[:, None].astype(jnp.float32) * frequencies[None]
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    return jnp.concatenate([cos, cos], axis=-1), jnp.concatenate([-sin, sin], axis=-1)
