"""Spread, paired contrasts, and what may be concluded from them; numpy only.

The unit is a cell's score on the test split. Two arms are compared on the same cells (dataset x
network x seed), so the differences are paired. Cells of one dataset share its images, diffusion
models and synthetic images, and are not independent: the interval therefore resamples datasets
(and cells within them), and a contrast is called resolved only if both the interval and the
permutation test over cells say so. That is a statement about these datasets and these synthetic
images; about others only where the permutation over whole datasets agrees, which needs six.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
CellKey = tuple[str, str, int]

LEVEL = 0.95
ALPHA = 0.05
EXACT_PAIRS = 14
"""Up to so many pairs all 2**n sign patterns are enumerated."""
RANDOM_FLIPS = 20_000
FEW_CLUSTERS = 5
"""Below so many datasets a bootstrap over datasets is known to be too narrow; the note says so."""
TIE = 1e-12
"""Differences at most so large are ties: scores are ratios of small integers."""


class IncompleteGrid(ValueError):
    """Cells that the contrasts need are missing.

    ``missing`` holds them as (arm, dataset, network, seed).
    """

    def __init__(self, missing: Sequence[tuple[str, str, str, int]]) -> None:
        self.missing = tuple(missing)
        names = [f"{a}: {d} x {n} x seed {s}" for a, d, n, s in self.missing[:8]]
        more = f" and {len(self.missing) - 8} more" if len(self.missing) > 8 else ""
        super().__init__(
            f"the grid lacks {len(self.missing)} cells: {'; '.join(names)}{more}. Run them, or "
            "pass drop_incomplete=True to compare the cells that both arms have."
        )


@dataclass(frozen=True)
class Summary:
    """Mean and spread of ``n`` values; ``sd`` has n-1 below the line and is nan for one value."""

    mean: float
    sd: float
    n: int

    def text(self, digits: int = 3) -> str:
        """``0.812 ± 0.014``; without the spread where there is one value only."""
        if math.isnan(self.sd):
            return f"{self.mean:.{digits}f}"
        return f"{self.mean:.{digits}f} ± {self.sd:.{digits}f}"


@dataclass(frozen=True)
class Contrast:
    """``arm_a`` minus ``arm_b`` over ``n`` paired cells.

    ``low`` and ``high`` bound the mean ``difference`` (95 %, nan below two pairs); ``p`` (cells)
    and ``p_datasets`` (whole datasets) are two-sided; ``wins`` counts cells in which ``arm_a`` is
    better; ``dz`` is the mean difference over the standard deviation of the differences (nan where
    that is 0 or unknown). ``note`` holds every reservation, in plain words. With ``n == 0`` all
    numbers are nan.
    """

    difference: float
    low: float
    high: float
    p: float
    wins: int
    ties: int
    losses: int
    dz: float
    n: int
    note: str = ""
    arm_a: str = "a"
    arm_b: str = "b"
    datasets: int = 1
    p_datasets: float = 1.0

    @property
    def scope(self) -> str:
        """Of what the contrast speaks; empty where it speaks of datasets in general."""
        if self.p_datasets <= ALPHA:
            return ""
        which = "this dataset" if self.datasets == 1 else f"these {self.datasets} datasets"
        return f"on {which}, with the images drawn here"

    @property
    def spans_zero(self) -> bool:
        """True as well where there is no interval."""
        return not (self.low > 0 or self.high < 0)


def summarise(values: Iterable[float]) -> Summary:
    """Mean and sample standard deviation; ValueError for no values or values not finite."""
    data = np.asarray(list(values), dtype=np.float64)
    if data.size == 0 or not np.isfinite(data).all():
        raise ValueError(f"summarise needs at least one value, all finite; got {data.tolist()}")
    sd = float(data.std(ddof=1)) if data.size > 1 else math.nan
    return Summary(float(data.mean()), sd, int(data.size))


def paired_contrast(
    cells_a: Sequence[float] | Floats,
    cells_b: Sequence[float] | Floats,
    clusters: Sequence[str],
    n_boot: int = 10_000,
    seed: int = 0,
    family: int = 1,
) -> Contrast:
    """The contrast of two equally long lists of scores; ``clusters`` names each pair's dataset.

    ``family`` is how many contrasts will be adjusted together; only ``note`` depends on it.

    Interval: percentiles of a two-stage bootstrap (datasets with replacement, then cells within
    each drawn dataset). With fewer than two datasets it resamples the cells, and ``note`` says so.
    p: sign-flip permutation of the differences, whose null is that no cell differs systematically;
    all patterns up to 14 pairs, else 20,000 random ones counted as (1 + hits) / (1 + draws).
    Swapping the arms flips every sign and nothing else. Raises ValueError for unequal lengths, no
    pairs, or scores that are not finite.
    """
    a, b = np.asarray(cells_a, dtype=np.float64), np.asarray(cells_b, dtype=np.float64)
    if not (a.ndim == b.ndim == 1 and len(a) == len(b) == len(clusters) > 0):
        raise ValueError(
            "cells_a, cells_b and clusters must be equally long and not empty; got "
            f"{len(a)}, {len(b)} and {len(clusters)}"
        )
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("scores must be finite")
    d = a - b
    d[np.abs(d) <= TIE] = 0.0
    rng = np.random.default_rng(seed)
    names = sorted(set(clusters))
    groups = [d[np.array([c == name for c in clusters])] for name in names]
    low, high = _interval(groups, n_boot, rng)
    sd = float(d.std(ddof=1)) if len(d) > 1 else math.nan
    return Contrast(
        difference=float(d.mean()),
        low=low,
        high=high,
        p=_sign_flip(d, rng),
        wins=int((d > 0).sum()),
        ties=int((d == 0).sum()),
        losses=int((d < 0).sum()),
        dz=float(d.mean()) / sd if sd > TIE else math.nan,
        n=len(d),
        note=_reservations(d, names, family),
        datasets=len(names),
        # Under the null a whole dataset's differences may change sign together.
        p_datasets=_sign_flip(np.array([group.sum() for group in groups]), rng),
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values, in the order given.

    nan (a planned test that could not be made) stays nan but counts: what failed must not make
    the others easier to pass. Source: Holm (1979), adjusted p_(i) = max over j <= i of
    min(1, (m - j + 1) p_(j)).
    """
    tested = [i for i, p in enumerate(p_values) if not math.isnan(p)]
    if any(not 0 <= p_values[i] <= 1 for i in tested):
        raise ValueError(f"p-values must lie in [0, 1]; got {list(p_values)}")
    adjusted = [math.nan] * len(p_values)
    running = 0.0
    for rank, i in enumerate(sorted(tested, key=lambda i: p_values[i])):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = running
    return adjusted


