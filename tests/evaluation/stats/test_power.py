"""The minimum detectable effect: by hand, against scipy, and by simulation with the very test."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import special
from scipy import stats as scipy_stats

from mgdm_ray.evaluation.stats.images import PairedPredictions, image_contrast
from mgdm_ray.evaluation.stats.intervals import Interval
from mgdm_ray.evaluation.stats.power import (
    COMMON,
    DISAGREE,
    Design,
    detectable,
    detectable_after,
    detectable_in_general,
    minimum_detectable,
)


@pytest.mark.parametrize("df", [1, 2, 3, 8, 30, 1e4, math.inf])
@pytest.mark.parametrize("tests", [1, 3])
def test_power_is_that_of_the_noncentral_t(df: float, tests: int) -> None:
    """Catches the approximation by a sum of two quantiles, 15 % too small for two datasets."""
    finite = min(df, 1e9)
    critical = scipy_stats.t.isf(0.05 / (2 * tests), finite)
    oracle = special.nctdtrinc(finite, 0.2, critical)
    assert minimum_detectable(1.0, tests, df) == pytest.approx(oracle, rel=0.001)


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
        contrast = image_contrast([PairedPredictions(d, labels)])
        found += contrast is not None and contrast.low > 0
    assert 0.70 <= found / 300 <= 0.88


def test_detectable_after_a_study_by_hand() -> None:
    """A standard error of 0.01: 1.96 + 0.8416 of them for one contrast, and 2.394 + 0.8416 for the
    first of three."""
    found = Interval(0.0, 0.01, math.inf)
    assert detectable_after(found) == pytest.approx(0.0280, abs=1e-4)
    assert detectable_after(found, 3) == pytest.approx(0.03236, abs=1e-4)
    assert math.isnan(detectable_after(None))
    assert math.isnan(detectable_after(Interval(0.1, 0.0, math.nan)))


@pytest.mark.parametrize(("datasets", "tests"), [(2, 1), (4, 1), (8, 1), (4, 3)])
def test_in_general_four_of_five_studies_find_it(datasets: int, tests: int) -> None:
    """Catches a plan that presumes that datasets agree: their true differences vary, and t over
    their means is compared with Holm's first threshold. 0.8 has a standard error of 0.009."""
    rng, design, sd = np.random.default_rng(2), Design((42, 114), 30), 0.015
    effect = detectable_in_general([design] * datasets, sd, tests)
    noise = math.sqrt(sd**2 + design.of_cells + design.of_images)
    drawn = rng.normal(effect, noise, (2000, datasets))
    found = scipy_stats.ttest_1samp(drawn, 0, axis=1).pvalue <= 0.05 / tests
    assert 0.77 <= found.mean() <= 0.83
    assert effect > detectable([design] * datasets, tests)
    assert math.isnan(detectable_in_general([design], sd))
