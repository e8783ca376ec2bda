"""What a survey reads from files: splits, damage, depths, identity."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from mgdm_ray.data.inspection.survey import Survey, survey
from mgdm_ray.data.inspection.targets import find_sources
from tests.data.sources.files import dicom, picture, tree


def read(path: Path, size: int = 16, group: str | None = None) -> Survey:
    (source,) = find_sources(path, group)
    return survey(source, size)


def test_a_damaged_file_shifts_nothing(tmp_path: Path) -> None:
    """Catches facts and pixels that belong to the next image once a file was left out."""
    root = tree(tmp_path / "scans", {"a": 6, "b": 6})
    (root / "a" / "2.png").write_bytes(b"no image")
    found = read(root, 12)
    assert list(found.damaged) == ["a/2.png"]
    assert len(found.facts) == len(found.images) == len(found.small) == 11
    for item, image in zip(found.listing.items, found.images, strict=True):
        file = np.asarray(Image.open(root / item.path))
        np.testing.assert_array_equal(image[..., 0], file)


def test_deep_images_keep_their_rows(tmp_path: Path) -> None:
    """Catches 16-bit images, which are scaled last, stored in the rows of others."""
    root = tree(tmp_path / "scans", {"a": 3, "b": 3})
    for name, value in (("a/0.png", 1000), ("b/1.png", 4000)):
        pixels = np.full((12, 12), value, np.uint16)
        pixels[0, 0] = 0
        Image.fromarray(pixels).save(root / name)
    found = read(root, 12)
    assert found.damaged == {}
    values = {
        item.path: int(image[6, 6, 0])
        for item, image in zip(found.listing.items, found.images, strict=True)
    }
    assert values["a/0.png"] == round(1000 / 4095 * 255)
    assert values["b/1.png"] == round(4000 / 4095 * 255)
    kinds = {
        item.path: one.kind for item, one in zip(found.listing.items, found.facts, strict=True)
    }
    assert [path for path, kind in kinds.items() if "16 bit" in kind] == ["a/0.png", "b/1.png"]


def test_content_counts_not_the_format(tmp_path: Path) -> None:
    """Catches a digest of the file instead of its pixels, and one that ignores the shape."""
    root = tree(tmp_path / "scans", {"a": 3, "b": 3})
    Image.open(root / "a" / "0.png").save(root / "b" / "copy.bmp")
    flat = np.arange(128, dtype=np.uint8)
    Image.fromarray(flat.reshape(8, 16)).save(root / "a" / "wide.png")
    Image.fromarray(flat.reshape(16, 8)).save(root / "a" / "tall.png")
    found = read(root)
    digests = {i.path: f.digest for i, f in zip(found.listing.items, found.facts, strict=True)}
    assert digests["a/0.png"] == digests["b/copy.bmp"]
    assert len(set(digests.values())) == len(digests) - 1


def test_a_patient_in_two_splits_is_an_error_and_the_survey_goes_on(tmp_path: Path) -> None:
    """Catches a survey that ends at what it is to report, or that loses the patients."""
    rows = ["path,label,split,group"]
    for k, split in enumerate(["train"] * 8 + ["val"] * 4 + ["test"] * 4):
        picture(tmp_path / f"{k}.png", k)
        rows.append(f"{k}.png,{'ab'[k % 2]},{split},{'anna' if k in (0, 15) else k}")
    (tmp_path / "m.csv").write_text("\n".join(rows))
    found = read(tmp_path / "m.csv")
    (error,) = found.errors
    assert "'anna'" in error
    assert found.given_splits
    assert found.listing.split_groups() == ["anna"]
    assert {split: sum(n) for split, n in found.counts().items()} == {
        "train": 8,
        "val": 4,
        "test": 4,
    }


def test_an_npz_is_read_split_by_split(tmp_path: Path) -> None:
    """Catches labels or images of another split, and names that say nothing."""
    arrays = {}
    for value, split in enumerate(("train", "val", "test"), start=1):
        arrays[f"{split}_images"] = np.full((4, 10, 10), 50 * value, np.uint8)
        arrays[f"{split}_images"][:, 0, 0] = np.arange(4)
        arrays[f"{split}_labels"] = np.array([0, 1, 0, 1])
    np.savez(tmp_path / "x.npz", **arrays)
    found = read(tmp_path / "x.npz", 10)
    assert found.given_splits
    assert [item.path for item in found.listing.items[3:5]] == ["train[3]", "val[0]"]
    assert found.images[:, 5, 5, 0].tolist() == [50] * 4 + [100] * 4 + [150] * 4


def test_identity_is_counted(tmp_path: Path) -> None:
    """Catches tags counted per slice, and values that get into the survey."""
    for k in range(6):
        tags = {"PatientID": f"SECRET{k}"} | ({"PatientName": "MUSTER"} if k % 2 else {})
        pixels = np.random.default_rng(k).integers(0, 99, (8, 8), np.uint8)
        dicom(tmp_path / "scans" / "ab"[k % 2] / f"{k}.dcm", pixels, **tags)
    found = read(tmp_path / "scans")
    assert found.identity == {"PatientID": 6, "PatientName": 3}
    assert found.dicom_files == 6
    assert "SECRET" not in repr(found.listing)
