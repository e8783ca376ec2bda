"""Numbers, labels and order of added images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mgdm_ray.data.apportion import apportion, interleave
from mgdm_ray.data.load import Split, to_tensor
from mgdm_ray.data.mix import duplicate_indices, synthetic_labels, training_set

weights = st.lists(st.integers(0, 50), min_size=1, max_size=12).filter(any)


@given(weights, st.integers(0, 500))
def test_apportion_sums_and_keeps_the_quota(values: list[int], total: int) -> None:
    """Catches lost or invented images and counts further than one from their share."""
    counts = apportion(values, total)
    quota = np.array(values) / sum(values) * total
    assert counts.sum() == total
    assert (np.abs(counts - quota) < 1 + 1e-9).all()


@given(weights, st.integers(0, 4), st.integers(0, 200), st.data())
def test_apportion_within_bounds(
    values: list[int], minimum: int, extra: int, data: st.DataObject
) -> None:
    """Catches a class below its minimum or above what there is."""
    k = len(values)
    capacity = np.array(data.draw(st.lists(st.integers(4, 60), min_size=k, max_size=k)))
    total = min(minimum * k + extra, int(capacity.sum()))
    counts = apportion(values, total, minimum, capacity)
    assert counts.sum() == total
    assert ((counts >= minimum) & (counts <= capacity)).all()


def test_apportion_by_hand() -> None:
    """Largest remainder on a textbook case, and what cannot be."""
    assert apportion([47, 16, 16, 12, 6, 3], 10).tolist() == [5, 2, 2, 1, 0, 0]
    assert apportion([98, 1, 1], 10, minimum=2).tolist() == [6, 2, 2]
    for bad in ({"minimum": 4}, {"capacity": np.array([3, 3, 3])}):
        with pytest.raises(ValueError, match="10"):
            apportion([1, 1, 1], 10, **bad)
    with pytest.raises(ValueError, match=r"0\.0, 0\.0"):
        apportion([0, 0], 4)


@given(st.lists(st.integers(0, 40), min_size=2, max_size=6).filter(any), st.integers(0, 99))
def test_every_prefix_keeps_the_shares(counts: list[int], seed: int) -> None:
    """Catches an order in which a trial's first images would miss a class: after any prefix each
    class is within one label per class of its share."""
    labels = interleave(np.array(counts), seed)
    assert np.bincount(labels, minlength=len(counts)).tolist() == counts
    share = np.array(counts) / len(labels)
    for n in range(1, len(labels) + 1):
        seen = np.bincount(labels[:n], minlength=len(counts))
        assert (np.abs(seen - share * n) <= len(counts) + 1).all()


def test_synthetic_labels_proportional_and_balanced() -> None:
    """Catches swapped modes, a wrong total, and shares that drift."""
    labels = np.array([0] * 70 + [1] * 20 + [2] * 10)
    proportional = synthetic_labels(labels, 3, 0.5, "proportional", "s", 0)
    assert np.bincount(proportional).tolist() == [35, 10, 5]
    balanced = synthetic_labels(labels, 3, 1.0, "balanced", "s", 0)
    assert np.bincount(balanced).tolist() == [34, 33, 33]
    assert proportional.dtype == np.int64
    assert not np.array_equal(balanced, synthetic_labels(labels, 3, 1.0, "balanced", "s", 1))
    np.testing.assert_array_equal(balanced, synthetic_labels(labels, 3, 1.0, "balanced", "s", 0))
    assert len(synthetic_labels(labels, 3, 0.001, "balanced", 0)) == 1
    with pytest.raises(ValueError, match=r"0\.\.1"):
        synthetic_labels(labels, 2, 1.0, "balanced", 0)


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=40),
    st.lists(st.integers(0, 3), max_size=90),
    st.integers(0, 9),
)
def test_duplicates_match_labels_with_even_repeats(
    real: list[int], wanted: list[int], seed: int
) -> None:
    """Catches copies of the wrong class and images copied twice more than their class mates."""
    labels, wish = np.array(real), np.array([w for w in wanted if w in real], dtype=np.int64)
    indices = duplicate_indices(labels, wish, "d", seed)
    np.testing.assert_array_equal(labels[indices], wish)
    uses = np.bincount(indices, minlength=len(labels))
    for label in set(wish.tolist()):
        assert np.ptp(uses[labels == label]) <= 1
    np.testing.assert_array_equal(indices, duplicate_indices(labels, wish, "d", seed))


def test_duplicate_of_an_absent_class() -> None:
    """Catches an index error without words."""
    with pytest.raises(ValueError, match="label 2"):
        duplicate_indices(np.array([0, 1]), np.array([2]), 0)


def test_training_set_puts_real_first() -> None:
    """Catches added images that replace real ones, and images without their labels."""
    rng = np.random.default_rng(0)
    real = Split(rng.integers(0, 256, (4, 8, 8, 1), dtype=np.uint8), np.array([0, 1, 0, 1]))
    images, labels = training_set(real)
    assert torch.equal(images[:], to_tensor(real.images))
    added = (torch.zeros(3, 1, 8, 8), torch.tensor([1, 1, 0], dtype=torch.int32))
    more, more_labels = training_set(real, added)
    assert torch.equal(more[:4], images[:])
    assert torch.equal(more[4:], added[0])
    assert more_labels.tolist() == [0, 1, 0, 1, 1, 1, 0]
    assert (more[:].dtype, more_labels.dtype) == (torch.float32, torch.int64)
    assert labels.tolist() == [0, 1, 0, 1]
    with pytest.raises(ValueError, match=r"\[3, 3, 8, 8\]"):
        training_set(real, (torch.zeros(3, 3, 8, 8), added[1]))


def test_top_up_fills_every_class_by_hand() -> None:
    """Catches a ratio that still counts, or a full class that is given more.

    5, 2 and 9 real images topped up to 6: 1, 4 and none.
    """
    labels = np.repeat([0, 1, 2], [5, 2, 9])
    added = synthetic_labels(labels, 3, 50.0, "top_up", per_class=6)
    assert np.bincount(added, minlength=3).tolist() == [1, 4, 0]


def test_nothing_to_top_up_is_an_error() -> None:
    """Catches an arm that silently adds no image and is compared as if it did."""
    with pytest.raises(ValueError, match=r"\[5, 6\]"):
        synthetic_labels(np.repeat([0, 1], [5, 6]), 2, 1.0, "top_up", per_class=5)
