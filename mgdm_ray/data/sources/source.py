"""From a dataset of the study file to its listed, hashed and divided image files."""

from __future__ import annotations

import hashlib
import re
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

from mgdm_ray.config import DatasetConfig, InputError, ReadingConfig
from mgdm_ray.data.npz import resolve_data_dir
from mgdm_ray.data.sources import medical
from mgdm_ray.data.sources.folders import DICOM, NIFTI, PICTURES, list_folders
from mgdm_ray.data.sources.huggingface import is_huggingface, list_huggingface
from mgdm_ray.data.sources.image_files import Raw, Unreadable, count_frames, read_picture
from mgdm_ray.data.sources.listing import Item, Listing, contained, shown, some
from mgdm_ray.data.sources.manifest import list_manifest
from mgdm_ray.data.sources.splits import divide
from mgdm_ray.storage.remote.objects import is_url

TABLES = (".csv", ".parquet")
SAY_AFTER_S = 3.0


def is_own(config: DatasetConfig) -> bool:
    """Whether ``config`` names image files of a user: a folder or a manifest, no .npz."""
    return config.path is not None and not config.path.lower().endswith(".npz")


def _source_path(config: DatasetConfig, data_dir: str | Path | None) -> Path:
    """Folder or manifest; InputError where it does not exist, or is a URL."""
    folder, given = resolve_data_dir(data_dir), Path(config.path or "").expanduser()
    if not given.is_absolute() and is_url(folder):
        raise InputError(
            f"dataset {config.name!r}: own images are read from a local folder, not from {folder}; "
            "give 'path' as an absolute path"
        )
    try:
        kind_at(Path(folder) / given)
    except InputError as error:
        raise InputError(
            f"dataset {config.name!r}: {error}; 'path' must be absolute, or relative to {folder} "
            "(data_dir or MGDM_DATA_DIR)"
        ) from None
    return Path(folder) / given


def kind_at(path: Path) -> str:
    """``class folders``, ``manifest``, ``Hugging Face folder`` or ``npz``. Raises InputError."""
    try:
        if path.is_dir():
            return "Hugging Face folder" if is_huggingface(path) else "class folders"
        if path.is_file() and path.suffix.lower() in (".npz", *TABLES):
            return "npz" if path.suffix.lower() == ".npz" else "manifest"
        what = f"is no folder, {', '.join(TABLES)} or .npz" if path.exists() else "does not exist"
    except (OSError, ValueError) as error:
        raise InputError(f"{shown(str(path))}: {error}") from None
    raise InputError(f"{path} {what}")


def list_source(config: DatasetConfig, path: Path) -> Listing:
    """List all images at ``path`` without decoding or dividing them."""
    listers = {"manifest": list_manifest, "Hugging Face folder": list_huggingface}
    return listers.get(kind_at(path), list_folders)(path, config)


def own_listing(config: DatasetConfig, data_dir: str | Path | None) -> Listing | None:
    """``list_own``, or None for other datasets."""
    return list_own(config, data_dir) if is_own(config) else None


def list_own(config: DatasetConfig, data_dir: str | Path | None) -> Listing:
    """List all images with their hashes and splits: equal for equal files, on any machine.

    Raises InputError for data that no study may use: see ``list_source`` and ``splits.divide``.
    """
    path, folder = _source_path(config, data_dir), resolve_data_dir(data_dir)
    unnamed = config.model_copy(update={"name": config.origin, "train_size": None, "source": None})
    return _listing(unnamed, path, folder)


@lru_cache(maxsize=64)
def _listing(config: DatasetConfig, path: Path, data_dir: str) -> Listing:
    listing = list_source(config, path)
    listing = with_groups(hashed(listing, config.reading), config)
    return divide(expanded(listing, config.reading), config, data_dir)


def hashed(listing: Listing, reading: ReadingConfig) -> Listing:
    """Add the SHA-256 of every file; files that cannot be opened are refused or left out."""
    known: dict[str, str] = {}
    missing: dict[str, str] = {}
    for item in with_progress(listing.items, "reading"):
        if item.path not in known and item.path not in missing:
            try:
                known[item.path] = hashlib.sha256(listing.bytes_of(item)).hexdigest()
            except OSError as error:
                missing[item.path] = error.strerror or str(error)
    if missing and reading.damaged == "refuse":
        raise unreadable(list(missing.items()))
    found = (replace(i, sha=known[i.path]) for i in listing.items if i.path in known)
    return replace(listing, items=tuple(found), missing=tuple(missing.items()))


