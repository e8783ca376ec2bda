"""Variance of a difference between two arms due to test images and to trained networks.

All cells of a dataset share its test images, so resampling cells alone mistakes chance in the test
split for an effect. This is the multi-reader multi-case model: networks are readers, patients (or
groups of near-duplicates, else single images) cases. Source: Gallas, Pennello and Myers, J. Opt.
Soc. Am. A 24, B70 (2007); several images per case: Obuchowski, Biometrics 53, 567 (1997).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from mgdm_ray.evaluation.stats.intervals import (
    Draws,
    Floats,
    Interval,
    Spread,
    by_draw,
    over_draws,
    satterthwaite,
    visible,
)


@dataclass(frozen=True)
class Components:
    """Variance components of a mean difference, all >= 0.

    ``cells``: seeds and networks; ``images``: groups of test images, not reduced by more cells;
    ``both``: the interaction of cell and group.
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
    second's, else 0. ``labels`` int `[images]`. ``groups`` int `[images]`: images of one group
    (patient, near-duplicates) are no independent evidence; by default each is a group. ``draws``
    `[cells]`: of synthetic images, only where they differ between seeds.
    """

    difference: Floats
    labels: NDArray[np.int64]
    groups: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    draws: Draws | None = None

    def __post_init__(self) -> None:
        if not len(self.groups):
            object.__setattr__(self, "groups", np.arange(len(self.labels)))
        shape = self.difference.shape
        columns = (self.labels.shape, self.groups.shape)
        if len(shape) != 2 or 0 in shape or columns != (shape[1:], shape[1:]):
            raise ValueError(
                "difference must be [cells, images], labels and groups [images], none of them "
                f"empty; got {shape} and {self.labels.shape}, {self.groups.shape}"
            )

    def classes(self) -> list[NDArray[np.intp]]:
        """Image indices of each class that occurs."""
        return [np.flatnonzero(self.labels == label) for label in np.unique(self.labels)]

    def groups_by_class(self) -> list[int]:
        """Number of groups that have an image of each class."""
        return [len(np.unique(self.groups[images])) for images in self.classes()]

    def without(self, images: Sequence[int]) -> PairedPredictions:
        keep = np.setdiff1d(np.arange(len(self.labels)), np.asarray(images, dtype=np.intp))
        return replace(
            self,
            difference=self.difference[:, keep],
            labels=self.labels[keep],
            groups=self.groups[keep],
        )

    def of_draws(self) -> PairedPredictions | None:
        """With the mean of its cells for each draw; None as in ``by_draw``."""
        cells = by_draw(self.difference, self.draws)
        return None if cells is None else replace(self, difference=cells.mean(axis=1), draws=None)

    def cells(self) -> Floats:
        """Difference in balanced accuracy of each cell: mean over classes of means over images."""
        counts = np.unique(self.labels, return_counts=True)[1]
        d = self.difference[:, np.argsort(self.labels, kind="stable")]
        found: Floats = (np.add.reduceat(d, np.cumsum(counts) - counts, axis=1) / counts).mean(1)
        return found

    def mean(self) -> float:
        """Difference in balanced accuracy over all cells."""
        return float(self.cells().mean())


@dataclass(frozen=True)
class _Parts:
    """What each group of images adds to the difference in balanced accuracy.

    A part is the images of one class in one group; P parts, G groups, K classes.
    """

    residual: Floats
    """`[cells, P]`: sum over the part of d_ij - (mean of cell i over the class), over K n_k, and
    over sqrt(1 - n_gk / n_k), which makes its square unbiased (CR2 of Bell and McCaffrey, Survey
    Methodology 28, 169, 2002; for single images n / (n - 1)). 0 for a class of one group."""
    classes: NDArray[np.intp]
    """`[P]`, below K."""
    groups: NDArray[np.intp]
    """`[P]`, below G."""
    counts: NDArray[np.intp]
    """`[K]`: images per class, n_k."""
    lone: NDArray[np.bool_]
    """`[K]`: whether a class is in a single group, whose variance cannot be seen."""
    shares: Floats
    """`[G, K]`: each group's part of the squared images per group, with sum 1 over groups."""

    @staticmethod
    def of(paired: PairedPredictions) -> _Parts:
        _, classes, counts = np.unique(paired.labels, return_inverse=True, return_counts=True)
        groups = np.unique(paired.groups, return_inverse=True)[1]
        order = np.lexsort((groups, classes))
        first = np.flatnonzero(np.diff(classes[order] * len(order) + groups[order], prepend=-1))
        sizes = np.diff(first, append=len(order))
        of_class, of_group = classes[order][first], groups[order][first]
        # [cells, P], then [cells, K]
        sums = np.add.reduceat(paired.difference[:, order], first, axis=1)
        means = np.add.reduceat(sums, np.flatnonzero(np.diff(of_class, prepend=-1)), axis=1)
        left = 1 - sizes / counts[of_class]
        scale = np.where(left > 0, 1 / np.sqrt(np.where(left > 0, left, 1)), 0.0)
        means, n = (means / counts)[:, of_class], counts[of_class]
        residual = (sums - sizes * means) / (len(counts) * n) * scale
        squares = np.zeros((groups.max() + 1, len(counts)))
        squares[of_group, of_class] = sizes**2
        lone = np.bincount(of_class, left <= 0, len(counts)) > 0
        return _Parts(residual, of_class, of_group, counts, lone, squares / squares.sum(axis=0))

    def by_group(self) -> Floats:
        """`[cells, G]`"""
        if len(self.shares) == len(self.groups):
            return self.residual[:, np.argsort(self.groups)]
        found = np.zeros((len(self.residual), len(self.shares)))
        np.add.at(found.T, self.groups, self.residual.T)
        return found

    def unseen(self, squares: Floats) -> Floats:
        """`[K]`: variance of a class mean over K^2 where one group has it, as if it were one image
        with the mean variance of the other classes; 0 elsewhere. ``squares`` `[P]`."""
        variances = np.bincount(self.classes, squares, len(self.counts)) * self.counts
        return np.where(self.lone, variances[~self.lone].mean(), 0.0)


