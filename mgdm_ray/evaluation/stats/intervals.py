"""Intervals of a mean difference by Student's t, claims of a family, and the smallest margin.

Interval, p-value and margin of an estimate come from the same t, so they cannot contradict.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Draws = NDArray[np.int64]
"""The draw of synthetic images that each cell was trained with."""

LEVEL = 0.95
ALPHA = 0.05
ONE_SIDED = 0.04
"""Level of each of two one-sided tests: at 0.05 differences at the margin, which are skewed, passed
in 5.5 % of 6,000 simulated studies (benchmarks/statistics.py)."""
FLOOR = 0.5
"""With it, and 2 (draws - 1) degrees of freedom, one dataset with three draws covers 95.4 % (they
differ by 0.019) to 96.9 % (they do not), and any of three contrasts is falsely better in 3.7 and
1.9 %; without it the latter were 12 % (300 studies), with 1 and all degrees of freedom 98.2 % are
covered (1,000 studies, others 1,500)."""


@dataclass(frozen=True)
class Interval:
    """A mean difference with standard error ``se`` and degrees of freedom ``df``.

    ``se`` 0: no spread was visible, and there is no interval. ``images``: test images that it
    covers, 0 for those it takes as fixed; ``groups`` (patients) that they are of; ``draws`` of
    synthetic images per dataset, 0 for images it takes as fixed. ``image_share`` in [0, 1]: share
    of the variance due to test images alone.
    """

    difference: float
    se: float
    df: float
    cells: int = 0
    images: int = 0
    image_share: float = math.nan
    groups: int = 0
    draws: int = 0

    @property
    def is_known(self) -> bool:
        return self.se > 0

    @property
    def low(self) -> float:
        """Lower end of the 95 % interval; nan without one."""
        return self.difference - self._t(LEVEL + (1 - LEVEL) / 2) * self.se

    @property
    def high(self) -> float:
        return self.difference + self._t(LEVEL + (1 - LEVEL) / 2) * self.se

    @property
    def spans_zero(self) -> bool:
        """Whether the interval contains 0, or there is none."""
        return not (self.low > 0 or self.high < 0)

    @property
    def p(self) -> float:
        """Two-sided; without visible spread 1 for a difference of 0, else nan."""
        from scipy.special import stdtr

        if not self.is_known:
            return math.nan if self.difference else 1.0
        return 2 * float(stdtr(min(self.df, 1e9), -abs(self.difference / self.se)))

    def bound(self, alpha: float = ONE_SIDED) -> float:
        """Smallest margin within which two one-sided tests at ``alpha`` place the difference.

        Source: Schuirmann (1987), J. Pharmacokinet. Biopharm. 15, 657.
        """
        return abs(self.difference) + self._t(1 - alpha) * self.se

    def _t(self, q: float) -> float:
        from scipy.special import stdtrit

        return float(stdtrit(min(self.df, 1e9), q)) if self.is_known else math.nan


@dataclass(frozen=True)
class Claim:
    """An estimate among those of its family.

    ``p``: Holm's. ``bound``: smallest margin X for which "no difference larger than X" passes two
    one-sided tests, with Holm's thresholds within the family. Both nan where not tested.
    """

    estimate: Interval
    p: float
    bound: float

    @property
    def is_resolved(self) -> bool:
        return self.p <= ALPHA

    def is_within(self, margin: float | None) -> bool:
        """Whether a difference larger than ``margin`` is excluded."""
        return margin is not None and self.bound <= margin


def claims(family: Sequence[Interval | None]) -> list[Claim | None]:
    """Adjust a family; None (a planned test that could not be made) counts in it."""
    adjusted = holm([estimate.p if estimate else math.nan for estimate in family])
    margins = smallest_margins(family)
    return [
        Claim(estimate, p, margin) if estimate else None
        for estimate, p, margin in zip(family, adjusted, margins, strict=True)
    ]


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values, in the order given.

    nan (a planned test that could not be made) stays nan but counts in the family. Source: Holm
    (1979): adjusted p_(i) = max over j <= i of min(1, (m - j + 1) p_(j)).
    """
    there = [i for i, p in enumerate(p_values) if not math.isnan(p)]
    if any(not 0 <= p_values[i] <= 1 for i in there):
        raise ValueError(f"p-values must lie in [0, 1]; got {list(p_values)}")
    adjusted = [math.nan] * len(p_values)
    running = 0.0
    for rank, i in enumerate(sorted(there, key=lambda i: p_values[i])):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = running
    return adjusted


