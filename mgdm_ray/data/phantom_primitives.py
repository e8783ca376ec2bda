"""Soft shapes and smooth textures, from which the phantoms are drawn.

All lengths are shares of the image's width, so a drawing means the same at every size.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Colour = tuple[float, float, float]


@lru_cache(maxsize=8)
def grid(size: int) -> tuple[Array, Array]:
    """Pixel centres x (to the right) and y (down), both `[size, size]` in (0, 1), read-only."""
    centre = (np.arange(size) + 0.5) / size
    x, y = np.meshgrid(centre, centre)
    x.flags.writeable = y.flags.writeable = False
    return x, y


@lru_cache(maxsize=64)
def _smoother(size: int, cells: int) -> Array:
    """Rows `[size, cells]` turning independent normals into a smooth curve of unit variance:
    Gaussian weights around each pixel, divided by their Euclidean norm."""
    pixel = (np.arange(size)[:, None] + 0.5) / size * (cells - 1)
    weight: Array = np.exp(-0.5 * ((pixel - np.arange(cells)) / 0.6) ** 2)
    weight /= np.linalg.norm(weight, axis=1, keepdims=True)
    return weight


def cloud(rng: np.random.Generator, size: int, rows: int, columns: int | None = None) -> Array:
    """Smooth noise `[size, size]`, mean 0, variance 1, about ``rows`` x ``columns`` blobs."""
    columns = columns or rows
    normals = rng.standard_normal((rows, columns))
    return _smoother(size, rows) @ normals @ _smoother(size, columns).T


def edge(size: int, softness: float = 0.0) -> float:
    """Width of an edge: never sharper than about half a pixel, which is the anti-aliasing."""
    return max(0.6 / size, softness)


def soft(distance: Array, width: float) -> Array:
    """1 where ``distance`` is far below 0, 0 far above it, an edge of ``width`` between."""
    return 0.5 - 0.5 * np.tanh(distance / width)


def blob(x: Array, y: Array, x0: float, y0: float, radius: float) -> Array:
    """Gaussian spot of height 1, never narrower than about half a pixel."""
    drawn = max(radius, 0.45 / len(x))
    return np.exp(-0.5 * ((x - x0) ** 2 + (y - y0) ** 2) / drawn**2)


def polar(size: int, x0: float, y0: float, aspect: float, tilt: float) -> tuple[Array, Array]:
    """Distance and angle from a centre, in coordinates in which an ellipse of that ``aspect``
    (width over height) turned by ``tilt`` radians is a circle of equal area."""
    x, y = grid(size)
    u = (x - x0) * np.cos(tilt) + (y - y0) * np.sin(tilt)
    v = (y - y0) * np.cos(tilt) - (x - x0) * np.sin(tilt)
    u, v = u / aspect**0.5, v * aspect**0.5
    return np.hypot(u, v), np.arctan2(v, u)


def outline(rng: np.random.Generator, angle: Array, roughness: float, spikes: float = 0.0) -> Array:
    """Radius around 1 as a function of the angle: low harmonics and ``spikes``, nine thin rays."""
    factor = np.ones_like(angle)
    for k in range(2, 8):
        amplitude, phase = rng.normal(0, 1) * roughness / k**0.7, rng.uniform(0, 2 * np.pi)
        factor += amplitude * np.cos(k * angle + phase)
    for _ in range(9):
        centre, height = rng.uniform(-np.pi, np.pi), rng.uniform(0.3, 1.0) * spikes
        away = np.pi - np.abs(np.pi - np.abs(angle - centre))  # the shorter way around
        factor += height * np.exp(-0.5 * (away / 0.16) ** 2)
    return np.clip(factor, 0.3, 2.5)


def paint(image: Array, share: Array, colour: Colour | Array) -> Array:
    """``image`` `[S, S, 3]` with ``colour`` laid over it where ``share`` `[S, S]` is 1."""
    return image + share[..., None] * (np.asarray(colour) - image)
