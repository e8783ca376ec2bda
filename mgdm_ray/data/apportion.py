"""Integer counts in given proportions, and orders in which every prefix keeps them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mgdm_ray.seeding import derive_seed


def apportion(
    weights: Sequence[float] | NDArray[np.float64] | NDArray[np.int64],
    total: int,
    minimum: int = 0,
    capacity: NDArray[np.int64] | None = None,
) -> NDArray[np.int64]:
    """Split ``total`` into counts `[K]` int64 proportional to ``weights`` (>= 0, not all zero).

    Largest remainder method (Hamilton); ties go to the lower index. Every count is at least
    ``minimum`` and at most ``capacity[k]``; ValueError where that is impossible.
    """
    share = np.asarray(weights, dtype=np.float64)
    if share.ndim != 1 or (share < 0).any() or not share.sum() > 0:
        raise ValueError(f"weights must be >= 0 and not all zero; got {share.tolist()}")
    most = np.full(len(share), total) if capacity is None else np.asarray(capacity)
    if minimum * len(share) > total or most.sum() < total or (most < minimum).any():
        raise ValueError(
            f"cannot split {total} into {len(share)} counts between {minimum} and {most.tolist()}"
        )
    quota = share / share.sum() * total
    counts: NDArray[np.int64] = np.clip(np.floor(quota).astype(np.int64), minimum, most)
    # One at a time to where most is missing: without bounds this is the largest remainder.
    while (missing := total - int(counts.sum())) != 0:
        owed = quota - counts
        if missing > 0:
            counts[np.argmax(np.where(counts < most, owed, -np.inf))] += 1
        else:
            counts[np.argmin(np.where(counts > minimum, owed, np.inf))] -= 1
    return counts


def interleave(
    counts: NDArray[np.int64], *seed_parts: str | int | float | bool
) -> NDArray[np.int64]:
    """Labels `[sum(counts)]` int64, ``counts[k]`` times k, evenly mixed.

    Label j of the n of a class stands at about (j + u) / n of the way, u random, so that every
    prefix (the first images of a trial) has nearly the shares of the whole.
    """
    rng = np.random.default_rng(derive_seed("interleave", *seed_parts))
    labels = np.repeat(np.arange(len(counts)), counts)
    place = np.concatenate([(np.arange(n) + rng.random(n)) / max(n, 1) for n in counts])
    return labels[np.argsort(place, kind="stable")].astype(np.int64)
