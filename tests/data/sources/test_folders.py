"""Class folders: what is an image, which class, which split, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mgdm_ray.config import DatasetConfig, InputError
from mgdm_ray.data.sources.folders import list_folders
from tests.data.sources.files import dicom, picture, tree

MINE = DatasetConfig(name="mine", path="x")


def test_classes_stand_in_natural_order(tmp_path: Path) -> None:
    """Catches "10" before "2", which gives every label another meaning than its name."""
    listing = list_folders(tree(tmp_path, {"10": 1, "2": 1, "1": 2}), MINE)
    assert listing.classes == ("1", "2", "10")
    assert [(i.path, i.label) for i in listing.items] == [
        ("1/0.png", 0),
        ("1/1.png", 0),
        ("2/0.png", 1),
        ("10/0.png", 2),
    ]


def test_given_classes_decide_the_numbers(tmp_path: Path) -> None:
    """Catches an order that is sorted in spite of the study file, and unknown folders let in."""
    tree(tmp_path, {"benign": 1, "malignant": 1})
    turned = MINE.model_copy(update={"classes": ("malignant", "benign")})
    assert [i.label for i in list_folders(tmp_path, turned).items] == [1, 0]
    with pytest.raises(InputError, match=r"'malignant'.*'classes': benign, other"):
        list_folders(tmp_path, MINE.model_copy(update={"classes": ("benign", "other")}))


def test_split_folders(tmp_path: Path) -> None:
    """Catches splits of the data's makers that are thrown together and divided again."""
    tree(tmp_path / "train", {"a": 2, "b": 2})
    tree(tmp_path / "valid", {"a": 1, "b": 1}, start=10)
    listing = list_folders(tmp_path, MINE)
    assert listing.classes == ("a", "b")
    assert [i.split for i in listing.items] == ["train"] * 4 + ["val"] * 2


def test_what_is_no_image_is_passed_over_and_told(tmp_path: Path) -> None:
    """Catches notes and hidden files taken for images, and DICOM without a suffix lost."""
    tree(tmp_path, {"a": 1, "b": 1})
    (tmp_path / "a" / "notes.txt").write_text("x")
    (tmp_path / "a" / ".DS_Store").write_text("x")
    (tmp_path / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")
    dicom(tmp_path / "b" / "IM0001", np.zeros((8, 8), np.uint8))
    listing = list_folders(tmp_path, MINE)
    assert [i.path for i in listing.items] == ["a/0.png", "b/0.png", "b/IM0001"]
    assert listing.ignored == ("a/notes.txt",)


def test_deeper_folders_belong_to_their_class(tmp_path: Path) -> None:
    """Catches a folder per patient below the class that is lost or becomes a class."""
    picture(tmp_path / "a" / "P1" / "0.png", 1)
    picture(tmp_path / "b" / "P2" / "visit 2" / "0.png", 2)
    assert [i.label for i in list_folders(tmp_path, MINE).items] == [0, 1]


def test_refusals_say_what_to_do(tmp_path: Path) -> None:
    """Catches an empty folder, one class, and images beside the class folders let through."""
    with pytest.raises(InputError, match=r"\.png"):
        list_folders(tmp_path, MINE)
    tree(tmp_path, {"a": 1})
    with pytest.raises(InputError, match="'a'"):
        list_folders(tmp_path, MINE)
    picture(tmp_path / "loose.png")
    with pytest.raises(InputError, match=r"'loose\.png'"):
        list_folders(tmp_path, MINE)


def test_links_do_not_lead_out(tmp_path: Path) -> None:
    """Catches a link in the tree through which any file of the machine is read."""
    outside = picture(tmp_path / "outside" / "secret.png")
    root = tree(tmp_path / "root", {"a": 1, "b": 1})
    (root / "a" / "link.png").symlink_to(outside)
    with pytest.raises(InputError, match="root"):
        list_folders(root, MINE)
    (root / "a" / "link.png").unlink()
    (root / "c").symlink_to(outside.parent)
    with pytest.raises(InputError, match="root"):
        list_folders(root, MINE)
    (root / "c").unlink()
    (root / "c").symlink_to(root / "a")
    with pytest.raises(InputError, match="root/c"):
        list_folders(root, MINE)
