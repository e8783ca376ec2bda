"""FD and KID against closed forms, numbers worked out by hand, MONAI and scipy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.metrics.fid import FIDMetric
from scipy.linalg import sqrtm

from mgdm_ray.evaluation.fidelity import distances
from mgdm_ray.evaluation.fidelity.distances import frechet_distance, kernel_distance


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_gaussians_are_as_far_apart_as_their_moments_say() -> None:
    """Would catch a wrong trace term: for covariances that commute, FD is |mu_a - mu_b|^2 plus the
    sum of (sd_a - sd_b)^2, here 9 + 16 + (2 - 1)^2 + (1 - 3)^2 = 30."""
    n = 200_000
    a = rng(1).standard_normal((n, 2)) * [2, 1] + [3, 0]
    b = rng(2).standard_normal((n, 2)) * [1, 3] + [0, 4]
    assert frechet_distance(a, b) == pytest.approx(30, rel=0.01)


def test_two_points_each_by_hand() -> None:
    """Would catch the biased covariance: of 0 and 2 the mean is 1 and the variance 2, of 5 and 9
    they are 7 and 8; FD = 36 + 2 + 8 - 2 sqrt(16) = 38."""
    assert frechet_distance(np.array([[0.0], [2.0]]), np.array([[5.0], [9.0]])) == pytest.approx(38)


@pytest.mark.parametrize(("n", "m", "d"), [(40, 60, 8), (8, 60, 20), (12, 9, 30)])
def test_fd_is_what_monai_and_scipy_say(n: int, m: int, d: int) -> None:
    """Would catch the singular values taken for something else than the matrix root's trace, with
    more vectors than dimensions, with fewer, and with one of each."""
    mix = rng(3).standard_normal((d, d)) / d
    a, b = rng(4).standard_normal((n, d)) @ mix, rng(5).standard_normal((m, d)) @ mix.T + 0.3
    found = frechet_distance(a, b)
    monai = float(FIDMetric()(torch.from_numpy(a), torch.from_numpy(b)))
    assert found == pytest.approx(monai, rel=1e-4)
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    mean = ((a.mean(0) - b.mean(0)) ** 2).sum()
    scipy = mean + np.trace(cov_a + cov_b - 2 * sqrtm(cov_a @ cov_b).real)
    assert found == pytest.approx(scipy, rel=1e-4)


@given(st.integers(2, 30), st.integers(2, 30), st.integers(1, 12), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_fd_is_a_distance(n: int, m: int, d: int, seed: int) -> None:
    """Would catch a number below 0, one that depends on the order, a set that is away from itself,
    and one that a rotation of the features changes."""
    a, b = rng(seed).standard_normal((n, d)), rng(seed + 100).standard_normal((m, d)) * 2 + 1
    found = frechet_distance(a, b)
    assert found >= 0
    assert frechet_distance(b, a) == pytest.approx(found, rel=1e-9)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    turn, _ = np.linalg.qr(rng(7).standard_normal((d, d)))
    assert frechet_distance(a @ turn, b @ turn) == pytest.approx(found, rel=1e-6, abs=1e-9)


def test_mmd_by_hand() -> None:
    """Would catch a diagonal that is counted and another kernel. In one dimension it is
    (x y + 1)^3: within {0, 1} the pair gives 1, within {1, 2} 27, and across 1, 1, 8, 27."""
    a, b = np.array([[0.0], [1.0]]), np.array([[1.0], [2.0]])
    assert kernel_distance(a, b, rng()) == pytest.approx(1 + 27 - 2 * (1 + 1 + 8 + 27) / 4)


def test_kid_of_one_distribution_is_zero_on_average() -> None:
    """Would catch a biased estimate: small sets of one distribution would seem to differ, as they
    do by FD."""
    draws = [rng(seed).standard_normal((2, 12, 4)) for seed in range(400)]
    kids = np.array([kernel_distance(a, b, rng()) for a, b in draws])
    error = kids.std() / np.sqrt(len(kids))
    assert abs(kids.mean()) < 3 * error
    assert kids.min() < 0 < kids.max()
    assert np.mean([frechet_distance(a, b) for a, b in draws]) > 0.5
    shifted = np.array([kernel_distance(a, b + 1, rng()) for a, b in draws])
    assert shifted.mean() > 10 * error


def test_blocks_give_what_the_whole_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch blocks of one set only, or of the wrong size."""
    a, b = rng(1).standard_normal((300, 4)), rng(2).standard_normal((260, 4)) + 1
    whole = kernel_distance(a, b, rng())
    monkeypatch.setattr(distances, "BLOCK", 100)
    assert kernel_distance(a, b, rng()) == pytest.approx(whole, rel=0.25)


@pytest.mark.parametrize("distance", [frechet_distance, lambda a, b: kernel_distance(a, b, rng())])
def test_one_vector_is_refused(distance: Callable[[np.ndarray, np.ndarray], float]) -> None:
    """Would catch NaN that goes into a record."""
    with pytest.raises(ValueError, match="got 3 and 1"):
        distance(np.zeros((3, 2)), np.zeros((1, 2)))
