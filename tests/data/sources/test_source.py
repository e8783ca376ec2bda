"""From a dataset of the study file to its listing: patients, slices, hashes, refusals."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mgdm_ray.config import DatasetConfig, InputError
from mgdm_ray.data.sources.listing import Listing
from mgdm_ray.data.sources.source import kind_of, own_listing, read_item
from tests.data.sources.files import dicom, nifti, picture, tree


def config(path: str = ".", **options: Any) -> DatasetConfig:
    return DatasetConfig.model_validate({"name": "mine", "path": path, "size": 16, **options})


def listed(folder: Path, path: str = ".", **options: Any) -> Listing:
    found = own_listing(config(path, **options), folder)
    assert found is not None
    return found


def test_what_is_own(tmp_path: Path) -> None:
    """Catches .npz files and built-in datasets taken for folders, and folders not found."""
    assert own_listing(DatasetConfig(name="breastmnist"), tmp_path) is None
    assert own_listing(config("mine.npz"), tmp_path) is None
    with pytest.raises(InputError, match="nowhere"):
        own_listing(config("nowhere"), tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(InputError, match=r"notes\.txt.*\.csv, \.parquet or \.npz"):
        own_listing(config("notes.txt"), tmp_path)
    with pytest.raises(InputError, match="s3://bucket/data"):
        own_listing(config("x"), "s3://bucket/data")
    with pytest.raises(InputError, match="mine"):
        own_listing(config("a\0b"), tmp_path)
    with pytest.raises(InputError, match="mine"):
        own_listing(config("a" * 5000), tmp_path)


def test_variants_share_their_splits(tmp_path: Path) -> None:
    """Catches variants of one dataset (train_size) that are divided each in its own way."""
    tree(tmp_path, {"a": 20, "b": 20})
    variant = config(name="mine-10", source="mine", train_size=10)
    assert own_listing(variant, tmp_path) == own_listing(config(), tmp_path)


def test_a_patient_by_a_pattern(tmp_path: Path) -> None:
    """Catches a pattern whose bracket is ignored, and images without a patient let through."""
    for patient in range(12):
        for visit in range(2):
            label = "ab"[patient % 2]
            picture(tmp_path / label / f"P{patient}_{visit}.png", 100 * patient + visit)
    found = listed(tmp_path, split={"group": r"(P\d+)_"})
    assert {item.group for item in found.items} == {f"P{k}" for k in range(12)}
    assert len({(item.group, item.split) for item in found.items}) == 12
    with pytest.raises(InputError, match=r"split\.group 'Q'.*'a/P0_0\.png'"):
        listed(tmp_path, split={"group": "Q"})


def test_dicom_knows_the_patient(tmp_path: Path) -> None:
    """Catches a patient's DICOM files in two splits, and the patient's number in what is stored."""
    for k in range(24):
        image = np.full((8, 8), k, np.uint8)
        dicom(tmp_path / "ab"[k % 2] / f"{k}.dcm", image, PatientID=f"SECRET{k // 4}")
    found = listed(tmp_path)
    assert len({item.group for item in found.items}) == 6
    assert not any("SECRET" in (item.group or "") for item in found.items)
    assert len({(item.group, item.split) for item in found.items}) == 6


def test_all_slices_are_of_one_patient(tmp_path: Path) -> None:
    """Catches neighbouring slices of one volume in training and in test."""
    for k in range(10):
        volume = np.random.default_rng(k).random((6, 6, 3)).astype(np.float32)
        nifti(tmp_path / "ab"[k % 2] / f"{k}.nii.gz", volume)
    assert len(listed(tmp_path).items) == 10
    found = listed(tmp_path, reading={"slices": "all"})
    assert len(found.items) == 30
    assert len({(item.path, item.split) for item in found.items}) == 10
    one = listed(tmp_path, reading={"slices": 1})
    assert {item.slice for item in one.items} == {1}


def test_slices_of_a_manifest_stay_together(tmp_path: Path) -> None:
    """Catches slices that a table lists one by one and that are divided like strangers."""
    rows = ["path,label,slice"]
    for k in range(10):
        volume = np.random.default_rng(k).random((6, 6, 3)).astype(np.float32)
        nifti(tmp_path / f"{k}.nii", volume)
        rows += [f"{k}.nii,{'ab'[k % 2]},{s}" for s in (0, 2)]
    (tmp_path / "m.csv").write_text("\n".join(rows) + "\n")
    found = listed(tmp_path, "m.csv")
    assert len({(item.path, item.split) for item in found.items}) == 10
    assert float(read_item(found, found.items[1]).pixels.mean()) != float(
        read_item(found, found.items[0]).pixels.mean()
    )


def test_the_same_file_twice_stays_in_one_split(tmp_path: Path) -> None:
    """Catches copies under other names that leak from training into the test."""
    tree(tmp_path, {"a": 20, "b": 20})
    for k in range(20):
        copy = tmp_path / "a" / f"copy-{k}.png"
        copy.write_bytes((tmp_path / "a" / f"{k}.png").read_bytes())
    splits: dict[str, set[str | None]] = {}
    for item in listed(tmp_path).items:
        splits.setdefault(item.sha, set()).add(item.split)
    assert all(len(found) == 1 for found in splits.values())


def test_files_that_cannot_be_opened(tmp_path: Path) -> None:
    """Catches a traceback, and a file that is left out without being asked to."""
    (tmp_path / "m.csv").write_text("path,label\na.png,x\nb.png,y\nc.png,y\n")
    picture(tmp_path / "a.png", 1)
    picture(tmp_path / "b.png", 2)
    with pytest.raises(InputError, match=r"1 image.*'c\.png': No such file"):
        listed(tmp_path, "m.csv")
    left = listed(tmp_path, "m.csv", reading={"damaged": "leave_out"})
    assert left.missing == (("c.png", "No such file or directory"),), "which is told"
    assert [item.path for item in left.items] == ["a.png", "b.png"]


def test_kinds_by_name(tmp_path: Path) -> None:
    """Catches DICOM files named 1.2.840 read as pictures."""
    tree(tmp_path, {"a": 1, "b": 1})
    for name in ("1.2.840.113", "IM1", "x.dcm"):
        dicom(tmp_path / "a" / name, np.zeros((8, 8), np.uint8))
    nifti(tmp_path / "b" / "x.nii.gz", np.zeros((8, 8, 2), np.float32))
    found = listed(tmp_path)
    kinds = {os.path.basename(item.path): kind_of(item, found) for item in found.items}
    assert kinds == {
        "0.png": "picture",
        "1.2.840.113": "dicom",
        "IM1": "dicom",
        "x.dcm": "dicom",
        "x.nii.gz": "nifti",
    }
