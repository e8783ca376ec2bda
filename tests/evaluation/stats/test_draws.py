"""Draws of synthetic images as a random factor: by hand, against theory, and what falls back."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mgdm_ray.evaluation.stats.images import PairedPredictions, components, image_contrast
from mgdm_ray.evaluation.stats.intervals import FLOOR, by_draw, over_cells, over_draws
from mgdm_ray.evaluation.stats.paired import contrast_table, paired_contrast
from mgdm_ray.evaluation.stats.power import DRAW_SD, Design, detectable, minimum_detectable

NETWORKS, DRAWS, COUNTS = 6, 3, (60, 40)
UNIT = sum(1 / (4 * n) for n in COUNTS)
CELLS = np.tile(np.arange(DRAWS), NETWORKS)
"""Draws of the cells, in the order of networks, then seeds."""


def drawn(
    rng: np.random.Generator, of_draws: float, of_cells: float = 0.02, of_images: float = 0.1
) -> PairedPredictions:
    """Normal effects with mean 0; what is peculiar to cell and image has a spread of 0.4."""
    n = sum(COUNTS)
    d = rng.normal(0, of_draws, DRAWS)[CELLS][:, None] + rng.normal(0, of_images, n)
    d = d + rng.normal(0, of_cells, (len(CELLS), 1)) + rng.normal(0, 0.4, (len(CELLS), n))
    return PairedPredictions(d, np.repeat([0, 1], COUNTS), draws=CELLS)


def test_over_draws_by_hand() -> None:
    """Two draws of two cells: means 2 and 6 have the variance 8, that of their mean is 4, with one
    degree of freedom. Over cells, as if they were independent, it is 20 / 3 / 4, with three."""
    cells, draws = np.array([1.0, 5.0, 3.0, 7.0]), np.array([0, 1, 0, 1])
    grouped = by_draw(cells, draws)
    assert grouped is not None
    assert grouped.tolist() == [[1, 3], [5, 7]]
    found, fixed = over_cells([cells], [draws]), over_cells([cells])
    assert found is not None
    assert fixed is not None
    assert (found.difference, found.se, found.df) == (4, pytest.approx(2), pytest.approx(1))
    assert (found.draws, found.cells) == (2, 4)
    assert (fixed.se, fixed.df, fixed.draws) == (pytest.approx(math.sqrt(5 / 3)), 3, 0)


def test_draws_that_are_alike_by_chance_count_as_their_interaction_with_networks() -> None:
    """By hand: means of both draws are 2, so that nothing is seen of draws. Residuals of draws and
    networks are +-1: 4 over one degree of freedom and four cells is 1, of which FLOOR counts. In
    another dataset, 3 times as large, means of 2 and 6 are seen: 4 together with it."""
    alike, apart = np.array([[1.0, 3.0], [3.0, 1.0]]), np.array([[1.0, 3.0], [5.0, 7.0]])
    assert over_draws([alike], [1.0]) == [(FLOOR, 2)]
    assert over_draws([apart], [1.0]) == [(4, 1)]
    assert over_draws([alike, apart], [0.5, 0.5]) == [(0, 1), (4, 1)]
    assert over_draws([alike[:, :1]], [1.0]) == [(1, 1)], "a network alone is its draws"


@pytest.mark.parametrize("of_draws", [0.0, 0.01, 0.03])
def test_the_variance_is_that_of_draws_cells_and_images(of_draws: float) -> None:
    """Catches an interval that is blind to draws, or that drops the test images for them. With
    networks N and draws S: sd_d^2 / S + sd_c^2 / N S + (sd_i^2 + 0.16 / N S) sum(1 / (4 n_k))."""
    rng = np.random.default_rng(3)
    n = NETWORKS * DRAWS
    theory = of_draws**2 / DRAWS + 0.02**2 / n + (0.1**2 + 0.16 / n) * UNIT
    seen, covered, runs = [], 0, 300
    for _ in range(runs):
        found = image_contrast([drawn(rng, of_draws)])
        assert found is not None
        assert found.draws == DRAWS
        seen.append(found.se**2)
        covered += found.low <= 0 <= found.high
    # Variances that are cut off at 0 are a little too large on average.
    assert 0.9 * theory <= np.mean(seen) <= 1.35 * theory
    assert 0.91 <= covered / runs <= 0.995


def test_cells_of_a_draw_are_no_independent_evidence() -> None:
    """Catches draws that are known and not used: six networks on three draws."""
    rng = np.random.default_rng(4)
    study = [drawn(rng, 0.06) for _ in range(200)]
    blind = [image_contrast([PairedPredictions(s.difference, s.labels)]) for s in study]
    seeing = [image_contrast([s]) for s in study]
    covered = [sum(one is not None and one.spans_zero for one in each) for each in (blind, seeing)]
    assert covered[0] < 0.8 * len(study)
    assert covered[1] > 0.91 * len(study)


def test_draws_are_the_readers_and_images_stay_cases() -> None:
    one = drawn(np.random.default_rng(5), 0.05)
    found = image_contrast([one])
    means = np.stack([one.difference[draw == CELLS].mean(axis=0) for draw in range(DRAWS)])
    parts = components(PairedPredictions(means, one.labels))
    assert found is not None
    assert found.difference == pytest.approx(one.mean())
    assert found.se**2 == pytest.approx(parts.total)
    assert found.df == pytest.approx(parts.df)
    assert found.image_share == pytest.approx(parts.images / parts.total)
    assert (found.cells, found.images) == (18, 100)
    kept = one.without(range(50)).of_draws()
    assert kept is not None
    assert kept.difference.shape == (DRAWS, 50)


def test_a_network_alone_has_a_cell_for_each_draw() -> None:
    """Catches another interval for the same three cells, or draws that it does not claim."""
    whole = drawn(np.random.default_rng(6), 0.01)
    alone = PairedPredictions(whole.difference[:3], whole.labels, draws=CELLS[:3])
    one, same = image_contrast([alone]), image_contrast([PairedPredictions(*vars(alone).values())])
    fixed = image_contrast([PairedPredictions(alone.difference, alone.labels)])
    assert one is not None
    assert same is not None
    assert fixed is not None
    assert (one.low, one.high, one.draws) == (fixed.low, fixed.high, 3)
    assert (same.draws, fixed.draws) == (3, 0)


@pytest.mark.parametrize("draws", [np.zeros(18, dtype=int), np.r_[CELLS[:-1], 0], None])
def test_without_draws_to_compare_they_are_taken_as_they_are(draws: np.ndarray | None) -> None:
    """Catches a claim about draws from a single one, and from a grid that lacks cells."""
    one = drawn(np.random.default_rng(7), 0.01)
    found = image_contrast([PairedPredictions(one.difference, one.labels, draws=draws), one])
    fixed = image_contrast([PairedPredictions(one.difference, one.labels)] * 2)
    assert found is not None
    assert fixed is not None
    assert (found.draws, found.low, found.high) == (0, fixed.low, fixed.high)
    rows = over_cells([one.cells(), one.cells()], [draws, CELLS])
    assert rows is not None
    assert rows.draws == 0


def test_only_contrasts_of_arms_with_draws_are_over_draws() -> None:
    """Catches copies of draws in a contrast that has none, where cells are independent."""
    rng = np.random.default_rng(8)
    cells = {
        ("d", network, arm, seed): float(rng.random())
        for network in "abc" for arm in ("real", "augment", "disturb") for seed in range(3)
    }  # fmt: skip
    pairs = [("disturb", "real"), ("augment", "real")]
    over, plain = contrast_table(cells, pairs, drawn=("disturb",))
    assert over.here is not None
    assert plain.here is not None
    assert (over.here.estimate.draws, over.here.estimate.df) == (3, pytest.approx(2))
    assert (plain.here.estimate.draws, plain.here.estimate.df) == (0, pytest.approx(8))
    a, b = ([cells["d", n, arm, s] for n in "abc" for s in range(3)] for arm in pairs[0])
    alone = paired_contrast(a, b, ["d"] * 9, [0, 1, 2] * 3)
    assert alone.here is not None
    assert alone.here.estimate == over.here.estimate


def test_a_plan_counts_draws() -> None:
    """Catches a detectable difference that the report, over draws, cannot find: by hand, with 2
    degrees of freedom where cells alone have 17."""
    cells, draws = Design((80, 80), 18, 0.03), Design((80, 80), 18, 0.03, draws=3)
    assert draws.of_cells == pytest.approx(cells.of_cells + DRAW_SD**2 / 3)
    assert (cells.df, draws.df) == (17, 2)
    variance = draws.of_cells + draws.of_images
    df = 2 * (variance / draws.of_cells) ** 2
    found = detectable([draws])
    assert found == pytest.approx(minimum_detectable(math.sqrt(variance), df=df))
    assert found > 1.5 * detectable([cells])
