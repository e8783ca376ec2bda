"""A tree of class folders: ROOT/CLASS/..., or ROOT/{train,val,test}/CLASS/..."""

from __future__ import annotations

import os
from pathlib import Path

from mgdm_ray.config import DatasetConfig, InputError
from mgdm_ray.data.sources.listing import (
    SPLIT_NAMES,
    Item,
    Listing,
    contained,
    natural,
    number_labels,
    shown,
    some,
)

PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
DICOM = (".dcm", ".dicom", ".ima")
NIFTI = (".nii", ".nii.gz")
SUFFIXES = (*PICTURES, *DICOM, *NIFTI)


def is_image(path: Path) -> bool:
    """By the suffix; without one, by the first bytes of a DICOM file."""
    if path.name.lower().endswith(SUFFIXES):
        return True
    if path.suffix and not path.suffix[1:].isdigit():
        return False
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def list_folders(root: Path, config: DatasetConfig) -> Listing:
    """List all images below ``root``, each with its folder as its class.

    InputError where there are none, for images beside the class folders, and for links that lead
    out of ``root``.
    """
    images: list[str] = []
    ignored: list[str] = []
    for name in _files(root):
        (images if is_image(root / name) else ignored).append(name)
    if not images:
        others = f"; other files: {some(list(map(shown, ignored)))}" if ignored else ""
        raise InputError(f"{root}: no images ({', '.join(SUFFIXES)}) in its folders{others}")
    parts = {name.split("/")[0] for name in images if "/" in name}
    by_split = bool(parts) and parts <= set(SPLIT_NAMES) and "train" in parts
    depth = 2 if by_split else 1
    loose = [name for name in images if name.count("/") < depth]
    if loose:
        raise InputError(
            f"{root}: {len(loose)} image(s) are outside a class folder, e.g. {shown(loose[0])}; "
            f"put each image into {'SPLIT/CLASS/' if by_split else 'a folder named like its class'}"
            ", or write a manifest with the columns path and label"
        )
    labels = [name.split("/")[depth - 1] for name in images]
    classes = number_labels(labels, config.classes)
    items = [
        Item(name, classes.index(label), SPLIT_NAMES[name.split("/")[0]] if by_split else None)
        for name, label in zip(images, labels, strict=True)
    ]
    return Listing(root, classes, tuple(items), tuple(ignored))


def _files(root: Path) -> list[str]:
    """Files below ``root``, relative, in natural order, without hidden ones."""
    found = []
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if not _hidden(name)]
        for name in folders:
            place = Path(folder, name)
            if place.is_symlink():
                contained(root, str(place.relative_to(root)))
                raise InputError(
                    f"{place} is a link to another folder of the same tree: its images would count "
                    "twice; remove the link"
                )
        for name in files:
            if not _hidden(name):
                relative = Path(folder, name).relative_to(root).as_posix()
                if Path(folder, name).is_symlink():
                    contained(root, relative)
                found.append(relative)
    return sorted(found, key=natural)


def _hidden(name: str) -> bool:
    return name.startswith((".", "__MACOSX")) or name in ("Thumbs.db", "desktop.ini", "DICOMDIR")
