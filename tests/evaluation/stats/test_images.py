"""Intervals over test images and cells: by hand, against theory, and by simulation."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mgdm_ray.evaluation.stats.images import PairedPredictions, components, image_contrast


def two_way(
    rng: np.random.Generator, cells: int, counts: tuple[int, ...], sd: tuple[float, float, float]
) -> PairedPredictions:
    """Normal effects of cells, images and both, with mean 0."""
    of_cells, of_images, of_both = sd
    n = sum(counts)
    d = rng.normal(0, of_cells, (cells, 1)) + rng.normal(0, of_images, (1, n))
    d = d + rng.normal(0, of_both, (cells, n))
    return PairedPredictions(d, np.repeat(np.arange(len(counts)), counts))


def test_components_of_a_table_done_by_hand() -> None:
    """Catches wrong degrees of freedom and shares, in one class of two images, two cells.

    d = [[3, 1], [1, -1]]: the cells' means 2 and 0 have variance 2, over 2 cells 1; the images'
    means 2 and 0 likewise, over 2 images 1; nothing is left over.
    """
    found = components(PairedPredictions(np.array([[3.0, 1.0], [1.0, -1.0]]), np.array([4, 4])))
    assert (found.cells, found.images, found.both) == pytest.approx((1, 1, 0))
    crossed = components(PairedPredictions(np.array([[1.0, -1.0], [-1.0, 1.0]]), np.array([0, 0])))
    # Means are all 0; residuals +-1: 4 / (1 * 1) over 2 images and 2 cells.
    assert (crossed.cells, crossed.images, crossed.both) == pytest.approx((0, 0, 1))


def test_the_mean_is_the_difference_in_balanced_accuracy() -> None:
    """Catches a mean over images where classes count alike: by hand and by sklearn."""
    from sklearn.metrics import balanced_accuracy_score

    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], [5, 20, 3])
    a, b = (rng.integers(0, 3, (4, 28)) for _ in range(2))
    answers = PairedPredictions((a == labels) * 1.0 - (b == labels) * 1.0, labels)
    oracle = [
        balanced_accuracy_score(labels, x) - balanced_accuracy_score(labels, y)
        for x, y in zip(a, b, strict=True)
    ]
    assert answers.mean() == pytest.approx(np.mean(oracle))
    assert image_contrast([answers]).difference == pytest.approx(answers.mean())  # type: ignore[union-attr]
    left = answers.without([0, 4, 27])
    assert left.difference.shape == (4, 25)
    assert left.labels.tolist() == np.delete(labels, [0, 4, 27]).tolist()


@pytest.mark.parametrize(
    "sd", [(0.0, 0.4, 0.0), (0.05, 0.0, 0.0), (0.0, 0.0, 0.4), (0.05, 0.15, 0.3)]
)
def test_width_and_coverage_agree_with_theory(sd: tuple[float, float, float]) -> None:
    """Catches an interval that is blind to a source, or that counts one three times, as the plain
    crossed bootstrap does with what is peculiar to cell and image.

    Test images only, seeds only, only both together, and all of them; two classes of 60 and 30.
    The variance of the mean is known: sd_c^2 / R + (sd_i^2 + sd_b^2 / R) * sum(1 / (4 n_k)).
    """
    rng, counts, cells, runs = np.random.default_rng(7), (60, 30), 8, 200
    unit = sum(1 / (4 * n) for n in counts)
    theory = sd[0] ** 2 / cells + (sd[1] ** 2 + sd[2] ** 2 / cells) * unit
    seen, covered, share = [], 0, []
    for _ in range(runs):
        found = image_contrast([two_way(rng, cells, counts, sd)])
        assert found is not None
        seen.append(found.se**2)
        share.append(found.image_share)
        covered += found.low <= 0 <= found.high
    # A variance that is cut off at 0 cannot be too small on average, but a little too large.
    assert 0.93 * theory <= np.mean(seen) <= 1.3 * theory
    assert 0.91 <= covered / runs <= 0.99
    if sd[0] == sd[2] == 0:
        assert min(share) > 0.99


def test_binomial_noise_of_a_test_set_has_the_width_of_the_binomial() -> None:
    """Catches a wrong scale on real answers: every cell gives the same ones, the first arm right
    on 40 of 100 images where the second is wrong. Variance p (1 - p) / (n - 1)."""
    d = np.zeros((5, 100))
    d[:, :40] = 1
    found = image_contrast([PairedPredictions(d, np.zeros(100, dtype=int))])
    assert found is not None
    assert found.se == pytest.approx(math.sqrt(0.4 * 0.6 / 99))
    assert found.high - found.low == pytest.approx(2 * 1.984 * found.se, rel=0.02)
    assert found.image_share == pytest.approx(1)


def test_seeds_cannot_buy_what_the_test_images_lack() -> None:
    """Catches an interval that shrinks to nothing with more networks on the same test split."""
    rng = np.random.default_rng(1)
    few, many = (
        image_contrast([two_way(rng, cells, (40, 40), (0.0, 0.3, 0.3))]) for cells in (5, 200)
    )
    assert few is not None
    assert many is not None
    assert many.se > 0.8 * 0.3 / math.sqrt(80)
    assert many.image_share > 0.9


def test_datasets_together_weigh_by_their_cells() -> None:
    """Catches a mean over images or datasets where the contrast is over cells; and a variance that
    is not that of a weighted mean."""
    rng = np.random.default_rng(2)
    one = two_way(rng, 6, (30, 30), (0.02, 0.2, 0.2))
    two = two_way(rng, 2, (300, 20), (0.02, 0.2, 0.2))
    found = image_contrast([one, two])
    assert found is not None
    assert found.difference == pytest.approx((6 * one.mean() + 2 * two.mean()) / 8)
    parts = [components(one).total, components(two).total]
    assert found.se == pytest.approx(math.sqrt((36 * parts[0] + 4 * parts[1]) / 64))
    assert (found.cells, found.images) == (8, 380)
    assert found.low < found.difference < found.high


def test_what_cannot_be_seen_is_not_made_up() -> None:
    """Catches an interval from one image per class, a crash where nothing differs, and certainty
    where no spread was seen."""
    labels = np.array([0, 1, 2])
    assert image_contrast([PairedPredictions(np.eye(3), labels)]) is None
    nothing = image_contrast([PairedPredictions(np.zeros((3, 4)), np.array([0, 0, 1, 1]))])
    assert nothing is not None
    assert (nothing.difference, nothing.p) == (0, 1)
    assert nothing.spans_zero
    same = image_contrast([PairedPredictions(np.ones((3, 4)), np.array([0, 0, 1, 1]))])
    assert same is not None
    assert same.spans_zero
    assert math.isnan(same.p)
    with pytest.raises(ValueError, match=r"\(3, 4\).*\(3,\)"):
        PairedPredictions(np.ones((3, 4)), np.zeros(3, dtype=int))


def test_a_class_with_one_image_borrows() -> None:
    """Catches nan where a rare class has a single test image."""
    rng = np.random.default_rng(3)
    rare = image_contrast([two_way(rng, 4, (20, 1), (0.0, 0.2, 0.2))])
    assert rare is not None
    assert math.isfinite(rare.low)


def test_one_cell_has_no_interval() -> None:
    """Catches an interval over test images alone that passes for one over seeds as well, also in
    one of several datasets."""
    rng = np.random.default_rng(3)
    alone, more = (two_way(rng, cells, (50, 50), (0.0, 0.2, 0.2)) for cells in (1, 3))
    assert image_contrast([alone]) is None
    assert image_contrast([more, alone]) is None


@given(st.integers(0, 10_000))
@settings(max_examples=15, deadline=None)
def test_swapping_arms_and_shuffling_images_change_nothing_else(seed: int) -> None:
    """Catches any asymmetry between the arms, and answers that depend on the images' order."""
    rng = np.random.default_rng(seed)
    one = two_way(rng, 4, (12, 7), (0.1, 0.2, 0.3))
    found = image_contrast([one])
    swapped = image_contrast([PairedPredictions(-one.difference, one.labels)])
    order = rng.permutation(19)
    moved = components(PairedPredictions(one.difference[:, order], one.labels[order]))
    assert found is not None
    assert swapped is not None
    assert (swapped.difference, swapped.p) == pytest.approx((-found.difference, found.p))
    assert (swapped.low, swapped.high) == pytest.approx((-found.high, -found.low))
    assert moved.total == pytest.approx(components(one).total)


def test_a_whole_grid_takes_seconds() -> None:
    """Catches loops over images or replicates: 30 cells, three contrasts, 2004 test images in the
    classes of ham10000, where a dataset may take a second."""
    rng = np.random.default_rng(4)
    counts = (65, 103, 220, 23, 223, 1341, 29)
    started = time.process_time()
    for _ in range(3):
        image_contrast([two_way(rng, 30, counts, (0.02, 0.1, 0.3))])
    assert time.process_time() - started < 5
