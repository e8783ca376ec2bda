"""Spread and paired contrasts over cells; numpy only.

Two arms are compared on the same cells (dataset x network x seed). Cells of one dataset share
images and models and are not independent, so the interval resamples datasets, then cells. A
contrast is resolved only if that interval, the permutation over cells and, given predictions, the
interval over cells and test images (``images``) agree. It generalises to other datasets only if
the permutation over whole datasets agrees too (``datasets_needed``).
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mgdm_ray.evaluation.stats.images import LEVEL, Floats, ImageContrast

CellId = tuple[str, str, str, int]
"""Dataset, network, arm, seed."""
Pair = tuple[str, str]
"""Of arms."""

PRIMARY = (("disturb", "duplicate"), ("disturb", "generate"), ("disturb", "roundtrip"))
"""The primary contrasts: one Holm family."""
ALPHA = 0.05
EXACT_PAIRS = 14
"""Up to this many pairs, all 2**n sign patterns are enumerated."""
RANDOM_FLIPS = 20_000
FEW_CLUSTERS = 5
"""Below this many datasets, a bootstrap over datasets is too narrow."""
TIE = 1e-12
"""Differences up to this size are ties: scores are ratios of small integers."""


@dataclass(frozen=True)
class Summary:
    """Mean and sample standard deviation of ``n`` values; ``sd`` is nan for one value."""

    mean: float
    sd: float
    n: int

    def text(self, digits: int = 3) -> str:
        """``0.812 ± 0.014``; without the spread for a single value."""
        if math.isnan(self.sd):
            return f"{self.mean:.{digits}f}"
        return f"{self.mean:.{digits}f} ± {self.sd:.{digits}f}"


@dataclass(frozen=True)
class Contrast:
    """``arm_a`` minus ``arm_b`` over ``n`` paired cells.

    ``low``, ``high``: 95 % interval of the mean ``difference``, nan below two pairs. ``p`` (cells)
    and ``p_datasets`` (whole datasets, adjusted in a table): two-sided. ``wins``: cells in which
    ``arm_a`` is better. ``dz``: mean over standard deviation of the differences, nan if that is 0
    or unknown. ``rank_biserial``: in [-1, 1]. ``datasets``: those that share no images. ``note``:
    caveats in plain words. With ``n == 0`` all numbers are nan.

    ``missing``: planned cells without a result, as (dataset, network, arm, seed), of ``planned``
    pairs; with any, the numbers cover the rest and are no answer. ``here``: the contrast over
    cells and test images of these datasets; None without predictions. ``p_adjusted``: Holm's p
    within its family; nan if it was not tested in one.
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
    rank_biserial: float = math.nan
    missing: tuple[CellId, ...] = ()
    planned: int = 0
    here: ImageContrast | None = None
    p_adjusted: float = math.nan

    @property
    def pair(self) -> Pair:
        return self.arm_a, self.arm_b

    @property
    def name(self) -> str:
        return f"{self.arm_a} \N{MINUS SIGN} {self.arm_b}"

    @property
    def verdict(self) -> str:
        """``better``, ``worse``, ``not resolvable``, ``incomplete`` or ``no data``.

        The first two need a complete grid, every interval excluding 0 and p <= 0.05;
        ``better here`` and ``worse here`` hold for these datasets and images only.
        """
        if self.n == 0 or self.missing:
            return "incomplete" if self.n else "no data"
        p = self.p_tested if math.isnan(self.p_adjusted) else self.p_adjusted
        if self.spans_zero or p > ALPHA:
            return "not resolvable"
        return ("better" if self.difference > 0 else "worse") + (" here" if self.scope else "")

    @property
    def scope(self) -> str:
        """What the contrast is limited to; empty if it generalises to other datasets."""
        if self.p_datasets <= ALPHA:
            return ""
        which = "this dataset" if self.datasets == 1 else f"these {self.datasets} datasets"
        images = "images drawn here" if self.here else "images drawn and tested here"
        return f"on {which}, with the {images}"

    @property
    def spans_zero(self) -> bool:
        """Whether an interval contains 0, or there is none."""
        if self.here is not None and self.here.spans_zero:
            return True
        return not (self.low > 0 or self.high < 0)

    @property
    def p_tested(self) -> float:
        """The larger p of the two tests that must both pass: over cells, and over test images."""
        if self.here is None or math.isnan(self.p):
            return self.p
        return max(self.p, 1.0 if math.isnan(self.here.p) else self.here.p)


