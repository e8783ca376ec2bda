"""Own images made square once, in the storage, as the .npz that every job reads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from mgdm_ray.config import DatasetConfig
from mgdm_ray.data.npz import IMAGE_SUFFIX, LABEL_SUFFIX, SPLITS, THUMBNAIL, THUMBNAIL_SUFFIX
from mgdm_ray.data.sources.image_files import Unreadable, square, thumbnail, to_uint8
from mgdm_ray.data.sources.listing import Listing, shown
from mgdm_ray.data.sources.source import own_listing, read_item, unreadable, with_progress
from mgdm_ray.seeding import content_key
from mgdm_ray.storage.files import replacing

READER_VERSION = 1
"""Raised where the same files come out as other pixels."""
TINY_CLASS, MANY = 5, 5


def own_fingerprint(config: DatasetConfig, listing: Listing) -> str:
    """Identity of what jobs will read: files, labels, splits, and how files become images."""
    reading = config.reading.model_dump(mode="json", exclude={"damaged"})
    rows = [(i.sha, i.slice, i.label, i.split) for i in listing.items]
    return content_key([READER_VERSION, config.size, reading, listing.classes, rows])


def prepared_path(config: DatasetConfig, listing: Listing, folder: Path) -> Path:
    return folder / f"{config.origin}-{own_fingerprint(config, listing)}.npz"


def prepare(
    config: DatasetConfig,
    data_dir: str | Path | None,
    folder: Path,
    say: Callable[[str], None] = print,
) -> DatasetConfig:
    """``config`` with the .npz in ``folder`` as its path, written unless it is there.

    Other datasets come back as they are. Raises InputError for images that cannot be read, unless
    they are to be left out.
    """
    listing = own_listing(config, data_dir)
    if listing is None:
        return config
    path = prepared_path(config, listing, folder)
    for sentence in (*tiny_classes(listing), *patients_tested(listing)):
        say(f"warning: {config.name}: {sentence}")
    for name, why in listing.missing:
        say(f"warning: {config.name}: left out {shown(name)}: {why}")
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        say(f"preparing {config.origin}: {len(listing.items)} images to {config.size} px")
        with replacing(path) as temporary:
            _write(config, listing, temporary, say)
    return config.model_copy(update={"path": str(path.absolute())})


def tiny_classes(listing: Listing) -> list[str]:
    """A sentence for every class of fewer than five images; many of them share one."""
    counts = {split: listing.counts(split) for split in SPLITS}
    found = []
    for label, name in enumerate(listing.classes):
        total = sum(counts[split][label] for split in SPLITS)
        if total < TINY_CLASS:
            where = ", ".join(f"{counts[split][label]} {split}" for split in SPLITS)
            found.append(
                f"class {shown(name)} has {total} image(s) ({where}): its recall is one of very "
                "few values, and models can learn little of it"
            )
    if len(found) > MANY:
        return [
            f"{len(found)} of {len(listing.classes)} classes have fewer than {TINY_CLASS} images: "
            "are they classes, or patients? A folder, or a label, is a class"
        ]
    return found


def patients_tested(listing: Listing) -> list[str]:
    """A sentence where patients have several test images, which statistics take for strangers."""
    groups = [item.group or item.path for item in listing.of("test")]
    if len(set(groups)) == len(groups):
        return []
    return [
        f"the {len(groups)} test images are of {len(set(groups))} patients: intervals over test "
        "images take images for independent of each other and are too narrow here"
    ]


def _write(config: DatasetConfig, listing: Listing, path: Path, say: Callable[[str], None]) -> None:
    """Pixels go through a file on the disk, so that memory does not grow with their number."""
    scratch = path.with_suffix(".pixels.npy")
    shape = (len(listing.items), config.size, config.size, 3)
    pixels = open_memmap(scratch, mode="w+", dtype=np.uint8, shape=shape)
    thumbnails = np.zeros((len(listing.items), THUMBNAIL, THUMBNAIL), np.uint8)
    try:
        bad, colour = _fill(config, listing, pixels, thumbnails, say)
        if bad and config.reading.damaged == "refuse":
            raise unreadable([(listing.items[row].path, why) for row, why in bad.items()])
        for row, why in bad.items():
            say(f"warning: left out {shown(listing.items[row].path)}: {why}")
        channels = config.reading.channels or (3 if colour else 1)
        _pack(path, listing, pixels, thumbnails, set(bad), channels)
    finally:
        del pixels
        scratch.unlink(missing_ok=True)


def _fill(
    config: DatasetConfig,
    listing: Listing,
    pixels: NDArray[np.uint8],
    thumbnails: NDArray[np.uint8],
    say: Callable[[str], None],
) -> tuple[dict[int, str], bool]:
    """Fill ``pixels`` and ``thumbnails``; which rows cannot be read and why, and whether any image
    has colour."""

    def keep(row: int, picture: NDArray[np.uint8]) -> None:
        pixels[row] = square(picture, config.size, config.reading.fit)
        thumbnails[row] = thumbnail(picture)

    bad: dict[int, str] = {}
    colour = False
    deep: list[int] = []
    deepest = 0
    rows = dict(zip(map(id, listing.items), range(len(listing.items)), strict=True))
    for item in with_progress(listing.items, "preparing", say):
        row = rows[id(item)]
        try:
            raw = read_item(listing, item)
        except Unreadable as error:
            bad[row] = str(error)
            continue
        if raw.pixels.dtype == np.uint16:  # shown once the largest value of all is known
            deepest = max(deepest, int(raw.pixels.max()))
            deep.append(row)
            continue
        colour = colour or raw.colour
        keep(row, to_uint8(raw, config.reading, 0))
    for row in deep:
        keep(row, to_uint8(read_item(listing, listing.items[row]), config.reading, deepest))
    return bad, colour


def _pack(
    path: Path,
    listing: Listing,
    pixels: NDArray[np.uint8],
    thumbnails: NDArray[np.uint8],
    bad: set[int],
    channels: int,
) -> None:
    arrays: dict[str, NDArray[Any]] = {"classes": np.array(listing.classes)}
    for split in SPLITS:
        rows = [
            row for row, item in enumerate(listing.items) if item.split == split and row not in bad
        ]
        chosen = pixels[rows]
        arrays[split + IMAGE_SUFFIX] = chosen if channels == 3 else _grey(chosen)
        labels = [listing.items[row].label for row in rows]
        arrays[split + LABEL_SUFFIX] = np.array(labels, dtype=np.int64)
        arrays[split + THUMBNAIL_SUFFIX] = thumbnails[rows]
    with path.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def _grey(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """`[N, S, S, 3]` to `[N, S, S]`, by the luma of ITU-R 601 as Pillow has it."""
    weighted = images.astype(np.uint32) @ np.array([19595, 38470, 7471], dtype=np.uint32)
    return ((weighted + 0x8000) >> 16).astype(np.uint8)
