"""What a study can resolve, before anything is computed.

The same variance components as in ``images``, not measured but assumed, and the usual formula of a
minimum detectable effect: (t at 1 - alpha/2 + t at the power) standard errors. No scipy, for a plan
must be there at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

from mgdm_ray.evaluation.stats.paired import ALPHA, Contrast

POWER = 0.8
DISAGREE = 0.15
"""Share of test images on which two arms' networks of a cell differ in being right. Measured 0.08
to 0.18 on breastmnist and retinamnist at 28 px (8 cells each), 0.15 to 0.4 on phantoms."""
COMMON = 0.02
"""Part of that variance which all cells share, image by image. Measured 0 to 0.04 there."""
CELL_SD = 0.03
"""Standard deviation of a cell's true difference over seeds and networks. Measured 0 to 0.05 on
the real images, up to 0.15 on phantoms."""


@dataclass(frozen=True)
class Design:
    """What a contrast on one dataset rests on.

    ``test_counts``: test images per class; ``cells``: pairs (networks x seeds); ``sd``: of the
    observed differences over cells where some were measured, else None: then it is derived from
    the assumed numbers.
    """

    test_counts: Sequence[int]
    cells: int
    sd: float | None = None

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
        """Variance of the mean that more cells would reduce."""
        return self.cell_sd**2 / self.cells

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
    if not designs or any(d.cells < 2 or d.per_image <= 0 for d in designs):
        return math.nan
    total = sum(design.cells for design in designs)
    variance = spread = 0.0
    for design in designs:
        weight = (design.cells / total) ** 2
        variance += weight * (design.of_cells + design.of_images)
        spread += (weight * design.of_cells) ** 2 / (design.cells - 1)
    df = variance**2 / spread if spread > 0 else math.inf
    return minimum_detectable(math.sqrt(variance), tests, df, power)


def detectable_after(contrast: Contrast, tests: int = 1, power: float = POWER) -> float:
    """The same for a finished contrast, its standard error taken from its 95 % intervals.

    A verdict needs both intervals, so the wider one counts. nan without an interval, or with one of
    no width.
    """
    widths = [contrast.high - contrast.low]
    if contrast.here is not None:
        widths.append(contrast.here.high - contrast.here.low)
    error = max(widths) / (2 * NormalDist().inv_cdf(0.975))
    return minimum_detectable(error, tests, power=power) if error > 0 else math.nan


def minimum_detectable(
    error: float, tests: int = 1, df: float = math.inf, power: float = POWER
) -> float:
    """(t at 1 - alpha / 2m + t at the power) standard errors ``error``; m = ``tests``.

    Source: Bloom (1995), Evaluation Review 19.
    """
    return (student_t(1 - ALPHA / (2 * tests), df) + student_t(power, df)) * error


def student_t(q: float, df: float) -> float:
    """Quantile of Student's t; within 2 % for df >= 4 and q <= 0.995.

    Source: Abramowitz and Stegun (1964), 26.7.5, by the normal quantile.
    """
    z = NormalDist().inv_cdf(q)
    g1 = (z**3 + z) / 4
    g2 = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    g3 = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + g1 / df + g2 / df**2 + g3 / df**3
