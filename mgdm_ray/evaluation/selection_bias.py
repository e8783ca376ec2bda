"""Selection bias of a search, and whether proxy networks rank settings as other networks do.

A search's best score is a maximum over trials that share the seeds of their networks. Scored with
fresh seeds, the chosen setting loses its selection bias and what it owes to the shared seeds;
settings of all ranks, scored again too, lose only the latter on average. Images and validation
split stay the same, so selection on *their* chance shows on the test split only.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats as scipy_stats

from mgdm_ray.evaluation.stats.intervals import ALPHA, LEVEL, Floats
from mgdm_ray.evaluation.stats.paired import TIE, pooled_variance

RANDOM_ORDERS = 20_000
FEWEST = 5
"""Fewest settings whose ranking can be significant: perfect agreement of 4 has p = 2/24."""
FEWEST_SEEDS = 3
"""Fewest fresh scores per network for an interval."""
EXACT_SETTINGS = 7
"""Up to this many settings, all orders are enumerated."""


@dataclass(frozen=True)
class Agreement:
    """Spearman's rank correlation of two scores over ``n`` settings.

    ``low``, ``high``: 95 % percentile bootstrap over settings, nan below FEWEST, rough below about
    20. ``p``: two-sided permutation. ``rho``: nan below two settings or for a constant score.
    """

    rho: float
    low: float
    high: float
    p: float
    n: int

    @property
    def is_resolved(self) -> bool:
        """Whether the sign is known: the interval excludes 0 and the permutation test agrees."""
        return (self.low > 0 or self.high < 0) and self.p <= ALPHA


def spearman(
    one: Sequence[float], other: Sequence[float], n_boot: int = 10_000, seed: int = 0
) -> Agreement:
    """Spearman's correlation of two scores of the same settings, ties by mean rank.

    Bootstrap draws with a constant score are left out. Raises ValueError for unequal lengths and
    values that are not finite.
    """
    x, y = np.asarray(one, dtype=np.float64), np.asarray(other, dtype=np.float64)
    if x.ndim != 1 or x.shape != y.shape or not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError(f"two equally long lists of finite scores are needed; got {one}, {other}")
    nan, n = math.nan, len(x)
    rho = float(_spearman(x[None], y[None])[0]) if n > 1 else nan
    if n < FEWEST or math.isnan(rho):
        return Agreement(rho, nan, nan, nan if math.isnan(rho) else _p(x, y, rho, seed), n)
    picks = np.random.default_rng(seed).integers(n, size=(n_boot, n))
    drawn = _spearman(x[picks], y[picks])
    tail = (1 - LEVEL) / 2
    low, high = np.nanquantile(drawn, [tail, 1 - tail])
    return Agreement(rho, float(low), float(high), _p(x, y, rho, seed), n)


def _spearman(x: Floats, y: Floats) -> Floats:
    """Spearman's rho row by row; nan for a constant row."""
    a, b = (scipy_stats.rankdata(values, axis=1) for values in (x, y))
    a, b = a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True)
    below = np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))
    with np.errstate(invalid="ignore"):
        rho: Floats = np.clip((a * b).sum(axis=1) / below, -1, 1)
    return rho


def _p(x: Floats, y: Floats, rho: float, seed: int) -> float:
    """Two-sided p of ``rho`` over the orders of ``y``: all of them, or random ones."""
    exact = len(x) <= EXACT_SETTINGS
    if exact:
        orders = np.array(list(itertools.permutations(range(len(x)))))
    else:
        rng = np.random.default_rng(seed)
        orders = rng.permuted(np.tile(np.arange(len(x)), (RANDOM_ORDERS, 1)), axis=1)
    drawn = _spearman(np.broadcast_to(x, orders.shape), y[orders])
    hits = int((np.abs(drawn) >= abs(rho) - TIE).sum())
    return hits / len(orders) if exact else (1 + hits) / (1 + len(orders))


@dataclass(frozen=True)
class Optimism:
    """How much too high a score was: ``claimed`` minus the mean of ``n`` ``fresh`` scores.

    ``low``, ``high``: 95 % t-interval given the claimed score; nan with one seed or no spread.
    """

    claimed: float
    fresh: float
    low: float
    high: float
    n: int

    @property
    def value(self) -> float:
        return self.claimed - self.fresh

    @property
    def is_resolved(self) -> bool:
        """Whether its sign is known."""
        return self.low > 0 or self.high < 0


