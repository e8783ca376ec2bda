"""Ranks over datasets: Friedman's test and Nemenyi's, where their premises hold.

Source: Demsar, "Statistical comparisons of classifiers over multiple data sets", JMLR 7 (2006).
Blocks must be independent of each other: datasets are, the cells of one dataset are not, so that
networks and seeds are averaged first and every dataset counts once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from mgdm_ray.evaluation.stats.paired import ALPHA

LEAST_TREATMENTS = 3
LEAST_BLOCKS = 6
"""Fewer datasets cannot tell two treatments apart even where one wins in all of them: the two-sided
sign test over 5 datasets has p >= 2 / 2^5 = 0.0625."""


@dataclass(frozen=True)
class Ranking:
    """Mean ranks (1 is best) of treatments over ``blocks``, and what tests say of them.

    ``refused`` says why nothing was tested; then all else is empty or nan. ``chi2`` is Friedman's
    statistic corrected for ties, ``p`` that of Iman and Davenport's F. ``nemenyi`` has the p of
    each pair, only where p <= 0.05: post-hoc tests need a difference to look for.
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

    ``blocks`` are those that were planned; default: all that occur.

    Refused, with a sentence: fewer than three treatments, fewer than six blocks, a block that some
    treatment lacks, or treatments that tie in every block.
    """
    names = list(values)
    blocks = list(blocks) or sorted({b for row in values.values() for b in row})
    lacking = [name for name in names if not set(blocks) <= set(values[name])]
    if len(names) < LEAST_TREATMENTS:
        return Ranking(
            f"ranks compare {LEAST_TREATMENTS} or more; here are {len(names)}, for which the "
            "paired contrast says it all"
        )
    if len(blocks) < LEAST_BLOCKS:
        return Ranking(
            f"Friedman's test needs independent blocks, which are datasets, and here are "
            f"{len(blocks)}: with fewer than {LEAST_BLOCKS} even what wins in all of them "
            f"cannot be told from chance. {LEAST_BLOCKS - len(blocks)} more would allow it; more "
            "networks or seeds would not"
        )
    if lacking:
        return Ranking(
            "Friedman's test needs complete blocks, and some dataset lacks cells of "
            + ", ".join(lacking)
        )
    table = np.array([[values[name][block] for name in names] for block in blocks])
    if np.all(table == table[:, :1]):
        return Ranking("all of them tie in every dataset")
    return _tested(names, table)


def _tested(names: list[str], table: np.ndarray) -> Ranking:
    from scipy import stats

    blocks, count = table.shape
    ranks = stats.rankdata(-table, axis=1).mean(axis=0)
    chi2 = float(stats.friedmanchisquare(*table.T).statistic)
    p = _iman_davenport(chi2, blocks, count)
    pairs = _nemenyi(names, table) if p <= ALPHA else {}
    by_name = {name: float(r) for name, r in zip(names, ranks, strict=True)}
    return Ranking("", by_name, blocks, chi2, p, pairs)


def _iman_davenport(chi2: float, blocks: int, count: int) -> float:
    """p of F = (N - 1) chi2 / (N (k - 1) - chi2) with k - 1 and (k - 1)(N - 1) degrees of freedom,
    less conservative than chi2's own. Source: Iman and Davenport (1980), Demsar (2006) sec. 3.2.2.
    """
    from scipy import stats

    room = blocks * (count - 1) - chi2
    if room <= 1e-9:  # the same order in every block
        return 0.0
    f = (blocks - 1) * chi2 / room
    return float(stats.f.sf(f, count - 1, (count - 1) * (blocks - 1)))


def _nemenyi(names: list[str], table: np.ndarray) -> dict[tuple[str, str], float]:
    from scikit_posthocs import posthoc_nemenyi_friedman

    p = np.asarray(posthoc_nemenyi_friedman(table))
    return {
        (a, b): float(p[i, j]) for i, a in enumerate(names) for j, b in enumerate(names) if i < j
    }


def critical_difference(count: int, blocks: int) -> float:
    """Mean ranks that differ by more are told apart: q sqrt(k (k + 1) / (6 N)), q the 95 % point
    of the studentised range over sqrt 2. Source: Demsar (2006), sec. 3.2.2."""
    from scipy import stats

    q = float(stats.studentized_range.ppf(1 - ALPHA, count, np.inf)) / math.sqrt(2)
    return q * math.sqrt(count * (count + 1) / (6 * blocks))
