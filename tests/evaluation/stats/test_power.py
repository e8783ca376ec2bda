"""The minimum detectable effect: by hand, against scipy, and by simulation with the very test."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from mgdm_ray.evaluation.stats.images import PairedPredictions, image_contrast
from mgdm_ray.evaluation.stats.paired import Contrast
from mgdm_ray.evaluation.stats.power import (
    COMMON,
    DISAGREE,
    Design,
    detectable,
    detectable_after,
    student_t,
)


@pytest.mark.parametrize("df", [4, 8, 30, 200])
@pytest.mark.parametrize("q", [0.8, 0.975, 0.99])
def test_t_without_scipy_is_scipys(q: float, df: int) -> None:
    """Catches a wrong coefficient of the expansion."""
    assert student_t(q, df) == pytest.approx(scipy_stats.t.ppf(q, df), rel=0.02)


def test_effect_of_a_design_done_by_hand() -> None:
    """Catches a wrong share of images or cells, and a tail that is not halved.

    One class pair of 50 and 50 images: 1 / (4 * 50) twice is 0.01 per image. With sd 0.05 over 100
    cells: variance 0.0025 / 100 + 0.02 * 0.15 * 0.01 = 5.5e-5. t: nearly 1.96 + 0.84.
    """
    design = Design((50, 50), 100, sd=0.05)
    assert design.per_image == pytest.approx(0.01)
    assert design.of_cells + design.of_images == pytest.approx(5.5e-5)
    assert detectable([design]) == pytest.approx(2.8016 * math.sqrt(5.5e-5), rel=0.02)
    # Four such datasets: half the standard error. Three tests: 2.394 for 1.960.
    four = detectable([design] * 4)
    assert four == pytest.approx(detectable([design]) / 2, rel=0.02)
    assert detectable([design] * 4, tests=3) / four == pytest.approx(3.2356 / 2.8016, rel=0.01)


def test_the_rarest_class_decides() -> None:
    """Catches a plan that counts images: 1000 of them with 10 in a class resolve less than 100."""
    assert detectable([Design((990, 10), 30)]) > detectable([Design((50, 50), 30)])
    assert Design((50, 0, 50), 30).per_image == Design((50, 50), 30).per_image


def test_nothing_is_promised_where_nothing_can_be_seen() -> None:
    """Catches a number for a single cell, or for no dataset; and a crash where cells tie."""
    level = Design((50, 50), 30, sd=0.0)
    assert detectable([level]) == pytest.approx(2.8016 * math.sqrt(level.of_images), rel=0.001)
    assert math.isnan(detectable([Design((50, 50), 1)]))
    assert math.isnan(detectable([Design((), 30)]))
    assert math.isnan(detectable([]))


@pytest.mark.parametrize(("cells", "counts"), [(30, (42, 114)), (6, (174, 46, 92, 68, 20))])
def test_at_the_minimum_detectable_effect_four_of_five_studies_find_it(
    cells: int, counts: tuple[int, ...]
) -> None:
    """Catches a plan that promises what the report's interval cannot keep: differences drawn with
    the assumed variances around the effect, tested as the report tests them. 300 studies: 0.8 has
    a standard error of 0.023; the interval is a little wide where variances are cut off at 0."""
    rng, design = np.random.default_rng(5), Design(counts, cells)
    effect = detectable([design])
    labels = np.repeat(np.arange(len(counts)), counts)
    both = math.sqrt((1 - COMMON) * DISAGREE)
    true_sd = math.sqrt(design.cell_sd**2 - both**2 * design.per_image)
    found = 0
    for _ in range(300):
        d = effect + rng.normal(0, true_sd, (cells, 1))
        d = d + rng.normal(0, math.sqrt(COMMON * DISAGREE), (1, len(labels)))
        d = d + rng.normal(0, both, (cells, len(labels)))
        contrast = image_contrast([PairedPredictions(d, labels)], n_boot=200)
        found += contrast is not None and contrast.low > 0
    assert 0.70 <= found / 300 <= 0.88


def test_detectable_after_a_study_by_hand() -> None:
    """An interval 3.92 standard errors wide: 1.96 + 0.8416 of them for one contrast, and
    2.394 + 0.8416 for the first of three."""

    def contrast(low: float, high: float) -> Contrast:
        return Contrast(0.0, low, high, 0.5, 1, 0, 1, 0.0, 2)

    assert detectable_after(contrast(-0.0196, 0.0196)) == pytest.approx(0.0280, abs=1e-4)
    assert detectable_after(contrast(-0.0196, 0.0196), 3) == pytest.approx(0.03236, abs=1e-4)
    assert math.isnan(detectable_after(contrast(math.nan, math.nan)))
    assert math.isnan(detectable_after(contrast(0.0, 0.0)))