def components(paired: PairedPredictions, of_cells: Spread | None = None) -> Components:
    """Variance components of ``paired.mean()``; ``of_cells`` replaces A below.

    A group's contribution to cell i is u_ig, the sum of its parts (``_Parts``), so that images of
    a patient in two classes count together. For R cells: A, variance of the cell means over R; B,
    sum over groups of (mean u_g)^2; E, sum of their variances over cells, over R. A - E, B - E and
    E are unbiased if groups are single images, and nearly so else; the first two are cut off at 0.
    A class in a single group takes the mean variance of the others. ValueError if all classes have
    one, or for a single cell.

    Degrees of freedom of B, whose part of class k is B_k: B^2 / sum over k, l of B_k B_l
    H_kl / (1 - H_kl), where H is the product of ``shares``: n_k - 1 each for single images.
    """
    cells = len(paired.difference)
    if cells < 2:
        raise ValueError("the variance over cells cannot be seen in one cell")
    parts = _Parts.of(paired)
    if parts.lone.all():
        raise ValueError("every class is in one group of test images: no variance can be seen")
    u = parts.by_group()
    mean, image = u.mean(axis=0), parts.residual.mean(axis=0)
    unseen = parts.unseen(image**2)
    b = float((mean**2).sum() + unseen.sum())
    of_both = ((parts.residual - image) ** 2).sum(axis=0) / (cells - 1)
    e = float(((u - mean) ** 2).sum() / (cells - 1) + parts.unseen(of_both).sum()) / cells
    a, df = of_cells or Spread(float(paired.cells().var(ddof=1)) / cells, cells - 1)
    by_class = np.bincount(parts.classes, image * mean[parts.groups], len(unseen))
    shared = parts.shares.T @ parts.shares
    inner = np.ix_(~parts.lone, ~parts.lone)
    odds = shared[inner] / (1 - shared[inner])
    seen = by_class[~parts.lone]
    spread = a**2 / df + float(seen @ odds @ seen + (unseen**2).sum())
    found = max(0.0, a - e), max(0.0, b - e), e
    return Components(*found, satterthwaite(sum(found), spread))


def image_contrast(datasets: Sequence[PairedPredictions]) -> Interval | None:
    """Contrast over these datasets; None if one has a single cell, or each class in one group.

    Datasets share no images and are weighted by their number of cells. The interval covers other
    seeds and other patients (test images) of the same classes; not other networks, diffusion
    models, synthetic images or datasets. Networks and seeds are pooled, which is exact where
    networks do not differ in the effect and too wide where they do. With ``draws`` in all datasets
    it covers other synthetic images as well: draws, each with the mean of its cells, are then the
    readers (``over_draws``).
    """
    total = sum(len(one.difference) for one in datasets)
    weights = [len(one.difference) / total for one in datasets]
    readers: Sequence[PairedPredictions] = datasets
    spreads: Sequence[Spread | None] = [None] * len(datasets)
    drawn = [mean for one in datasets if (mean := one.of_draws())]
    cells = [each for one in datasets if (each := by_draw(one.cells(), one.draws)) is not None]
    if len(drawn) == len(datasets):
        readers, spreads = drawn, over_draws(cells, weights)
    try:
        parts = [components(*pair) for pair in zip(readers, spreads, strict=True)]
    except ValueError:
        return None
    difference = float(sum(w * g.mean() for w, g in zip(weights, datasets, strict=True)))
    variance = sum(w**2 * c.total for w, c in zip(weights, parts, strict=True))
    images = sum(w**2 * c.images for w, c in zip(weights, parts, strict=True))
    images_seen = sum(len(one.labels) for one in datasets)
    found = Interval(
        difference, visible(variance), math.nan, total, images_seen,
        groups=sum(len(np.unique(one.groups)) for one in datasets),
        draws=min(len(one.difference) for one in drawn) if readers is drawn else 0,
    )  # fmt: skip
    if not visible(variance):
        return found
    spread = sum(w**4 * c.total**2 / c.df for w, c in zip(weights, parts, strict=True))
    df = satterthwaite(variance, spread)
    return replace(found, df=df, image_share=images / variance)


def unseen(datasets: Sequence[PairedPredictions]) -> Interval | None:
    """The contrast without interval where all images of each class of a dataset are of one patient:
    one over cells alone would take the patients as fixed. None otherwise."""
    if all(max(one.groups_by_class()) > 1 for one in datasets):
        return None
    cells = np.concatenate([one.cells() for one in datasets])
    images = sum(len(one.labels) for one in datasets)
    groups = sum(len(np.unique(one.groups)) for one in datasets)
    return Interval(float(cells.mean()), 0.0, math.nan, len(cells), images, groups=groups)
