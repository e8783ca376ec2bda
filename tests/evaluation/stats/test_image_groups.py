"""Groups of test images (patients, near-duplicates) as the unit of the interval: against the
two-way analysis of single images, statsmodels, a jackknife, and by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from mgdm_ray.evaluation.stats.images import PairedPredictions, components, image_contrast


def single_images(d: NDArray[np.float64], labels: NDArray[np.int64]) -> tuple[float, float, float]:
    """A, B and E of the two-way analysis of variance, class by class, and the spread of their sum
    over its squared value: the formula before groups."""
    cells, k = len(d), len(np.unique(labels))
    means, b, e, spread = [], 0.0, 0.0, 0.0
    for label in np.unique(labels):
        x = d[:, labels == label]
        n = x.shape[1]
        means.append(x.mean(axis=1))
        left = x - x.mean(axis=1)[:, None] - x.mean(axis=0) + x.mean()
        part = x.mean(axis=0).var(ddof=1) / (k**2 * n)
        b, spread = b + part, spread + part**2 / (n - 1)
        e += (left**2).sum() / ((cells - 1) * (n - 1)) / (k**2 * n) / cells
    a = np.mean(means, axis=0).var(ddof=1) / cells
    total = max(0, a - e) + max(0, b - e) + e
    return max(0, a - e), max(0, b - e), total**2 / (spread + a**2 / (cells - 1))


@pytest.mark.parametrize("counts", [(12, 7), (30, 30), (2, 5, 40)])
def test_each_image_a_group_is_the_two_way_analysis(counts: tuple[int, ...]) -> None:
    """Catches groups that change results where images are independent, whatever their names."""
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    d = rng.integers(-1, 2, (5, len(labels))) + rng.normal(0, 0.3, (5, 1))
    cells, images, df = single_images(d, labels)
    for groups in (np.zeros(0, dtype=int), rng.permutation(len(labels)) * 3):
        found = components(PairedPredictions(d, labels, groups))
        assert (found.cells, found.images) == pytest.approx((cells, images), abs=1e-12)
        assert found.df == pytest.approx(df, rel=1e-12)


def test_a_duplicate_is_no_second_patient() -> None:
    """Catches an interval that shrinks when every test image is copied: with the copies in one
    group it is the same, to the last digit that counts; alone it is too narrow."""
    rng = np.random.default_rng(1)
    d, labels = rng.integers(-1, 2, (4, 30)).astype(float), np.repeat([0, 1], [18, 12])
    once = image_contrast([PairedPredictions(d, labels)])
    twice, names = np.tile(d, 2), np.tile(np.arange(30), 2)
    together = image_contrast([PairedPredictions(twice, np.tile(labels, 2), names)])
    apart = image_contrast([PairedPredictions(twice, np.tile(labels, 2))])
    assert once is not None
    assert together is not None
    assert apart is not None
    assert (together.low, together.high, together.df) == pytest.approx(
        (once.low, once.high, once.df), abs=1e-12
    )
    assert (together.images, together.groups) == (60, 30)
    assert apart.se < 0.9 * once.se


def test_patients_in_two_classes_agree_with_statsmodels() -> None:
    """Catches a patient whose images of two classes count as two: the cluster-robust variance of a
    regression on the classes, whose correction for few groups is G / (G - 1) where all patients
    have equally many images of each class."""
    import statsmodels.api as sm

    rng, patients = np.random.default_rng(2), 15
    groups, labels = np.repeat(np.arange(patients), 5), np.tile([0, 0, 1, 1, 1], patients)
    values = rng.normal(0, 1, len(labels)) + rng.normal(0, 1, patients)[groups]
    d = np.tile(values, (3, 1))
    classes = np.stack([labels == 0, labels == 1], axis=1).astype(float)
    fitted = sm.OLS(values, classes).fit(
        cov_type="cluster", cov_kwds={"groups": groups, "use_correction": False}
    )
    oracle = float(np.full(2, 0.5) @ fitted.cov_params() @ np.full(2, 0.5))
    found = components(PairedPredictions(d, labels, groups))
    assert found.images == pytest.approx(oracle * patients / (patients - 1), rel=1e-9)
    assert found.df == pytest.approx(patients - 1)
    alone = components(PairedPredictions(d, labels))
    assert alone.images < 0.7 * found.images


def test_unequal_patients_agree_with_the_jackknife() -> None:
    """Catches weights that favour small patients, or large ones: leaving out one patient after the
    other gives nearly the same variance. 60 patients of 1 to 8 images in three classes."""
    rng = np.random.default_rng(3)
    sizes = rng.integers(1, 9, 60)
    groups = np.repeat(np.arange(60), sizes)
    labels = rng.integers(0, 3, len(groups))
    values = rng.normal(0, 1, len(groups)) + rng.normal(0, 0.7, 60)[groups]
    whole = PairedPredictions(np.tile(values, (2, 1)), labels, groups)
    left = [whole.without(np.flatnonzero(groups == patient)).mean() for patient in range(60)]
    jackknife = 59 / 60 * float(((np.array(left) - np.mean(left)) ** 2).sum())
    assert components(whole).images == pytest.approx(jackknife, rel=0.06)


def test_width_and_coverage_with_patients() -> None:
    """Catches an interval of images where the effect varies over patients: 20 patients of 1 to 9
    images each, whose effect has the standard deviation 0.3, in two classes, 6 cells."""
    rng, runs, cells = np.random.default_rng(4), 300, 6
    covered = {"patients": 0, "images": 0}
    for _ in range(runs):
        groups = np.repeat(np.arange(20), rng.integers(1, 10, 20))
        labels = groups % 2
        d = rng.normal(0, 0.3, 20)[groups] + rng.normal(0, 0.3, (cells, len(groups)))
        d = d + rng.normal(0, 0.02, (cells, 1))
        for name, one in (("patients", groups), ("images", np.arange(len(groups)))):
            found = image_contrast([PairedPredictions(d, labels, one)])
            assert found is not None
            covered[name] += found.low <= 0 <= found.high
    assert 0.92 <= covered["patients"] / runs <= 0.985
    assert covered["images"] / runs < 0.85


def test_a_class_of_one_patient_borrows_and_one_patient_alone_is_refused() -> None:
    """Catches a class that seems certain because all its images are of one patient."""
    rng = np.random.default_rng(5)
    labels, d = np.repeat([0, 1], [20, 6]), rng.normal(0, 0.3, (4, 26))
    groups = np.r_[np.arange(20), np.full(6, 99)]
    one = components(PairedPredictions(d, labels, groups))
    assert one.images + one.both > components(PairedPredictions(d, labels)).total
    assert one.df < 3
    assert image_contrast([PairedPredictions(d, labels, np.zeros(26, dtype=int))]) is None
    assert PairedPredictions(d, labels, groups).groups_by_class() == [20, 1]


def test_groups_follow_their_images() -> None:
    """Catches groups that stay behind when images are left out, or are of another length."""
    labels = np.array([0, 0, 1, 1])
    one = PairedPredictions(np.zeros((2, 4)), labels, np.array([7, 7, 8, 9]))
    assert one.without([0, 3]).groups.tolist() == [7, 8]
    with pytest.raises(ValueError, match=r"\(3,\)"):
        PairedPredictions(np.zeros((2, 4)), labels, np.array([7, 7, 8]))
