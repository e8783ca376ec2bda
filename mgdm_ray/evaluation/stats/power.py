"""What a study can resolve, before anything is computed.

The same variance components as in ``images``, not measured but assumed, and the usual formula of a
minimum detectable effect: the noncentrality at which Student's test has the power, in standard
errors. No scipy, for a plan must be there at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from mgdm_ray.evaluation.stats.intervals import ALPHA, Floats, Interval

POWER = 0.8
DISAGREE = 0.15
"""Share of test images on which two arms' networks of a cell differ in being right. Measured 0.08
to 0.18 on breastmnist and retinamnist at 28 px (8 cells each), 0.15 to 0.4 on phantoms."""
COMMON = 0.02
"""Part of that variance which all cells share, image by image. Measured 0 to 0.04 there."""
CELL_SD = 0.03
"""Standard deviation of a cell's true difference over seeds and networks. Measured 0 to 0.05 on
the real images, up to 0.15 on phantoms."""

DRAW_SD = 0.01
"""Standard deviation of the true difference over draws of synthetic images."""
BETWEEN = 0.015
"""Standard deviation of the true difference over datasets. Measured 0.007 to 0.019 for the primary
contrasts of docs/results/grid-cpu, 0.016 to 0.038 against real alone."""


@dataclass(frozen=True)
class Design:
    """What a contrast on one dataset rests on.

    ``test_counts``: patients per class in the test split (images where patients are unknown);
    ``cells``: pairs (networks x seeds); ``sd``: of the observed differences over cells where some
    were measured, else None: then it is derived from the assumed numbers. ``draws``: of synthetic
    images, each for all networks; 0: they are taken as they are.
    """

    test_counts: Sequence[int]
    cells: int
    sd: float | None = None
    draws: int = 0

    @property
    def per_image(self) -> float:
        """Variance of a mean of class means over that of one image: sum of 1 / (K^2 n_k)."""
        counts = [count for count in self.test_counts if count > 0]
        return sum(1 / (len(counts) ** 2 * count) for count in counts)

    @property
    def cell_sd(self) -> float:
        """Standard deviation of the differences that cells will show."""
        if self.sd is not None:
            return self.sd
        return math.sqrt(CELL_SD**2 + (1 - COMMON) * DISAGREE * self.per_image)

    @property
    def of_cells(self) -> float:
        """Variance of the mean that more cells would reduce, and more draws."""
        return self.cell_sd**2 / self.cells + (DRAW_SD**2 / self.draws if self.draws else 0)

    @property
    def df(self) -> int:
        """Degrees of freedom of ``of_cells``."""
        return (self.draws or self.cells) - 1

    @property
    def of_images(self) -> float:
        """Variance of the mean that only more test images would reduce."""
        return COMMON * DISAGREE * self.per_image


def detectable(designs: Sequence[Design], tests: int = 1, power: float = POWER) -> float:
    """Smallest true difference of the mean over ``designs`` that is found with ``power``.

    The mean is over cells, so that a design counts by their number; designs share no test images.
    Two-sided at 5 % over ``tests`` (Holm's first and hardest step). nan where a dataset has one
    cell or none, or no test image: then no spread can be seen.
    """
    if not designs or any(d.df < 1 or d.per_image <= 0 for d in designs):
        return math.nan
    total = sum(design.cells for design in designs)
    variance = spread = 0.0
    for design in designs:
        weight = (design.cells / total) ** 2
        variance += weight * (design.of_cells + design.of_images)
        spread += (weight * design.of_cells) ** 2 / design.df
    df = variance**2 / spread if spread > 0 else math.inf
    return minimum_detectable(math.sqrt(variance), tests, df, power)


def detectable_in_general(
    designs: Sequence[Design], between: float, tests: int = 1, power: float = POWER
) -> float:
    """The same for datasets in general, whose true differences have standard deviation ``between``.

    Of Student's t over the means of the ``designs``, one per dataset; nan for fewer than two.
    """
    if len(designs) < 2 or any(d.cells < 1 or d.per_image <= 0 for d in designs):
        return math.nan
    within = sum(design.of_cells + design.of_images for design in designs) / len(designs)
    error = math.sqrt((between**2 + within) / len(designs))
    return minimum_detectable(error, tests, len(designs) - 1, power)


def detectable_after(found: Interval | None, tests: int = 1) -> float:
    """The same from the standard error of a finished contrast; nan where there is none."""
    known = found is not None and found.is_known
    return minimum_detectable(found.se, tests, found.df) if found and known else math.nan


def minimum_detectable(
    error: float, tests: int = 1, df: float = math.inf, power: float = POWER
) -> float:
    """True difference that a two-sided t test at 5 % over ``tests`` finds with ``power``.

    ``error``: standard error, with ``df`` degrees of freedom. Power is that of the noncentral t.
    """
    density, w = _chi(df)

    def beyond(t: float, shift: float) -> float:
        return float((density * (_below(shift - t * w) + _below(-shift - t * w))).sum())

    critical = _rising(lambda t: -beyond(t, 0.0), -ALPHA / tests)
    return error * _rising(lambda shift: beyond(critical, shift), power)


def _chi(df: float) -> tuple[Floats, Floats]:
    """Weights and values of sqrt(chi2 / df), spaced evenly in its logarithm."""
    df = min(df, 1e6)
    log = np.linspace(-14 / df - 8 / math.sqrt(2 * df), 8 / math.sqrt(2 * df), 500)
    exponent = df * (log - np.exp(2 * log) / 2)
    density = np.exp(exponent - exponent.max())
    return density / density.sum(), np.exp(log)


def _below(z: Floats) -> Floats:
    """Distribution function of the normal."""
    return np.array([math.erfc(-x / math.sqrt(2)) / 2 for x in z.tolist()])


def _rising(function: Callable[[float], float], value: float) -> float:
    """Where a function that rises from 0 on reaches ``value``, to 1e-5."""
    high = 1.0
    while function(high) < value:
        high *= 2
    low = 0.0
    while high - low > 1e-5 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if function(middle) < value else (low, middle)
    return high
