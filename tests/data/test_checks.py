"""Leakage and sanity of splits."""

from __future__ import annotations

import numpy as np
import pytest

from mgdm_ray.config import DatasetConfig, PhantomConfig
from mgdm_ray.data.checks import Finding, check_splits
from mgdm_ray.data.load import SPLITS, Split, load_split, npz_path, resolve_data_dir


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
    assert kinds["leakage"][0].images == (
        ("train", 5),
        ("test", 3),
        ("train", 7),
        ("test", 4),
    )
    assert kinds["label_conflict"][0].images == (("train", 7), ("test", 4))
    assert kinds["duplicate"][0].images == (("train", 9), ("train", 11))
    assert kinds["constant_image"][0].images == (("train", 2),)
    assert kinds["missing_class"][0].message == "val has no image of class 1"
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
    kinds = by_kind(check_splits({name: load_split(config, name) for name in SPLITS}))
    pairs = kinds["label_conflict"][0].images
    assert {name for name, _ in pairs} >= {"train", "test"}
    assert set(pairs) <= set(kinds["leakage"][0].images)


def test_phantoms_are_clean() -> None:
    """Catches seeds shared between the splits of a phantom."""
    config = DatasetConfig(
        name="phantom-xray", size=16, phantom=PhantomConfig(train=40, val=40, test=40)
    )
    findings = check_splits({name: load_split(config, name) for name in SPLITS})
    assert not any(f.serious for f in findings)
