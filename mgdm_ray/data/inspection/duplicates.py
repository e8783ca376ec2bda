"""Images that are there twice, or nearly so."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from mgdm_ray.data.checks import NEAR, nearest
from mgdm_ray.data.inspection.survey import Survey
from mgdm_ray.data.npz import SPLITS

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Pair:
    """Two rows of a survey and how much they correlate."""

    first: int
    second: int
    value: float


def identical(found: Survey) -> list[list[int]]:
    """Groups of rows whose pixels are equal, whatever the files' formats."""
    rows: dict[bytes, list[int]] = defaultdict(list)
    for row, facts in enumerate(found.facts):
        if not facts.constant:
            rows[facts.digest].append(row)
    return [group for group in rows.values() if len(group) > 1]


def nearly_identical(found: Survey) -> list[Pair]:
    """Pairs in different splits, or of different labels, that correlate above 0.99 and are not
    equal, the closest first. Of an image's near ones in a set the nearest."""
    items = found.listing.items
    labels = np.array([item.label for item in items], dtype=np.int64)
    splits = np.array([item.split for item in items])
    pairs: dict[tuple[int, int], float] = {}
    for one, other in combinations(SPLITS, 2):
        _compare(found, splits == one, splits == other, pairs)
    for label in range(len(found.listing.classes) - 1):
        _compare(found, labels == label, labels > label, pairs)
    ranked = sorted(pairs.items(), key=lambda pair: (-pair[1], pair[0]))
    return [Pair(first, second, value) for (first, second), value in ranked]


def _compare(
    found: Survey,
    ours: NDArray[np.bool_],
    others: NDArray[np.bool_],
    pairs: dict[tuple[int, int], float],
) -> None:
    left, right = np.flatnonzero(ours), np.flatnonzero(others)
    if not len(left) or not len(right):
        return
    best, which = nearest(found.small[right], found.small[left])
    for index in np.flatnonzero(best > NEAR):
        first, second = sorted((int(left[which[index]]), int(right[index])))
        if found.facts[first].digest != found.facts[second].digest:
            pairs[first, second] = float(best[index])
