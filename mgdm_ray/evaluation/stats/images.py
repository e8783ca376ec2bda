"""Variance of a difference between two arms due to test images and to trained networks.

All cells of a dataset share its test images, so resampling cells alone mistakes chance in the test
split for an effect. This is the multi-reader multi-case model: networks are readers, test images
cases. Source: Gallas, Pennello and Myers, J. Opt. Soc. Am. A 24, B70 (2007); crossed bootstrap:
Owen, Ann. Appl. Stat. 1, 386 (2007).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

LEVEL = 0.95
DRAWS = 2000
"""Bootstrap replicates."""
AT_ONCE = 4_000_000
"""Numbers in memory while drawing."""


@dataclass(frozen=True)
class Components:
    """Variance components of a mean difference, all >= 0.

    ``cells``: seeds and networks; ``images``: test images, not reduced by more cells; ``both``:
    the interaction of cell and image.
    """

    cells: float
    images: float
    both: float
    df: float
    """Degrees of freedom of the sum (Satterthwaite)."""

    @property
    def total(self) -> float:
        return self.cells + self.images + self.both


@dataclass(frozen=True)
class ImageContrast:
    """Mean difference in balanced accuracy with an interval over cells and test images.

    ``low`` and ``high`` are the 95 % interval, ``p`` two-sided (t), ``se`` the standard error;
    all nan without visible spread. ``image_share`` in [0, 1]: share of the variance due to test
    images alone. ``cells`` and ``images`` are counts.
    """

    difference: float
    low: float
    high: float
    p: float
    se: float
    df: float
    image_share: float
    cells: int
    images: int

    @property
    def spans_zero(self) -> bool:
        """Whether the interval contains 0, or there is none."""
        return not (self.low > 0 or self.high < 0)


@dataclass(frozen=True)
class PairedPredictions:
    """Paired predictions of two arms on the test images of one dataset.

    ``difference`` `[cells, images]`: 1 if only the first arm's network is right, -1 if only the
    second's, else 0. ``labels`` int `[images]`.
    """

    difference: Floats
    labels: NDArray[np.int64]

    def __post_init__(self) -> None:
        shape = self.difference.shape
        if len(shape) != 2 or 0 in shape or self.labels.shape != shape[1:]:
            raise ValueError(
                "difference must be [cells, images] and labels [images], none of them empty; got "
                f"{shape} and {self.labels.shape}"
            )

    def classes(self) -> list[NDArray[np.intp]]:
        """Image indices of each class that occurs."""
        return [np.flatnonzero(self.labels == label) for label in np.unique(self.labels)]

    def without(self, images: Sequence[int]) -> PairedPredictions:
        keep = np.setdiff1d(np.arange(len(self.labels)), np.asarray(images, dtype=np.intp))
        return PairedPredictions(self.difference[:, keep], self.labels[keep])

    def mean(self) -> float:
        """Difference in balanced accuracy: mean over classes of the mean over their images."""
        return float(np.mean([self.difference[:, k].mean() for k in self.classes()]))


def components(paired: PairedPredictions) -> Components:
    """Variance components of ``paired.mean()``; with one cell, of its images alone.

    For cell i and image j of class k (n_k images, K classes, R cells): A, variance of the cell
    means over R; B, sum over k of the variance of the image means over K^2 n_k; E, that of the
    residuals over R. A - E, B - E and E are unbiased; the first two are cut off at 0. A class with
    a single image takes the mean variance of the others. ValueError if all classes have one.
    """
    d, classes = paired.difference, paired.classes()
    cells = len(d)
    means = np.stack([d[:, k].mean(axis=1) for k in classes])  # [classes, cells]
    shares = np.array([1 / (len(classes) ** 2 * len(k)) for k in classes])
    freedom = np.array([len(k) - 1.0 for k in classes])
    image = np.full(len(classes), math.nan)
    rest = np.full(len(classes), math.nan)
    for index, k in enumerate(classes):
        if len(k) < 2:
            continue
        image[index] = d[:, k].mean(axis=0).var(ddof=1)
        if cells > 1:
            residual = d[:, k] - d[:, k].mean(axis=0) - means[index][:, None] + means[index].mean()
            rest[index] = (residual**2).sum() / ((cells - 1) * (len(k) - 1))
    if np.isnan(image).all():
        raise ValueError("every class has a single test image: their variance cannot be seen")
    by_class = _filled(image) * shares
    b = float(by_class.sum())
    per_class = float((by_class**2 / np.maximum(freedom, 1)).sum())
    if cells < 2:
        return Components(0.0, b, 0.0, _freedom(b, per_class))
    a = float(means.mean(axis=0).var(ddof=1)) / cells
    e = float((_filled(rest) * shares).sum()) / cells
    parts = max(0.0, a - e), max(0.0, b - e), e
    return Components(*parts, _freedom(sum(parts), a**2 / (cells - 1) + per_class))


def image_contrast(
    groups: Sequence[PairedPredictions], n_boot: int = DRAWS, seed: int = 0
) -> ImageContrast | None:
    """Contrast over these datasets; None if every class of a group has a single image.

    Groups share no images and are weighted by their number of cells. The interval covers other
    seeds, networks and test images of the same classes; not other diffusion models, synthetic
    images or datasets. A crossed bootstrap (too wide by itself) gives its shape, the unbiased
    ``components`` its width.
    """
    total = sum(len(group.difference) for group in groups)
    weights = [len(group.difference) / total for group in groups]
    try:
        parts = [components(group) for group in groups]
    except ValueError:
        return None
    difference = sum(w * g.mean() for w, g in zip(weights, groups, strict=True))
    variance = sum(w**2 * c.total for w, c in zip(weights, parts, strict=True))
    images = sum(w**2 * c.images for w, c in zip(weights, parts, strict=True))
    counts = total, sum(len(group.labels) for group in groups)
    if variance <= 0:
        p = math.nan if difference else 1.0
        nan = math.nan
        return ImageContrast(float(difference), nan, nan, p, 0.0, nan, nan, *counts)
    spread = sum(w**4 * c.total**2 / c.df for w, c in zip(weights, parts, strict=True))
    df, se = _freedom(variance, spread), math.sqrt(variance)
    rng = np.random.default_rng(seed)
    drawn = sum(
        w * _replicates(group, math.sqrt(part.total), n_boot, rng)
        for w, group, part in zip(weights, groups, parts, strict=True)
    )
    ends = _tested(float(difference), np.asarray(drawn), se, df)
    return ImageContrast(float(difference), *ends, se, df, images / variance, *counts)


def _filled(values: Floats) -> Floats:
    """Replace nan by the mean of the others."""
    return np.where(np.isnan(values), np.nanmean(values), values)


def _freedom(total: float, spread: float) -> float:
    """Satterthwaite's degrees of freedom, at least 1: (sum of parts)^2 / sum(part^2 / df)."""
    return max(1.0, total**2 / spread) if spread > 0 else math.inf


