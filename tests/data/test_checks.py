"""Leakage and sanity of splits."""

from __future__ import annotations

import numpy as np
import pytest

from mgdm_ray.config import DatasetConfig, PhantomConfig
from mgdm_ray.data.checks import Finding, check_splits, leaked, nearest
from mgdm_ray.data.load import Split, data_source
from mgdm_ray.data.npz import SPLITS, npz_path, resolve_data_dir


def noise(number: int, seed: int) -> Split:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (number, 8, 8, 1), dtype=np.uint8)
    return Split(images, np.arange(number, dtype=np.int64) % 2)


def by_kind(findings: list[Finding]) -> dict[str, list[Finding]]:
    out: dict[str, list[Finding]] = {}
    for finding in findings:
        out.setdefault(finding.kind, []).append(finding)
    return out


def test_clean_splits_give_counts_only() -> None:
    """Catches false alarms."""
    findings = check_splits({"train": noise(20, 0), "test": noise(8, 1)})
    assert [f.kind for f in findings] == ["class_counts", "class_counts"]
    assert not any(f.serious for f in findings)
    assert findings[0].message == "train: 20 images (0: 10, 1: 10)"


def test_every_planted_fault_is_found_where_it_is() -> None:
    """Catches a missed or misplaced finding of each kind."""
    train, test = noise(20, 0), noise(8, 1)
    test.images[3] = train.images[5]  # leakage, labels 1 and 1
    test.images[4] = train.images[7]  # leakage and conflict, labels 0 and 1
    train.images[11] = train.images[9]  # duplicate, both label 1
    train.images[2] = 0  # constant
    val = Split(noise(4, 2).images, np.zeros(4, dtype=np.int64))  # no class 1
    kinds = by_kind(check_splits({"train": train, "val": val, "test": test}))
    assert kinds["leakage"][0].images == (("train", 5), ("test", 3), ("train", 7), ("test", 4))
    assert kinds["label_conflict"][0].images == (("train", 7), ("test", 4))
    assert kinds["duplicate"][0].images == (("train", 9), ("train", 11))
    assert kinds["constant_image"][0].images == (("train", 2),)
    assert len(kinds["missing_class"]) == 1
    assert len(kinds["class_counts"]) == 3


def test_same_bytes_in_another_shape_are_no_duplicate() -> None:
    """Catches hashing of bytes without the shape."""
    flat = np.arange(32, dtype=np.uint8)
    a = Split(flat.reshape(1, 4, 8, 1), np.zeros(1, dtype=np.int64))
    b = Split(flat.reshape(1, 8, 4, 1), np.zeros(1, dtype=np.int64))
    assert "leakage" not in by_kind(check_splits({"train": a, "test": b}))


def test_known_fault_of_breastmnist() -> None:
    """Catches a check blind to the real thing: one official test image is pixel-identical to a
    training image that has the other label."""
    config = DatasetConfig(name="breastmnist")
    if not npz_path(config, None).is_file():
        pytest.skip(f"breastmnist.npz is not in {resolve_data_dir(None)}; set MGDM_DATA_DIR")
    kinds = by_kind(check_splits({name: data_source(config).load(name) for name in SPLITS}))
    pairs = kinds["label_conflict"][0].images
    assert {name for name, _ in pairs} >= {"train", "test"}
    assert set(pairs) <= set(kinds["leakage"][0].images)


def test_nearly_identical_images_of_breastmnist() -> None:
    """Catches a threshold or a correlation other than the one that is documented with the data:
    39 of the 156 official test images correlate above 0.99 with a training image."""
    config = DatasetConfig(name="breastmnist")
    if not npz_path(config, None).is_file():
        pytest.skip(f"breastmnist.npz is not in {resolve_data_dir(None)}; set MGDM_DATA_DIR")
    findings = check_splits({name: data_source(config).load(name) for name in SPLITS})
    pairs = [f.images for f in findings if f.kind == "near_leakage"]
    (near,) = [images for images in pairs if {name for name, _ in images} == {"train", "test"}]
    assert len(near) == 2 * 39
    assert 39 <= len(leaked(findings)) <= 45


def test_correlations_are_numpys() -> None:
    """Catches wrong blocks, wrong partners and a flat image that divides by zero."""
    a, b = noise(30, 3).images, noise(9, 4).images
    b[2] = 7
    best, which = nearest(b, a)
    for i in range(9):
        if i == 2:
            assert best[i] == 0
            continue
        by_hand = [np.corrcoef(b[i].ravel(), other.ravel())[0, 1] for other in a]
        assert which[i] == np.argmax(by_hand)
        assert best[i] == pytest.approx(max(by_hand), abs=1e-5)


def test_a_near_copy_is_found_whatever_its_brightness_and_size() -> None:
    """Catches a comparison of bytes, and one that misses copies at 128 px: a darker copy with a
    little noise."""
    rng = np.random.default_rng(0)
    for size in (24, 128):
        smooth = rng.integers(0, 200, (12, 4, 4, 3)).astype(np.uint8)
        train = smooth.repeat(size // 4, axis=1).repeat(size // 4, axis=2)
        test = rng.integers(0, 256, (5, size, size, 3), dtype=np.uint8)
        darker = train[7] * 0.8 + rng.normal(5, 1, train[7].shape)
        test[3] = darker.clip(0, 255).astype(np.uint8)
        splits = {
            "train": Split(train, np.zeros(12, dtype=np.int64)),
            "test": Split(test, np.ones(5, dtype=np.int64)),
        }
        kinds = by_kind(check_splits(splits))
        assert kinds["near_leakage"][0].images == (("train", 7), ("test", 3))
        assert leaked(check_splits(splits)) == [3]


def test_phantoms_are_clean() -> None:
    """Catches seeds shared between the splits of a phantom."""
    config = DatasetConfig(
        name="phantom-xray", size=16, phantom=PhantomConfig(train=40, val=40, test=40)
    )
    findings = check_splits({name: data_source(config).load(name) for name in SPLITS})
    assert not any(f.serious for f in findings)
