"""Find images that occur more than once, identical or nearly so."""

from __future__ import annotations

from collections import defaultdict
from itertools import combinations
from typing import NamedTuple

import numpy as np

from mgdm_ray.data.checks import near
from mgdm_ray.data.inspection.survey import Survey
from mgdm_ray.data.npz import SPLITS


class Pair(NamedTuple):
    """Two rows of a survey and their correlation."""

    first: int
    second: int
    value: float


def identical(found: Survey) -> list[list[int]]:
    """Groups of rows whose pixels are equal, in any file format; constant images do not count."""
    rows: dict[bytes, list[int]] = defaultdict(list)
    for row, facts in enumerate(found.facts):
        if not facts.constant:
            rows[facts.digest].append(row)
    return [group for group in rows.values() if len(group) > 1]


def nearly_identical(found: Survey) -> list[Pair]:
    """Pairs in different splits or classes that correlate above 0.99 without being identical.

    The closest first; of each image only its nearest one in every other split and class.
    """
    labels = np.array([item.label for item in found.listing.items], dtype=np.int64)
    splits = np.array([item.split for item in found.listing.items])
    parts = [(splits == one, splits == other) for one, other in combinations(SPLITS, 2)]
    parts += [(labels == k, labels > k) for k in range(len(found.listing.classes) - 1)]
    pairs: dict[tuple[int, int], float] = {}
    for left, right in (map(np.flatnonzero, part) for part in parts):
        for value, one, other in near(found.small[left], found.small[right]):
            first, second = sorted((int(left[one]), int(right[other])))
            if found.facts[first].digest != found.facts[second].digest:
                pairs[first, second] = value
    ranked = sorted(pairs.items(), key=lambda pair: (-pair[1], pair[0]))
    return [Pair(first, second, value) for (first, second), value in ranked]