def contrast_table(
    rows: Iterable[Mapping[str, Any]],
    pairs: Sequence[tuple[str, str]],
    drop_incomplete: bool = False,
    n_boot: int = 10_000,
    seed: int = 0,
    expected: Iterable[CellKey] = (),
) -> list[Contrast]:
    """One contrast (arm_a - arm_b) per pair of arms, in the order of ``pairs``.

    ``rows`` have ``dataset``, ``network``, ``seed``, ``arm`` and ``value``; their order does not
    matter. The grid is ``expected``, (dataset, network, seed) of what was planned, else every
    combination of the datasets, networks and seeds that occur in any row. Raises IncompleteGrid if
    an arm of ``pairs`` lacks a cell of it, unless ``drop_incomplete``: then only cells that both
    arms of a pair have count, ``note`` says what was dropped, and a pair without common cells has
    ``n == 0``. Raises ValueError for a cell given twice.
    """
    values = _by_arm(rows)
    keys = [key for cells in values.values() for key in cells]
    datasets, networks, seeds = (
        sorted({key[0] for key in keys}),
        sorted({key[1] for key in keys}),
        sorted({key[2] for key in keys}),
    )
    # Sorted, so that the interval does not depend on the order of the rows.
    grid: list[CellKey] = sorted(set(expected) or set(itertools.product(datasets, networks, seeds)))
    arms = sorted({arm for pair in pairs for arm in pair})
    missing = [(arm, *key) for arm in arms for key in grid if key not in values.get(arm, {})]
    if not grid:
        missing = [(arm, "(any)", "(any)", 0) for arm in arms]
    if missing and not drop_incomplete:
        raise IncompleteGrid(missing)
    return [
        _contrast_of(values.get(a, {}), values.get(b, {}), (a, b), grid, n_boot, seed, len(pairs))
        for a, b in pairs
    ]


def sentence(
    contrast: Contrast, p_adjusted: float | None = None, metric: str = "balanced accuracy"
) -> str:
    """What a contrast says, in plain language; ``p_adjusted`` (Holm) takes the place of its p.

    An arm is called better only if the interval excludes 0 *and* p <= 0.05; and without "on these
    datasets" only if the permutation over whole datasets agrees.
    """
    a, b = contrast.arm_a, contrast.arm_b
    if contrast.n == 0:
        return f"{a} against {b}: nothing to compare ({contrast.note or 'no common cells'})."
    p = contrast.p if p_adjusted is None else p_adjusted
    shown = f"p = {p:.3f}" if p >= 0.001 else "p < 0.001"
    if p_adjusted is not None:
        shown = f"adjusted {shown}"
    cells = f"{contrast.n} paired cell{'s' if contrast.n > 1 else ''}"
    if math.isnan(contrast.low):
        return (
            f"{a} against {b} is not resolvable: {contrast.difference:+.3f} {metric} in a single "
            "pair gives no interval."
        )
    interval = f"95% interval {contrast.low:+.3f} to {contrast.high:+.3f}"
    evidence = f"{contrast.difference:+.3f} {metric} ({interval}, {shown}, {cells})"
    if contrast.spans_zero:
        return f"{a} against {b} is not resolvable: the interval spans 0; {evidence}."
    if p > ALPHA:
        return (
            f"{a} against {b} is not resolvable: the interval excludes 0, but the permutation "
            f"test does not; {evidence}."
        )
    verdict = "better" if contrast.difference > 0 else "worse"
    return (
        f"{' '.join([a, 'is', verdict, 'than', b, contrast.scope]).rstrip()}: {evidence}; "
        f"it wins {contrast.wins}, ties {contrast.ties}, loses {contrast.losses}."
    )


