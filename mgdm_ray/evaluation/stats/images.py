"""Variance of a difference between two arms due to test images and to trained networks.

All cells of a dataset share its test images, so resampling cells alone mistakes chance in the test
split for an effect. This is the multi-reader multi-case model: networks are readers, test images
cases. Source: Gallas, Pennello and Myers, J. Opt. Soc. Am. A 24, B70 (2007).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mgdm_ray.evaluation.stats.intervals import Floats, Interval, satterthwaite, visible


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

    def by_class(self) -> tuple[Floats, NDArray[np.intp]]:
        """``difference`` with the images of a class together, and the number of each."""
        counts = np.unique(self.labels, return_counts=True)[1]
        return self.difference[:, np.argsort(self.labels, kind="stable")], counts

    def cells(self) -> Floats:
        """Difference in balanced accuracy of each cell: mean over classes of means over images."""
        d, counts = self.by_class()
        found: Floats = (np.add.reduceat(d, np.cumsum(counts) - counts, axis=1) / counts).mean(1)
        return found

    def mean(self) -> float:
        """Difference in balanced accuracy over all cells."""
        return float(self.cells().mean())


def components(paired: PairedPredictions) -> Components:
    """Variance components of ``paired.mean()``.

    For cell i and image j of class k (n_k images, K classes, R cells): A, variance of the cell
    means over R; B, sum over k of the variance of the image means over K^2 n_k; E, that of the
    residuals over R. A - E, B - E and E are unbiased; the first two are cut off at 0. A class with
    a single image takes the mean variance of the others. ValueError if all classes have one, or
    for a single cell.
    """
    cells = len(paired.difference)
    if cells < 2:
        raise ValueError("the variance over cells cannot be seen in one cell")
    d, counts = paired.by_class()
    if counts.max() < 2:
        raise ValueError("every class has a single test image: their variance cannot be seen")
    starts = np.cumsum(counts) - counts
    means = np.add.reduceat(d, starts, axis=1) / counts  # [cells, classes]
    mean, image = means.mean(axis=0), d.mean(axis=0)
    # Sums of squares by class: of the image means around their own, and of the residuals.
    squares = np.add.reduceat(image**2, starts)
    within = np.add.reduceat((d**2).sum(axis=0), starts) - cells * squares
    within = within - counts * ((means**2).sum(axis=0) - cells * mean**2)
    shares, degrees = 1 / (len(counts) ** 2 * counts), np.maximum(counts - 1, 1)
    by_class = _filled((squares - counts * mean**2) / degrees, counts) * shares
    b = float(by_class.sum())
    a = float(means.mean(axis=1).var(ddof=1)) / cells
    e = float((_filled(within / ((cells - 1) * degrees), counts) * shares).sum()) / cells
    parts = max(0.0, a - e), max(0.0, b - e), e
    spread = a**2 / (cells - 1) + float((by_class**2 / degrees).sum())
    return Components(*parts, satterthwaite(sum(parts), spread))


def image_contrast(groups: Sequence[PairedPredictions]) -> Interval | None:
    """Contrast over these datasets; None if a group has one cell, or one image in every class.

    Groups share no images and are weighted by their number of cells. The interval covers other
    seeds and other test images of the same classes; not other networks, diffusion models,
    synthetic images or datasets. Networks and seeds are pooled, which is exact where networks do
    not differ in the effect and too wide where they do.
    """
    total = sum(len(group.difference) for group in groups)
    weights = [len(group.difference) / total for group in groups]
    try:
        parts = [components(group) for group in groups]
    except ValueError:
        return None
    difference = float(sum(w * g.mean() for w, g in zip(weights, groups, strict=True)))
    variance = sum(w**2 * c.total for w, c in zip(weights, parts, strict=True))
    images = sum(w**2 * c.images for w, c in zip(weights, parts, strict=True))
    counts = total, sum(len(group.labels) for group in groups)
    if not visible(variance):
        return Interval(difference, 0.0, math.nan, *counts)
    spread = sum(w**4 * c.total**2 / c.df for w, c in zip(weights, parts, strict=True))
    df = satterthwaite(variance, spread)
    return Interval(difference, visible(variance), df, *counts, images / variance)


def _filled(variances: Floats, counts: NDArray[np.intp]) -> Floats:
    """With those of single images replaced by the mean of the others; >= 0 despite rounding."""
    seen = np.maximum(variances[counts > 1], 0)
    found: Floats = np.where(counts > 1, np.maximum(variances, 0), seen.mean())
    return found