def optimism(
    claimed: float,
    fresh: Mapping[str, Sequence[float]],
    alike: Iterable[Mapping[str, Sequence[float]]] = (),
) -> Optimism:
    """Compare ``claimed`` with ``fresh`` scores per network (the same networks).

    The spread is that of seeds within networks, pooled over networks and over other settings
    (``alike``), which share their seeds and so add no degrees of freedom. A t-interval: a
    bootstrap of two or three seeds is far too narrow. ValueError if a network has no scores.
    """
    groups = [np.asarray(values, dtype=np.float64) for values in fresh.values()]
    if not groups or any(len(group) == 0 for group in groups):
        raise ValueError(f"every network needs a fresh score; got {dict(fresh)}")
    mean = float(np.mean([group.mean() for group in groups]))
    total = sum(map(len, groups))
    pooled = pooled_variance([*groups, *(np.asarray(v) for other in alike for v in other.values())])
    half = math.nan
    if total > len(groups) and pooled > TIE**2:
        error = math.sqrt(pooled * sum(1 / len(group) for group in groups)) / len(groups)
        half = float(scipy_stats.t.ppf((1 + LEVEL) / 2, total - len(groups))) * error
    value = claimed - mean
    return Optimism(claimed, mean, value - half, value + half, total)


@dataclass(frozen=True)
class Confirmed:
    """The content of a ``confirm.json``, evaluated."""

    trials: int
    """Finished trials of the search."""
    numbers: tuple[int, ...]
    """Trials scored again, the chosen one first."""
    chosen: Optimism
    shared: float
    """Mean optimism of all settings: the part due to shared seeds; nan with one setting."""
    seeds: int
    """Fresh scores of the chosen setting per network."""
    transfer: Agreement | None
    """Search scores against those of the other networks; None without other networks."""
    repeat: Agreement
    """Search scores against fresh ones of the same networks: an upper bound for ``transfer``."""
    means: tuple[tuple[float, float, float], ...]
    """Per setting: search score, mean fresh score of the proxies, and of the others (or nan)."""

    @staticmethod
    def of(found: Mapping[str, Any]) -> Confirmed:
        """Evaluate parsed JSON. Raises KeyError and ValueError for other content."""
        claimed = {row["number"]: float(row["score"]) for row in found["settings"]}
        proxies: dict[int, dict[str, list[float]]] = {number: {} for number in claimed}
        rest: dict[int, dict[str, list[float]]] = {number: {} for number in claimed}
        for row in found["rows"]:
            scores = (proxies if row["is_proxy"] else rest)[row["number"]]
            scores.setdefault(row["network"], []).append(float(row["score"]))
        each = [
            optimism(claimed[n], proxies[n], [proxies[other] for other in claimed if other != n])
            for n in claimed
        ]
        second = [_mean(rest[number]) for number in claimed]
        first = list(claimed.values())
        has_others = all(map(math.isfinite, second))
        return Confirmed(
            trials=int(found["trials"]),
            numbers=tuple(claimed),
            chosen=each[0],
            shared=float(np.mean([o.value for o in each])) if len(each) > 1 else math.nan,
            seeds=min(map(len, proxies[next(iter(claimed))].values())),
            transfer=spearman(first, second) if has_others else None,
            repeat=spearman(first, [o.fresh for o in each]),
            means=tuple((o.claimed, o.fresh, y) for o, y in zip(each, second, strict=True)),
        )

    @property
    def bounds(self) -> tuple[float, float]:
        """95 % interval of the chosen setting's optimism; nan if it is too wide to say anything:
        with fewer than FEWEST_SEEDS per network, or wider than the range of scores."""
        low, high = self.chosen.low, self.chosen.high
        too_wide = self.seeds < FEWEST_SEEDS or high - low > 1
        return (math.nan, math.nan) if too_wide else (low, high)

    @property
    def is_contradicted(self) -> bool:
        """Whether another setting has a higher fresh score than the chosen one."""
        return any(fresh > self.chosen.fresh for _, fresh, _ in self.means)

    def metrics(self) -> dict[str, float]:
        """Metrics for the record; undefined ones are left out."""
        values = {
            "fresh_score": self.chosen.fresh,
            "selection_optimism": self.chosen.value,
            "shared_optimism": self.shared,
            "repeat_spearman": self.repeat.rho,
            "proxy_spearman": self.transfer.rho if self.transfer else math.nan,
        }
        return {name: value for name, value in values.items() if math.isfinite(value)}


def _mean(scores: Mapping[str, Sequence[float]]) -> float:
    """Mean over networks of the mean over seeds; nan without networks."""
    return float(np.mean([np.mean(values) for values in scores.values()])) if scores else math.nan