def _by_arm(rows: Iterable[Mapping[str, Any]]) -> dict[str, dict[CellKey, float]]:
    values: dict[str, dict[CellKey, float]] = {}
    for row in rows:
        key = (str(row["dataset"]), str(row["network"]), int(row["seed"]))
        cells = values.setdefault(str(row["arm"]), {})
        if key in cells:
            raise ValueError(f"cell given twice: {row['arm']}, {' x '.join(map(str, key))}")
        cells[key] = float(row["value"])
    return values


def _contrast_of(
    a: Mapping[CellKey, float],
    b: Mapping[CellKey, float],
    pair: tuple[str, str],
    grid: Sequence[CellKey],
    n_boot: int,
    seed: int,
    family: int,
) -> Contrast:
    common = [key for key in grid if key in a and key in b]
    lost = [key for key in grid if key not in a or key not in b]
    notes = []
    if lost:
        names = "; ".join(f"{d} x {n} x seed {s}" for d, n, s in lost[:4])
        more = f"; and {len(lost) - 4} more" if len(lost) > 4 else ""
        notes.append(f"{len(lost)} of {len(grid)} cells dropped as incomplete ({names}{more})")
    if not common:
        nan = math.nan
        note = "; ".join(["no common cells", *notes])
        return Contrast(nan, nan, nan, nan, 0, 0, 0, nan, 0, note, *pair)
    contrast = paired_contrast(
        [a[key] for key in common],
        [b[key] for key in common],
        [key[0] for key in common],
        n_boot=n_boot,
        seed=seed,
        family=family,
    )
    notes.extend([contrast.note] if contrast.note else [])
    return replace(contrast, note="; ".join(notes), arm_a=pair[0], arm_b=pair[1])


def _interval(
    groups: Sequence[Floats], n_boot: int, rng: np.random.Generator
) -> tuple[float, float]:
    """Percentile interval of the mean over cells; each group is one dataset's differences."""
    if sum(len(group) for group in groups) < 2:
        return math.nan, math.nan
    picks = rng.integers(len(groups), size=(n_boot, len(groups)))
    sums = np.zeros(picks.shape)
    sizes = np.zeros(picks.shape)
    for index, group in enumerate(groups):
        drawn = picks == index
        cells = rng.integers(len(group), size=(int(drawn.sum()), len(group)))
        sums[drawn] = group[cells].sum(axis=1)
        sizes[drawn] = len(group)
    means = sums.sum(axis=1) / sizes.sum(axis=1)
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def _sign_flip(d: Floats, rng: np.random.Generator) -> float:
    """Two-sided p of the mean difference; pairs that tie carry no sign and drop out."""
    moved = np.abs(d[d != 0])
    if len(moved) == 0:
        return 1.0
    exact = len(moved) <= EXACT_PAIRS
    if exact:
        signs = np.array(list(itertools.product((-1.0, 1.0), repeat=len(moved))))
    else:
        signs = rng.choice((-1.0, 1.0), size=(RANDOM_FLIPS, len(moved)))
    observed = abs(float(d.sum()))
    # The tolerance counts patterns that equal the observed one but for the order of summation.
    hits = int((np.abs(signs @ moved) >= observed - TIE * len(moved)).sum())
    return hits / len(signs) if exact else (1 + hits) / (1 + len(signs))


def _reservations(d: Floats, names: Sequence[str], family: int) -> str:
    notes = []
    if len(d) < 2:
        notes.append("one pair only: no interval")
    elif len(names) < 2:
        notes.append(f"one dataset only: the interval holds for {names[0]}, over its cells")
    elif len(names) < FEW_CLUSTERS:
        notes.append(f"{len(names)} datasets only: the interval over datasets is rough")
    moved = int((d != 0).sum())
    least = min(1.0, family * 2 / 2**moved)
    if moved and least > ALPHA:
        pairs = "pair that differs" if moved == 1 else "pairs that differ"
        name = "p (Holm)" if family > 1 else "p"
        notes.append(f"{moved} {pairs}: {name} cannot be below {least:.3g}")
    return "; ".join(notes)