def expanded(listing: Listing, reading: ReadingConfig) -> Listing:
    """Add an item per slice where all are wanted; slices of a file are images of one patient."""
    items: list[Item] = []
    count = reading.slices == "all"
    for item in with_progress(listing.items, "counting slices of") if count else listing.items:
        if item.slice is not None or reading.slices == "middle":
            items.append(item)
        elif isinstance(reading.slices, int):
            items.append(replace(item, slice=reading.slices))
        else:
            slices = range(_slices(listing, item, reading))
            items += [replace(item, slice=index) for index in slices]
    return listing.with_items(
        i if i.slice is None else replace(i, group=i.group or i.path) for i in items
    )


def _slices(listing: Listing, item: Item, reading: ReadingConfig) -> int:
    try:
        kind = kind_of(item, listing)
        if kind == "dicom":
            return medical.frames_of_dicom(contained(listing.root, item.path))
        data = listing.bytes_of(item)
        return medical.slices_of_nifti(data) if kind == "nifti" else count_frames(data)
    except Unreadable as error:
        if reading.damaged == "refuse":
            raise unreadable([(item.path, str(error))]) from None
        return 1  # left out when it is read


def kind_of(item: Item, listing: Listing) -> Literal["picture", "dicom", "nifti"]:
    """Kind of a file, by its name."""
    name = item.path.lower()
    if listing.rows is not None or name.endswith(PICTURES):
        return "picture"
    if name.endswith(NIFTI):
        return "nifti"
    if name.endswith(DICOM) or "." not in name.rsplit("/", 1)[-1] or name.split(".")[-1].isdigit():
        return "dicom"
    return "picture"


def read_item(listing: Listing, item: Item) -> Raw:
    """The pixels of one image. Raises Unreadable."""
    which: int | Literal["middle"] = "middle" if item.slice is None else item.slice
    try:
        kind = kind_of(item, listing)
        if kind == "dicom":
            return medical.read_dicom(contained(listing.root, item.path), which)
        data = listing.bytes_of(item)
    except OSError as error:
        raise Unreadable(error.strerror or str(error)) from None
    return medical.read_nifti(data, which) if kind == "nifti" else read_picture(data, which)


def with_groups(listing: Listing, config: DatasetConfig) -> Listing:
    """Add the patient of every image where known.

    From ``split.group``, else the manifest's column, else DICOM's PatientID, which is replaced by
    a number: it is never shown or stored.
    """
    if config.split.group is not None:
        return listing.with_items(_matched(listing, re.compile(config.split.group)))
    if any(item.group for item in listing.items):
        return listing
    return listing.with_items(_dicom_patients(listing))


def _matched(listing: Listing, pattern: re.Pattern[str]) -> Iterable[Item]:
    for item in listing.items:
        found = pattern.search(item.path)
        if found is None:
            raise InputError(
                f"split.group {pattern.pattern!r} does not match {shown(item.path)}; it must match "
                "the patient in the path of every image"
            )
        value = found.group(1) if pattern.groups else found.group(0)
        yield replace(item, group=value or item.group)


def _dicom_patients(listing: Listing) -> Iterable[Item]:
    numbers: dict[str, str] = {}
    for item in listing.items:
        if kind_of(item, listing) != "dicom":
            yield item
            continue
        try:
            patient = medical.patient_of(contained(listing.root, item.path))
        except Unreadable:
            patient = ""
        name = numbers.setdefault(patient, f"dicom-{len(numbers) + 1}")
        yield replace(item, group=name if patient else item.group)


def unreadable(found: list[tuple[str, str]]) -> InputError:
    """The error for (path, reason) pairs of files that are no images."""
    lines = some([f"{shown(path)}: {reason}" for path, reason in found], 5)
    return InputError(
        f"{len(found)} image(s) cannot be read: {lines}. Repair or remove them, or set "
        "reading.damaged: leave_out"
    )


def with_progress(
    items: Iterable[Item], what: str, say: Callable[[str], None] | None = None
) -> Iterable[Item]:
    """Yield ``items``; print a line now and then if it takes more than a few seconds."""
    items = list(items)
    say = say or (lambda text: print(text, file=sys.stderr, flush=True))
    last = time.monotonic()
    for index, item in enumerate(items):
        if time.monotonic() - last > SAY_AFTER_S:
            last = time.monotonic()
            say(f"  {what} own images: {index} of {len(items)}")
        yield item
