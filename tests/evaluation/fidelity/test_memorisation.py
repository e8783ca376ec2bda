"""Copies are found, and images that are none are not: on drawn images, with known answers."""

from __future__ import annotations

import numpy as np
import pytest

from mgdm_ray.config import DatasetConfig, PhantomConfig
from mgdm_ray.data.load import data_source, to_tensor
from mgdm_ray.data.npz import SplitName
from mgdm_ray.evaluation.fidelity.memorisation import (
    QUANTILE,
    SAME_IMAGE,
    is_independent,
    nearest,
    threshold_of,
)


def phantom(split: SplitName, name: str = "phantom-ultrasound", seed: int = 0) -> np.ndarray:
    drawn = PhantomConfig(train=160, val=120, test=120, seed=seed)
    config = DatasetConfig(name=name, size=28, phantom=drawn)
    array: np.ndarray = to_tensor(data_source(config).load(split).images).numpy()
    return array


@pytest.fixture(scope="module")
def train() -> np.ndarray:
    return phantom("train")


@pytest.fixture(scope="module")
def threshold(train: np.ndarray) -> float:
    return threshold_of(nearest(phantom("val"), train).distance)


CHANGES = {
    "nothing": lambda x, _: x,
    "noise": lambda x, rng: x + rng.normal(0, 0.15, x.shape),
    "mirrored": lambda x, _: x[..., ::-1],
    "brighter": lambda x, _: 0.8 * x + 0.15,
    "one pixel aside": lambda x, _: np.roll(x, 1, axis=3),
    "a fifth of another": lambda x, _: 0.8 * x + 0.2 * np.roll(x, 1, axis=0),
}


@pytest.mark.parametrize("change", CHANGES)
def test_copies_are_found_however_they_are_dressed(
    train: np.ndarray, threshold: float, change: str
) -> None:
    """Would catch a copy that noise, a mirror, brightness or a shift hides, and a pair that names
    the wrong training image."""
    chosen = np.arange(0, 160, 4)
    copies = CHANGES[change](train[chosen], np.random.default_rng(0)).clip(-1, 1)
    found = nearest(copies, train)
    assert (found.distance < threshold).mean() >= 0.95
    assert (found.train == chosen).mean() >= 0.95
    assert (found.mirrored == (change == "mirrored")).mean() >= 0.95


@pytest.mark.parametrize("name", ["phantom-ultrasound", "phantom-fundus", "phantom-xray"])
def test_new_images_are_near_copies_as_often_as_real_ones(name: str) -> None:
    """Would catch a threshold that calls whatever is new a copy, or nothing: drawings of another
    seed must pass it about as often as held-out ones do, one in twenty."""
    train = phantom("train", name)
    threshold = threshold_of(nearest(phantom("val", name), train).distance)
    fresh = np.concatenate([phantom("train", name, seed) for seed in (1, 2, 3)])
    rate = (nearest(fresh, train).distance < threshold).mean()
    # 480 fresh images; the threshold itself is the sixth smallest of 120.
    assert QUANTILE / 5 < rate < QUANTILE * 2.6


def test_bland_images_are_no_copies(train: np.ndarray, threshold: float) -> None:
    """Would catch a plain distance, to which the mean image is a near-copy of everything: a weak
    model, which copies nothing, would be accused."""
    rng = np.random.default_rng(0)
    few = np.stack([train[rng.choice(160, 12, replace=False)].mean(axis=0) for _ in range(40)])
    found = nearest(few, train)
    assert (found.distance < threshold).mean() <= 0.1
    flat = nearest(np.zeros_like(few), train)
    assert (flat.distance > 0.9).all(), "a flat image resembles nothing"


def test_a_data_set_that_leaks_does_not_move_the_threshold(
    train: np.ndarray, threshold: float
) -> None:
    """Would catch a threshold of 0, under which nothing is a copy any more, because a third of
    the validation images are training images, some with a little noise as re-encoding makes."""
    rng = np.random.default_rng(0)
    leaked = (
        train[:60]
        + rng.normal(0, 0.02, train[:60].shape) * (np.arange(60) % 2)[:, None, None, None]
    )
    distance = nearest(np.concatenate([phantom("val"), leaked]), train).distance
    assert not is_independent(distance[120:]).any()
    assert is_independent(distance[:120]).all()
    assert threshold_of(distance) == threshold
    assert threshold_of(distance[120:]) == SAME_IMAGE, "nothing left to calibrate by"


def test_the_threshold_by_hand() -> None:
    """Would catch leaks that count. Of 0.4, 0.5, ..., 0.8 the 5 % quantile is a fifth of the way
    from the first to the second: 0.42."""
    distance = np.array([0.0, 0.1, 0.29, 0.8, 0.5, 0.7, 0.6, 0.4])
    assert threshold_of(distance) == pytest.approx(0.42)
    assert is_independent(distance).tolist() == [False] * 3 + [True] * 5


def test_a_mixture_is_nearer_to_what_it_has_more_of() -> None:
    """Would catch a distance that does not grow from 0 as an image leaves a training image, and
    one that names another."""
    corners = np.full((3, 1, 28, 28), -1.0)
    corners[0, :, :9, :9] = corners[1, :, 19:, :9] = corners[2, :, 9:19, 9:19] = 1
    shares = np.array([0, 0.1, 0.2, 0.3, 0.4])[:, None, None, None]
    found = nearest((1 - shares) * corners[0] + shares * corners[1], corners)
    assert found.distance[0] == 0
    assert (np.diff(found.distance) > 0.02).all()
    assert set(found.train) == {0}


def test_the_same_training_image_many_times_is_still_copied() -> None:
    """Would catch 0 / 0: all 50 neighbours are one image."""
    image = phantom("train")[:1]
    found = nearest(image, np.repeat(image, 60, axis=0))
    assert found.distance[0] == 0


def test_too_few_training_images_are_refused() -> None:
    with pytest.raises(ValueError, match="got 2"):
        nearest(np.zeros((1, 1, 8, 8)), np.zeros((2, 1, 8, 8)))


def test_large_images_are_compared_at_the_same_size() -> None:
    """Would catch a table of 150,000 pixels per image, and copies that are lost by thinning out."""
    small = phantom("train")[:30]
    large = small.repeat(4, axis=2).repeat(4, axis=3)
    found, known = nearest(large[:10], large), nearest(small[:10], small)
    assert found.train.tolist() == known.train.tolist() == list(range(10))
    assert found.distance == pytest.approx(known.distance, abs=0.02)