def _replicates(
    paired: PairedPredictions, se: float, n_boot: int, rng: np.random.Generator
) -> Floats:
    """Crossed bootstrap of the mean, centred, with standard deviation ``se``; `[n_boot]`."""
    d, classes = paired.difference, paired.classes()
    scores = np.zeros((n_boot, len(d)))
    for k in classes:
        step = max(1, AT_ONCE // len(k))
        for start in range(0, n_boot, step):
            some = slice(start, min(start + step, n_boot))
            drawn = _drawn(len(k), some.stop - start, rng)
            scores[some] += drawn @ d[:, k].T / len(classes)
    means: Floats = (scores * _drawn(len(d), n_boot, rng)).sum(axis=1) - paired.mean()
    spread = float(means.std())
    if spread > 0:
        means *= se / spread
    return means


def _drawn(count: int, n_boot: int, rng: np.random.Generator) -> Floats:
    """Bootstrap weights of ``count`` items; `[n_boot, count]`, rows sum to 1."""
    picks = rng.integers(count, size=(n_boot, count)) + count * np.arange(n_boot)[:, None]
    times = np.bincount(picks.ravel(), minlength=n_boot * count)
    shares: Floats = times.reshape(n_boot, count) / count
    return shares


def _tested(centre: float, drawn: Floats, se: float, df: float) -> tuple[float, float, float]:
    """Percentiles of the centred draws, widened from the normal's to Student's t; two-sided p."""
    from scipy.special import ndtr, ndtri, stdtr, stdtrit

    tail, t = (1 - LEVEL) / 2, -abs(centre / se)
    widen, below = 1.0, float(ndtr(t))
    if math.isfinite(df):
        widen, below = float(stdtrit(df, 1 - tail) / ndtri(1 - tail)), float(stdtr(df, t))
    low, high = np.quantile(drawn, [tail, 1 - tail]) * (widen * se / float(drawn.std()))
    return centre + float(low), centre + float(high), 2 * below