def smallest_margins(family: Sequence[Interval | None]) -> list[float]:
    """Per estimate the smallest margin at which Holm's procedure, at ONE_SIDED over the family,
    rejects differences beyond it; nan without an interval."""
    left = {i: one for i, one in enumerate(family) if one and one.is_known}
    margins = [math.nan] * len(family)
    running = 0.0
    for step in range(len(left)):
        bounds = {i: one.bound(ONE_SIDED / (len(family) - step)) for i, one in left.items()}
        first = min(bounds, key=bounds.__getitem__)
        running = max(running, bounds[first])
        margins[first] = running
        del left[first]
    return margins


class Spread(NamedTuple):
    """Variance of a mean, with its degrees of freedom."""

    variance: float
    df: float


def over_cells(
    groups: Sequence[Floats], draws: Sequence[Draws | None] | None = None
) -> Interval | None:
    """Mean over cells with datasets and test images fixed; None where a group has one cell.

    ``groups``: differences of each dataset's cells. ``draws``: of each cell; the interval then
    covers other draws, if ``by_draw`` finds them in every group.
    """
    total = sum(len(group) for group in groups)
    if not groups or any(len(group) < 2 for group in groups):
        return None
    difference = sum(float(group.sum()) for group in groups) / total
    weights = [len(group) / total for group in groups]
    found = [by_draw(*pair) for pair in zip(groups, draws or [None] * len(groups), strict=True)]
    drawn = [cells for cells in found if cells is not None]
    covered = len(drawn) == len(groups)
    spreads = [Spread(float(g.var(ddof=1)) / len(g), len(g) - 1) for g in groups]
    spreads = over_draws(drawn, weights) if covered else spreads
    parts = [w**2 * one.variance for w, one in zip(weights, spreads, strict=True)]
    df = sum(part**2 / one.df for part, one in zip(parts, spreads, strict=True))
    fewest = min(map(len, drawn)) if covered else 0
    return Interval(
        difference, visible(sum(parts)), satterthwaite(sum(parts), df), total, draws=fewest
    )


def by_draw(values: Floats, draws: Draws | None) -> Floats | None:
    """``values`` `[cells, ...]` as `[draws, cells of each, ...]`, in their order.

    None if the draws are not known, fewer than two, or of unequally many cells.
    """
    if draws is None:
        return None
    names, counts = np.unique(draws, return_counts=True)
    if len(names) < 2 or counts.min() < counts.max():
        return None
    return np.stack([values[draws == name] for name in names])


def over_draws(datasets: Sequence[Floats], weights: Sequence[float]) -> list[Spread]:
    """Per dataset that of the mean of its cells `[draws, networks]` over other draws.

    Networks of a draw share its images, so that a draw is one observation: the mean of its cells.
    Their variance has few degrees of freedom, and where it is small by chance Satterthwaite's
    approximation fails in the tails that Holm needs. So over all datasets it counts at least FLOOR
    times the interaction of draws and networks, which is all of it where draws do not differ.
    """
    seen = [Spread(float(d.mean(axis=1).var(ddof=1)) / len(d), len(d) - 1) for d in datasets]
    least = []
    for cells in datasets:
        draws, networks = cells.shape
        rest = cells - cells.mean(axis=1, keepdims=True) - cells.mean(axis=0) + cells.mean()
        df = (draws - 1) * max(1, networks - 1)
        least.append(Spread(FLOOR * float((rest**2).sum()) / (df * cells.size), 2 * (draws - 1)))
    totals = [
        sum(w**2 * one.variance for w, one in zip(weights, each, strict=True))
        for each in (seen, least)
    ]
    return seen if totals[0] >= totals[1] else least


def over_datasets(groups: Sequence[Floats]) -> Interval | None:
    """Mean over datasets of their means, for datasets in general; None for a single one.

    Student's t with k - 1 degrees of freedom: it keeps its level although the datasets' variances
    differ. Source: Bakirov and Szekely (2006), Zap. Nauchn. Sem. POMI 328, 5; Ibragimov and
    Mueller (2010), J. Bus. Econ. Stat. 28, 453.
    """
    means = np.array([group.mean() for group in groups])
    if len(means) < 2:
        return None
    se = visible(float(means.var(ddof=1)) / len(means))
    return Interval(float(means.mean()), se, len(means) - 1, sum(len(group) for group in groups))


def visible(variance: float) -> float:
    """The standard error; 0 for what rounding leaves of equal values."""
    return math.sqrt(variance) if variance > 1e-15 else 0.0


def satterthwaite(total: float, spread: float) -> float:
    """Satterthwaite's degrees of freedom, at least 1: (sum of parts)^2 / sum(part^2 / df)."""
    return max(1.0, total**2 / spread) if spread > 0 else math.inf
