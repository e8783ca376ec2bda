"""Ranks over datasets: Friedman's and Nemenyi's tests, where their assumptions hold.

Blocks must be independent: datasets are, cells of one dataset are not, so networks and seeds are
averaged first. Source: Demsar, "Statistical comparisons of classifiers over multiple data sets",
JMLR 7 (2006).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from mgdm_ray.evaluation.stats.intervals import ALPHA

LEAST_TREATMENTS = 3
LEAST_BLOCKS = 6
"""With 5 datasets the two-sided sign test cannot go below p = 2 / 2^5 = 0.0625."""


@dataclass(frozen=True)
class Ranking:
    """Mean ranks (1 is best) of treatments over ``blocks``, with tests.

    ``refused``: why nothing was tested; all else is then empty or nan. ``chi2``: Friedman's
    statistic corrected for ties; ``p``: of Iman and Davenport's F; ``nemenyi``: p of each pair,
    only if p <= 0.05.
    """

    refused: str = ""
    mean_ranks: Mapping[str, float] = field(default_factory=dict)
    blocks: int = 0
    chi2: float = math.nan
    p: float = math.nan
    nemenyi: Mapping[tuple[str, str], float] = field(default_factory=dict)

    @property
    def differs(self) -> bool:
        return self.p <= ALPHA


def rank(values: Mapping[str, Mapping[str, float]], blocks: Sequence[str] = ()) -> Ranking:
    """Rank treatments by ``values[treatment][block]``, higher is better.

    ``blocks``: the planned ones; default: all that occur. Refused with a reason: fewer than three
    treatments, fewer than six blocks, an incomplete block, or ties in every block.
    """
    names = list(values)
    blocks = list(blocks) or sorted({b for row in values.values() for b in row})
    lacking = [name for name in names if not set(blocks) <= set(values[name])]
    if len(names) < LEAST_TREATMENTS:
        return Ranking(
            f"ranks compare at least {LEAST_TREATMENTS} treatments, and there are {len(names)}: "
            "see the paired contrast"
        )
    if len(blocks) < LEAST_BLOCKS:
        return Ranking(
            f"Friedman's test needs at least {LEAST_BLOCKS} independent datasets, and this study "
            f"has {len(blocks)}; more networks or seeds do not help"
        )
    if lacking:
        return Ranking(
            "Friedman's test needs complete datasets; cells are missing of " + ", ".join(lacking)
        )
    table = np.array([[values[name][block] for name in names] for block in blocks])
    if np.all(table == table[:, :1]):
        return Ranking("all treatments tie in every dataset")
    return _tested(names, table)


def _tested(names: list[str], table: np.ndarray) -> Ranking:
    """p is that of F = (N - 1) chi2 / (N (k - 1) - chi2), with k - 1 and (k - 1)(N - 1) degrees of
    freedom. Source: Iman and Davenport (1980), Demsar (2006) sec. 3.2.2."""
    from scikit_posthocs import posthoc_nemenyi_friedman
    from scipy import stats

    blocks, count = table.shape
    ranks = stats.rankdata(-table, axis=1).mean(axis=0)
    chi2 = float(stats.friedmanchisquare(*table.T).statistic)
    room, p = blocks * (count - 1) - chi2, 0.0
    if room > 1e-9:  # else all blocks have the same order
        f = (blocks - 1) * chi2 / room
        p = float(stats.f.sf(f, count - 1, (count - 1) * (blocks - 1)))
    nemenyi = {}
    if p <= ALPHA:
        found = np.asarray(posthoc_nemenyi_friedman(table))
        indices = itertools.combinations(range(count), 2)
        nemenyi = {(names[i], names[j]): float(found[i, j]) for i, j in indices}
    by_name = dict(zip(names, map(float, ranks), strict=True))
    return Ranking("", by_name, blocks, chi2, p, nemenyi)


def critical_difference(count: int, blocks: int) -> float:
    """Nemenyi's critical difference q sqrt(k (k + 1) / (6 N)), q the 95 % point of the
    studentised range over sqrt 2. Source: Demsar (2006), sec. 3.2.2."""
    from scipy import stats

    q = float(stats.studentized_range.ppf(1 - ALPHA, count, np.inf)) / math.sqrt(2)
    return q * math.sqrt(count * (count + 1) / (6 * blocks))