NAN = math.nan
NOTHING = Contrast(NAN, NAN, NAN, NAN, 0, 0, 0, NAN, 0, "no common cells")


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
    """Contrast two equally long lists of scores; ``clusters`` names each pair's dataset.

    Variants of a dataset share test images and must have one name. ``family``: number of contrasts
    adjusted together (affects ``note`` only). Interval: percentiles of a two-stage bootstrap
    (datasets, then cells within); of cells alone with one dataset. p: sign-flip permutation,
    exact up to 14 pairs, else (1 + hits) / (1 + 20,000 draws). Swapping the arms flips signs only.
    Raises ValueError for unequal lengths, no pairs, or scores that are not finite.
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
        note=_caveats(d, names, family),
        datasets=len(names),
        rank_biserial=rank_biserial(d),
        # Under the null, all differences of a dataset may change sign together.
        p_datasets=_sign_flip(np.array([group.sum() for group in groups]), rng),
    )


def contrast_table(
    cells: Mapping[CellId, float],
    pairs: Sequence[Pair],
    expected: Iterable[CellId] = (),
    origins: Mapping[str, str] | None = None,
    reasons: Mapping[CellId, str] | None = None,
    over_images: Callable[[Pair], ImageContrast | None] = lambda pair: None,  # noqa: ARG005
    n_boot: int = 10_000,
) -> list[Contrast]:
    """Contrast each pair of arms (arm_a - arm_b), in the order of ``pairs``: one Holm family.

    The grid is that of the ``expected`` (planned) cells of any arm, else all combinations that
    occur. Numbers cover the cells that both arms have, ``missing`` names the others and ``note``
    their ``reasons``; a pair that lacks some is not tested, but counts in the family. No common
    cells: ``n == 0``. ``origins`` maps a variant to its dataset: variants are one cluster.
    ``over_images`` gives a pair's contrast over cells and test images. ``p_datasets`` is adjusted
    (Holm) over the pairs, as ``p_adjusted`` is.
    """
    there = {(d, n, s) for d, n, _, s in cells}
    every = itertools.product(*map(set, zip(*there, strict=True))) if there else ()
    # Sorted: the interval must not depend on the order of the cells.
    grid = sorted({(d, n, s) for d, n, _, s in expected} or every)
    found = []
    for pair in pairs:
        lost = [(d, n, a, s) for a in sorted(pair) for d, n, s in grid if (d, n, a, s) not in cells]
        common = [(d, n, s) for d, n, s in grid if not {(d, n, a, s) for a in pair} - cells.keys()]
        a, b = ([cells[d, n, arm, s] for d, n, s in common] for arm in pair)
        clusters = [(origins or {}).get(dataset, dataset) for dataset, _, _ in common]
        contrast = NOTHING
        if common:
            contrast = paired_contrast(a, b, clusters, n_boot=n_boot, family=len(pairs))
        why = Counter((reasons or {}).get(cell, "not run") for cell in lost).most_common(3)
        causes = "; ".join(f"{cause} ({count})" for cause, count in why)
        notes = [contrast.note, f"missing because: {causes}" if lost else ""]
        found.append(
            replace(
                contrast, arm_a=pair[0], arm_b=pair[1], note="; ".join(filter(None, notes)),
                missing=tuple(lost), planned=len(grid), here=over_images(pair),
            )
        )  # fmt: skip
    adjusted = holm([NAN if c.missing else c.p_tested for c in found])
    # Claims beyond these datasets are a family too.
    general = holm([NAN if c.missing else c.p_datasets for c in found])
    return [
        replace(c, p_adjusted=p, p_datasets=c.p_datasets if math.isnan(q) else q)
        for c, p, q in zip(found, adjusted, general, strict=True)
    ]


def pooled_variance(groups: Sequence[Floats]) -> float:
    """Variance within groups; 0 where no group has two values."""
    freedom = sum(len(group) - 1 for group in groups)
    squares = sum(float(((group - group.mean()) ** 2).sum()) for group in groups)
    return squares / freedom if freedom else 0.0


def rank_biserial(differences: Sequence[float] | Floats) -> float:
    """Matched-pairs rank-biserial correlation: (positive - negative rank sum) / total, zeros out.

    In [-1, 1]; nan if no pair differs. Source: Kerby (2014), Comprehensive Psychology 3, 11.IT.3.1.
    """
    d = np.asarray(differences, dtype=np.float64)
    d = d[np.abs(d) > TIE]
    if len(d) == 0:
        return math.nan
    size = np.abs(d)
    below = (size[None, :] < size[:, None] - TIE).sum(axis=1)
    equal = (np.abs(size[None, :] - size[:, None]) <= TIE).sum(axis=1)
    ranks = below + (equal + 1) / 2
    return float((ranks * np.sign(d)).sum() / ranks.sum())


def datasets_needed(family: int) -> int:
    """Return the fewest datasets for p <= ``ALPHA``: 2 of 2**n sign patterns, times ``family``."""
    return math.ceil(math.log2(2 * family / ALPHA))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values, in the order given.

    nan (a planned test that could not be made) stays nan but counts in the family. Source: Holm
    (1979): adjusted p_(i) = max over j <= i of min(1, (m - j + 1) p_(j)).
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


def _interval(
    groups: Sequence[Floats], n_boot: int, rng: np.random.Generator
) -> tuple[float, float]:
    """Percentile interval of the mean over cells; a group holds one dataset's differences."""
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
    """Two-sided p of the mean difference; tied pairs drop out."""
    moved = np.abs(d[d != 0])
    if len(moved) == 0:
        return 1.0
    exact = len(moved) <= EXACT_PAIRS
    if exact:
        signs = np.array(list(itertools.product((-1.0, 1.0), repeat=len(moved))))
    else:
        signs = rng.choice((-1.0, 1.0), size=(RANDOM_FLIPS, len(moved)))
    observed = abs(float(d.sum()))
    # Tolerance: patterns equal to the observed one up to rounding must count.
    hits = int((np.abs(signs @ moved) >= observed - TIE * len(moved)).sum())
    return hits / len(signs) if exact else (1 + hits) / (1 + len(signs))


def _caveats(d: Floats, names: Sequence[str], family: int) -> str:
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
